"""An .npz file of images and labels."""

import functools
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from straw_experiments.data.cache import Arrays
from straw_experiments.data.reading import DAMAGE, check_memory, open_file, reason
from straw_experiments.data.sources import Shape, Source, held_out

_NAMES = "class_names"
_FORMS = (  # Names of images and labels, for training and for the test, or for both.
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("images", "labels"),),
)
_HEADER_READERS = {  # By the version of the .npy format.
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Header(NamedTuple):
    """What is known of an array before it is read."""

    shape: Shape
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def find(file: Path) -> Source:
    """Read the labels, and the headers of the images.

    Args:
        file: With the arrays `train_images`, `train_labels`, `test_images`, `test_labels`, or with
            the same as `x_train`, `y_train`, `x_test`, `y_test`, or with `images` and `labels`, of
            which `held_out` chooses the test images. Images are uint8 `[n, height, width]` or
            `[n, height, width, channels]`, 1 channel or 3; labels are integers `[n]` or `[n, 1]`.
            `class_names`, if there, is an array of texts.

    Returns:
        The source. Images keep their order.

    Raises:
        ValueError: The file is damaged, or holds other arrays.
    """
    headers = _headers(file)
    pairs = next((form for form in _FORMS if {*sum(form, ())} <= {*headers}), None)
    if pairs is None:
        raise ValueError(
            f"{file}: expected the arrays train_images, train_labels, test_images and test_labels, "
            f"or images and labels, got {', '.join(headers) or 'none'}. Save them by these names "
            "with np.savez."
        )
    for images_name, labels_name in pairs:
        images, labels = headers[images_name], headers[labels_name]
        _check_images(f"{file}, {images_name}", images)
        _check_labels(f"{file}, {labels_name}", labels)
        if images.shape[0] != labels.shape[0]:
            raise ValueError(
                f"{file}: expected as many {images_name} as {labels_name}, got {images.shape[0]} "
                f"and {labels.shape[0]}. Save one label for each image."
            )
    if _NAMES in headers:
        _check_names(f"{file}, {_NAMES}", headers[_NAMES])
    used = [*sum(pairs, ()), *({_NAMES} & {*headers})]
    check_memory(file, sum(headers[name].size for name in used))
    read = _read(file, [name for name in used if name not in dict(pairs)])
    splits = {"train": pairs[0], "test": pairs[-1]}
    labels_of = {split: read[name].reshape(-1) for split, (_, name) in splits.items()}
    chosen: dict[str, slice | np.ndarray] = dict.fromkeys(splits, slice(None))
    if divided := len(pairs) == 1:
        held = held_out(labels_of["train"])
        chosen = {"train": ~held, "test": held}
        labels_of = {split: labels_of[split][chosen[split]] for split in splits}
    images_of = {split: name for split, (name, _) in splits.items()}
    return Source(
        path=file,
        form="npz file",
        shapes={
            split: (len(labels_of[split]), *headers[name].shape[1:], 1)[:4]
            for split, name in images_of.items()
        },
        labels=labels_of,
        class_names=tuple(map(str, read[_NAMES])) if _NAMES in read else None,
        divided=divided,
        read=functools.partial(_read_images, file, images_of, chosen, read),
    )


def _headers(file: Path) -> dict[str, _Header]:
    """Read the shapes and dtypes of all arrays."""
    headers = {}
    try:
        with open_file(file) as opened, zipfile.ZipFile(opened) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    read_header = _HEADER_READERS[np.lib.format.read_magic(member)]
                    shape, _, dtype = read_header(member)
                    header = _Header(shape, dtype)
                    # NumPy reads what the header promises; zipfile checks the sum at the end.
                    if not dtype.hasobject and member.tell() + header.size != info.file_size:
                        raise ValueError(f"{info.filename} is not as long as its header says")
                headers[info.filename.removesuffix(".npy")] = header
    except DAMAGE as error:
        raise _damaged(file, error) from error
    return headers


def _read(file: Path, names: Iterable[str]) -> Arrays:
    try:
        with open_file(file) as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except DAMAGE as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file}: expected a whole .npz file of arrays, got: {reason(error)}. Save it again with "
        "np.savez."
    )


def _read_images(
    file: Path, names: dict[str, str], chosen: dict[str, slice | np.ndarray], known: Arrays
) -> Arrays:
    """Read the images, and once more what was read before: it must belong to them."""
    arrays = _read(file, {*names.values(), *known})
    if not all(np.array_equal(arrays[name], values) for name, values in known.items()):
        raise _damaged(file, ValueError("other labels than just before"))
    images = {split: arrays[name][chosen[split]] for split, name in names.items()}
    return {split: each[..., None] if each.ndim == 3 else each for split, each in images.items()}


def _check_names(name: str, header: _Header) -> None:
    _check_no_objects(name, header)
    if header.dtype.kind != "U" or len(header.shape) != 1:
        raise ValueError(
            f"{name}: expected texts [classes], got {header.dtype} {list(header.shape)}. Save "
            "np.array of a list of names."
        )


def _check_images(name: str, header: _Header) -> None:
    """Check dtype and shape of images; `name` says in an error which they are."""
    _check_no_objects(name, header)
    if header.dtype != np.uint8:
        raise ValueError(
            f"{name}: expected uint8, from 0 to 255, got {header.dtype}. Convert images from 0 to 1"
            " with np.rint(255 * images).astype(np.uint8), whole numbers from 0 to 255 with"
            " images.astype(np.uint8)."
        )
    if len(header.shape) != 3 and (len(header.shape) != 4 or header.shape[3] not in (1, 3)):
        raise ValueError(
            f"{name}: expected [n, height, width] or [n, height, width, channels], 1 channel or 3, "
            f"got {list(header.shape)}. Channels that come first are moved by "
            "images.transpose(0, 2, 3, 1)."
        )
    if header.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one image, got none. Add some.")


def _check_labels(name: str, header: _Header) -> None:
    """Check dtype and shape of labels; `name` says in an error which they are."""
    _check_no_objects(name, header)
    if header.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected integers, got {header.dtype}. Convert whole numbers with "
            "labels.astype(np.int32)."
        )
    if len(header.shape) != 1 and header.shape[1:] != (1,):
        raise ValueError(
            f"{name}: expected one label for each image, [n], got {list(header.shape)}. Of one-hot "
            "labels take labels.argmax(-1)."
        )


def _check_no_objects(name: str, header: _Header) -> None:
    if header.dtype.hasobject:
        raise ValueError(
            f"{name}: expected one array, got Python objects, which are never loaded, as that can "
            "run code. Save an array of numbers or texts, such as np.stack(images)."
        )
