"""analyse.py, from bad input to its files, on a tiny experiment."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import scripts

from straw_experiments.image_classification.config import parse, parse_analysis
from straw_experiments.image_classification.evaluate import evaluate
from straw_experiments.image_classification.study import Study, load_dataset
from straw_experiments.runner import checkpoints, records


def analyse(line, folder):
    return subprocess.run(
        [sys.executable, scripts.EXPERIMENTS / "analyse.py", *shlex.split(line)],
        cwd=folder,
        env=scripts.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def finished(line):
    """Write what a study leaves whose first seed is finished, without the training."""
    config = parse(shlex.split(line))
    dataset = load_dataset(config)
    study = Study(config, dataset)
    data = {"name": dataset.name, "train": 64, "test": 94, "classes": 47}
    records.write_json(
        Path(config.out, "config.json"), {**dataclasses.asdict(config), "data": data}
    )
    for name in config.models:
        run = study.run(name, 0)
        variables = run.trainer.init_state(0).variables
        checkpoints.save(run.final, 1, variables)
        score = evaluate(run.trainer.forward, variables, dataset.test_images, dataset.test_labels)
        records.write_json(run.result, {"variants": {"standard": score._asdict()}})


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The settings of a run in the folder "old"."""
    monkeypatch.chdir(tmp_path)
    settings = vars(parse(["--rank", "4", "--out", "elsewhere"]))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(
        json.dumps({**settings, "command": "", "data": 1})
    )
    return settings


def test_settings_are_the_experiments_own_but_for_places(stored):
    scripts.write_archive("some.zip")
    found = parse_analysis(["old", "--archive", "some.zip"])
    changes = {"out": "old", "resume": True, "archive": "some.zip"}
    assert vars(found.config) == {**stored, **changes}
    assert parse_analysis(["old", "--data-dir", "here"]).config.data_dir == "here"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: RESULTS"),
        ("none", "RESULTS: expected a folder with results of run.py, cannot read none/config.json"),
        ("torn", "RESULTS: expected a folder with results of run.py, cannot read torn/config.json"),
        (
            "early",
            "RESULTS: early/config.json has no validation: it was written by another version",
        ),
        ("old --images 1", "--images: expected a whole number of at least 2, got '1'"),
        ("old --archive none.zip", "--archive: expected EMNIST's gzip.zip, found no file none.zip"),
        ("old --rank 3", "unrecognized arguments: --rank 3"),
    ],
)
def test_bad_input_gets_one_line(line, message, stored, tmp_path, capsys):
    for name, text in {
        "torn": "{",
        "early": json.dumps({name: stored[name] for name in stored if name != "validation"}),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_analysis(shlex.split(line))
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith("analyse.py: ")
    assert message in printed.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not the official EMNIST archive")
def test_an_experiment_is_analysed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripts.write_archive(tmp_path / "tiny.zip", train=64, test=94)
    finished("--archive tiny.zip --data-dir data --fraction 1 --rank 1 --seeds 2 --out out")
    (tmp_path / "tiny.zip").rename(tmp_path / "moved.zip")
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}

    lost = analyse("out", tmp_path)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr.splitlines()[-1].startswith("analyse.py: ")
    assert "tiny.zip" in lost.stderr

    done = analyse("out --images 188 --archive moved.zip", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "straw seed 1: not finished, left out" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == before
    assert sorted(path.name for path in out.glob("analysis*")) == [
        "analysis.json",
        "analysis_angles.png",
        "analysis_distortions.png",
        "analysis_straw_movement.png",
        "analysis_straw_updates.png",
    ]
    analysis = json.loads((out / "analysis.json").read_text())
    assert analysis["command"].endswith("analyse.py out --images 188 --archive moved.zip")
    assert analysis["device"].startswith("cpu")
    assert analysis["seeds"] == {"standalone": [0], "straw": [0]}
    assert analysis["images"] == {"updates": 94, "accuracy": 94}
    straw = analysis["straw"]["straw"]
    assert straw["costs"][-1]["layer"] == "total"
    assert list(straw["leaves"]) == list(straw["updates"]) == list(straw["movement"])
    for movement in straw["movement"].values():
        assert movement["rotation"][0]["mean"] == movement["blur"][0]["mean"] == 0
        assert movement["rotation"][6]["seeds"] == [movement["rotation"][6]["mean"]]
    # All test images are taken, so that the run's own accuracy must come out.
    for model, styles in analysis["turned"].items():
        result = json.loads((out / "runs" / f"{model}-seed0" / "result.json").read_text())
        for figures in styles.values():
            assert len(figures) == 7
        upright = {style: figures[0]["mean"] for style, figures in styles.items()}
        upright.pop("same class style", None)
        assert set(upright.values()) == {result["variants"]["standard"]["accuracy"]}
        distortions = analysis["distortions"]
        for kind, neutral in {"rotation": 0, "scale": 1, "shear": 0, "blur": 0}.items():
            at = distortions["amounts"][kind].index(neutral)
            figure = distortions["accuracy"][kind][model][at]
            assert figure["mean"] == result["variants"]["standard"]["accuracy"]
    for text in ("fc1/kernel", "60°", "weights of the image before rotation", "standalone"):
        assert text in done.stdout
