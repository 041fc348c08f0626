"""Fields: the last layer of a SIREN written for each image; and other kinds of written weights.

Command  straw-jax reproduce --only fields fields_kinds

fields
Device   cpu (AMD EPYC, 2 cores)
Time     13 min 51 s of training, all runs, 1 at a time
Data     mnist
Result   PSNR, dB, MNIST / EMNIST (reconstructed balanced split), 3 seeds:
         last 31.55 ± 0.05 / 30.22 ± 0.02

fields_kinds
Result   not run yet
"""

from straw_experiments.configs.published import Published

_DATA = "--dataset mnist --held-out emnist"

STUDIES = {
    "fields": Published("fields", f"--models last --fitted 1 {_DATA}", seeds=3),
    "fields_kinds": Published(
        "fields",
        "--models last last_heads top biases ends lowrank lowrank_shared lowrank_tokens whole"
        f" --sizes 64-64 --steps 400 --pixels 98 --fitted 0 {_DATA}",
        estimate="about 15 minutes on a CPU with 2 cores",
    ),
}
