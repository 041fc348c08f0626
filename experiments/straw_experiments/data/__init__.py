"""Data sets of small images in memory, and the transformed test sets.

Nothing here needs JAX; TFDS, matplotlib and Pillow are imported only where data need them.
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from straw_experiments import require_extra
from straw_experiments.data import emnist, emnist_archive, glyphs, own, tfds_sets
from straw_experiments.data.cache import Arrays
from straw_experiments.data.dataset import Dataset
from straw_experiments.data.reading import expand
from straw_experiments.data.variants import variants

__all__ = [
    "Dataset",
    "check",
    "data_folder",
    "load",
    "load_mnist",
    "normalise",
    "strided",
    "variants",
]

require_extra()

_MEAN, _DEVIATION = 0.1307, 0.3081  # Of MNIST's pixels, scaled to [0, 1].


def load(
    name: str | os.PathLike[str] = "auto",
    *,
    fraction: float = 1.0,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a data set.

    Data of your own are given by their path, in one of three forms:

    - a folder that holds folders `train` and `test`, each with one folder per class of PNG or JPEG
      images; or one folder per class alone: then the first, sixth, eleventh, ... image of each
      class, sorted by name, is for testing. The classes are the sorted names of their folders. The
      images of a split come in a fixed order that mixes the classes.
    - an `.npz` file with the arrays `train_images`, `train_labels`, `test_images` and
      `test_labels`, or the same as `x_train`, `y_train`, `x_test` and `y_test`; or with `images`
      and `labels`, where of each class the first, sixth, eleventh, ... image is for testing. Images
      are uint8 `[n, height, width]` or `[n, height, width, channels]`; labels are integers. An
      array of texts `class_names` names the labels.
    - a folder with the four idx files of MNIST, Fashion-MNIST or one of EMNIST's sets, plain or
      `.gz`. Files named `emnist-...` hold each image transposed; they come upright.

    All images must have one height, one width, and 1 channel or 3; labels are 0 to k - 1. The name
    of the data set then holds the form, the number of classes, how a test set was split off, and a
    sha256 of all its arrays.

    Args:
        name: "auto" (EMNIST balanced; glyphs, with a warning, where that cannot be had), "emnist",
            "glyphs"; the TFDS name of a set of 28 x 28 or 32 x 32 images, grey or in colour, that
            lies in `data_dir`; or a path. A `pathlib.Path`, an absolute path, one that begins with
            a dot or `~`, ends with a slash or in `.npz` is always a path. Any other name is a path
            if `data_dir` has no folder of this name with data, and the path exists.
        fraction: Of the training images, above 0 and up to 1, evenly strided in the set's own
            order: 0.1 takes every tenth. The test set is always whole.
        data_dir: Where data sets lie and are kept; None for TFDS's folder (`TFDS_DATA_DIR`, or else
            `~/tensorflow_datasets`). Its folder `straw_jax` keeps what is slow to make, and the
            sha256 of each named set as it was read first.
        archive: A file laid out as NIST's `gzip.zip`, used for EMNIST in place of any other.

    Returns:
        The data set, under its true name: images uint8 `[n, height, width, channels]`, labels int32
        `[n]`.

    Raises:
        ValueError: An argument is wrong, or the data are missing, damaged, not as said here, or
            under a name of which other data were read first.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from straw_experiments import data
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name, "noise.npz")
        >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 12), np.uint8)
        >>> np.savez(file, images=images, labels=np.arange(10) % 2)
        >>> noise = data.load(file)
        >>> noise.name.partition(", sha256")[0]
        'noise (npz file, 2 classes, every 5th image of a class for testing'
        >>> noise.train_images.shape, noise.test_images.shape
        ((8, 8, 12, 1), (2, 8, 12, 1))
        >>> folder.cleanup()
    """
    _check_fraction(fraction)
    folder = data_folder(data_dir)
    if name != "auto" or archive is not None:
        return _find(name, fraction, folder, archive)()
    return _or_glyphs("emnist", "the article's", fraction, folder)


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load MNIST, or glyphs, with a warning, where that cannot be had.

    Args:
        data_dir: As for `load`.

    Raises:
        ValueError: The data are damaged, or others than were read first.
    """
    return _or_glyphs("mnist", "those of MNIST", 1.0, data_folder(data_dir))


def _or_glyphs(name: str, compared: str, fraction: float, folder: Path) -> Dataset:
    try:
        read = _find(name, fraction, folder, None)
    except ValueError as error:
        warnings.warn(
            f"GLYPHS INSTEAD OF {name.upper()}: the images are drawn from fonts, and no result can"
            f" be compared with {compared}. {error}",
            stacklevel=3,
        )
        read = _find("glyphs", fraction, folder, None)
    return read()


def check(
    name: str | os.PathLike[str] = "auto",
    *,
    fraction: float = 1.0,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
) -> None:
    """Check in a second or two that `load` will find its data, without reading all images.

    Args:
        name: As for `load`.
        fraction: As for `load`.
        data_dir: As for `load`.
        archive: As for `load`.

    Returns:
        None.

    Raises:
        ValueError: `load` would raise it for these arguments. An image that is damaged, or that
            differs from the others, may be noticed by `load` alone.

    Example:
        >>> from straw_experiments import data
        >>> data.check("glyphs", fraction=0.1)
        >>> data.check("glyphs", fraction=2)
        Traceback (most recent call last):
        ...
        ValueError: fraction: expected above 0 and at most 1, got 2
    """
    _check_fraction(fraction)
    if name == "auto" and archive is None:
        name = "glyphs"  # What "auto" falls back on is always there.
    _find(name, fraction, data_folder(data_dir), archive)


def normalise(images: np.ndarray) -> np.ndarray:
    """Scale images by the mean and standard deviation of MNIST, as the article does.

    The training step and the tests of `image_classification` call it on every batch, whatever the
    data set and each of its channels: data of your own come as uint8, from 0 to 255.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of the same shape, `(images / 255 - 0.1307) / 0.3081`: from -0.42 to 2.82.

    Raises:
        AttributeError: `images` is no array.

    Example:
        >>> import numpy as np
        >>> from straw_experiments import data
        >>> data.normalise(np.array([0, 255], np.uint8)).round(2)
        array([-0.42,  2.82], dtype=float32)
    """
    scaled = images.astype(np.float32) / np.float32(255)
    return (scaled - np.float32(_MEAN)) / np.float32(_DEVIATION)


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder that the argument `data_dir` of `load` means."""
    return expand(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def strided(count: int, fraction: float) -> np.ndarray:
    """Return the positions of a fraction of `count` images, evenly spread.

    Args:
        count: Of images, at least 1.
        fraction: Above 0, at most 1.

    Returns:
        int64 `[ceil(count * fraction)]`, `floor(i / fraction)` for i = 0, 1, 2, ...: those of
        `[::k]` where fraction is 1 / k.

    Raises:
        ValueError: `fraction` is out of range.

    Example:
        >>> from straw_experiments import data
        >>> data.strided(10, 0.4)
        array([0, 2, 5, 7])
    """
    _check_fraction(fraction)
    slack = 1e-9  # 1 / k is no exact binary number: its multiples fall a hair off the integers.
    chosen = max(1, math.ceil(count * fraction - slack))
    return np.floor(np.arange(chosen) / fraction + slack).astype(np.int64)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected above 0 and at most 1, got {fraction}")


def _find(
    name: str | os.PathLike[str],
    fraction: float,
    data_dir: Path,
    archive: str | os.PathLike[str] | None,
) -> Callable[[], Dataset]:
    """Find a data set, quickly, and return what does the rest of the work of `load`."""
    if archive is not None and name not in ("auto", "emnist"):
        raise ValueError(
            f"archive: expected the data set to be emnist, got {str(name)!r}. "
            "Leave one of --archive and --dataset out."
        )
    if name == "glyphs":
        return lambda: _draw_glyphs(fraction, data_dir)
    if name in ("auto", "emnist"):
        read_emnist = emnist.find(data_dir, None if archive is None else expand(archive))
        return lambda: _subset(_dataset(*read_emnist(), emnist_archive.CLASS_NAMES), fraction)
    if (path := _own_path(name, data_dir)) is not None:
        read_own = own.find(path)
        return lambda: _subset(read_own(), fraction)
    class_names, read = tfds_sets.find(str(name), data_dir)
    return lambda: _subset(_dataset(str(name), read(), class_names), fraction)


def _own_path(name: str | os.PathLike[str], data_dir: Path) -> Path | None:
    """Return the path that `name` is, or None if it names a set in `data_dir`; see `load`."""
    path = expand(name)
    if not isinstance(name, str) or path.is_absolute() or path.suffix == ".npz":
        return path
    if name.startswith((".", "~")) or name.endswith(("/", os.sep)):
        return path
    if not os.path.exists(path) or tfds_sets.is_in(name, data_dir):
        return None
    return None if path.resolve() == data_dir.resolve() else path


def _dataset(name: str, arrays: Arrays, class_names: tuple[str, ...]) -> Dataset:
    return Dataset(name, **arrays, class_names=class_names)


def _subset(dataset: Dataset, fraction: float) -> Dataset:
    """Take the strided subset of the training images, and the whole test set."""
    chosen = strided(len(dataset.train_labels), fraction)
    return dataset._replace(
        train_images=dataset.train_images[chosen], train_labels=dataset.train_labels[chosen]
    )


def _draw_glyphs(fraction: float, data_dir: Path) -> Dataset:
    """Draw the strided subset of the training images, and the whole test set."""
    train = glyphs.load("train", strided(glyphs.COUNTS["train"], fraction), data_dir)
    test = glyphs.load("test", strided(glyphs.COUNTS["test"], 1.0), data_dir)
    return Dataset("glyphs", *train, *test, glyphs.CLASS_NAMES)
