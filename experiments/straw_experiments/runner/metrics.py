"""The figures of every epoch, in forms that other tools read: a flat table, and TensorBoard."""

import csv
import io
import platform
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner import records

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
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    # Not with SummaryWriter: its thread dies of a full disk, and then its queue waits for ever.
    at: dict[str, Any] = {"step": line["epoch"], "wall_time": time.time()}
    events = [
        Event(wall_time=at["wall_time"], file_version="brain.Event:2"),
        Event(**at, session_log=SessionLog(status=SessionLog.START)),
        *(Event(**at, summary=scalar(*each)) for each in flat(line) if each[0] not in _KEYS),
    ]
    name = f"events.out.tfevents.{at['wall_time']:.0f}.{platform.node()}.{line['epoch']}"
    records.write_bytes(folder / name, b"".join(_framed(e.SerializeToString()) for e in events))


def _framed(event: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(event))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
    return length + checksums[0] + event + checksums[1]
