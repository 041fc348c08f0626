"""The preset "compact" on all images, 10 epochs: 90 % with at most a million parameters?

Command  straw-jax reproduce --only preset1
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "preset1": Published(
        "run",
        "--preset compact --fraction 1 --epochs 10",
        seeds=3,
        estimate="5 min on one H100; 5 h on 2 CPU cores",
    )
}
