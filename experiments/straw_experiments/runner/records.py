"""Files that a killed process leaves either as they were or whole, and that damage does not pass.

A record is a JSON object. It begins with "format", and ends with "crc32", the checksum of all that
stands before it and of its file's name: no damage in one place takes both away, and two files that
change places are noticed. Lines of JSON are records, too.

A record that has neither is of a version before 0.3, and is taken as it is. When its study is gone
on with, it gets both, and without them it counts as damaged from then on.

Only the standard library is imported, so that a command line answers at once.
"""

import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 2
"""Of the records that this version writes; records without a checksum are the first."""

_ABSENT = (FileNotFoundError, NotADirectoryError)


class RecordError(ValueError):
    """A record is damaged, or was changed by hand."""


def write(path: Path, text: str) -> None:
    """Write a text file in one piece, with the folders it needs.

    Args:
        path: Of the file.
        text: Its contents.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file in one piece, with the folders it needs; it is on the disk on return.

    Args:
        path: Of the file.
        raw: Its contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)


def sync(*paths: Path) -> None:
    """Wait until files, or the names in folders, are on the disk."""
    for path in paths:
        if os.name == "nt" and path.is_dir():  # Windows opens no folders
            continue
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def checksum(raw: bytes | memoryview) -> int:
    """Return the checksum by which damage is found."""
    return zlib.crc32(raw)


def file_checksum(path: Path) -> int | None:
    """Return the checksum of a file, or None where there is none."""
    try:
        return checksum(path.read_bytes())
    except _ABSENT:
        return None


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON, in one piece.

    Args:
        path: Of the file.
        record: What JSON can hold.
    """
    write(path, json.dumps(sealed(record, _name(path)), indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        RecordError: It is damaged.
        OSError: It cannot be read.
    """
    try:
        return _opened_of(path, json.loads(path.read_bytes()))
    except ValueError as error:
        raise RecordError(f"cannot read {path}: {error}") from None


def is_whole(path: Path) -> bool:
    """Say whether a record is there and undamaged."""
    with contextlib.suppress(RecordError, *_ABSENT):
        read_json(path)
        return True
    return False


def is_made(path: Path) -> bool:
    """Say whether a record is there; one that is damaged is set aside, with a warning.

    Args:
        path: Of the record, which can be made again.
    """
    try:
        read_json(path)
    except _ABSENT:
        return False
    except RecordError as error:
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        warnings.warn(f"{error}. It is kept as {aside.name}, and made again", stacklevel=2)
        return False
    return True


def sealed(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Add the marks by which `opened` finds damage.

    Args:
        record: What JSON can hold.
        name: By which it is found.
    """
    marked = {"format": FORMAT, **record}
    return {**marked, "crc32": _crc32(marked, name)}


def opened(record: Any, name: str) -> dict[str, Any]:
    """Take the marks from a record, if it has any.

    Args:
        record: What JSON held.
        name: By which it was found.

    Raises:
        ValueError: It is damaged; says how.
    """
    if not isinstance(record, dict) or not record:
        raise ValueError("expected a JSON object that is not empty")
    rest = dict(record)
    found = rest.pop("crc32", None)
    if found is None and "format" not in rest:
        return rest
    if found != _crc32(rest, name):
        raise ValueError(
            "it does not match its checksum, so it was damaged, changed by hand, or is another's"
        )
    rest.pop("format", None)
    return rest


def _opened_of(path: Path, record: Any) -> dict[str, Any]:
    """Take the marks from a record of a file, which must have them if its study's settings do."""
    unmarked = isinstance(record, dict) and not {"format", "crc32"} & set(record)
    if unmarked and _is_marked(_study(path)):
        raise ValueError("it has no checksum, so it was damaged, changed by hand, or is another's")
    return opened(record, _name(path))


def _crc32(record: Mapping[str, Any], name: str) -> int:
    return checksum(f"{name}{json.dumps(record)}".encode())


def _name(path: Path) -> str:
    """Name a file; one of a run with its folder, as all runs have files of the same names."""
    return "/".join(path.parts[-2:]) if path.parent.parent.name == "runs" else path.name


def _study(path: Path) -> Path:
    """Return the folder of the study that a file belongs to."""
    runs = next((folder for folder in list(path.parents)[:2] if folder.name == "runs"), path)
    return runs.parent


def _is_marked(out: Path) -> bool:
    """Say whether the settings of a study have marks, as have then all its records."""
    for path in _settings_paths(out):
        with contextlib.suppress(OSError):
            if b'"format": ' in path.read_bytes():
                return True
    return False


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file of JSON lines; it is on the disk on return.

    Args:
        path: Of the file.
        record: One line of it.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(record, _name(path)))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without those that were cut off or damaged.

    Args:
        path: Of the file; it need not exist.

    Returns:
        The records in order.
    """
    try:
        lines = path.read_bytes().splitlines()
    except _ABSENT:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the caller knows how many there should be
            records.append(_opened_of(path, json.loads(line)))
    return records


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines in one piece.

    Args:
        path: Of the file.
        records: Its lines in order.
    """
    write(path, "".join(_line(record, _name(path)) for record in records))


def _line(record: Mapping[str, Any], name: str) -> str:
    return json.dumps(sealed(record, name)) + "\n"


def write_settings(out: Path, record: Mapping[str, Any]) -> None:
    """Write `config.json`, and the same beside the runs: they are worth nothing without it.

    Records of an earlier version get marks first.

    Args:
        out: Folder of a study.
        record: Its settings, and more.
    """
    if not _is_marked(out):
        _mark(out)
    for path in _settings_paths(out):
        write_json(path, record)


def _mark(out: Path) -> None:
    for path in (*out.glob("runs/*/*.json"), out / "summary.json", out / "analysis.json"):
        if is_whole(path):
            write_json(path, read_json(path))
    for path in (*out.glob("runs/*/metrics.jsonl"), out / "metrics.jsonl"):
        if lines := read_lines(path):
            write_lines(path, lines)


def is_begun(out: Path) -> bool:
    """Say whether a folder has anything of a study."""
    return any(os.path.exists(out / name) for name in ("config.json", "runs", "summary.json"))


def read_settings(out: Path) -> dict[str, Any] | None:
    """Read the settings with which a study was begun, with a warning where `config.json` is lost.

    Args:
        out: Folder of the study.

    Returns:
        What `config.json` held, or None where no study was begun.

    Raises:
        RecordError: There are runs or a `config.json`, but the settings cannot be read.
        OSError: A file cannot be read.
    """
    faults = []
    for path in (*_settings_paths(out), out / "summary.json"):
        try:
            found = read_json(path)
        except _ABSENT:
            continue
        except RecordError as error:
            faults.append(str(error))
            continue
        if path.name == "summary.json":  # it holds them as one of its parts
            found = found.get("config", {})
        if found and path != out / "config.json":
            fault = faults[0] if faults else f"{out / 'config.json'} is gone"
            warnings.warn(f"{fault}. Settings are taken from {path}", stacklevel=2)
        if found:
            return found
    if not faults and not (out / "runs").exists():
        return None
    fault = faults[0] if faults else f"{out / 'config.json'} is gone"
    raise RecordError(f"{fault}. Restore it, or move {out} away, or choose another --out")


def _settings_paths(out: Path) -> tuple[Path, Path]:
    return out / "config.json", out / "runs" / "config.json"


def write_summary(out: Path, summary: Mapping[str, Any], files: Sequence[str]) -> None:
    """Write `summary.json`, which marks a study as finished.

    Args:
        out: Folder of the study.
        summary: All figures.
        files: Names of the other files in the folder that tell of the results; it keeps their
            checksums.
    """
    found = {name: file_checksum(out / name) for name in files}
    write_json(out / "summary.json", {**summary, "files": found})


def read_summary(out: Path) -> dict[str, Any] | None:
    """Read the summary of a finished study, and check the files beside it.

    Args:
        out: Folder of the study.

    Returns:
        The summary; None, perhaps with a warning, where the study has to be finished (again).

    Raises:
        RecordError: It is damaged, and there are no runs from which it could be made again.
    """
    path = out / "summary.json"
    has_runs = (out / "runs").exists()
    if not has_runs and path.exists():
        read_json(path)
    if not is_made(path):
        return None
    summary = read_json(path)
    files = summary.pop("files", {})
    damaged = [name for name, known in files.items() if file_checksum(out / name) != known]
    if not damaged:
        return summary
    fate = "made again from the runs" if has_runs else "not made again, as the runs are gone, too"
    warnings.warn(f"damaged or gone in {out}, and {fate}: {', '.join(damaged)}", stacklevel=2)
    return None if has_runs else summary
