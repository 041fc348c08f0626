"""A user's own data: a folder of images, an .npz file, or a folder of idx files."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from straw_experiments.data import idx_files, image_folder, npz_file, sources
from straw_experiments.data.dataset import Dataset
from straw_experiments.data.reading import reason


def find(path: Path) -> Callable[[], Dataset]:
    """Check data as far as that is quick, and return what loads them.

    Args:
        path: As `image_folder.find`, `npz_file.find` or `idx_files.find` takes it.

    Returns:
        A function without arguments that returns the data set, or raises ValueError if an image
        cannot be read or differs from the others.

    Raises:
        ValueError: There is no such data, or they are not as they should be.
    """
    with _naming(path):
        source = _source(path)
    sources.check(source)
    return functools.partial(_load, source)


def _source(path: Path) -> sources.Source:
    if path.is_dir():
        return idx_files.find(path) if idx_files.locate(path) else image_folder.find(path)
    if path.suffix == ".npz" and path.exists():
        return npz_file.find(path)
    raise ValueError(
        f"{path}: expected a folder of images in class folders, a folder of idx files, or an .npz "
        f"file, got {'another file' if path.exists() else 'no such path'}. Correct the path, or "
        "convert the data."
    )


def _load(source: sources.Source) -> Dataset:
    with _naming(source.path):
        return sources.load(source)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read into a ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{error.filename or path}: cannot be read: {error.strerror or reason(error)}. Check "
            "the path and its permissions."
        ) from error
