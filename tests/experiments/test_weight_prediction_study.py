import contextlib
import json
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import scripts

from straw_experiments.pages import stored, tables
from straw_experiments.runner import records, runs
from straw_experiments.runner.runs import NonFiniteError, Run
from straw_experiments.runner.state import training_key
from straw_experiments.runner.study import conduct
from straw_experiments.runner.tables import over_seeds, statistic
from straw_experiments.weight_prediction import config as weight_arguments
from straw_experiments.weight_prediction import evaluate, figures, report, train, weight_predictor
from straw_experiments.weight_prediction.config import Config
from straw_experiments.weight_prediction.evaluate import score
from straw_experiments.weight_prediction.networks import output_predictor
from straw_experiments.weight_prediction.objectives import outputs_objective, weights_objective
from straw_experiments.weight_prediction.published import EXPLAINED
from straw_experiments.weight_prediction.study import Study
from straw_experiments.weight_prediction.train import Recipe, Trainer, train_and_test

# Orbax reads in threads, and leaves them behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SCRIPT = scripts.EXPERIMENTS / "weight_prediction.py"
RECIPE = Recipe(steps=47, batch_size=16, learning_rate=1e-2, optimizer="muon")
SMALL = weights_objective((2, 2, 1), 4, straw=weight_predictor((2, 2, 1), embedding=8), fresh=4)


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    monkeypatch.setattr(train, "_EPOCHS", 6)  # each of them is saved, which takes a while
    monkeypatch.setattr(train, "TESTED", 64)
    monkeypatch.setattr(train, "_TESTED_EACH_EPOCH", 32)
    monkeypatch.setattr(evaluate, "_BATCH", 32)


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor():
    return Trainer("small", SMALL, RECIPE)


def _finish(run):
    return train_and_test(run, lambda params: {"leaves": len(jax.tree.leaves(params))})


def _untimed(run):
    return [{k: v for k, v in line.items() if "second" not in k} for line in run.history()]


def test_gradient_of_a_batch_is_that_of_its_parts(predictor):
    params = predictor.init_state(0).variables["params"]
    drawn = SMALL.draw(jax.random.key(1), 48)

    def loss(params):
        return score(*SMALL.outputs(params, drawn)).loss

    expected = jax.value_and_grad(loss)(params)
    for parts in (1, 3):
        found = train._in_parts(SMALL, parts)(params, drawn)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "batch", "part"),
    [(30, 128, 128), (30, 1024, 64), (150, 128, 32), (1, 8192, 8192), (30, 1021, 1021)],
)
def test_parts_are_of_some_tens_of_tasks_that_fit_the_cache(vectors, batch, part):
    objective = SMALL._replace(vectors=vectors)
    parts = train._parts(objective, batch)
    assert parts * part == batch if jax.default_backend() == "cpu" else parts == 1


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch, predictor, stop):
    whole = Run(predictor, 3, tmp_path / "whole")
    result = _finish(whole)
    assert result["examined"] == {"leaves": len(jax.tree.leaves(whole.variables()))}
    history = whole.history()
    assert [line["step"] for line in history] == [8, 16, 24, 32, 40, 47]
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]

    run, calls = Run(predictor, 3, tmp_path / "cut"), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return save(*args, **kwargs)

    save = runs.checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(runs.checkpoints, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            _finish(run)
    assert not run.result.exists()
    again = _finish(run)
    jax.tree.map(np.testing.assert_array_equal, run.variables(), whole.variables())
    assert _untimed(run) == _untimed(whole)
    assert again["explained"] == result["explained"]


@pytest.mark.slow
def test_seeds_differ_and_steps_are_compiled_once(tmp_path, predictor):
    one, two = (_finish(Run(predictor, seed, tmp_path)) for seed in (0, 1))
    assert one["loss"] != two["loss"]
    state, key = predictor.init_state(0), training_key(0)
    compiled = predictor.train_steps
    assert compiled is predictor.train_steps
    for steps in (1, 5):  # any number of steps is the same program
        state, _, finite = compiled(state, key, steps)
        assert int(finite) == steps
    assert int(state.step) == 6


@pytest.mark.slow
def test_no_task_of_the_final_test_is_looked_at_before(tmp_path, monkeypatch, predictor):
    monkeypatch.setattr(train, "_TESTED_EACH_EPOCH", 64)  # as many as in the end
    run = Run(predictor, 0, tmp_path)
    result, last = _finish(run), run.history()[-1]["test"]
    params = run.variables()["params"]

    def on(number):  # tasks from a key of the seed's, by hand
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 2)
        outputs = [SMALL.outputs(params, SMALL.draw(key, 32)) for key in keys]
        return float(score(*(np.stack(each) for each in zip(*outputs, strict=True))).loss)

    assert result["loss"] == pytest.approx(on(2), rel=1e-5)
    assert last["loss"] == pytest.approx(on(4), rel=1e-5)
    assert abs(last["loss"] / result["loss"] - 1) > 1e-3


