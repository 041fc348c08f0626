import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_models import CLASSES, MODEL, images_and_labels

from straw_experiments.data import Dataset
from straw_experiments.image_classification import train as classifiers
from straw_experiments.image_classification.train import Recipe, Trainer, train_and_test
from straw_experiments.runner import records, runs
from straw_experiments.runner.checkpoints import CheckpointError
from straw_experiments.runner.runs import NonFiniteError, Run
from straw_experiments.runner.tables import over_seeds, statistic

# Orbax reads in threads, and leaves them behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DATASET = Dataset(
    "stripes", *images_and_labels(20), *images_and_labels(9), tuple(map(str, range(CLASSES)))
)
VARIANTS = {"standard": DATASET.test_images, "flipped": DATASET.test_images[:, ::-1]}
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=1e-2, schedule="constant")
TRAINER = Trainer("small", MODEL, RECIPE, DATASET.train_images.shape)


class KilledError(Exception):
    """Stands for whatever may end a process."""


def _finish_but_die(monkeypatch, run, call, function):
    """Let a call of `runs.records.append_line` or `runs.checkpoints.save` end the run."""
    module = {"append_line": runs.records, "save": runs.checkpoints}[function]
    original, calls = getattr(module, function), []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KilledError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stopping)
        with pytest.raises(KilledError):
            train_and_test(run, DATASET, VARIANTS)
    assert not run.result.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, and its result."""
    run = Run(TRAINER, 4, tmp_path_factory.mktemp("whole"))
    return run, train_and_test(run, DATASET, VARIANTS)


def _assert_same_end(run, whole):
    jax.tree.map(np.testing.assert_array_equal, run.variables(), whole[0].variables())
    untimed = [
        [{k: v for k, v in line.items() if "second" not in k} for line in r.history()]
        for r in (run, whole[0])
    ]
    assert untimed[0] == untimed[1]
    assert json.loads(run.result.read_text())["variants"] == whole[1]["variants"]


def test_finished_run_keeps_variables_result_and_history(whole):
    run, result = whole
    assert not run.epochs.exists()
    assert result["seconds"] == sum(line["seconds"] for line in run.history())
    assert [(line["epoch"], line["step"]) for line in run.history()] == [(1, 3), (2, 6), (3, 9)]
    assert result["variants"]["standard"] == run.history()[-1]["test"]
    assert result["variants"]["flipped"] != result["variants"]["standard"]


@pytest.mark.parametrize("function", ["append_line", "save"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_stopped_run_continues_to_the_same_bits(tmp_path, monkeypatch, whole, function, epoch):
    run = Run(TRAINER, 4, tmp_path)
    _finish_but_die(monkeypatch, run, epoch, function)
    train_and_test(run, DATASET, VARIANTS)
    _assert_same_end(run, whole)


def test_a_device_that_was_stopped_goes_on_as_the_host_would(tmp_path, monkeypatch, whole):
    trainer = Trainer("small", MODEL, RECIPE, DATASET.train_images.shape)
    trainer.on_device = True
    runs_ = [Run(trainer, 4, tmp_path / name) for name in ("whole", "cut")]
    _finish_but_die(monkeypatch, runs_[1], 2, "save")
    results = [train_and_test(run, DATASET, VARIANTS) for run in runs_]
    _assert_same_end(runs_[1], (runs_[0], results[0]))
    jax.tree.map(
        lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-3, atol=1e-5),
        runs_[0].variables(),
        whole[0].variables(),
    )


def test_damaged_checkpoint_costs_an_epoch_and_no_more(tmp_path, monkeypatch, whole):
    run = Run(TRAINER, 4, tmp_path)
    _finish_but_die(monkeypatch, run, 3, "append_line")
    shutil.rmtree(run.epochs / "2" / "tree" / "d")
    with pytest.warns(UserWarning, match="falling back to step 1"):
        train_and_test(run, DATASET, VARIANTS)
    _assert_same_end(run, whole)


def test_killed_between_last_save_and_result_repeats_no_epoch(tmp_path, monkeypatch, whole):
    run = Run(TRAINER, 4, tmp_path)
    _finish_but_die(monkeypatch, run, 4, "save")  # That of the final variables.
    lines = run.history()
    train_and_test(run, DATASET, VARIANTS)
    assert run.history() == lines
    _assert_same_end(run, whole)


def test_only_unfinished_seeds_are_trained(tmp_path, whole):
    shutil.copytree(whole[0].result.parent, tmp_path / "runs" / "small-seed4")
    group = [Run(TRAINER, seed, tmp_path) for seed in (4, 5)]
    results = [train_and_test(run, DATASET, VARIANTS) for run in group]
    assert results[0] == whole[1]
    assert results[1]["variants"] != results[0]["variants"]
    assert [{line["seed"] for line in run.history()} for run in group] == [{4}, {5}]


def test_epochs_are_tested_on_a_sample_of_the_images(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(classifiers, "_TESTED_EACH_EPOCH", 5)
    few = DATASET._replace(
        test_images=DATASET.test_images[::2], test_labels=DATASET.test_labels[::2]
    )
    run, run_few = Run(TRAINER, 4, tmp_path / "all"), Run(TRAINER, 4, tmp_path / "few")
    result = train_and_test(run, DATASET, VARIANTS)
    result_few = train_and_test(run_few, few, {"standard": few.test_images})
    assert result["variants"] == whole[1]["variants"]  # these are of all images
    assert run.history()[-1]["test"] == result_few["variants"]["standard"]


def test_divergence_names_step_and_checkpoint(tmp_path, monkeypatch):
    def poisoned(state, *batch):
        if state.step == 4:
            state = jax.tree.map(lambda leaf: leaf * np.nan if leaf.ndim else leaf, state)
        return TRAINER.train_step(state, *batch)

    trainer = Trainer("small", MODEL, RECIPE, DATASET.train_images.shape)
    monkeypatch.setattr(trainer, "train_step", poisoned)
    run = Run(trainer, 4, tmp_path)
    good = run.epochs / "1"
    with pytest.raises(NonFiniteError, match=f"small seed 4: the loss is nan at step 5; .*{good}"):
        train_and_test(run, DATASET, VARIANTS)
    assert list(run.epochs.iterdir()) == [good]


def test_lost_variables_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"is gone. Delete .* --resume"):
        Run(TRAINER, 0, tmp_path).variables()


@pytest.fixture
def finished(tmp_path, whole):
    """A copy of a finished run, to be damaged."""
    shutil.copytree(whole[0].result.parents[2], tmp_path, dirs_exist_ok=True)
    return Run(TRAINER, 4, tmp_path)


def _no_training(*_, **__):
    raise AssertionError("it was trained again")


def test_damaged_result_is_made_again_without_training(finished, monkeypatch, whole):
    text = finished.result.read_text()
    right = str(whole[1]["variants"]["standard"]["accuracy"])
    finished.result.write_text(text.replace(right, "0.9999", 1))
    monkeypatch.setattr(classifiers, "train", _no_training)
    with pytest.warns(UserWarning, match=r"result\.json: it does not match its checksum"):
        assert train_and_test(finished, DATASET, VARIANTS) == whole[1]
    assert records.read_json(finished.result) == whole[1]


def test_run_without_result_and_variables_is_trained_again(finished, whole):
    finished.result.unlink()
    shutil.rmtree(finished.final)
    train_and_test(finished, DATASET, VARIANTS)
    _assert_same_end(finished, whole)


def test_lost_lines_of_epochs_are_taken_from_the_checkpoint(finished, whole):
    lines = finished.history()
    whole_text = finished.metrics.read_text()
    first = whole_text.index("loss")
    for text in ("", whole_text[:-9], whole_text[:first] + "lost" + whole_text[first + 4 :]):
        finished.metrics.write_text(text)
        with pytest.warns(UserWarning, match="they are taken from the last checkpoint"):
            assert finished.history() == lines
        assert finished.history() == lines  # and written down: without a warning
    shutil.rmtree(finished.final / "3" / "history")  # an earlier version kept none
    finished.metrics.unlink()
    with pytest.raises(records.RecordError, match=f"Delete {finished.result.parent}, and use --re"):
        finished.history()


def test_damaged_variables_name_the_folder_to_delete(finished):
    shutil.rmtree(finished.final / "3" / "tree" / "d")
    with pytest.raises(CheckpointError, match=f"Delete {finished.result.parent}, and use --resume"):
        finished.variables()


def test_damaged_variables_of_an_untested_run_cost_no_training(tmp_path, monkeypatch, whole):
    run = Run(TRAINER, 4, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(runs.records, "write_json", _die)
        with pytest.raises(KilledError):
            train_and_test(run, DATASET, VARIANTS)
    shutil.rmtree(run.final / "3" / "tree" / "d")
    with pytest.warns(UserWarning, match="Going on from"):
        train_and_test(run, DATASET, VARIANTS)
    _assert_same_end(run, whole)


def _die(*_, **__):
    raise KilledError


def test_cut_off_line_is_dropped(tmp_path):
    path = tmp_path / "lines.jsonl"
    records.append_line(path, {"epoch": 1})
    with path.open("a") as file:
        file.write('{"epoch": 2')
    assert records.read_lines(path) == [{"epoch": 1}]


def _rates(recipe, images):
    """The learning rate of each step: Adam's steps, where the gradient is always 1."""
    optimizer = recipe.optimizer(images)
    state = optimizer.init(jnp.zeros(()))
    rates = []
    for _ in range(recipe.epochs * -(-images // recipe.batch_size)):
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(jnp.ones(()), state)
        rates.append(-float(change))
    return np.array(rates)


def test_schedules_of_the_learning_rate():
    np.testing.assert_allclose(_rates(RECIPE, 20), 9 * [1e-2], rtol=1e-4)
    recipe = RECIPE._replace(schedule="cosine", epochs=10, batch_size=10, learning_rate=0.5)
    rates = _rates(recipe, 95)  # 100 steps
    np.testing.assert_allclose(rates[:11], np.linspace(0, 0.5, 11), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        rates[10:], 0.25 * (1 + np.cos(np.pi * np.arange(90) / 90)), rtol=1e-3
    )
    assert np.isfinite(_rates(recipe._replace(epochs=1), 3)).all()  # one step


def test_over_seeds_gives_mean_and_sample_deviation():
    scores = [{"standard": {"loss": 1.0, "accuracy": a}} for a in (0.5, 0.7)]
    spread = over_seeds(scores)["standard"]
    assert spread["accuracy"]["mean"] == pytest.approx(0.6)
    assert spread["accuracy"]["std"] == pytest.approx(0.02**0.5)
    assert spread["accuracy"]["seeds"] == [0.5, 0.7]
    assert over_seeds(scores[:1])["standard"]["loss"] == {"mean": 1.0, "std": None, "seeds": [1.0]}


def test_over_seeds_sums_up_each_of_a_list():
    found = over_seeds([{"by angle": [0.5, 1.0]}, {"by angle": [0.7, 1.0]}])["by angle"]
    assert found == [statistic([0.5, 0.7]), statistic([1.0, 1.0])]
    with pytest.raises(ValueError, match="shorter"):
        over_seeds([[0.5, 1.0], [0.7]])
