"""EMNIST balanced (Cohen et al. 2017): where its archive or prepared data lie, and loading."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

from straw_experiments.data.cache import Arrays, cached
from straw_experiments.data.emnist_archive import (
    VERSION,
    WAYS_OUT,
    check_archive,
    open_archive,
    sha256,
)

# The official archive, as TFDS lists it in url_checksums/emnist.txt.
URL = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
SIZE = 561_753_746  # Bytes.
SHA256 = "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e"


def find(data_dir: Path, archive: Path | None) -> Callable[[], tuple[str, Arrays]]:
    """Find EMNIST balanced, quickly, and return what reads it.

    If `archive` is given, only that is used. Else these are tried in order: data prepared earlier;
    `gzip.zip` in `data_dir` or in TFDS's folder for manual downloads; the official site.

    Args:
        data_dir: Where TFDS keeps its data sets.
        archive: A file with the layout of NIST's `gzip.zip`, official or not.

    Returns:
        A function without arguments that returns the data's true name and its arrays:
        "{train,test}_images" uint8 `[n, 28, 28, 1]` and "{train,test}_labels" int32 `[n]`.

    Raises:
        ValueError: The archive is missing, damaged or of another layout, or there is none and the
            official site does not answer.
    """
    if archive is not None:
        check_archive(archive)
        return functools.partial(_load_given, data_dir, archive)
    places = (data_dir / "gzip.zip", data_dir / "downloads" / "manual" / "gzip.zip")
    found = next((place for place in places if place.exists()), None)
    if not (_arrays_path(data_dir, SHA256).exists() or _prepared_dir(data_dir, SHA256).exists()):
        if found is None:
            _check_reachable()
        else:
            _check_official_size(found)
            check_archive(found)
    return functools.partial(_load_official, data_dir, found)


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


def _load_official(data_dir: Path, found: Path | None) -> tuple[str, Arrays]:
    """Load the official archive's data, from `found` or else from a download if need be."""
    with contextlib.ExitStack() as opened:

        def source() -> BufferedReader | str:
            if found is None:
                _check_reachable()
                return URL
            file = opened.enter_context(open_archive(found))
            digest = sha256(file)
            if digest != SHA256:
                raise ValueError(_not_official(found, f"sha256 {digest}", f"sha256 {SHA256}"))
            return file

        return "EMNIST balanced", _load(data_dir, SHA256, source)


def _load_given(data_dir: Path, archive: Path) -> tuple[str, Arrays]:
    """Load the data of an archive that the user named, with a warning if it is not official."""
    with open_archive(archive) as file:
        digest = sha256(file)
        name = "EMNIST balanced"
        if digest != SHA256:
            name = f"EMNIST (unofficial archive, sha256 {digest[:12]})"
            warnings.warn(
                f"{archive} is not the official EMNIST archive: its sha256 is {digest}, the "
                f"official one {SHA256}. Results are marked '{name}'.",
                stacklevel=4,
            )
        return name, _load(data_dir, digest, lambda: file)


def _load(data_dir: Path, digest: str, source: Callable[[], BufferedReader | str]) -> Arrays:
    """Return the arrays of the archive with this digest, and prepare them if need be."""

    def prepare() -> Arrays:
        # Importing TFDS takes seconds, and the stored arrays do not need it.
        from straw_experiments.data import emnist_builder

        folder = _prepared_dir(data_dir, digest)
        arrays = emnist_builder.read(folder, digest)
        return emnist_builder.prepare(folder, source(), digest) if arrays is None else arrays

    return cached(_arrays_path(data_dir, digest), prepare)


def _prepared_dir(data_dir: Path, digest: str) -> Path:
    """Return TFDS's folder of the archive with this sha256; archives never mix."""
    return data_dir / "emnist_balanced" / f"sha256_{digest[:12]}" / VERSION


def _arrays_path(data_dir: Path, digest: str) -> Path:
    return data_dir / "straw_jax" / f"emnist-{digest[:12]}.npz"
