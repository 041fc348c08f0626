"""The four idx files of MNIST and its kin in a folder, plain or compressed."""

import functools
import gzip
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from straw_experiments.data import idx
from straw_experiments.data.cache import Arrays
from straw_experiments.data.reading import open_file, reason
from straw_experiments.data.sources import Shape, Source

_T = TypeVar("_T")

SPLITS = ("train", "test")
_KINDS = {"images": idx.IMAGES, "labels": idx.LABELS}
_NAME = re.compile(r"(|.+-)(train|t10k|test)-(images-idx3|labels-idx1)-ubyte(\.gz)?")

Files = dict[tuple[str, str], Path]
"""Paths by split, "train" or "test", and kind, "images" or "labels"."""


def locate(folder: Path) -> dict[str, Files]:
    """Find idx files by their names.

    Args:
        folder: Perhaps holds files such as `train-images-idx3-ubyte.gz`, or
            `emnist-letters-test-labels-idx1-ubyte`. A plain file goes before a compressed one.

    Returns:
        Files by what stands before "train" or "test" in their names, such as "" or
        "emnist-letters-".
    """
    found: dict[str, Files] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if match := _NAME.fullmatch(name):
            prefix, split, kind, _ = match.groups()
            key = "train" if split == "train" else "test", kind.partition("-")[0]
            found.setdefault(prefix, {}).setdefault(key, folder / name)
    return found


def is_whole(files: Files) -> bool:
    """Return whether all four files are there."""
    return len(files) == len(SPLITS) * len(_KINDS)


def find(folder: Path) -> Source:
    """Read the labels, and the headers of the images.

    Args:
        folder: Holds the four files of one data set.

    Returns:
        The source. Images keep their order; those of files named `emnist-...`, which hold each
        image transposed, come upright.

    Raises:
        ValueError: A file is missing or damaged, there are several data sets, or images and labels
            do not fit together.
    """
    found = locate(folder)
    if len(found) > 1:
        raise ValueError(
            f"{folder}: expected the idx files of one data set, got those of "
            f"{', '.join(repr(prefix) for prefix in found)}. Put the four files of one into a "
            "folder of their own."
        )
    ((prefix, files),) = found.items()
    for split in SPLITS:
        for kind in _KINDS:
            if (split, kind) not in files:
                raise ValueError(
                    f"{folder}: expected {split} images and {split} labels in idx files, got no "
                    f"{split} {kind}. Add the file."
                )
    transposed = prefix.startswith("emnist-")
    shapes: dict[str, Shape] = {
        split: (count, *((width, height) if transposed else (height, width)), 1)
        for split, (count, height, width) in read_shapes(files).items()
    }
    return Source(
        path=folder,
        form="idx files",
        shapes=shapes,
        labels={split: read(files, split, "labels") for split in SPLITS},
        class_names=None,
        divided=False,
        read=functools.partial(read_images, files, transposed=transposed),
    )


def read_shapes(files: Files) -> dict[str, Shape]:
    """Read the headers of the four files.

    Returns:
        The shape of the images by split: `(n, height, width)`, n at least 1.

    Raises:
        ValueError: A header is wrong, or images and labels of a split are not equally many.
    """
    shapes = {}
    for split in SPLITS:
        images, labels = (_from(idx.read_shape, files[split, kind], kind) for kind in _KINDS)
        if images[:1] != labels or labels == (0,):
            raise ValueError(
                f"{files[split, 'images'].parent}: expected {split} images [n, height, width] and "
                f"labels [n], got {list(images)} and {list(labels)}."
            )
        shapes[split] = images
    return shapes


def read(files: Files, split: str, kind: str) -> np.ndarray:
    """Read one file whole: uint8, of the shape that its header gives.

    Raises:
        ValueError: It is damaged.
    """
    return _from(idx.read, files[split, kind], kind)


def read_images(files: Files, *, transposed: bool) -> Arrays:
    """Read the images of both splits.

    Args:
        files: All four.
        transposed: Whether the files hold each image transposed, as EMNIST's do.

    Returns:
        Upright images, uint8 `[n, height, width, 1]`, by split.

    Raises:
        ValueError: A file is damaged.
    """
    images = {split: read(files, split, "images")[..., None] for split in SPLITS}
    return {split: each.swapaxes(1, 2) if transposed else each for split, each in images.items()}


def _from(function: Callable[[idx.Readable, int, str], _T], path: Path, kind: str) -> _T:
    """Call a function of `idx` on a plain or compressed file; an error names the file."""
    try:
        with open_file(path) as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            return function(file, _KINDS[kind], str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole idx file, got: {reason(error)}. Fetch it again."
        ) from error
