"""EMNIST balanced (Cohen et al. 2017) from NIST's archive, in the archive's own order, upright."""

import contextlib
import functools
import gzip
import hashlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from straw_experiments.data import idx
from straw_experiments.data.cache import Arrays, cached

CLASS_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")

# The official archive, as TFDS lists it in url_checksums/emnist.txt.
URL = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
SIZE = 561_753_746  # Bytes.
SHA256 = "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"

SPLITS = ("train", "test")
VERSION = "1.0.0"  # Of the prepared data.
# What a missing file, no zip, a missing or damaged member, or a wrong header raises.
_DAMAGE = (OSError, zipfile.BadZipFile, KeyError, EOFError, zlib.error, ValueError)
WAYS_OUT = (
    "Give the archive with --archive PATH, or put gzip.zip into the --data-dir, or use "
    "--dataset glyphs, which needs no download."
)


def find(data_dir: Path, archive: Path | None) -> Callable[[], tuple[str, Arrays]]:
    """Find EMNIST balanced, quickly, and return what reads it.

    Looks, in this order, for `archive` and nothing else if it is given; data prepared earlier;
    `gzip.zip` in `data_dir` or in TFDS's folder for manual downloads; the official site.

    Args:
        data_dir: where TFDS keeps its data sets.
        archive: a file with the layout of NIST's `gzip.zip`, official or not.

    Returns:
        A function without arguments that returns the data's true name and its arrays:
        "{train,test}_images" uint8 [n, 28, 28, 1] and "{train,test}_labels" int32 [n].

    Raises:
        ValueError: if the archive is missing, damaged or of another layout, or there is none and
            the official site does not answer.
    """
    if archive is not None:
        check_archive(archive)
        return functools.partial(_load_given, data_dir, archive)
    if _arrays_path(data_dir, SHA256).exists() or _prepared_dir(data_dir, SHA256).exists():
        return functools.partial(_load_official, data_dir, None)
    for found in (data_dir / "gzip.zip", data_dir / "downloads" / "manual" / "gzip.zip"):
        if found.exists():
            _check_official_size(found)
            check_archive(found)
            return functools.partial(_load_official, data_dir, found)
    _check_reachable()
    return functools.partial(_load_official, data_dir, None)


def check_archive(archive: Path) -> None:
    """Check an archive's layout, headers and check sums without unpacking it.

    Raises:
        ValueError: if the archive is missing, damaged or of another layout.
    """
    with _errors_naming(archive), zipfile.ZipFile(archive) as opened:
        for split in SPLITS:
            for kind in ("images", "labels"):
                with opened.open(_member(split, kind)) as member:
                    while member.read(1 << 20):
                        pass  # Reading to the end makes zipfile compare the check sum.
            with _open(opened, split, "images") as file:
                images = idx.read_shape(file, idx.IMAGES, _member(split, "images"))
            with _open(opened, split, "labels") as file:
                labels = idx.read_shape(file, idx.LABELS, _member(split, "labels"))
            _check_shapes(split, images, labels)


