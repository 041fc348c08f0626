"""Documents and needles: adapters of SmolLM2 that a text writes.

Command  straw-jax reproduce --only needles documents

needles
Device   cpu (AMD EPYC, 2 cores)
Time     33 min 40 s of training, all runs, 1 at a time
Data     sources of Python 3.11.7 and of installed packages
Result   nats of a digit, 1 seed:
         associations 0.0120
         static 2.3044

documents
Device   cpu (AMD EPYC, 2 cores)
Time     1 h 27 min of training, all runs, 1 at a time
Data     sources of Python 3.11.7 and of installed packages
Result   nats a token, 3 seeds:
         gradients 2.6669 ± 0.0035
         static 2.8509 ± 0.0053
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
        "--models gradients static --tests 64 --test-lengths 32 96 192",
        seeds=3,
    ),
}
