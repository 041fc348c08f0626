"""A results file: written after every cell, and continued by the same command."""

import json
import os
from pathlib import Path
from typing import Any


class Results:
    """Cells by key, and what they were measured with.

    Attributes:
        path: of the JSON file.
        cells: what has been measured, by key.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Start a file, or continue one.

        Args:
            path: Of the JSON file; its folder is made.
            settings: What decides what a cell holds.

        Raises:
            ValueError: If the file is there and was measured with other settings, or is no such
                file.
        """
        self.path = path
        self._content: dict[str, Any] = {"settings": settings, "starts": [], "cells": {}}
        if path.exists():
            try:
                self._content = json.loads(path.read_text(encoding="utf-8"))
                before = self._content["settings"]
            except (ValueError, KeyError, TypeError, IsADirectoryError):
                raise ValueError(f"{path} is no results file. Name another file.") from None
            if before != settings:
                raise ValueError(
                    f"{path} was measured with {json.dumps(before)}, not {json.dumps(settings)}. "
                    "Name another file, or remove it."
                )
        self.cells: dict[str, Any] = self._content["cells"]

    def start(self, environment: dict[str, Any]) -> None:
        """Record a start of the benchmark.

        Raises:
            ValueError: If an earlier start had another device, other versions or other settings.
        """
        starts = self._content["starts"]
        for field in ("device", "versions", "threads", "GLIBC_TUNABLES", "XLA_FLAGS"):
            if starts and starts[0].get(field) != environment.get(field):
                raise ValueError(
                    f"{self.path} was measured with {field} {starts[0].get(field)}, not "
                    f"{environment.get(field)}. Name another file, or remove it."
                )
        starts.append(environment)
        self._save()

    def add(self, key: str, cell: dict[str, Any]) -> None:
        """Record a finished cell."""
        self.cells[key] = cell
        self._save()

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.path)  # a kill leaves the old file or the new one
