"""The article's STRAW with the TRM encoder, on a tenth of the images.

Command  straw-jax reproduce --only trm2
Device   cpu (AMD EPYC, 1 cores)
Time     47 min 38 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 3 seeds:
         straw 71.03 ± 1.68 / 35.41 ± 1.55
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "trm2": Published(
        "run",
        "--fraction 0.1 --encoder trm --models straw",
        seeds=3,
    )
}