def test_many_steps_at_once_are_the_same_as_one_by_one(predictor):
    key = training_key(0)
    at_once, loss, _ = predictor.train_steps(predictor.init_state(0), key, 4)
    state, losses = predictor.init_state(0), []
    for _ in range(4):
        state, each, _ = predictor.train_steps(state, key, 1)
        losses.append(float(each))
    jax.tree.map(np.testing.assert_array_equal, at_once, state)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-6)


def test_divergence_names_the_step(tmp_path):
    wild = Trainer("wild", SMALL, RECIPE._replace(learning_rate=1e30, optimizer="adam"))
    with pytest.raises(NonFiniteError, match=r"wild seed 0: the loss is not finite at step \d+;"):
        _finish(Run(wild, 0, tmp_path))
    with pytest.raises(ValueError, match=r"expected an optimizer of .* got 'sgd'"):
        Trainer("x", SMALL, RECIPE._replace(optimizer="sgd"))


def test_predictors_of_outputs_learn(tmp_path):
    recipe = Recipe(steps=150, batch_size=128, learning_rate=3e-3, optimizer="adam")
    found = train_and_test(
        Run(
            Trainer(
                "plain", outputs_objective((1, 1), output_predictor((1, 1), kind="plain")), recipe
            ),
            0,
            tmp_path,
        )
    )
    assert found["explained"] > 0.9
    assert "examined" not in found


# --- study --------------------------------------------------------------------------------------


def _config(**changes):
    usual = {
        "predict": "weights",
        "networks": ["2-5-1", "4-10-1"],
        "pairs": [1.33, 2.0, 3.0],
        "predictors": ["mean"],
        "embedding": 128,
        "steps": 10,
        "batch_size": 8,
        "learning_rate": 0.01,
        "optimizer": "muon",
        "seed": 0,
        "seeds": 1,
        "jobs": 1,
        "out": "unused",
        "resume": False,
    }
    return Config(**usual | changes)


def test_cells_are_those_of_the_post():
    cells = Study(_config()).cells.values()
    networks = {"2-5-1": 15, "4-10-1": 50}
    assert {(networks[cell.network], cell.pairs) for cell in cells} == set(EXPLAINED)
    names = list(Study(_config(predict="outputs", predictors=["plain"], networks=["2-5-1"])).cells)
    assert names == ["plain_2-5-1"]


@pytest.mark.parametrize("ratio", [0.033, 0.034, 0.099, 0.101, 0.5, 1.33, 2.97, 3.03])
def test_ratios_are_checked_as_they_are_counted(tmp_path, ratio):
    (cell,) = Study(_config(networks=["2-5-1"], pairs=[ratio])).cells.values()
    words = ["--networks", "2-5-1", "--out", str(tmp_path / "x"), "--pairs"]
    for more in range(1, 60):  # some of them the same number of pairs, some not
        (other,) = Study(_config(networks=["2-5-1"], pairs=[more / 17])).cells.values()
        accepted = cell.pairs and other.pairs and cell.pairs != other.pairs
        with contextlib.nullcontext() if accepted else pytest.raises(SystemExit, match="2"):
            weight_arguments.parse([*words, str(ratio), str(more / 17)])


