"""The article's second set: the control with all layers widened to STRAW's parameters.

Command  straw-jax reproduce --only set2_wide
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set2_wide": Published(
        "run",
        "--experiment 10pct_rank16 --models wide",
    )
}
