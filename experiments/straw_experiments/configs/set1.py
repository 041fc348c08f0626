"""The article's first set: all images, rank 16, 10 epochs; with static controls.

Command  straw-jax reproduce --only set1
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set1": Published(
        "run",
        "--experiment full_rank16 --models standalone wide_dense wide_compute straw",
        seeds=3,
        estimate="5 min on one H100; 9 h on 2 CPU cores",
    )
}
