"""The article's third set: ResNet-34.

Command  straw-jax reproduce --only set3_resnet34
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set3_resnet34": Published(
        "run",
        "--experiment 20pct_rank32 --models resnet34",
        estimate="1 min on one H100; 30 min on 2 CPU cores",
    )
}
