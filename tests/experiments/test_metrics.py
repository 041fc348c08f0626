"""Metrics in a flat table and for TensorBoard."""

import csv
import io
import json
import sys

import pytest

from straw_experiments.runner import metrics

HISTORY = [
    {"model": "a", "seed": 0, "epoch": 1, "train": {"loss": 0.5, "accuracy": 0.25}, "seconds": 2.0},
    {"model": "b", "seed": 1, "epoch": 1, "train": {"loss": 0.1}, "more": {"x": {"y": 3}}},
]


def test_table_has_a_row_an_epoch_and_a_column_a_figure():
    rows = list(csv.DictReader(io.StringIO(metrics.csv_table(HISTORY))))
    assert rows[0] == {
        "model": "a",
        "seed": "0",
        "epoch": "1",
        "train/loss": "0.5",
        "train/accuracy": "0.25",
        "seconds": "2.0",
        "more/x/y": "",
    }
    assert float(rows[1]["train/loss"]) == 0.1
    assert rows[1]["more/x/y"] == "3"
    assert metrics.csv_table([]) == "model,seed,epoch\n"


def test_figures_are_exact_in_the_table():
    value = 0.1 + 0.2
    text = metrics.csv_table([{"model": "a", "seed": 0, "epoch": 1, "loss": value}])
    assert float(text.splitlines()[1].split(",")[3]) == value


def _events(folder):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401

    found = []
    for path in sorted(folder.iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + 8], "little")
            event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
            at += 12 + length + 4
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_has_every_figure_of_an_epoch(tmp_path):
    pytest.importorskip("tensorboardX")
    metrics.check_tensorboard()
    metrics.write_tensorboard(tmp_path / "a-seed0", HISTORY[0])
    assert sorted(_events(tmp_path / "a-seed0")) == [
        (1, "seconds", 2.0),
        (1, "train/accuracy", 0.25),
        (1, "train/loss", 0.5),
    ]


def test_tensorboard_has_a_file_for_each_epoch_and_can_read_it(tmp_path):
    pytest.importorskip("tensorboardX")
    for epoch in (1, 2):  # within a second
        metrics.write_tensorboard(tmp_path, {"epoch": epoch, "loss": 0.5})
    assert _events(tmp_path) == [(1, "loss", 0.5), (2, "loss", 0.5)]


def test_tensorboard_that_is_missing_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r'--tensorboard: needs the extra "tensorboard": pip inst'):
        metrics.check_tensorboard()


def test_a_line_of_json_is_a_row():
    line = json.loads(json.dumps(HISTORY[1]))
    assert dict(metrics.flat(line)) == dict(metrics.flat(HISTORY[1]))
