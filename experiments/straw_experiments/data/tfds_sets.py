"""Other sets of small images: prepared by TFDS, or the four idx files of MNIST's kin."""

import contextlib
import functools
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments.data import idx
from straw_experiments.data.cache import Arrays, cached

_SPLITS = ("train", "test")
_KINDS = {"images": idx.IMAGES, "labels": idx.LABELS}
_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_SHAPES = [(side, side, channels) for side in (28, 32) for channels in (1, 3)]
_CHUNK = 4096  # Records read at a time: one by one takes four times as long.


def find(name: str, data_dir: Path) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Find a set in `data_dir`, quickly, and return its class names and what reads it.

    Args:
        name: as TFDS names it, such as "mnist" or "emnist/digits".
        data_dir: holds NAME/VERSION as TFDS prepares it in the array_record format, or the four
            idx files (plain or .gz) in NAME/ or in the folder itself.

    Returns:
        The class names, and a function without arguments that returns "{train,test}_images"
        uint8 [n, height, width, channels] and "{train,test}_labels" int32 [n].

    Raises:
        ValueError: if there is no such data, or data of another kind.
    """
    prepared = _newest(data_dir / name)
    if prepared is not None:
        return _find_prepared(name, data_dir, prepared)
    for folder in (data_dir / name, data_dir):
        paths = {key: _existing(folder / file) for key, file in _FILES.items()}
        found = {key: path for key, path in paths.items() if path}
        if len(found) == len(_FILES):
            return _find_idx(name, found)
    raise ValueError(
        f"data set {name!r}: expected auto, emnist, glyphs, or a set of 28 x 28 or 32 x 32 images "
        f"whose data lie in {data_dir}, got no such data. Prepare it with TFDS (file_format="
        f"'array_record') in {data_dir / name}, or put train-images-idx3-ubyte.gz and its three "
        "companions there, or choose another --data-dir."
    )


def read_columns(source: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Read a TFDS data source whole.

    Args:
        source: what `builder.as_data_source(split)` returns.

    Returns:
        Each feature of all examples, in the source's order: [n, ...].
    """
    columns: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(source), _CHUNK):
        records = source.__getitems__(range(start, min(start + _CHUNK, len(source))))  # type: ignore[attr-defined]
        for key in records[0]:
            columns.setdefault(key, []).append(np.stack([record[key] for record in records]))
    return {key: np.concatenate(chunks) for key, chunks in columns.items()}


def _newest(folder: Path) -> Path | None:
    """Return the folder of the newest prepared version, or None if there is none."""
    versions = [info.parent for info in folder.glob("[0-9]*.*.*/dataset_info.json")]
    return max(
        versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None
    )


def _find_prepared(
    name: str, data_dir: Path, folder: Path
) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Check what TFDS prepared in `folder`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    features = dict(builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    is_class = isinstance(label, tfds.features.ClassLabel)
    if not is_class or getattr(image, "shape", None) not in _SHAPES:
        raise ValueError(
            f"data set {name!r} in {folder}: expected features image [28, 28, 1] (or 32 x "
            f"32, or 3 channels) and label (a class), got {features}. Choose a set of such images."
        )
    if not set(_SPLITS) <= set(builder.info.splits):
        raise ValueError(
            f"data set {name!r} in {folder}: expected splits {' and '.join(_SPLITS)}, got "
            f"{' and '.join(builder.info.splits)}. Choose a set that has both."
        )
    try:
        sources = {split: builder.as_data_source(split) for split in _SPLITS}
    except NotImplementedError as error:
        raise ValueError(
            f"data set {name!r} in {folder}: expected the array_record format, got "
            f"{builder.info.file_format.value}, which needs TensorFlow. Prepare it again in "
            "another --data-dir with file_format='array_record'."
        ) from error
    stored = data_dir / "straw_jax" / f"{name.replace('/', '-')}-{folder.name}.npz"
    return tuple(features["label"].names), functools.partial(
        cached, stored, functools.partial(_read_prepared, name, sources)
    )


def _read_prepared(name: str, sources: dict[str, Sequence[dict[str, Any]]]) -> Arrays:
    arrays = {}
    for split, source in sources.items():
        columns = read_columns(source)
        arrays[f"{split}_images"] = _upright(name, columns["image"])
        arrays[f"{split}_labels"] = columns["label"].astype(np.int32)
    return arrays


def _find_idx(name: str, paths: dict[str, Path]) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Check the headers of the four files and read their labels."""
    for split in _SPLITS:
        shapes = []
        for kind, magic in _KINDS.items():
            path = paths[f"{split}_{kind}"]
            with _open(path) as file:
                shapes.append(idx.read_shape(file, magic, str(path)))
        images, labels = shapes
        if images != (*labels, 28, 28) or labels == (0,):
            raise ValueError(
                f"data set {name!r} in {path.parent}: expected {split} images [n, 28, 28] and "
                f"labels [n], got {list(images)} and {list(labels)}."
            )
    largest = max(int(_read_idx(paths, split, "labels").max()) for split in _SPLITS)
    class_names = tuple(str(label) for label in range(largest + 1))
    return class_names, functools.partial(_read_all_idx, name, paths)


def _read_all_idx(name: str, paths: dict[str, Path]) -> Arrays:
    arrays = {}
    for split in _SPLITS:
        images = _read_idx(paths, split, "images")[..., None]
        arrays[f"{split}_images"] = _upright(name, images)
        arrays[f"{split}_labels"] = _read_idx(paths, split, "labels").astype(np.int32)
    return arrays


def _read_idx(paths: dict[str, Path], split: str, kind: str) -> np.ndarray:
    path = paths[f"{split}_{kind}"]
    with _open(path) as file:
        return idx.read(file, _KINDS[kind], str(path))


def _existing(plain: Path) -> Path | None:
    """Return the file, or else its compressed form, or else None."""
    return next((path for path in (plain, Path(f"{plain}.gz")) if path.is_file()), None)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[idx.Readable]:
    """Open a plain or compressed file; a damaged one raises a ValueError that names it."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: expected a whole idx file, got: {error}. Fetch it again."
        ) from error


def _upright(name: str, images: np.ndarray) -> np.ndarray:
    """Turn the images of TFDS's `emnist/...` sets, which are kept transposed."""
    return images.swapaxes(1, 2) if name.startswith("emnist/") else images
