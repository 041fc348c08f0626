"""Files that a killed process leaves either as they were or whole."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Write a text file in one piece, with the folders it needs.

    Args:
        path: Of the file.
        text: Its contents.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, raw: bytes) -> None:
    """Write a file in one piece, with the folders it needs.

    Args:
        path: Of the file.
        raw: Its contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(raw)
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, in one piece.

    Args:
        path: Of the file.
        value: What JSON can hold.
    """
    write(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a file of JSON lines.

    Args:
        path: Of the file.
        record: One line of it.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, without a last line that was cut off.

    Args:
        path: Of the file; it need not exist.

    Returns:
        The records in order.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a file of JSON lines in one piece.

    Args:
        path: Of the file.
        records: Its lines in order.
    """
    write(path, "".join(json.dumps(record) + "\n" for record in records))
