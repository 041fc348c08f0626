"""Penn Treebank, read once: five cells of a million parameters, each at its best rate.

Command  straw-jax reproduce --only characters
Device   cpu (AMD EPYC, 2 cores)
Time     2 h 39 min of training, all runs, 2 at a time
Data     Penn Treebank
Result   bits a character, test, 3 seeds:
         lstm 1.6728 ± 0.0027
         ln_lstm 1.6198 ± 0.0015
         hyper 1.6586 ± 0.0018
         ln_hyper 1.6334 ± 0.0040
         lowrank 1.7147 ± 0.0098
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "characters": Published(
        "char-lm",
        "--epochs 1 --learning-rate 0.004 0.016 0.016 0.008 0.004",
        seeds=3,
    )
}
