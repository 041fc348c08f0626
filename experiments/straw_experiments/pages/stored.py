"""What studies left in a folder; a figure that is not there is reported by its path."""

from pathlib import Path
from typing import Any, NamedTuple

from straw_experiments.runner import records


class Stored(dict[str, Any]):
    """A JSON object that knows where it comes from.

    Attributes:
        where: File and keys that lead to it.
    """

    def __init__(self, values: dict[str, Any], where: str):
        super().__init__({key: stored(value, f"{where}.{key}") for key, value in values.items()})
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.where}: expected one of {', '.join(self)}, got {key!r}")


class Results(NamedTuple):
    """What a folder of studies holds.

    Attributes:
        summaries: `STUDY/summary.json`, by study.
        analyses: `STUDY/analysis.json`, by study.
        once: `once/NAME.json`, by name: figures of runs that `reproduce.py` does not repeat.
    """

    summaries: Stored
    analyses: Stored
    once: Stored

    def missing(self, **needed: list[str]) -> list[str]:
        """List what is not there of what is needed, given as names by attribute."""
        return [
            name for of, names in needed.items() for name in names if name not in getattr(self, of)
        ]


def stored(value: Any, where: str) -> Any:
    """Wrap the JSON objects in a value.

    Args:
        value: As `json.loads` returns it.
        where: The file, and the keys that lead to the value.
    """
    if isinstance(value, dict):
        return Stored(value, where)
    if isinstance(value, list):
        return [stored(each, f"{where}[{index}]") for index, each in enumerate(value)]
    return value


def read(folder: Path) -> Results:
    """Read what a folder of studies holds; any of it may be missing.

    Raises:
        RecordError: A file is damaged.
        ValueError: A file is not what its name says.
        OSError: A file cannot be read.
    """
    found = Results(
        _by_name(folder, "*/summary.json"),
        _by_name(folder, "*/analysis.json"),
        _by_name(folder, "once/*.json"),
    )
    for name, summary in found.summaries.items():
        _check(summary, folder / name / "summary.json", "config", "results")
        if not summary["results"]:
            raise ValueError(f"{folder / name / 'summary.json'}: expected results, got none")
    for name, analysis in found.analyses.items():
        _check(analysis, folder / name / "analysis.json", "straw")
    return found


def _check(found: Any, path: Path, *parts: str) -> None:
    """Refuse what is no summary, or no analysis, of a finished study."""
    if not isinstance(found, Stored) or not all(
        isinstance(found.get(each), Stored) for each in parts
    ):
        raise ValueError(f"{path}: expected an object with {' and '.join(parts)} of a study")


def _by_name(folder: Path, pattern: str) -> Stored:
    found = Stored({}, str(folder / pattern))
    for path in sorted(folder.glob(pattern)):
        name = path.stem if pattern.startswith("once") else path.parent.name
        found[name] = stored(records.read_json(path), str(path))
    return found
