"""The files of EMNIST balanced as NIST's archive holds them: layout, check and reading."""

import contextlib
import gzip
import hashlib
import math
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np

from straw_experiments.data import idx
from straw_experiments.data.cache import Arrays
from straw_experiments.data.reading import DAMAGE, check_memory, open_file, reason

CLASS_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
SPLITS = ("train", "test")
VERSION = "1.0.0"  # Of the data that TFDS prepares from the archive.
WAYS_OUT = (
    "Give the archive with --archive PATH, or put gzip.zip into the --data-dir, or use "
    "--dataset glyphs, which needs no download."
)

_KINDS = {"images": idx.IMAGES, "labels": idx.LABELS}


def open_archive(archive: Path) -> BufferedReader:
    """Open an archive; whoever hashes and reads what this returns gets one and the same file.

    Raises:
        ValueError: It is missing, or no file.
    """
    with _errors_naming(archive):
        return open_file(archive)


def check_archive(archive: Path) -> None:
    """Check an archive's layout, headers and check sums without unpacking it.

    Raises:
        ValueError: The archive is missing, damaged or of another layout.
    """
    with _errors_naming(archive), open_file(archive) as file, zipfile.ZipFile(file) as members:
        for split in SPLITS:
            _check_headers(members, split)
            for kind in _KINDS:
                with members.open(_member(split, kind)) as member:
                    while member.read(1 << 20):
                        pass  # Reading to the end makes zipfile compare the check sum.


def sha256(file: BufferedReader) -> str:
    """Return the sha256 of a whole open archive, as hexadecimal digits."""
    with _errors_naming(file.name):
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(file: BufferedReader, digest: str) -> Arrays:
    """Read all of an open archive, in the archive's order.

    Args:
        file: With the layout of NIST's `gzip.zip`.
        digest: Its sha256, compared after reading: what was read is what was hashed.

    Returns:
        By name "{train,test}_images", upright, uint8 `[n, 28, 28, 1]`, and "{train,test}_labels",
        int32 `[n]`, 0 to 46.

    Raises:
        ValueError: The archive is damaged, its contents do not fit together, or its sha256 is
            another.
    """
    arrays = {}
    with _errors_naming(file.name), zipfile.ZipFile(file) as members:
        for split in SPLITS:
            _check_headers(members, split)
            images, labels = (_read(members, split, kind) for kind in _KINDS)
            if labels.max() >= len(CLASS_NAMES):
                raise ValueError(
                    f"expected labels 0 to {len(CLASS_NAMES) - 1} in the {split} split, "
                    f"got {labels.max()}. Is it the balanced split?"
                )
            arrays[f"{split}_images"] = images.swapaxes(1, 2)[..., None]  # Stored transposed.
            arrays[f"{split}_labels"] = labels.astype(np.int32)
    with _errors_naming(file.name):
        if (got := sha256(file)) != digest:
            raise ValueError(f"sha256 {got} after reading, not {digest}: it was written meanwhile")
    return arrays


@contextlib.contextmanager
def _errors_naming(archive: Path | str) -> Iterator[None]:
    """Turn whatever a bad archive raises into a ValueError that names it and the way out."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"EMNIST archive {archive}: expected a whole file laid out as NIST's gzip.zip, "
            f"got: {reason(error)}. {WAYS_OUT}"
        ) from error


def _member(split: str, kind: str) -> str:
    """Name an idx file inside the archive."""
    axes = _KINDS[kind] & 0xFF
    return f"gzip/emnist-balanced-{split}-{kind}-idx{axes}-ubyte.gz"


@contextlib.contextmanager
def _open(members: zipfile.ZipFile, split: str, kind: str) -> Iterator[gzip.GzipFile]:
    with members.open(_member(split, kind)) as member, gzip.GzipFile(fileobj=member) as file:
        yield file


def _read(members: zipfile.ZipFile, split: str, kind: str) -> np.ndarray:
    with _open(members, split, kind) as file:
        return idx.read(file, _KINDS[kind], _member(split, kind))


def _check_headers(members: zipfile.ZipFile, split: str) -> None:
    """Check that there is one label for each 28 x 28 image, and one at least, in due space."""
    shapes = []
    for kind, magic in _KINDS.items():
        name = _member(split, kind)
        with _open(members, split, kind) as file:
            shape = idx.read_shape(file, magic, name)
        check_memory(name, math.prod(shape))
        size, most = members.getinfo(name).file_size, math.ceil(1.01 * math.prod(shape)) + 4096
        if size > most:  # gzip adds less, even to noise.
            raise ValueError(f"{name}: expected at most {most} bytes, got {size}")
        shapes.append(shape)
    images, labels = shapes
    if images != (*labels, 28, 28) or labels == (0,):
        raise ValueError(
            f"expected {split} images [n, 28, 28] and labels [n], "
            f"got {list(images)} and {list(labels)}"
        )
