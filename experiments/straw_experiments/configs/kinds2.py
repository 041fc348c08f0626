"""The compact STRAW with two other kinds of updates, on a tenth of the images.

Command  straw-jax reproduce --only kinds2
Device   cpu (AMD EPYC, 2 cores)
Time     44 min 51 s of training, all runs, 2 at a time, on a busy machine
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         compact_shared 85.69 ± 0.30 / 45.86 ± 0.69
         compact_gain 85.64 ± 0.26 / 45.07 ± 0.37
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "kinds2": Published(
        "run",
        "--preset compact --fraction 0.1 --models compact_shared compact_gain",
        seeds=3,
    )
}
