"""The article's third set: a fifth of the images, rank 32, 5 epochs; with static controls.

Command  straw-jax reproduce --only set3
Device   cpu (AMD EPYC, 2 cores)
Time     42 min 43 s of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         standalone 75.93 ± 0.91 / 34.98 ± 0.66
         straw 80.98 ± 0.72 / 39.99 ± 0.76
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set3": Published(
        "run",
        "--experiment 20pct_rank32 --models standalone wide_dense wide_compute straw",
        seeds=3,
        analysed=True,
    )
}
