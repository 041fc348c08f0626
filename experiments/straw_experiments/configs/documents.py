"""Documents and needles: adapters of SmolLM2 that a text writes.

Command  straw-jax reproduce --only needles documents

needles
Result   not run yet

documents
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "needles": Published(
        "documents",
        "--task needles --models associations static --steps 300 --tests 64"
        " --test-lengths 64 128 256 512",
    ),
    "documents": Published(
        "documents",
        "--models associations static static_large --steps 120 --tests 64 --test-lengths 32 96 192",
    ),
}
