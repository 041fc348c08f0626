"""The preset "compact" on a tenth of the images.

Command  straw-jax reproduce --only preset2
Device   cpu (Intel Xeon Processor, 2 cores)
Time     39 min 57 s of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         compact_static 85.59 ± 0.14 / 45.03 ± 0.44
         compact_wide 86.02 ± 0.06 / 46.01 ± 0.67
         compact 85.75 ± 0.07 / 45.77 ± 0.78
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "preset2": Published(
        "run",
        "--preset compact --fraction 0.1",
        seeds=3,
        analysed=True,
    )
}
