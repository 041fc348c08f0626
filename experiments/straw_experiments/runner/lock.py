"""One process, one folder: a lock that the system takes away when its process ends.

Only the standard library is imported.
"""

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_FILE = ".lock"


class LockedError(ValueError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; processes started by this one may.

    Where the system or the file system has no locks, as Windows and some networks' folders, there
    is none; of the latter a warning tells.

    Args:
        folder: Made if need be. The file ".lock" in it stays; it alone means nothing.

    Raises:
        LockedError: Another process holds it; says which.
        OSError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _FILE).open("a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockedError(
                f"argument --out: {file.read().strip() or 'another process'} is writing to"
                f" {folder}. Wait until it has ended, or choose another --out"
            ) from None
        except OSError as error:
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}): start no other process that writes"
                " to it",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
