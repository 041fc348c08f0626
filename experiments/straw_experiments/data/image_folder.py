"""A folder that holds one folder of PNG or JPEG images for each class."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from straw_experiments.data.cache import Arrays
from straw_experiments.data.reading import DAMAGE, open_file, reason
from straw_experiments.data.sources import Shape, Source, describe, held_out

if TYPE_CHECKING:
    from PIL import Image

_SPLITS = ("train", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_TAKEN = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # Modes; each is converted without loss.
_BIT_DEPTH = 24  # This byte of a PNG file holds it.
_ORIENTATION = 0x0112  # The EXIF tag.


class _Files(NamedTuple):
    """The images of a split.

    Attributes:
        folder: Holds the class folders.
        names: "class/file" of each.
        labels: Of each.
    """

    folder: Path
    names: list[str]
    labels: np.ndarray


def find(folder: Path) -> Source:
    """List the images, and read the header of the first one of each class.

    Args:
        folder: Holds folders `train` and `test`, both with a folder for each class; or a folder for
            each class alone, of whose images, sorted by name, every fifth is for testing.

    Returns:
        The source. A class's label is its place among the sorted names. Images come in the order of
        the sha256 of "class/file": any part of them, such as the first hundred, mixes the classes.

    Raises:
        ValueError: There are no such folders, or they hold anything else than PNG or JPEG images of
            one size and kind.
    """
    divided = not {*_SPLITS} & {*_folders(folder)}
    if divided:
        names = _class_names(folder)
        files = _list_files(folder, names)
        held = held_out(files.labels)
        splits = {"train": _chosen(files, ~held), "test": _chosen(files, held)}
    else:
        names = _names_of_both(folder)
        splits = {split: _list_files(folder / split, names) for split in _SPLITS}
    splits = {split: _mixed(files) for split, files in splits.items()}
    first, shape = _first_of_each(splits)
    return Source(
        path=folder,
        form="folder",
        shapes={split: (len(files.names), *shape) for split, files in splits.items()},
        labels={split: files.labels for split, files in splits.items()},
        class_names=names,
        divided=divided,
        read=functools.partial(_read, splits, first, shape),
    )


def _folders(folder: Path) -> list[str]:
    """Return the sorted names of the visible folders in a folder."""
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if each.is_dir() and each.name[0] != ".")


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(_folders(folder))
    if len(names) < 2:
        raise ValueError(
            f"{folder}: expected a folder of PNG or JPEG images for each of two classes or more, "
            f"got {f'the folder {names[0]} alone' if names else 'no folder'}. Sort the images into "
            "one folder per class, or give the folder that holds these."
        )
    return names


def _names_of_both(folder: Path) -> tuple[str, ...]:
    """Return the class names of train and test, which must be the same."""
    if missing := [split for split in _SPLITS if not (folder / split).is_dir()]:
        raise ValueError(
            f"{folder}: expected folders train and test, got {', '.join(_folders(folder))}. Add "
            f"{missing[0]}, or give a folder that holds class folders alone."
        )
    train, test = (_class_names(folder / split) for split in _SPLITS)
    if different := sorted({*train} ^ {*test}):
        raise ValueError(
            f"{folder}: expected the same class folders in train and test, got {different[0]} in "
            f"{'train' if different[0] in train else 'test'} alone. Add or remove it."
        )
    return train


def _list_files(folder: Path, classes: Sequence[str]) -> _Files:
    """List the images of all classes, sorted by class and name."""
    names = {name: _images(folder / name) for name in classes}
    return _Files(
        folder,
        [f"{name}/{file}" for name, files in names.items() for file in files],
        np.repeat(np.arange(len(names)), [len(files) for files in names.values()]),
    )


def _images(folder: Path) -> list[str]:
    """Return the sorted names of a class's images; names that begin with a dot are left out."""
    names = sorted(name for name in os.listdir(folder) if name[0] != ".")
    for name in names:
        if not name.lower().endswith(_SUFFIXES):
            kind = "a folder" if (folder / name).is_dir() else "a file of another kind"
            raise ValueError(
                f"{folder / name}: expected PNG or JPEG images alone in a class folder, got {kind}."
                " Convert it, or move it elsewhere."
            )
    if not names:
        raise ValueError(
            f"{folder}: expected PNG or JPEG images, got an empty folder. Fill or remove it."
        )
    return names


