"""What the forms of a user's own data have in common: checks, the split, the true name."""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from straw_experiments.data.cache import Arrays
from straw_experiments.data.dataset import Dataset
from straw_experiments.data.reading import check_memory

_EVERY = 5  # Of each class's images the first, the sixth, the eleventh, ... are for testing.
_SMALLEST = 8  # Pixels of height and width: the models halve an image three times.

Shape = tuple[int, ...]


class Source(NamedTuple):
    """Data that were found, with all that is known before the images are read.

    Attributes:
        path: Where they lie.
        form: "folder", "npz file" or "idx files".
        shapes: Of the images by split, "train" and "test": `(n, height, width, channels)`.
        labels: Integers `[n]` by split.
        class_names: The name of each label, or None: then a label is its own name.
        divided: Whether `held_out` made the splits.
        read: Returns the images, uint8, of the shapes in `shapes`, by split.
    """

    path: Path
    form: str
    shapes: dict[str, Shape]
    labels: Arrays
    class_names: tuple[str, ...] | None
    divided: bool
    read: Callable[[], Arrays]


def held_out(labels: np.ndarray) -> np.ndarray:
    """Choose the test images of data that have no test set.

    Args:
        labels: Integers `[n]`, n at least 1, in the data's own order.

    Returns:
        bool `[n]`, true for the first, sixth, eleventh, ... image of each class.
    """
    order = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    position = np.empty(len(labels), np.int64)  # Of an image among those of its class.
    position[order] = np.concatenate([np.arange(count) for count in counts])
    return position % _EVERY == 0


def check(source: Source) -> None:
    """Check that the splits fit together, and fit into memory.

    Raises:
        ValueError: They do not.
    """
    _check_classes(source)
    train, test = (source.shapes[split][1:] for split in ("train", "test"))
    if train != test:
        raise ValueError(
            f"{source.path}: expected test images like the training images, {describe(train)}, got "
            f"{describe(test)}. Make all images alike."
        )
    if min(train[:2]) < _SMALLEST:
        raise ValueError(
            f"{source.path}: expected images of at least {_SMALLEST} x {_SMALLEST} pixels, got "
            f"{describe(train)}. Enlarge or pad them."
        )
    check_memory(source.path, sum(map(math.prod, source.shapes.values())))


def load(source: Source) -> Dataset:
    """Read the images of a source that `check` accepts.

    Returns:
        The data set. Its name holds the form, the number of classes and the first digits of a
        sha256 of shapes, images, labels and class names.

    Raises:
        ValueError: An image cannot be read, or the data are not those that `check` saw.
    """
    images = source.read()
    if any(images[split].shape != shape for split, shape in source.shapes.items()):
        raise ValueError(f"{source.path}: changed while it was read. Start again.")
    labels = {split: values.astype(np.int32) for split, values in source.labels.items()}
    names = source.class_names or tuple(map(str, range(int(labels["train"].max()) + 1)))
    parts = [source.form, f"{len(names)} classes"]
    if source.divided:
        parts.append(f"every {_EVERY}th image of a class for testing")
    arrays = images["train"], labels["train"], images["test"], labels["test"]
    parts.append(f"sha256 {digest(*arrays, names)[:12]}")
    name = Path(os.path.abspath(source.path)).name.removesuffix(".npz")
    return Dataset(f"{name} ({', '.join(parts)})", *arrays, names)


def describe(image: Shape) -> str:
    """Describe an image in words by its height, width and channels."""
    height, width, channels = image
    return f"{height} x {width} pixels (height x width), {'grey' if channels == 1 else 'RGB'}"


def _check_classes(source: Source) -> None:
    """Raise ValueError unless labels are 0 to k - 1, k above 1, each of a training image."""
    labels = np.unique(np.concatenate(list(source.labels.values())))
    if len(labels) < 2:
        raise ValueError(f"{source.path}: expected two classes or more, got one. Add another.")
    if labels[0] < 0:
        raise ValueError(
            f"{source.path}: expected labels from 0 up, got {labels[0]}. Number the classes 0, 1, "
            "2, ..."
        )
    names = source.class_names
    if names is not None and labels[-1] >= len(names):
        raise ValueError(
            f"{source.path}: expected labels 0 to {len(names) - 1}, one for each of the "
            f"{len(names)} class_names, got {labels[-1]}. Name every class."
        )
    count = len(names) if names is not None else int(labels[-1]) + 1
    trained = np.unique(source.labels["train"])
    if len(trained) < count:
        missing = next((i for i, label in enumerate(trained) if i != label), len(trained))
        label = f"label {missing}" + (f" ({names[missing]})" if names is not None else "")
        rule = f", beside every {_EVERY}th of a class for testing," if source.divided else ""
        raise ValueError(
            f"{source.path}: expected training images{rule} of each label from 0 to {count - 1}, "
            f"got none of {label}. Number the classes without gaps, and add images where there "
            "are too few."
        )


def digest(*parts: np.ndarray | tuple[str, ...]) -> str:
    """Return the sha256 of arrays of uint8 or int32 and their shapes, and of tuples of texts."""
    digested = hashlib.sha256()
    for part in parts:
        if isinstance(part, tuple):
            digested.update(repr(part).encode())
        else:
            digested.update(repr(part.shape).encode())
            little = part.astype(part.dtype.newbyteorder("<"), "C", copy=False)
            digested.update(little.reshape(-1).data)
    return digested.hexdigest()
