"""The compact STRAW with two other kinds of updates, on a tenth of the images.

Command  straw-jax reproduce --only kinds2
Device   not run
Time     not run
Data     not run
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "kinds2": Published(
        "run",
        "--preset compact --fraction 0.1 --models compact_shared compact_gain",
        seeds=3,
    )
}
