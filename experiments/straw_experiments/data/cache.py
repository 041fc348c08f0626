"""Arrays that are kept between runs, in files that are whole or do not exist."""

import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays stored at `path`; if there are none, make and store them.

    Args:
        path: Of an `.npz` file. A damaged file is made anew.
        make: Called only if nothing whole is stored.

    Returns:
        The arrays by name.
    """
    arrays = fetch(path)
    if arrays is None:
        arrays = make()
        _store(path, arrays)
    return arrays


def fetch(path: Path) -> Arrays | None:
    """Return the arrays stored at `path`, or None if there are none or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:  # Checks each array's CRC-32.
            return dict(stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} cannot be read and is made anew: {error}", stacklevel=2)
        return None


def _store(path: Path, arrays: Arrays) -> None:
    """Write under a temporary name, then rename: a killed run leaves no half-written set."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(
            f"the data could not be stored in {path}, so the next start will take as long: "
            f"{error}. Choose a writable folder with --data-dir.",
            stacklevel=2,
        )
