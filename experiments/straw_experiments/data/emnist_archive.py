"""The files of EMNIST balanced as NIST's archive holds them: layout, check and reading."""

import contextlib
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from straw_experiments.data import idx

CLASS_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
SPLITS = ("train", "test")
VERSION = "1.0.0"  # Of the data that TFDS prepares from the archive.
WAYS_OUT = (
    "Give the archive with --archive PATH, or put gzip.zip into the --data-dir, or use "
    "--dataset glyphs, which needs no download."
)

# What a missing file, no zip, a missing or damaged member, or a wrong header raises.
_DAMAGE = (OSError, zipfile.BadZipFile, KeyError, EOFError, zlib.error, ValueError)


def check_archive(archive: Path) -> None:
    """Check an archive's layout, headers and check sums without unpacking it.

    Raises:
        ValueError: The archive is missing, damaged or of another layout.
    """
    with _errors_naming(archive), zipfile.ZipFile(archive) as opened:
        for split in SPLITS:
            for kind in ("images", "labels"):
                with opened.open(_member(split, kind)) as member:
                    while member.read(1 << 20):
                        pass  # Reading to the end makes zipfile compare the check sum.
            with _open(opened, split, "images") as file:
                images = idx.read_shape(file, idx.IMAGES, _member(split, "images"))
            with _open(opened, split, "labels") as file:
                labels = idx.read_shape(file, idx.LABELS, _member(split, "labels"))
            _check_shapes(split, images, labels)


def read_split(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of an archive, in the archive's order.

    Args:
        archive: A file with the layout of NIST's `gzip.zip`.
        split: "train" or "test".

    Returns:
        Upright images, uint8 `[n, 28, 28, 1]`, and labels, uint8 `[n]`, 0 to 46.

    Raises:
        ValueError: The archive is damaged, or its contents do not fit together.
    """
    with _errors_naming(archive), zipfile.ZipFile(archive) as opened:
        with _open(opened, split, "images") as file:
            images = idx.read(file, idx.IMAGES, _member(split, "images"))
        with _open(opened, split, "labels") as file:
            labels = idx.read(file, idx.LABELS, _member(split, "labels"))
        _check_shapes(split, images.shape, labels.shape)
        if labels.max(initial=0) >= len(CLASS_NAMES):
            raise ValueError(
                f"expected labels 0 to {len(CLASS_NAMES) - 1} in the {split} split, "
                f"got {labels.max()}. Is it the balanced split?"
            )
    return images.swapaxes(1, 2)[..., None], labels  # The archive holds each image transposed.


@contextlib.contextmanager
def _errors_naming(archive: Path) -> Iterator[None]:
    """Turn whatever a bad archive raises into a ValueError that names it and the way out."""
    try:
        yield
    except _DAMAGE as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(
            f"EMNIST archive {archive}: expected a whole file laid out as NIST's gzip.zip, "
            f"got: {reason}. {WAYS_OUT}"
        ) from error


def _member(split: str, kind: str) -> str:
    """Name an idx file inside the archive."""
    axes = {"images": 3, "labels": 1}[kind]
    return f"gzip/emnist-balanced-{split}-{kind}-idx{axes}-ubyte.gz"


@contextlib.contextmanager
def _open(archive: zipfile.ZipFile, split: str, kind: str) -> Iterator[gzip.GzipFile]:
    with archive.open(_member(split, kind)) as member, gzip.GzipFile(fileobj=member) as file:
        yield file


def _check_shapes(split: str, images: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Raise ValueError unless there is one label for each 28 x 28 image, and one at least."""
    if images != (*labels, 28, 28) or labels == (0,):
        raise ValueError(
            f"expected {split} images [n, 28, 28] and labels [n], "
            f"got {list(images)} and {list(labels)}"
        )
