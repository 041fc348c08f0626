"""Weight prediction, the post's first part: outputs from weights and inputs.

Command  straw-jax reproduce --only outputs
Device   cpu (AMD EPYC, 2 cores)
Time     4 min 01 s of training, all runs, 2 at a time
Result   loss, 1 seed:
         plain_2-5-1 0.00083
         concat_2-5-1 0.00071
         residual_2-5-1 0.00054
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "outputs": Published(
        "weight-prediction",
        "--predict outputs",
    )
}
