"""Figures over seeds, and tables in plain text and Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from straw_experiments.runner.precision import recorded


def aligned(rows: Sequence[list[str] | str]) -> list[str]:
    """Lay out rows as lines of text: the first column to the left, the others to the right.

    Args:
        rows: cells, as many in each row; a bare string spans all columns.

    Returns:
        A line for each row.
    """
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in rows:
        if not isinstance(row, str):
            first, *others = row
            padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            row = "  ".join([first.ljust(widths[0]), *padded])
        lines.append(row.rstrip())
    return lines


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def statistic(values: Sequence[float]) -> dict[str, Any]:
    """Sum up a figure's values, one for each seed.

    Args:
        values: At least one.

    Returns:
        "mean", "std" (sample standard deviation; None of a single value), and "seeds", the values.
    """
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "seeds": list(values)}


def over_seeds(figures: Sequence[Any]) -> Any:
    """Sum up figures of one shape, one for each seed.

    Args:
        figures: At least one: numbers, or lists of such figures, all as long, or mappings, all with
            the same keys.

    Returns:
        The same lists and mappings, in the first one's order, with what `statistic` gives for
        numbers.
    """
    if isinstance(figures[0], Mapping):
        return {name: over_seeds([each[name] for each in figures]) for name in figures[0]}
    if isinstance(figures[0], list):
        return [over_seeds(each) for each in zip(*figures, strict=True)]
    return statistic(figures)


def mean_std(figure: Mapping[str, Any], scale: int, digits: int, sign: str = "") -> str:
    """Write "mean ± std", times `scale`; the mean alone where "std" is None."""
    mean = f"{scale * figure['mean']:{sign}.{digits}f}"
    return mean if figure["std"] is None else f"{mean} ± {scale * figure['std']:.{digits}f}"


def readable_count(number: int) -> str:
    """Write a count in few digits: 850, 12.35 k, 20.61 M, 1.16 G."""
    for unit, size in (("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Write a time in the two largest units that matter: 4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def spread_note(summary: Mapping[str, Any]) -> str:
    """Say over how many seeds figures are summed up."""
    count = len(summary["seeds"])
    if count == 1:
        return "one seed: no spread"
    return f"mean ± sample standard deviation over {count} seeds"


def run_facts(summary: Mapping[str, Any], seconds: float) -> list[list[str]]:
    """List where, when and with what a study was run: rows for a report's table.

    Args:
        summary: Contents of `summary.json`.
        seconds: Of training, over all runs.
    """
    return [
        ["precision", recorded(summary)],
        ["device", summary["device"]],
        ["commit", summary["commit"] or "not in a clone"],
        ["seeds", ", ".join(map(str, summary["seeds"]))],
        ["runs at a time", str(summary["jobs"])],
        ["training time, all runs", duration(seconds)],
        [
            "versions",
            ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        ],
    ]
