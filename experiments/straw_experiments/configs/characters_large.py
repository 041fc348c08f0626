"""Penn Treebank with cells of 1,000 units, in the batches and at the rate of "HyperNetworks".

Command  straw-jax reproduce --only characters_large
Result   not run yet
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "characters_large": Published(
        "char-lm",
        "--models lstm ln_lstm hyper ln_hyper --parameters 4250000 --epochs 20 --batch-size 128"
        " --length 100 --learning-rate 0.001",
        estimate="10 min on one H100; days on 2 CPU cores",
    )
}
