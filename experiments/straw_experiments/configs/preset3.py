"""The preset "compact" on a fifth of the images.

Command  straw-jax reproduce --only preset3
Device   cpu (AMD EPYC, 2 cores)
Time     25 min 04 s of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         compact_static 87.12 ± 0.14 / 47.76 ± 0.46
         compact 87.32 ± 0.06 / 48.83 ± 0.60
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "preset3": Published(
        "run",
        "--preset compact --fraction 0.2",
        seeds=3,
    )
}
