"""Texts that are on every machine, or of a folder, as tokens; no package is in two parts.

The usual ones are the sources of Python's standard library and of installed packages, with the
documentation in their docstrings.
"""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from straw_experiments.smollm.tokenizer import Tokenizer

PARTS = ("train", "validation", "test")
SUFFIXES = (".py", ".txt", ".md", ".rst")
_LEFT_OUT = {"_vendor", "__pycache__", "node_modules", ".git"}  # copies of others, and no texts
_FEWEST, _MOST = 1_000, 200_000  # characters of a text: longer ones are tables
_TESTED = 1_000_000  # tokens of validation, and of test, at most
_HELD_OUT = {"test": 8, "validation": 4}  # of 100 packages, about


class Corpus(NamedTuple):
    """Texts as tokens.

    Attributes:
        name: What they are.
        documents: By part, the tokens of each document, int32 `[n]`.
        packages: By part, how many packages the documents are of.
    """

    name: str
    documents: Mapping[str, Sequence[np.ndarray]]
    packages: Mapping[str, int]

    def description(self) -> dict[str, Any]:
        """Describe the texts, so that a resumed run can compare them."""
        digest = hashlib.sha256()
        for part in PARTS:
            for tokens in self.documents[part]:
                digest.update(tokens.tobytes())
        return {
            "name": self.name,
            "documents": {part: len(self.documents[part]) for part in PARTS},
            "packages": dict(self.packages),
            "tokens": {part: sum(map(len, self.documents[part])) for part in PARTS},
            "sha256": digest.hexdigest(),
        }


class _File(NamedTuple):
    """A text file, with the package that it is of and its name in it."""

    package: str
    name: str
    path: Path


def load(folder: str | None, tokenizer: Tokenizer, most: int) -> Corpus:
    """Read and encode texts.

    Args:
        folder: With texts; each folder in it is a package, and so is each file that lies in it
            directly. The usual texts if omitted.
        tokenizer: Of the model that is to read them.
        most: Tokens of training, about. Files are taken in an order that depends on their names
            alone; those of validation and test do not depend on this number.

    Raises:
        ValueError: There are no texts, or none for one of the parts.
    """
    files = list(_of_folder(Path(folder).expanduser()) if folder else _installed())
    files.sort(key=lambda file: _number(f"{file.package}/{file.name}"))
    documents: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    packages: dict[str, set[str]] = {part: set() for part in PARTS}
    seen: set[bytes] = set()
    taken = dict.fromkeys(PARTS, 0)
    room = {part: most if part == PARTS[0] else _TESTED for part in PARTS}
    for file in files:
        part = _part(file.package)
        if taken[part] >= room[part]:
            continue
        text = _text(file.path)
        digest = hashlib.sha256(text.encode()).digest()
        if not _FEWEST <= len(text) <= _MOST or digest in seen:
            continue
        seen.add(digest)
        documents[part].append(np.array(tokenizer.encode(text), np.int32))
        packages[part].add(file.package)
        taken[part] += len(documents[part][-1])
    if empty := [part for part in PARTS if not documents[part]]:
        raise ValueError(
            f"argument --texts: expected texts ({', '.join(SUFFIXES)}) of {_FEWEST:,} to {_MOST:,}"
            f" characters for {', '.join(PARTS)}, got none for {', '.join(empty)} in"
            f" {folder or 'the installed packages'}. Each folder in it is in one part alone, by its"
            " name: give more folders"
        )
    named = f"texts of {Path(folder).name}" if folder else _NAME
    return Corpus(named, documents, {part: len(packages[part]) for part in PARTS})


_NAME = f"sources of Python {platform.python_version()} and of installed packages"


def check_folder(folder: str | None) -> None:
    """Check that a folder of texts can be listed, as far as a quick look allows.

    Raises:
        ValueError: It cannot.
    """
    if folder is None:
        return
    try:
        os.scandir(Path(folder).expanduser()).close()
    except (OSError, RuntimeError) as error:  # a user's folder that is not there
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"argument --texts: expected a folder of texts, cannot read {folder}: {reason}"
        ) from None


def _installed() -> Iterator[_File]:
    standard, added = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    yield from _python(_of_folder(standard, without={"site-packages", "dist-packages", "test"}))
    yield from _python(_of_folder(added))


def _python(files: Iterable[_File]) -> Iterator[_File]:
    return (file for file in files if file.path.suffix == ".py")


def _of_folder(folder: Path, without: Iterable[str] = ()) -> Iterator[_File]:
    left_out = _LEFT_OUT | set(without)
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each not in left_out]
        for name in names:
            path = Path(parent, name)
            if path.suffix in SUFFIXES and path.is_file():
                inner = path.relative_to(folder)
                yield _File(inner.parts[0], inner.as_posix(), path)


def _text(path: Path) -> str:
    """Return a file's text, or none where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _part(package: str) -> str:
    share = _number(package) % 100
    for part, percent in _HELD_OUT.items():
        if share < percent:
            return part
        share -= percent
    return PARTS[0]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
