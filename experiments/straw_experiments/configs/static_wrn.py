"""A wide residual network whose 3x3 kernels one generator writes, a tenth of the images.

Command  straw-jax reproduce --only static_wrn
Device   cpu (AMD EPYC, 2 cores)
Time     12 min 10 s of training, all runs, 2 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         wrn_16_1 83.14 / 43.34
         wrn_16_1_narrow 48.85 / 24.19
         wrn_16_1_generated 58.55 / 30.52
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "static_wrn": Published(
        "run",
        "--fraction 0.1 --epochs 10 --learning-rate 0.002 --schedule cosine --models "
        "wrn_16_1 wrn_16_1_narrow wrn_16_1_generated",
    )
}
