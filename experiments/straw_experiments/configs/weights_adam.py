"""Weight prediction: Adam in place of Muon, 50 unknowns, 3 pairs for each.

Command  straw-jax reproduce --only weights_adam
Device   cpu (AMD EPYC, 2 cores)
Time     4 min 55 s of training, all runs, 1 at a time
Result   variance explained, %, 1 seed:
         mean_4-10-1_150 91.67
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "weights_adam": Published(
        "weight-prediction",
        "--networks 4-10-1 --pairs 3 --optimizer adam --learning-rate 0.003",
    )
}
