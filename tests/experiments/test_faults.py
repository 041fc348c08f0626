"""The campaign of faults: a short one has no defects, and a defect is seen."""

import re
from collections import Counter

import numpy as np
import pytest

from straw_experiments.faults import __main__ as faults
from straw_experiments.faults import exports, outcomes, stored, studies
from straw_experiments.faults.outcomes import Outcome
from straw_experiments.runner import records


def _outcomes(trial, count):
    found = [trial(np.random.default_rng([7, number]), number) for number in range(count)]
    wrong = [trial for trial in found if trial.outcome.is_defect]
    return Counter(trial.outcome for trial in found), wrong


def test_damaged_saved_models_are_refused(tmp_path):
    counted, wrong = _outcomes(exports.prepare(tmp_path), 40)
    assert not wrong
    assert counted[Outcome.REFUSED] > 30


@pytest.mark.slow
def test_damaged_results_are_never_published(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "STUDIES", {"weights": studies.STUDIES["weights"]})
    trial = stored.prepare(tmp_path)
    counted, wrong = _outcomes(trial, 40)
    assert not wrong
    assert min(counted[each] for each in (Outcome.IDENTICAL, Outcome.REMADE)) > 5

    monkeypatch.setattr(records, "opened", lambda record, *_, **__: record)  # nothing is verified
    _, wrong = _outcomes(trial, 30)
    assert wrong


def test_a_trial_can_be_done_again_by_its_number(capsys):
    assert faults.main(["--only", "arguments", "--trial", "3"]) == 0
    assert capsys.readouterr().out.startswith("noticed and refused: ")


def test_table_counts_by_kind_and_in_all(capsys, monkeypatch):
    trials = [outcomes.Trial("a", Outcome.SILENT, "x"), outcomes.Trial("b", Outcome.LOST, "y")]
    kind = outcomes.Faults("none", lambda place: lambda rng, number: trials[number], 1, 2)
    monkeypatch.setattr(faults, "FAULTS", {"some": kind})
    assert faults.main(["--only", "some", "--seed", "5"]) == 1
    printed = capsys.readouterr().out
    assert "python -m straw_experiments.faults --only some --seed 5 --trial 1" in printed
    cells = [re.split(r" *\| *", line.strip("| ")) for line in printed.splitlines()[-2:]]
    assert cells == [[name, *"20000101"] for name in ("some", "all")]