def _chosen(files: _Files, chosen: np.ndarray) -> _Files:
    """Choose images by a mask, or by their positions."""
    names = np.array(files.names, object)[chosen].tolist()
    return _Files(files.folder, names, files.labels[chosen])


def _mixed(files: _Files) -> _Files:
    """Mix the classes, in an order that depends on the names of classes and files alone."""
    digests = [hashlib.sha256(os.fsencode(name)).digest() for name in files.names]
    return _chosen(files, np.array(sorted(range(len(digests)), key=digests.__getitem__), int))


def _first_of_each(splits: dict[str, _Files]) -> tuple[Path, Shape]:
    """Compare the headers of one image per class and split; return the first and its shape."""
    paths = [
        files.folder / files.names[index]
        for files in splits.values()
        for index in np.unique(files.labels, return_index=True)[1]
    ]
    with _opened(paths[0]) as image:
        shape = _shape(image)
    for path in paths[1:]:
        with _opened(path) as image:
            _check_shape(path, image, paths[0], shape)
    return paths[0], shape


def _read(splits: dict[str, _Files], first: Path, shape: Shape) -> Arrays:
    arrays = {}
    for split, files in splits.items():
        arrays[split] = np.empty((len(files.names), *shape), np.uint8)
        for name, pixels in zip(files.names, arrays[split], strict=True):
            path = files.folder / name
            with _opened(path) as image:
                _check_shape(path, image, first, shape)
                with _naming(path):
                    pixels[:] = np.asarray(image.convert(_TAKEN[image.mode])).reshape(shape)
    return arrays


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["Image.Image"]:
    """Open an image and read its header; refuse a kind that would lose something."""
    from PIL import Image

    with open_file(path) as file:
        with _naming(path):
            header = file.read(_BIT_DEPTH + 1)
            file.seek(0)
            image = Image.open(file, formats=("PNG", "JPEG"))
            exif = image.getexif() if "exif" in image.info else {}
        if loss := _loss(image, header, exif.get(_ORIENTATION, 1)):
            raise ValueError(
                f"{path}: expected a grey or RGB image of 8 bits per channel, upright and without "
                f"transparency, got {loss}. Convert it, such as with Pillow: "
                "ImageOps.exif_transpose(image).convert('RGB')."
            )
        yield image


def _loss(image: "Image.Image", header: bytes, orientation: int) -> str | None:
    """Return what of an image would be lost, or None."""
    if image.format == "PNG" and header[_BIT_DEPTH] == 16:  # Pillow would drop 8 of them.
        return "16 bits"
    if image.mode not in _TAKEN:
        return f"mode {image.mode}"
    if "transparency" in image.info:
        return "transparency"
    return "a rotation by its EXIF orientation" if orientation != 1 else None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a damaged image raises into a ValueError that names it."""
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (*DAMAGE, DecompressionBombError) as error:
        said = "no such image" if "cannot identify" in str(error) else reason(error)
        raise ValueError(
            f"{path}: expected a whole PNG or JPEG image, got: {said}. Replace or remove it."
        ) from error


def _shape(image: "Image.Image") -> Shape:
    return image.height, image.width, len(_TAKEN[image.mode])


def _check_shape(path: Path, image: "Image.Image", first: Path, shape: Shape) -> None:
    if _shape(image) != shape:
        raise ValueError(
            f"{path}: expected an image like {first}, {describe(shape)}, got "
            f"{describe(_shape(image))}. Make all images alike."
        )
