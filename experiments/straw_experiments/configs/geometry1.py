"""Rotated weights for rotated images, all images, 3 epochs.

Command  straw-jax reproduce --only geometry1
Device   cpu (AMD EPYC, 1 cores)
Time     43 min 22 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         compact_static 88.86 ± 0.06 / 51.40 ± 0.31
         geometric 88.80 ± 0.10 / 85.29 ± 0.07
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "geometry1": Published(
        "run",
        "--preset geometric --fraction 1 --epochs 3 --models compact_static geometric",
        seeds=3,
        analysed=True,
    )
}
