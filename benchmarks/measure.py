"""Timing side by side."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time cases in turn, so that what disturbs the machine disturbs them alike.

    Args:
        cases: By name, what to time; each returns only when its work is done. Each is called twice
            before, untimed, so that compilation and first allocations are over.
        repeats: Timed calls of each case.

    Returns:
        By name, the seconds of every timed call in order.
    """
    for case in cases.values():
        case()
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Summarise timings.

    Args:
        seconds: By name, from `interleaved`.
        reference: The case to which the others are compared.

    Returns:
        By name: minimum and median in seconds, and how many times the reference's they are.
    """
    rows = {
        name: {"min": min(times), "median": statistics.median(times)}
        for name, times in seconds.items()
    }
    base = rows[reference]
    return {
        name: row
        | {"min_ratio": row["min"] / base["min"], "median_ratio": row["median"] / base["median"]}
        for name, row in rows.items()
    }


def table(rows: Mapping[str, Mapping[str, float]], reference: str) -> str:
    """Lay a summary out as text."""
    width = max(map(len, rows))
    columns = ("min", "median", "min_ratio", "median_ratio")
    lines = [
        f"{'':{width}}  {'seconds':>15}  {'times ' + reference:>15}",
        f"{'':{width}}" + f"  {'min':>6} {'median':>8}" * 2,
    ]
    for name, row in rows.items():
        cells = "".join(f"{row[column]:8.3f} " for column in columns)
        lines.append(f"{name:{width}}{cells}".rstrip())
    return "\n".join(lines)
