"""The article's first set: ResNet-34.

Command  straw-jax reproduce --only set1_resnet34
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set1_resnet34": Published(
        "run",
        "--experiment full_rank16 --models resnet34",
        estimate="3 min on one H100; 5 h on 2 CPU cores",
    )
}
