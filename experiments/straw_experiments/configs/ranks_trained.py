"""STRAW by rank, with trained base weights, on a tenth of the images.

Command  straw-jax reproduce --only rank1_trained rank2_trained rank4_trained rank8_trained
         rank32_trained rank64_trained

rank1_trained
Device   cpu (AMD EPYC, 1 cores)
Time     2 min 26 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 70.94 / 31.45

rank2_trained
Device   cpu (AMD EPYC, 1 cores)
Time     2 min 19 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 73.70 / 33.63

rank4_trained
Device   cpu (AMD EPYC, 1 cores)
Time     2 min 37 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 76.21 / 36.26

rank8_trained
Device   cpu (AMD EPYC, 1 cores)
Time     3 min 09 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 78.01 / 39.16

rank32_trained
Device   cpu (AMD EPYC, 1 cores)
Time     6 min 19 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 80.73 / 41.80

rank64_trained
Device   cpu (AMD EPYC, 1 cores)
Time     9 min 58 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 81.38 / 41.47
"""

from straw_experiments.configs.published import Published

_FLAGS = "--fraction 0.1 --epochs 5 --models straw"

STUDIES = {
    f"rank{rank}_trained": Published("run", f"{_FLAGS} --rank {rank} --base trained")
    for rank in (1, 2, 4, 8, 32, 64)
}
