"""Necessity: which kind of weights, written for a context, helps where; longer training, two sizes.

Command  straw-jax reproduce --only necessity necessity_long necessity_large

necessity
Result   not run yet

necessity_long
Result   not run yet

necessity_large
Result   not run yet
"""

from straw_experiments.configs.published import Published

_DATA = "--dataset emnist"

STUDIES = {
    "necessity": Published(
        "necessity", _DATA, seeds=3, estimate="about 100 minutes on a CPU with 2 cores"
    ),
    "necessity_long": Published(
        "necessity",
        "--tasks few_shot labels --methods pooled bias gain low_rank shared_low_rank mixture whole"
        f" weight_rnn --steps 15000 --rates 0.001 {_DATA}",
        estimate="about 10 minutes on a CPU with 2 cores",
    ),
    "necessity_large": Published(
        "necessity",
        "--size large --tasks labels rotation signs --methods static static_wide gain low_rank pose"
        f" delta delta_gain attention --rates 0.001 {_DATA}",
        estimate="about 20 minutes on a CPU with 2 cores",
    ),
}
