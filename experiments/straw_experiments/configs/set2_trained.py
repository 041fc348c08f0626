"""The article's second set with trained base weights, and controls of that size.

Command  straw-jax reproduce --only set2_trained
Device   cpu (Intel Xeon Processor, 2 cores)
Time     24 min 53 s of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         straw 80.17 ± 0.27 / 40.15 ± 1.09
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set2_trained": Published(
        "run",
        "--experiment 10pct_rank16 --base trained --models wide_dense wide_compute straw",
        seeds=3,
        analysed=True,
    )
}
