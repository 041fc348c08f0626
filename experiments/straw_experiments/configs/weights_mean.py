"""Weight prediction: the six cells of the post, with mean pooling.

Command  straw-jax reproduce --only weights_mean
Device   cpu (AMD EPYC, 2 cores)
Time     53 min 48 s of training, all runs, 2 at a time
Result   variance explained, %, 3 seeds:
         mean_2-5-1_20 98.68 ± 0.12
         mean_2-5-1_30 99.12 ± 0.05
         mean_2-5-1_45 99.27 ± 0.04
         mean_4-10-1_67 95.58 ± 0.03
         mean_4-10-1_100 96.56 ± 0.06
         mean_4-10-1_150 97.16 ± 0.05
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "weights_mean": Published(
        "weight-prediction",
        "--networks 2-5-1 4-10-1",
        seeds=3,
    )
}
