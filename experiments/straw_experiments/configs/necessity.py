"""Necessity: which kind of weights, written for a context, helps where; longer training, two sizes.

Command  straw-jax reproduce --only necessity necessity_long necessity_large

necessity
Device   cpu (AMD EPYC, 2 cores)
Time     29 min 16 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split), Penn Treebank
Result   the best of all methods on each task, 3 seeds:
         few_shot: delta_gain 79.9 ± 0.6 %
         labels: delta_gain 97.0 ± 0.3 %
         sine: delta_gain 0.032 ± 0.007
         rotation: delta_gain 92.4 ± 0.4 %
         signs: mixture 95.3 ± 0.1 %
         cipher: delta 23.2 ± 0.3 %

necessity_long
Device   cpu (AMD EPYC, 1 cores)
Time     7 min 34 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   the best of all methods on each task, 1 seed:
         few_shot: whole 55.4 %
         labels: gain 39.7 %

necessity_large
Device   cpu (AMD EPYC, 1 cores)
Time     13 min 03 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   the best of all methods on each task, 1 seed:
         few_shot: delta_gain 80.8 %
         labels: delta 97.5 %
         sine: delta_gain 0.026
         rotation: delta_gain 95.3 %
         signs: static_wide 95.8 %
"""

from straw_experiments.configs.published import Published

_DATA = "--dataset emnist"

STUDIES = {
    "necessity": Published("necessity", _DATA, seeds=3),
    "necessity_long": Published(
        "necessity",
        "--tasks few_shot labels --methods pooled bias gain low_rank shared_low_rank mixture whole"
        f" weight_rnn --steps 15000 --rates 0.001 {_DATA}",
    ),
    "necessity_large": Published(
        "necessity",
        "--size large --tasks few_shot labels sine rotation signs --methods static static_wide gain"
        f" low_rank pose delta delta_gain attention --rates 0.001 {_DATA}",
    ),
}
