"""The HyperNetworks paper's network for MNIST: its own kernels, few, and generated ones.

Command  straw-jax reproduce --only static_mnist
Device   cpu (AMD EPYC, 2 cores)
Time     1 h 00 min of training, all runs, 2 at a time
Data     mnist
Result   test accuracy, %, standard / rotated images, 3 seeds:
         conv7 99.10 ± 0.03 / 74.64 ± 0.82
         conv7_narrow 99.02 ± 0.05 / 73.18 ± 0.29
         conv7_generated 98.93 ± 0.13 / 72.57 ± 0.88
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "static_mnist": Published(
        "run",
        "--dataset mnist --fraction 1 --epochs 10 --learning-rate 0.002 --schedule cosine "
        "--models conv7 conv7_narrow conv7_generated",
        seeds=3,
    )
}
