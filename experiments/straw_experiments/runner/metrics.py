"""The figures of every epoch, in forms that other tools read: a flat table, and TensorBoard."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_KEYS = ("model", "seed", "epoch")  # of a line, and the first columns


def csv_table(history: Sequence[Mapping[str, Any]]) -> str:
    """Lay out lines of `metrics.jsonl` as a table: a row an epoch, a column a figure.

    Args:
        history: Lines, perhaps with figures in groups.

    Returns:
        CSV with a header, which `pandas.read_csv` reads; a figure of a group is "group/figure".

    Example:
        >>> print(csv_table([{"model": "a", "seed": 0, "epoch": 1, "train": {"loss": 0.5}}]))
        model,seed,epoch,train/loss
        a,0,1,0.5
        <BLANKLINE>
    """
    rows = [dict(flat(line)) for line in history]
    columns = dict.fromkeys([*_KEYS, *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield figures by their paths, "group/figure"."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def check_tensorboard() -> None:
    """Refuse `--tensorboard` where what writes its files is not installed.

    Raises:
        ValueError: It is not.
    """
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError(
            'argument --tensorboard: needs the extra "tensorboard": pip install'
            ' "straw_jax[tensorboard]"; or leave it out'
        ) from None


def write_tensorboard(folder: Path, line: Mapping[str, Any]) -> None:
    """Add an epoch's figures to a run's files for TensorBoard.

    Args:
        folder: The run's.
        line: Of `metrics.jsonl`. Epochs from its own on that were written before, by a run that was
            stopped, are hidden.
    """
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder), purge_step=line["epoch"]) as writer:
        for name, value in flat(line):
            if name not in _KEYS:
                writer.add_scalar(name, value, line["epoch"])
