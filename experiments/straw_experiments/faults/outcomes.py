"""How the answer to a fault is judged, and the table of a campaign."""

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np


class Outcome(enum.Enum):
    """What came of a fault; the last three are defects."""

    IDENTICAL = "identical"
    REMADE = "noticed and remade"
    REFUSED = "noticed and refused"
    RENAMED = "other data, other name"
    SILENT = "silent"
    TRACEBACK = "traceback"
    LOST = "lost"

    @property
    def is_defect(self) -> bool:
        """Whether it must not happen."""
        return self in (Outcome.SILENT, Outcome.TRACEBACK, Outcome.LOST)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One fault and its outcome.

    Attributes:
        fault: What was done.
        outcome: What came of it.
        answer: What the command said, or how the results differ.
    """

    fault: str
    outcome: Outcome
    answer: str = ""


Kind = Callable[[np.random.Generator, int], Trial]
"""Makes one fault and judges what came of it: drawn from a generator, or of a list by number."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """A kind of faults.

    Attributes:
        help: What is done, one line.
        prepare: Makes what the trials need in an empty folder, and returns what does a trial.
        share: Of the campaign's time.
        trials: How many there are, where they are a list and not drawn at random.
    """

    help: str
    prepare: Callable[[Path], Kind]
    share: float
    trials: int | None = None


def table(counts: dict[str, Counter[Outcome]]) -> str:
    """Lay out the counts of outcomes by kind of fault, as Markdown.

    Args:
        counts: By kind; kinds in the order of the rows.
    """
    columns = list(Outcome)
    rows = [["fault", "trials", *(outcome.value for outcome in columns)]]
    for kind, counted in counts.items():
        rows.append([kind, *_cells(counted, columns)])
    rows.append(["all", *_cells(sum(counts.values(), Counter()), columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _cells(counted: Counter[Outcome], columns: Sequence[Outcome]) -> list[str]:
    return [str(n) for n in (counted.total(), *(counted[outcome] for outcome in columns))]


def _padded(row: Iterable[str], widths: Sequence[int]) -> list[str]:
    first, *rest = row
    cells = zip(rest, widths[1:], strict=True)
    return [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in cells)]
