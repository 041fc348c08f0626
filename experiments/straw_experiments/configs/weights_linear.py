"""Weight prediction: linear networks, for which least squares is exact.

Command  straw-jax reproduce --only weights_linear
Device   cpu (AMD EPYC, 2 cores)
Time     3 min 00 s of training, all runs, 1 at a time
Result   variance explained, %, 1 seed:
         mean_5-1_3 53.30
         mean_5-1_5 78.05
         mean_5-1_10 96.38
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "weights_linear": Published(
        "weight-prediction",
        "--networks 5-1 --pairs 0.6 1 2",
    )
}
