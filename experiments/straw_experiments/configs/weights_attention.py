"""Weight prediction: attention pooling, 50 unknowns.

Command  straw-jax reproduce --only weights_attention
Device   cpu (AMD EPYC, 2 cores)
Time     16 min 48 s of training, all runs, 2 at a time
Result   variance explained, %, 1 seed:
         attention_4-10-1_67 96.50
         attention_4-10-1_100 97.31
         attention_4-10-1_150 97.75
"""

from straw_experiments.configs.published import Published

STUDIES = {
    "weights_attention": Published(
        "weight-prediction",
        "--networks 4-10-1 --predictors attention",
    )
}
