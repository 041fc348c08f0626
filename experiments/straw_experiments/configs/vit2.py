"""A small vision transformer as executor, on a tenth of the images.

Command  straw-jax reproduce --only vit2
Device   cpu (AMD EPYC, 1 cores)
Time     48 min 59 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         standalone 73.09 / 31.29
         wide 77.21 / 35.79
         straw 79.41 / 38.98
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "vit2": Published(
        "run",
        "--fraction 0.1 --executor vit --models standalone wide straw",
        seeds=3,
    )
}
