"""The article's second set: ResNet-34.

Command  straw-jax reproduce --only set2_resnet34
Device   cpu (AMD EPYC, 2 cores)
Time     2 h 22 min of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 2 seeds:
         resnet34 80.16 ± 1.68 / 41.05 ± 2.11
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set2_resnet34": Published(
        "run",
        "--experiment 10pct_rank16 --models resnet34",
    )
}
