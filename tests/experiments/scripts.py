"""For tests of the command lines: a process's surroundings, and a tiny archive."""

import gzip
import os
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"

# What one script has compiled, the next one reads, however quick it was: else each test would
# compile the same small models again. Of this process alone, as files are written in place.
_COMPILED = tempfile.TemporaryDirectory()
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": _COMPILED.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def environment(*first, **more):
    path = os.pathsep.join([*map(str, first), str(ROOT)])
    return {**os.environ, **CACHE, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **more}


def write_archive(path, *, train=96, test=20):
    """Write an archive laid out as EMNIST's, of random images."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for split, count in (("train", train), ("test", test)):
            images = struct.pack(">4i", 2051, count, 28, 28) + rng.bytes(count * 784)
            labels = struct.pack(">2i", 2049, count) + bytes(np.arange(count, dtype=np.uint8) % 47)
            for kind, raw in (("images-idx3", images), ("labels-idx1", labels)):
                member = f"gzip/emnist-balanced-{split}-{kind}-ubyte.gz"
                archive.writestr(member, gzip.compress(raw))
