from collections import Counter
from itertools import islice

import numpy as np
import pytest

from straw_experiments.faults import data as faults


def _table(count: int, names: set[str]) -> Counter:
    scenes = {name: faults.SCENES[name] for name in names}
    found = list(islice(faults.trials(np.random.default_rng(0), scenes), count))
    wrong = [trial for trial in found if trial.outcome in (faults.SILENT, faults.RAW)]
    assert not wrong, wrong[0]
    return Counter((trial.scene, trial.outcome) for trial in found)


def test_damage_is_never_silent_where_trials_are_quick():
    table = _table(80, {"idx.gz files, read before", "own npz file", "own text", "Penn Treebank"})
    assert table["Penn Treebank", faults.REFUSED] == 20
    for scene, outcome in [
        ("idx.gz files, read before", faults.REFUSED),
        ("own npz file", faults.REFUSED),
        ("own text", faults.NAMED),
    ]:
        assert table[scene, outcome] > 8


@pytest.mark.slow
def test_damage_is_never_silent():
    table = _table(20 * len(faults.SCENES), set(faults.SCENES))
    outcomes = {outcome for _, outcome in table}
    assert outcomes == {faults.IDENTICAL, faults.REMADE, faults.NAMED, faults.REFUSED}


def test_a_reader_that_trusts_what_it_finds_is_caught(monkeypatch):
    blind = faults.Scene(
        make=lambda folder: (folder / "file").write_bytes(bytes(range(200))),
        load=lambda folder: faults.Loaded("numbers", (folder / "file").read_bytes().hex()),
    )
    found = list(islice(faults.trials(np.random.default_rng(0), {"blind": blind}), 30))
    assert {trial.outcome for trial in found} == {faults.SILENT, faults.RAW}
    assert all(trial.said for trial in found if trial.outcome == faults.RAW)
