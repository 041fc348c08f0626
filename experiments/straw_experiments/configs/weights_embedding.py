"""Weight prediction: length of the embedding, 50 unknowns, 3 pairs for each.

Command  straw-jax reproduce --only weights_embedding64 weights_embedding256 weights_embedding512

weights_embedding64
Device   cpu (AMD EPYC, 2 cores)
Time     5 min 49 s of training, all runs, 1 at a time
Result   variance explained, %, 1 seed:
         mean_4-10-1_150 97.21

weights_embedding256
Device   cpu (AMD EPYC, 2 cores)
Time     7 min 20 s of training, all runs, 1 at a time
Result   variance explained, %, 1 seed:
         mean_4-10-1_150 97.33

weights_embedding512
Device   cpu (AMD EPYC, 2 cores)
Time     7 min 47 s of training, all runs, 1 at a time
Result   variance explained, %, 1 seed:
         mean_4-10-1_150 97.23
"""

from straw_experiments.configs.published import Published

STUDIES = {
    f"weights_embedding{size}": Published(
        "weight-prediction", f"--networks 4-10-1 --pairs 3 --embedding {size}"
    )
    for size in (64, 256, 512)
}
