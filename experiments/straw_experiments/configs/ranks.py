"""STRAW by rank, without base weights, on a tenth of the images; rank 16 is set2's.

Command  straw-jax reproduce --only rank1 rank2 rank4 rank8 rank32 rank64

rank1
Device   cpu (AMD EPYC, 1 cores)
Time     1 min 44 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 64.36 / 27.32

rank2
Device   cpu (AMD EPYC, 1 cores)
Time     1 min 16 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 61.88 / 26.30

rank4
Device   cpu (AMD EPYC, 1 cores)
Time     6 min 48 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 67.52 / 28.91

rank8
Device   cpu (AMD EPYC, 1 cores)
Time     9 min 26 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 68.70 / 29.71

rank32
Device   cpu (AMD EPYC, 1 cores)
Time     17 min 53 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 75.59 / 35.76

rank64
Device   cpu (AMD EPYC, 1 cores)
Time     32 min 54 s of training, all runs, 1 at a time
Data     EMNIST (reconstructed balanced split)
Result   test accuracy, %, standard / rotated images, 1 seed:
         straw 79.19 / 38.33
"""

from straw_experiments.configs.published import Published

_FLAGS = "--fraction 0.1 --epochs 5 --models straw"

STUDIES = {
    f"rank{rank}": Published("run", f"{_FLAGS} --rank {rank}") for rank in (1, 2, 4, 8, 32, 64)
}
