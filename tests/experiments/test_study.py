"""A whole study whose files are damaged: its figures come out the same, and none in silence."""

import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import scripts
from training_models import CLASSES, MODEL, images_and_labels

from straw_experiments.data import Dataset
from straw_experiments.image_classification import study as images
from straw_experiments.image_classification import train as classifiers
from straw_experiments.image_classification.config import parse
from straw_experiments.image_classification.train import Recipe, Trainer, train_and_test
from straw_experiments.runner import checkpoints, records, settings
from straw_experiments.runner.checkpoints import CheckpointError
from straw_experiments.runner.settings import RunConfig
from straw_experiments.runner.study import Study, conduct

# Orbax reads in threads, and leaves them behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DATASET = Dataset(
    "stripes", *images_and_labels(20), *images_and_labels(9), tuple(map(str, range(CLASSES)))
)
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=1e-2, schedule="constant")
TRAINER = Trainer("small", MODEL, RECIPE, DATASET.train_images.shape)
FILES = [
    *("config.json", "runs/config.json", "runs/small-seed0/result.json"),
    *("runs/small-seed0/metrics.jsonl", "metrics.jsonl", "metrics.csv", "report.md"),
    *("picture.png", "summary.json"),
]


class Small(Study[Trainer]):
    """The smallest study."""

    report = types.SimpleNamespace(
        table=lambda summary: f"accuracies {summary['results']}",
        markdown=lambda summary, pictures: f"{summary['results']} {pictures}",
    )

    def make_trainer(self, name):
        return TRAINER

    def execute(self, name, seed, *, bar=True):
        variants = {"standard": DATASET.test_images}
        return train_and_test(self.run(name, seed), DATASET, variants, bar=False)

    def cost(self, name):
        return 1.0

    def description(self):
        return ["a study"]

    def facts(self):
        return {"dataset": "stripes"}

    def figures(self, results):
        return {"results": {name: [r["variants"] for r in each] for name, each in results.items()}}

    def draw(self, summary, history):
        Path(self.config.out, "picture.png").write_bytes(repr(summary["results"]).encode())
        return {"a picture": "picture.png"}


def run(out):
    """Do what a script does with --resume."""
    config = RunConfig(out=str(out), jobs=1, resume=True)
    settings.check_out(config)
    if records.read_summary(out) is None:
        conduct(Small(config, ["small"]), "a command")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.fixture
def copied(whole, tmp_path, monkeypatch):
    """A copy of the finished study, which shall not be trained again."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(classifiers, "train", _no_training)
    return tmp_path


def _no_training(*_, **__):
    raise AssertionError("it was trained again")


def _flip(path):
    raw = bytearray(path.read_bytes())
    at = np.random.default_rng(len(raw)).integers(len(raw) - 1)  # the last only ends a line
    raw[at] ^= 4
    path.write_bytes(raw)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = [_flip, _cut, _zero, os.remove]


def _figures(out):
    lines = records.read_lines(out / "metrics.jsonl")
    return [records.read_json(out / "summary.json")["results"], lines]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.filterwarnings("always::UserWarning")
def test_damage_changes_no_figure_and_costs_no_training(
    copied, whole, file, damage, finished, recwarn
):
    if not finished:
        (copied / "summary.json").unlink()
    if (copied / file).exists():
        damage(copied / file)
    run(copied)
    told = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert _figures(copied) == _figures(whole)
    assert len(told) <= 1
    if told:
        assert Path(file).name in told[0]
    if finished:
        for name in ("metrics.csv", "report.md", "picture.png"):
            assert (copied / name).read_bytes() == (whole / name).read_bytes()
        read = file in ("config.json", "metrics.jsonl", "metrics.csv", "report.md", "picture.png")
        assert bool(told) == (read or (file == "summary.json" and damage is not os.remove))
    elif file.startswith("runs/small-seed0/"):
        assert told or (file.endswith("result.json") and damage is os.remove)
    elif file == "config.json":
        assert told


def test_damaged_variables_are_told_before_any_training(copied):
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "runs" / "small-seed0" / "final" / "2" / "tree" / "d")
    config = RunConfig(out=str(copied), jobs=1, resume=True, seeds=2)
    with pytest.raises(
        CheckpointError, match=f"Delete {copied}/runs/small-seed0, and use --resume"
    ):
        conduct(Small(config, ["small"]), "a command")


def test_other_settings_are_refused_even_where_config_is_lost(copied):
    (copied / "config.json").unlink()
    config = RunConfig(out=str(copied), seeds=2, resume=True)
    with (
        pytest.warns(UserWarning, match=r"config\.json is gone"),
        pytest.raises(ValueError, match="--seeds: --resume needs the earlier run's 1, got 2"),
    ):
        settings.check_out(config)
    with pytest.raises(ValueError, match="holds an earlier run; continue it with --resume"):
        settings.check_out(RunConfig(out=str(copied)))


def test_study_of_an_earlier_version_goes_on(copied, whole):
    (copied / "runs" / "config.json").unlink()
    for path in copied.rglob("*.json"):
        unmarked = records.read_json(path)
        unmarked.pop("files", None)
        records.write(path, records.json.dumps(unmarked, indent=2) + "\n")
    for path in copied.rglob("metrics.jsonl"):
        lines = [records.json.dumps(line) + "\n" for line in records.read_lines(path)]
        records.write(path, "".join(lines))
    shutil.rmtree(copied / "runs" / "small-seed0" / "final" / "2" / "history")
    run(copied)
    assert _figures(copied) == _figures(whole)
    (copied / "summary.json").unlink()
    run(copied)
    assert _figures(copied) == _figures(whole)
    assert "crc32" in (copied / "summary.json").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not the official EMNIST archive")
def test_damaged_controls_are_made_again(tmp_path):
    scripts.write_archive(tmp_path / "tiny.zip", train=64, test=47)
    words = f"--archive {tmp_path}/tiny.zip --data-dir {tmp_path}/data --fraction 1 --rank 1"
    config = parse([*words.split(), "--models", "straw", "--out", str(tmp_path / "out")])
    study = images.Study(config, images.load_dataset(config))
    run = study.run("straw", 0)
    checkpoints.save(run.final, 1, run.trainer.init_state(0).variables)
    records.write_json(run.result, {"seconds": 1.0, "variants": {}})
    right = study.execute("straw", 0)
    path = run.result.with_name("controls.json")
    text = path.read_text()
    accuracy = str(right["controls"]["own"]["standard"]["accuracy"])
    path.write_text(text.replace(f'"accuracy": {accuracy}', '"accuracy": 0.99', 1))
    with pytest.warns(UserWarning, match=r"controls\.json: it does not match its checksum"):
        assert study.execute("straw", 0) == right
    assert path.read_text() == text
