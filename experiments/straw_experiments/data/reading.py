"""Reading files of which nothing is known yet: perhaps damaged, hostile, or no files at all."""

import errno
import io
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

from straw_experiments.runner import limits

DAMAGE = (
    # What the modules of Python and NumPy raise for files of another kind than expected, damaged,
    # encrypted, or compressed in a way that they do not know.
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError),
    *(RuntimeError, SyntaxError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def reason(error: Exception) -> str:
    """Return what an error says, in one line."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(said).split()).rstrip(".") or type(error).__name__


def expand(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` replaced; one of an unknown user stays, and so does not exist."""
    return Path(os.path.expanduser(path))


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading; refuse what is no regular file, such as a pipe, which would block.

    Raises:
        OSError: The path is no file, or cannot be opened.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise OSError(errno.EINVAL, f"it is {kind}", str(path))
    return path.open("rb")


def check_memory(what: object, size: int) -> None:
    """Check that data fit into memory, before any is taken.

    Args:
        what: Names the data in an error.
        size: In bytes.

    Raises:
        ValueError: They take more than half of this machine's memory.
    """
    memory = limits.own_memory()
    if size > memory // 2:
        raise ValueError(
            f"{what}: expected data that take at most half of this machine's memory of "
            f"{memory / 1e9:.1f} GB, got {size / 1e9:.1f} GB. Use smaller or fewer of them."
        )
