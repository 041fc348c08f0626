"""Data sets of small images in memory, and the transformed test sets.

Nothing here needs JAX; TFDS and matplotlib are imported only where a data set needs them.
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from straw_experiments.data import emnist, emnist_archive, glyphs, tfds_sets
from straw_experiments.data.cache import Arrays
from straw_experiments.data.variants import variants

__all__ = ["Dataset", "check", "data_folder", "load", "normalise", "variants"]


class Dataset(NamedTuple):
    """A data set in memory.

    Images are uint8 [n, height, width, channels], and characters upright, bright on black, in one
    channel; labels are int32 [n]. `name` says truly what the images are, and belongs beside every
    result.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]


def load(
    name: str = "auto",
    *,
    fraction: float = 1.0,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        name: "auto" (EMNIST balanced; glyphs, with a warning, where that cannot be had), "emnist",
            "glyphs", or the TFDS name of a set of 28 x 28 or 32 x 32 images, grey or in colour,
            that lies in `data_dir`.
        fraction: of the training images, above 0 and up to 1, evenly strided in the set's own
            order: 0.1 takes every tenth. The test set is always whole.
        data_dir: where data sets lie and are kept; None: TFDS's folder (`TFDS_DATA_DIR`, or else
            `~/tensorflow_datasets`).
        archive: a file laid out as NIST's `gzip.zip`, to be used for EMNIST in place of any other.

    Returns:
        The data set, under its true name.

    Raises:
        ValueError: if an argument is wrong, or the data are missing or damaged.
    """
    _check_fraction(fraction)
    folder = data_folder(data_dir)
    if name != "auto" or archive is not None:
        return _find(name, fraction, folder, archive)()
    try:
        read = _find("emnist", fraction, folder, None)
    except ValueError as error:
        warnings.warn(
            f"GLYPHS INSTEAD OF EMNIST: the images are drawn from fonts, and no result can be "
            f"compared with the article's. {error}",
            stacklevel=2,
        )
        read = _find("glyphs", fraction, folder, None)
    return read()


def check(
    name: str = "auto",
    *,
    fraction: float = 1.0,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> None:
    """Check in a second or two what `load` would find, without reading or preparing it.

    Args:
        name: as for `load`.
        fraction: as for `load`.
        data_dir: as for `load`.
        archive: as for `load`.

    Raises:
        ValueError: if `load` would raise it for these arguments.
    """
    _check_fraction(fraction)
    if name == "auto" and archive is None:
        name = "glyphs"  # What "auto" falls back on is always there.
    _find(name, fraction, data_folder(data_dir), archive)


def normalise(images: np.ndarray) -> np.ndarray:
    """Scale images to the mean and standard deviation of MNIST, as the article does.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of the same shape, `(x / 255 - 0.1307) / 0.3081`.
    """
    scaled = images.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.1307)) / np.float32(0.3081)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected above 0 and at most 1, got {fraction}")


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder that `data_dir` of `load` means."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _find(
    name: str, fraction: float, data_dir: Path, archive: str | os.PathLike[str] | None
) -> Callable[[], Dataset]:
    """Find a data set, quickly, and return what does the rest of the work of `load`."""
    if archive is not None and name not in ("auto", "emnist"):
        raise ValueError(
            f"archive: expected the data set to be emnist, got {name!r}. "
            "Leave one of --archive and --dataset out."
        )
    if name == "glyphs":
        return lambda: _draw_glyphs(fraction, data_dir)
    if name in ("auto", "emnist"):
        read_emnist = emnist.find(data_dir, None if archive is None else Path(archive).expanduser())
        return lambda: _subset(*read_emnist(), emnist_archive.CLASS_NAMES, fraction)
    class_names, read = tfds_sets.find(name, data_dir)
    return lambda: _subset(name, read(), class_names, fraction)


def _subset(name: str, arrays: Arrays, class_names: tuple[str, ...], fraction: float) -> Dataset:
    """Take the strided subset of the training images, and the whole test set."""
    chosen = strided(len(arrays["train_labels"]), fraction)
    train = arrays["train_images"][chosen], arrays["train_labels"][chosen]
    return Dataset(name, *train, arrays["test_images"], arrays["test_labels"], class_names)


def _draw_glyphs(fraction: float, data_dir: Path) -> Dataset:
    """Draw the strided subset of the training images, and the whole test set."""
    train = glyphs.load("train", strided(glyphs.COUNTS["train"], fraction), data_dir)
    test = glyphs.load("test", strided(glyphs.COUNTS["test"], 1.0), data_dir)
    return Dataset("glyphs", *train, *test, glyphs.CLASS_NAMES)


def strided(count: int, fraction: float) -> np.ndarray:
    """Return the positions floor(i / fraction) below `count`: `[::k]` where fraction is 1 / k.

    Args:
        count: of images, at least 1.
        fraction: above 0, at most 1.

    Returns:
        int64 [ceil(count * fraction)].
    """
    slack = 1e-9  # 1 / k is no exact binary number: its multiples fall a hair off the integers.
    chosen = max(1, math.ceil(count * fraction - slack))
    return np.floor(np.arange(chosen) / fraction + slack).astype(np.int64)
