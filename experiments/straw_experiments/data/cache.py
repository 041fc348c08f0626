"""Data that are kept between runs: nothing is used that is not what was stored."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path

import numpy as np

from straw_experiments.data.reading import open_file, reason

Arrays = dict[str, np.ndarray]

_START = 32  # Bytes of the sha256 with which a file of arrays begins.


def cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays stored at `path`; if there are none, make and store them.

    Args:
        path: Of a file: the sha256 of its name and of all that follows, then what `np.savez`
            writes. One that is damaged, of another name or of an earlier version is made anew.
        make: Called only if nothing whole is stored.

    Returns:
        The arrays by name.
    """
    arrays = fetch(path)
    if arrays is None:
        arrays = make()
        _store(path, lambda file: _write_arrays(file, path.name, arrays))
    return arrays


def fetch(path: Path) -> Arrays | None:
    """Return the arrays stored at `path`, or None if there are none or the file is damaged."""
    try:
        with open_file(path) as file:
            if file.read(_START) == _digest(file, path.name):
                file.seek(_START)
                with np.load(file, allow_pickle=False) as stored:
                    return dict(stored)
        damage = "its check sum is wrong, or missing as in earlier versions"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        damage = reason(error)
    warnings.warn(f"{path} cannot be used and is made anew: {damage}", stacklevel=2)
    return None


def check_unchanged(path: Path, digest: str, where: Path) -> None:
    """Check that data are those of the first time; then their sha256 is stored.

    Args:
        path: Of the file that keeps the sha256.
        digest: Sha256 of the data, as hexadecimal digits.
        where: The data's folder.

    Raises:
        ValueError: The data are others, or what was stored is damaged.
    """
    try:
        with open_file(path) as file:
            known = file.read(2 * len(digest))
    except (FileNotFoundError, NotADirectoryError):
        _store(path, lambda file: file.write(digest.encode()))
        return
    except OSError as error:
        known = reason(error).encode()
    if known != digest.encode():
        raise ValueError(
            f"{where}: expected the data that were read first, with the sha256 in {path}, got "
            f"sha256 {digest}. Restore the data, or delete {path} if they are as they should be."
        )


def _write_arrays(file: BufferedRandom, name: str, arrays: Arrays) -> None:
    file.write(bytes(_START))
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(_START)
    digest = _digest(file, name)
    file.seek(0)
    file.write(digest)


def _digest(file: BufferedReader | BufferedRandom, name: str) -> bytes:
    """Return the sha256 of a name and the rest of a file: under another name it is another."""
    return hashlib.file_digest(file, lambda: hashlib.sha256(name.encode())).digest()


def _store(path: Path, write: Callable[[BufferedRandom], object]) -> None:
    """Write under a temporary name, then rename: a killed run leaves no half-written file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(descriptor, "w+b") as file:
                write(file)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        warnings.warn(
            f"{path} could not be stored: {error}. The next start begins without it; choose a "
            "writable folder with --data-dir.",
            stacklevel=3,
        )
