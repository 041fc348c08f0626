"""Rotated weights for rotated images: the preset "geometric" on a fifth of the images.

Command  straw-jax reproduce --only geometry3
Device   cpu (AMD EPYC, 1 cores)
Time     1 h 23 min of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         compact_static 87.12 ± 0.14 / 47.76 ± 0.46
         compact_augmented 84.72 ± 0.04 / 79.51 ± 0.24
         compact_fan 78.40 ± 0.25 / 72.84 ± 0.22
         compact_context 87.38 ± 0.12 / 48.94 ± 0.85
         geometric_stn 87.42 ± 0.13 / 49.87 ± 0.83
         geometric_refined 87.32 ± 0.11 / 82.65 ± 0.07
         geometric 86.95 ± 0.07 / 82.84 ± 0.21
         geometric_affine 86.87 ± 0.17 / 79.52 ± 0.42
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "geometry3": Published(
        "run",
        "--preset geometric --fraction 0.2",
        seeds=3,
        analysed=True,
    )
}
