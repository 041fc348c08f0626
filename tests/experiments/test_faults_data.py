from collections import Counter

import numpy as np
import pytest

from straw_experiments.faults import data as faults
from straw_experiments.faults.outcomes import Outcome


def _table(folder, count, names):
    trial = faults.prepared(folder, {name: faults.SCENES[name] for name in names})
    rng = np.random.default_rng(0)
    found = [trial(rng, number) for number in range(count)]
    wrong = [trial for trial in found if trial.outcome.is_defect]
    assert not wrong, wrong[0]
    return Counter((trial.fault.split(":")[0], trial.outcome) for trial in found)


def test_damage_is_never_silent_where_trials_are_quick(tmp_path):
    names = ["idx.gz files, read before", "own npz file", "own text", "Penn Treebank"]
    table = _table(tmp_path, 100, names)
    assert {outcome for scene, outcome in table if scene == "Penn Treebank"} == {Outcome.REFUSED}
    for scene, outcome in [
        ("idx.gz files, read before", Outcome.REFUSED),
        ("own npz file", Outcome.REFUSED),
        ("own text", Outcome.RENAMED),
    ]:
        assert table[scene, outcome] > 8


@pytest.mark.slow
def test_damage_is_never_silent(tmp_path):
    table = _table(tmp_path, 20 * len(faults.SCENES), list(faults.SCENES))
    outcomes = {outcome for _, outcome in table}
    expected = {Outcome.IDENTICAL, Outcome.REMADE, Outcome.RENAMED, Outcome.REFUSED}
    assert outcomes == expected


def test_a_reader_that_trusts_what_it_finds_is_caught(tmp_path):
    blind = faults.Scene(
        make=lambda folder: (folder / "file").write_bytes(bytes(range(200))),
        load=lambda folder: faults.Loaded("numbers", (folder / "file").read_bytes().hex()),
    )
    trial = faults.prepared(tmp_path, {"blind": blind})
    rng = np.random.default_rng(0)
    found = [trial(rng, number) for number in range(30)]
    assert {trial.outcome for trial in found} == {Outcome.SILENT, Outcome.TRACEBACK}
    assert all(trial.answer for trial in found if trial.outcome is Outcome.TRACEBACK)
