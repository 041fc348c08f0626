"""Damage to the files of a results folder, while a study runs and after it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from straw_experiments.faults import studies
from straw_experiments.faults.damage import damage
from straw_experiments.faults.outcomes import Kind, Outcome, Trial


class _Stage(NamedTuple):
    """A results folder at some moment of a study.

    Attributes:
        study: As in `studies.STUDIES`.
        copy: Of the folder.
        expected: What the finished study publishes.
    """

    study: str
    copy: Path
    expected: dict[str, Any]


def prepare(place: Path) -> Kind:
    """Run each small study once, keeping its folder as it was at many moments."""
    studies.write_inputs(place)
    stages = []
    for name in studies.STUDIES:
        folder = place / name
        folder.mkdir()
        expected, copies = studies.snapshots(name, folder, place)
        stages += [_Stage(name, copy, expected) for copy in copies]
        stages += [stages[-1]] * len(copies)  # in half of all trials it is finished
    out = place / "trial"

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        stage = stages[rng.integers(len(stages))]
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(stage.copy, out)
        done = [_damaged(out, rng) for _ in range(rng.integers(1, 3))]
        before = _contents(out)
        answer = studies.call(studies.words(stage.study, out, inputs=place, resume=True))
        outcome, said = studies.judge(answer, stage.expected, out)
        if outcome is Outcome.REFUSED:
            after = set(_contents(out))
            lost = [name for name in before if not {name, f"{name}.damaged"} & after]
            if lost:
                outcome, said = Outcome.LOST, f"{said}; gone: {', '.join(lost)}"
        return Trial(f"{stage.study}, {stage.copy.name}: {', '.join(done)}", outcome, said)

    return trial


def _damaged(out: Path, rng: np.random.Generator) -> str:
    """Damage a file below a folder; say how."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    # As often a record as a part of a checkpoint, of which there are many more.
    records = [path for path in files if path.suffix in (".json", ".jsonl", ".csv")]
    chosen = _one([records, files][rng.integers(2)] or files, rng)
    done = damage(rng, chosen, others=files).replace(f"{out}/", "")
    return f"{chosen.relative_to(out)} ({done})"


def _one(paths: Sequence[Path], rng: np.random.Generator) -> Path:
    return paths[int(rng.integers(len(paths)))]


def _contents(out: Path) -> list[str]:
    """Name the files that must stay; checkpoints of earlier epochs go as training goes on."""
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return [str(path) for path in files if "epochs" not in path.parts]
