"""The article's third set with trained base weights, and controls of that size.

Command  straw-jax reproduce --only set3_trained
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "set3_trained": Published(
        "run",
        "--experiment 20pct_rank32 --base trained --models wide_dense wide_compute straw",
        seeds=3,
        estimate="2 min on one H100; 40 min on 2 CPU cores",
    )
}