@pytest.mark.slow
def test_study_in_bfloat16_says_so_and_goes_on_in_it(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--predict", "outputs", "--networks", "2-2-1", "--steps", "10", "--batch-size", "4"]
    words += ["--predictors", "plain", "--jobs", "1", "--out", str(out), "--precision"]
    config = weight_arguments.parse([*words, "bfloat16"])
    conduct(Study(config), "a command")
    assert "bfloat16; one seed" in capsys.readouterr().out
    assert "| precision | bfloat16 |" in (out / "report.md").read_text()
    assert records.read_json(out / "config.json")["precision"] == "bfloat16"
    made = Study(config)
    variables = made.run(made.names[0], 0).variables()
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    with pytest.raises(SystemExit, match="2"):
        weight_arguments.parse([*words, "float32", "--resume"])
    line = "--precision: --resume needs the earlier run's bfloat16, got float32"
    assert line in capsys.readouterr().err


def test_figures_are_gathered_over_seeds():
    one, two = ({"a": {"b": value}, "c": value} for value in (1.0, 3.0))
    found = over_seeds([one, two])
    assert found == {"a": {"b": statistic([1.0, 3.0])}, "c": statistic([1.0, 3.0])}


# --- command line -------------------------------------------------------------------------------


def _start(folder, *words):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        cwd=folder,
        env=scripts.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(folder, *words):
    process = _start(folder, *words)
    stdout, stderr = process.communicate(timeout=500)
    return process.returncode, stdout, stderr


TINY = ["--predict", "outputs", "--predictors", "plain", "--steps", "60", "--batch-size", "4"]


@pytest.mark.slow
def test_study_is_stopped_and_gone_on_with(tmp_path):
    code, stdout, stderr = _run(tmp_path, *TINY, "--jobs", "1", "--out", "whole")
    assert code == 0, stderr
    assert "plain_2-5-1: 15 weights, 35,457 trained parameters" in stdout
    assert "one seed: no spread; tested on 8,192 new networks" in stdout
    out = tmp_path / "whole"
    summary = json.loads((out / "summary.json").read_text())
    assert "Prediction of outputs" in (out / "report.md").read_text()
    assert (out / "curves.png").stat().st_size > 5_000
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 20

    process = _start(tmp_path, *TINY, "--jobs", "1", "--out", "cut")
    while not (tmp_path / "cut/runs/plain_2-5-1-seed0/epochs/2/commit_success.txt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].endswith("--out cut --resume")
    code, stdout, stderr = _run(tmp_path, *TINY, "--out", "cut")
    assert code == 2
    assert "continue it with --resume" in stderr
    code, stdout, stderr = _run(tmp_path, *TINY, "--jobs", "1", "--out", "cut", "--resume")
    assert code == 0, stderr
    assert "continuing after epoch" in stderr
    again = json.loads((tmp_path / "cut" / "summary.json").read_text())
    for measure in ("loss", "explained"):
        of_both = [each["results"]["plain_2-5-1"][measure] for each in (summary, again)]
        assert of_both[0] == of_both[1]

    code, stdout, stderr = _run(tmp_path, *TINY, "--out", "cut", "--resume")
    assert code == 0
    assert "Already finished" in stdout
    code, _, stderr = _run(tmp_path, *TINY, "--seed", "5", "--out", "cut", "--resume")
    assert code == 2
    assert "--seed: --resume needs the earlier run's 0, got 5" in stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--networks", "2"], "argument --networks: expected sizes of layers, such as 2-5-1"),
        (["--networks", "2-x-1"], "got '2-x-1'"),
        (["--predictors", "max"], "argument --predictors: expected any of mean, attention, got"),
        (["--predictors", "mean", "mean"], "got mean+mean; name each once"),
        (["--predict", "outputs", "--pairs", "2"], "argument --pairs: is of weights"),
        (["--predict", "outputs", "--embedding", "2"], "argument --embedding: is of weights"),
        (["--predict", "outputs", "--predictors", "mean"], "any of plain, concat, residual"),
        (["--pairs", "0"], "argument --pairs: expected a number above 0, got '0'"),
        (
            ["--networks", "4-10-1", "2-5-1", "--pairs", "2", "0.03"],
            "argument --pairs: expected at least half a pair, got 0.03 for each of the 15 weights",
        ),
        (
            ["--networks", "4-10-1", "2-5-1", "--pairs", "2", "1", "2.03"],
            "argument --pairs: 2 and 2.03 for each of the 15 weights of 2-5-1 are both 30 pairs",
        ),
        (["--steps", "0"], "argument --steps: expected a whole number of at least 1"),
    ],
)
def test_mistakes_are_told_on_one_line(tmp_path, words, says):
    code, stdout, stderr = _run(tmp_path, *words)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("weight_prediction.py: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


# --- the page of results ------------------------------------------------------------------------


def test_page_puts_studies_together():
    wider, attentive, outputs = _summary(1), _summary(1), _summary(1)
    wider["config"] |= {"embedding": 64, "optimizer": "adam"}
    for name, summary in (("attention", attentive), ("plain", outputs)):
        (cell,) = summary["results"].values()
        summary["results"] = {f"{name}_2-5-1": {**cell, "predictor": name}}
    (cell,) = outputs["results"].values()
    cell["pairs"] = 0
    del cell["examined"]
    outputs["config"] |= {"predict": "outputs"}
    studies = {"z": attentive, "w": wider, "m": _summary(), "o": outputs}
    results = stored.Results(studies, {}, {})

    def predictors(table):
        return [row.split(" | ")[1] for row in table.splitlines()[2:]]

    assert predictors(tables.weights_table(results, unusual=False)) == ["mean", "attention"]
    assert predictors(tables.weights_table(results, unusual=True)) == ["mean, embedding 64, adam"]
    assert "| 98.6 (-0.1) |" in tables.weights_table(results, unusual=False)
    assert tables.outputs_table(results).splitlines()[2].startswith("| plain | 99.00 |")
    inputs = tables.predictor_test_table(results, "inputs", "2-5-1").splitlines()
    assert inputs[0] == "| 2-5-1 | 30 pairs |"  # of mean pooling alone
    assert inputs[2] == "| test inputs: scale 2 | 85.0 ± 7.1 |"
    assert inputs[-1] == "| pairs of another network | below 0 |"
    fits = tables.predictor_test_table(results, "fits", "2-5-1")
    assert "| from random weights, steps: 10 | 99.0 ± 0.0; 50 ± 0 |" in fits


# --- report -------------------------------------------------------------------------------------


def _summary(seeds=2, **changes):
    def shares(*names):
        return {name: statistic([0.9, 0.8][:seeds]) for name in names}

    examined = {
        "fresh inputs": shares("scale 2"),
        "context inputs": shares("scale 2"),
        "pairs": shares("8", "30"),
        "other task": statistic([-0.5, -0.6][:seeds]),
        "fit": {
            start: {
                "10": {"explained": statistic([0.99] * seeds), "solved": statistic([0.5] * seeds)}
            }
            for start in ("predicted", "random")
        },
        "units": shares("share"),
    }
    cell = {
        "predictor": "mean",
        "network": "2-5-1",
        "pairs": 30,
        "unknowns": 15,
        "parameters": 134_287,
        "seconds": 90.0,
        "steps_per_second": 60.0,
        "loss": statistic([0.004, 0.005][:seeds]),
        "explained": statistic([0.99, 0.98][:seeds]),
        "examined": examined,
    }
    return {
        "study": "prediction of weights",
        "device": "cpu (test)",
        "command": "python experiments/weight_prediction.py",
        "commit": None,
        "jobs": 1,
        "versions": {"jax": "1"},
        "config": {
            "predict": "weights",
            "embedding": 128,
            "batch_size": 128,
            "steps": 5000,
            "optimizer": "muon",
            "learning_rate": 0.01,
        },
        "seeds": list(range(seeds)),
        "tasks": 8192,
        "results": {"mean_2-5-1_30": cell, **changes},
    }


def test_table_sets_figures_beside_the_posts():
    text = report.table(_summary())
    assert "mean ± sample standard deviation over 2 seeds" in text
    (line,) = [line for line in text.splitlines() if line.startswith("  mean")]
    assert line.split("  ")[-1].strip() == "45 s"
    assert "98.50 ± 0.71" in line
    assert "98.6 (-0.1)" in line
    assert "134.29 k" in line


def test_report_tells_what_was_examined():
    text = report.markdown(_summary(), {"a picture": "x.png"})
    assert "| fresh: scale 2 | 85.0 ± 7.1 |" in text
    assert "| another network's pairs | below 0 |" in text
    assert "| 8 pairs | 85.0 ± 7.1 |" in text
    assert "| predicted, 10 | 99.0 ± 0.0; 50 ± 0 |" in text
    assert "| share | 85.0 ± 7.1 |" in text
    assert "![a picture](x.png)" in text
    linear = _summary(1)
    linear["results"]["mean_2-5-1_30"]["examined"].pop("units")
    linear["results"]["mean_2-5-1_30"]["examined"]["least squares"] = {
        "8": statistic([0.5]),
        "30": statistic([1.0]),
    }
    text = report.markdown(linear, {})
    assert "The same units?" not in text
    assert "| 8 pairs | 90.0 (50.0) |" in text


def test_figures_show_what_is_not_explained(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.update({path.name: figure}))
    history = [
        {"model": name, "seed": seed, "step": step, "test": {"explained": 1 - (5 + seed) / step}}
        for name in ("mean_2-5-1_30", "another")
        for seed in (0, 1)
        for step in (10, 20)
    ]
    found = figures.draw(_summary(), history, tmp_path)
    assert sorted(found.values()) == sorted(drawn) == ["curves.png", "pairs.png"]
    (curves,), (pairs,) = (drawn[name].axes for name in ("curves.png", "pairs.png"))
    for axes in (curves, pairs):
        assert axes.get_yscale() == "log"
        assert axes.get_title() == "networks 2-5-1"
        assert axes.get_ylabel() == "variance not explained (%)"

    first, second = (line.get_xydata() for line in curves.lines)
    np.testing.assert_allclose(first, [[10, 50], [20, 25]])
    np.testing.assert_allclose(second, [[10, 60], [20, 30]])
    assert curves.get_xlabel() == "step"
    assert _labels(curves) == ["mean, 30 pairs"]

    assert pairs.get_xlabel() == "pairs an unknown"
    legend = ["the post", "sets of other sizes", "mean, trained with as many"]
    assert _labels(pairs) == legend
    others, trained, post = (line.get_xydata() for line in (*pairs.lines[:2], pairs.lines[-2]))
    np.testing.assert_allclose(others, [[8 / 15, 15], [2, 15]])
    np.testing.assert_allclose(trained, [[2, 1.5]])
    np.testing.assert_allclose(post, [[2, 1.4]])
    ((bar,),) = (bars.get_segments() for bars in pairs.containers[0].lines[2])
    spread = 100 * statistic([0.99, 0.98])["std"]
    np.testing.assert_allclose(bar, [[2, 1.5 - spread], [2, 1.5 + spread]])


def _labels(axes):
    return [text.get_text() for text in axes.get_legend().texts]
