"""The article's second set: a tenth of the images, rank 16, 5 epochs; with static controls.

Command  straw-jax reproduce --only set2
Device   cpu (Intel Xeon Processor, 2 cores)
Time     1 h 24 min of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         standalone 67.18 ± 0.70 / 28.67 ± 0.46
         wide_dense 77.31 ± 0.26 / 34.29 ± 0.26
         wide_compute 71.96 ± 0.60 / 31.51 ± 0.23
         straw 72.60 ± 0.40 / 32.00 ± 0.35
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set2": Published(
        "run",
        "--experiment 10pct_rank16 --models standalone wide_dense wide_compute straw",
        seeds=3,
        analysed=True,
    )
}
