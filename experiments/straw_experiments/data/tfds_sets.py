"""Other sets of small images: prepared by TFDS, or the four idx files of MNIST and its kin."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments.data import idx_files, sources
from straw_experiments.data.cache import Arrays, cached, check_unchanged
from straw_experiments.data.reading import reason

_SPLITS = ("train", "test")
_SHAPES = [(side, side, channels) for side in (28, 32) for channels in (1, 3)]
_CHUNK = 4096  # Records read at a time: one by one takes four times as long.


def find(name: str, data_dir: Path) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Find a set in `data_dir`, quickly, and return its class names and what reads it.

    Args:
        name: As TFDS names it, such as "mnist" or "emnist/digits".
        data_dir: Holds NAME/VERSION as TFDS prepares it in the array_record format, or the four
            idx files (plain or .gz) in NAME/ or in the folder itself.

    Returns:
        The class names, and a function without arguments that returns "{train,test}_images"
        uint8 `[n, height, width, channels]` and "{train,test}_labels" int32 `[n]`, or raises
        ValueError if the data are damaged, or not those that were read first.

    Raises:
        ValueError: There is no such data, or data of another kind.
    """
    prepared = _newest(data_dir / name)
    if prepared is not None:
        kept = _kept(data_dir, name, prepared.name)
        return _checked(kept, prepared, *_find_prepared(name, kept, prepared))
    for folder in (data_dir / name, data_dir):
        if (files := _idx_files(folder)) is not None:
            return _checked(_kept(data_dir, name, "idx"), folder, *_find_idx(name, files))
    raise ValueError(
        f"data set {name!r}: expected auto, emnist, glyphs, the path of your own data, or a set of "
        f"28 x 28 or 32 x 32 images whose data lie in {data_dir}, got no such data. Prepare it "
        f"with TFDS (file_format='array_record') in {data_dir / name}, or put "
        "train-images-idx3-ubyte.gz and its three companions there, or choose another --data-dir."
    )


def is_in(name: str, data_dir: Path) -> bool:
    """Return whether a folder of this name in `data_dir` holds a data set."""
    folder = data_dir / name
    return _newest(folder) is not None or _idx_files(folder) is not None


def read_columns(source: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Read a TFDS data source whole.

    Args:
        source: What `builder.as_data_source(split)` returns.

    Returns:
        Each feature of all examples, in the source's order: `[n, ...]`.
    """
    columns: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(source), _CHUNK):
        records = source.__getitems__(range(start, min(start + _CHUNK, len(source))))  # type: ignore[attr-defined]
        for key in records[0]:
            columns.setdefault(key, []).append(np.stack([record[key] for record in records]))
    return {key: np.concatenate(chunks) for key, chunks in columns.items()}


def _newest(folder: Path) -> Path | None:
    """Return the folder of the newest prepared version, or None if there is none."""
    infos = folder.glob("*/dataset_info.json")
    versions = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    return max(
        versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None
    )


def _kept(data_dir: Path, name: str, version: str) -> Path:
    """Return the path of what is stored of a set."""
    return data_dir / "straw_jax" / f"{name.replace('/', '-')}-{version}.npz"


def _checked(
    kept: Path, folder: Path, class_names: tuple[str, ...], read: Callable[[], Arrays]
) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Let `read` compare the data with those of the first time, as their name does not tell."""

    def checked() -> Arrays:
        arrays = read()
        digest = sources.digest(*arrays.values(), class_names)
        check_unchanged(kept.with_suffix(".sha256"), digest, folder)
        return arrays

    return class_names, checked


def _find_prepared(
    name: str, kept: Path, folder: Path
) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Check what TFDS prepared in `folder`."""
    import tensorflow_datasets as tfds

    with _errors_naming(name, folder):
        builder = tfds.builder_from_directory(folder)
        features: dict[str, Any] = dict(builder.info.features.items())
        splits = [*builder.info.splits]
    image, label = features.get("image"), features.get("label")
    has_classes = isinstance(label, tfds.features.ClassLabel)
    if not has_classes or getattr(image, "shape", None) not in _SHAPES:
        raise ValueError(
            f"data set {name!r} in {folder}: expected features image [28, 28, 1] (or 32 x "
            f"32, or 3 channels) and label (a class), got {' '.join(str(features).split())}. "
            "Choose a set of such images."
        )
    if not set(_SPLITS) <= set(splits):
        raise ValueError(
            f"data set {name!r} in {folder}: expected splits {' and '.join(_SPLITS)}, got "
            f"{' and '.join(splits) or 'none'}. Choose a set that has both."
        )
    try:
        with _errors_naming(name, folder):
            examples = {split: builder.as_data_source(split) for split in _SPLITS}
            class_names = tuple(features["label"].names)
    except NotImplementedError as error:
        raise ValueError(
            f"data set {name!r} in {folder}: expected the array_record format, got "
            f"{builder.info.file_format.value}, which needs TensorFlow. Prepare it again in "
            "another --data-dir with file_format='array_record'."
        ) from error
    return class_names, functools.partial(
        cached, kept, functools.partial(_read_prepared, name, folder, examples)
    )


@contextlib.contextmanager
def _errors_naming(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever TFDS, its parsers and its readers raise for damaged files into ValueError."""
    try:
        yield
    except NotImplementedError:  # The format needs TensorFlow.
        raise
    except Exception as error:
        raise ValueError(
            f"data set {name!r} in {folder}: expected what TFDS prepared, got: {reason(error)}. "
            "Delete the folder, and prepare it again."
        ) from error


def _read_prepared(
    name: str, folder: Path, examples: dict[str, Sequence[dict[str, Any]]]
) -> Arrays:
    arrays = {}
    with _errors_naming(name, folder):
        for split, source in examples.items():
            columns = read_columns(source)
            images = columns["image"]
            arrays[f"{split}_images"] = images.swapaxes(1, 2) if _is_transposed(name) else images
            arrays[f"{split}_labels"] = columns["label"].astype(np.int32)
    return arrays


def _idx_files(folder: Path) -> idx_files.Files | None:
    """Return the four files named as MNIST's, or None."""
    files = idx_files.locate(folder).get("", {})
    return files if idx_files.is_whole(files) else None


def _find_idx(name: str, files: idx_files.Files) -> tuple[tuple[str, ...], Callable[[], Arrays]]:
    """Check the headers of the four files and read their labels."""
    for split, shape in idx_files.read_shapes(files).items():
        if shape[1:] != (28, 28):
            raise ValueError(
                f"data set {name!r} in {files[split, 'images'].parent}: expected {split} images "
                f"[n, 28, 28], got {list(shape)}. Give images of another size by their path: "
                f"--dataset {files[split, 'images'].parent}"
            )
    largest = max(int(idx_files.read(files, split, "labels").max()) for split in _SPLITS)
    class_names = tuple(str(label) for label in range(largest + 1))
    return class_names, functools.partial(_read_all_idx, name, files)


def _read_all_idx(name: str, files: idx_files.Files) -> Arrays:
    images = idx_files.read_images(files, transposed=_is_transposed(name))
    arrays = {f"{split}_images": each for split, each in images.items()}
    for split in _SPLITS:
        arrays[f"{split}_labels"] = idx_files.read(files, split, "labels").astype(np.int32)
    return arrays


def _is_transposed(name: str) -> bool:
    """Return whether TFDS keeps a set's images transposed."""
    return name.startswith("emnist/")