def read_split(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one split of an archive, in the archive's order.

    Args:
        archive: a file with the layout of NIST's `gzip.zip`.
        split: "train" or "test".

    Returns:
        Upright images, uint8 [n, 28, 28, 1], and labels, uint8 [n], 0 to 46.

    Raises:
        ValueError: if the archive is damaged or its contents do not fit together.
    """
    with _errors_naming(archive), zipfile.ZipFile(archive) as opened:
        with _open(opened, split, "images") as file:
            images = idx.read(file, idx.IMAGES, _member(split, "images"))
        with _open(opened, split, "labels") as file:
            labels = idx.read(file, idx.LABELS, _member(split, "labels"))
        _check_shapes(split, images.shape, labels.shape)
        if labels.max(initial=0) >= len(CLASS_NAMES):
            raise ValueError(
                f"expected labels 0 to {len(CLASS_NAMES) - 1} in the {split} split, "
                f"got {labels.max()}. Is it the balanced split?"
            )
    return images.swapaxes(1, 2)[..., None], labels  # The archive holds each image transposed.


@contextlib.contextmanager
def _errors_naming(archive: Path) -> Iterator[None]:
    """Turn whatever a bad archive raises into a ValueError that names it and the way out."""
    try:
        yield
    except _DAMAGE as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(
            f"EMNIST archive {archive}: expected a whole file laid out as NIST's gzip.zip, "
            f"got: {reason}. {WAYS_OUT}"
        ) from error


def _member(split: str, kind: str) -> str:
    """Name an idx file inside the archive."""
    axes = {"images": 3, "labels": 1}[kind]
    return f"gzip/emnist-balanced-{split}-{kind}-idx{axes}-ubyte.gz"


@contextlib.contextmanager
def _open(archive: zipfile.ZipFile, split: str, kind: str) -> Iterator[gzip.GzipFile]:
    with archive.open(_member(split, kind)) as member, gzip.GzipFile(fileobj=member) as file:
        yield file


def _check_shapes(split: str, images: tuple[int, ...], labels: tuple[int, ...]) -> None:
    """Raise ValueError unless there is one label for each 28 x 28 image, and one at least."""
    if images != (*labels, 28, 28) or labels == (0,):
        raise ValueError(
            f"expected {split} images [n, 28, 28] and labels [n], "
            f"got {list(images)} and {list(labels)}"
        )


def _check_official_size(archive: Path) -> None:
    """Raise ValueError unless an archive that was found, not given, has the official size."""
    size = archive.stat().st_size
    if size != SIZE:
        raise ValueError(_not_official(archive, f"{size:,} bytes", f"{SIZE:,} bytes"))


def _not_official(archive: Path, got: str, expected: str) -> str:
    return (
        f"EMNIST archive {archive}: expected the official file ({expected}), got {got}. "
        f"Another archive is used only when named: --archive {archive}"
    )


def _check_reachable() -> None:
    """Ask the official site for the archive's first byte, which TFDS would try for minutes.

    Raises:
        ValueError: if the site does not answer within seconds.
    """
    import requests  # What TFDS downloads with.

    try:
        with requests.get(URL, stream=True, timeout=(2, 10)) as response:
            response.raise_for_status()
    except requests.RequestException as error:
        reason = type(error).__name__  # Its text runs over many lines; the cause is chained.
        raise ValueError(f"EMNIST: {URL} cannot be reached ({reason}). {WAYS_OUT}") from error


def _load_official(data_dir: Path, archive: Path | None) -> tuple[str, Arrays]:
    """Load the official archive's data; `archive` is None if TFDS has it or is to download it."""
    if archive is not None:
        digest = _sha256(archive)
        if digest != SHA256:
            raise ValueError(_not_official(archive, f"sha256 {digest}", f"sha256 {SHA256}"))
    return "EMNIST balanced", _load(data_dir, archive, SHA256)


def _load_given(data_dir: Path, archive: Path) -> tuple[str, Arrays]:
    """Load the data of an archive that the user named, with a warning if it is not official."""
    digest = _sha256(archive)
    name = "EMNIST balanced"
    if digest != SHA256:
        name = f"EMNIST (unofficial archive, sha256 {digest[:12]})"
        warnings.warn(
            f"{archive} is not the official EMNIST archive: its sha256 is {digest}, the official "
            f"one {SHA256}. Results are marked '{name}'.",
            stacklevel=4,
        )
    return name, _load(data_dir, archive, digest)


def _load(data_dir: Path, archive: Path | None, digest: str) -> Arrays:
    """Return the arrays of the archive with this digest: stored, prepared, or prepared now."""

    def prepare() -> Arrays:
        from straw_experiments.data import (
            emnist_builder,  # Imports TFDS, which the stored arrays spare.
        )

        return emnist_builder.load(data_dir, archive, digest)

    return cached(_arrays_path(data_dir, digest), prepare)


def config_name(digest: str) -> str:
    """Name the prepared data of the archive with this sha256, so that archives never mix."""
    return f"sha256_{digest[:12]}"


def _prepared_dir(data_dir: Path, digest: str) -> Path:
    return data_dir / "emnist_balanced" / config_name(digest) / VERSION


def _arrays_path(data_dir: Path, digest: str) -> Path:
    return data_dir / "straw_jax" / f"emnist-{digest[:12]}.npz"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
