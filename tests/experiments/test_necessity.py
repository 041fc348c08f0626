"""The study of necessity: settings, rates, wrong contexts, verdicts, report, and a whole run."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from straw_experiments.necessity import analysis, config, evaluate, figures, report, train
from straw_experiments.necessity.analysis import Prediction
from straw_experiments.necessity.models import METHODS, Method
from straw_experiments.necessity.tasks import TASKS, Episodes
from straw_experiments.runner.runs import NonFiniteError, Run
from straw_experiments.runner.state import cosine
from straw_experiments.runner.tables import statistic

SCRIPT = scripts.EXPERIMENTS / "necessity.py"


# --- settings -----------------------------------------------------------------------------------


def test_usual_settings_are_all_methods_on_all_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config.parse([])
    assert found.out == "results/necessity"
    assert len(found.rates) == 3
    cells = set(found.cells)
    assert ("rotation", "pose") in cells
    assert ("sine", "pose") not in cells
    assert ("signs", "gradient") not in cells
    assert {task for task, _ in cells} == set(TASKS)
    assert {method for _, method in cells} == set(METHODS)


def test_help_lists_tasks_and_methods(capsys):
    with pytest.raises(SystemExit, match="0"):
        config.parse(["--help"])
    printed = capsys.readouterr().out
    for entry in (*TASKS.values(), *METHODS.values()):
        assert f"\n  {entry.name:<20}  {entry.help[:20]}" in printed


# --- training and evaluation --------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 10, 1500])
def test_rates_are_those_of_the_runner(steps):
    expected = cosine(1.0, steps)
    for step in {0, 1, steps // 10, steps // 2, steps - 1}:
        found = train.share_of_rate(jnp.int32(step), jnp.int32(steps))
        assert float(found) == pytest.approx(float(expected(step)), abs=1e-6)


def episodes(tasks=4, m=6, queries=3, outputs=2):
    """Contexts whose inputs and answers say of which task and item they are."""
    task = np.arange(tasks)[:, None, None]
    place = 10.0 * task + np.arange(m)[None, :, None]
    shown = jnp.asarray(np.repeat(place, outputs, -1), jnp.float32)
    asked = jnp.asarray(np.broadcast_to(task, (tasks, queries, 1)), jnp.float32)
    answers = jnp.asarray(np.broadcast_to(task[..., 0], (tasks, queries)), jnp.int32)
    return Episodes(shown[..., :1], shown, asked, answers)


def test_wrong_contexts_are_of_others():
    own = episodes()
    found = evaluate.contexts(TASKS["labels"], own)
    assert set(found) == {"own", "another task", "mixed", "shuffled"} == set(report.CONTEXTS)
    for name, each in found.items():
        np.testing.assert_array_equal(each.x, own.x)
        np.testing.assert_array_equal(each.y, own.y)
        np.testing.assert_array_equal(each.context_x[..., 0] % 10, own.context_x[..., 0] % 10)
        if name != "shuffled":
            np.testing.assert_array_equal(each.context_y, np.repeat(each.context_x, 2, -1))
    task = {name: np.asarray(each.context_x)[..., 0] // 10 for name, each in found.items()}
    here = np.arange(4)[:, None]
    np.testing.assert_array_equal(task["own"], np.broadcast_to(here, (4, 6)))
    np.testing.assert_array_equal(task["another task"], np.broadcast_to((here + 1) % 4, (4, 6)))
    assert np.all(task["mixed"] != here)
    assert all(len(set(row)) == 3 for row in task["mixed"])
    shuffled = np.asarray(found["shuffled"].context_y)
    np.testing.assert_array_equal(np.sort(shuffled, 1), own.context_y)
    assert np.any(shuffled != own.context_y)
    assert "shuffled" not in evaluate.contexts(TASKS["rotation"], own)


def test_one_task_alone_is_its_own_other():
    found = evaluate.contexts(TASKS["rotation"], episodes(tasks=1))
    np.testing.assert_array_equal(found["mixed"].context_x, found["own"].context_x)


def test_figures_are_those_of_numpy():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    y = np.array([[0, 1, 4], [2, 2, 3]])
    found = evaluate.figures(TASKS["few_shot"], jnp.asarray(logits), jnp.asarray(y))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean(np.take_along_axis(logs, y[..., None], -1))
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(np.mean(logits.argmax(-1) == y))
    values = jnp.asarray(logits[..., :1])
    squares = evaluate.figures(TASKS["sine"], values, jnp.zeros_like(values))
    assert set(squares) == {"loss"}
    assert float(squares["loss"]) == pytest.approx(np.mean(logits[..., :1] ** 2), rel=1e-5)


def test_a_test_scores_each_context_and_each_length():
    task = TASKS["sine"]
    tested = evaluate.test_tasks(task, ())
    lengths = evaluate.lengths(task)
    assert lengths == [1, 2, 5, 10, 20]
    assert tested.context_x.shape == (evaluate.TESTED, 20, 1)

    def apply(params, episodes):  # the mean of the values that are shown
        mean = params["scale"] * episodes.context_y.mean(1, keepdims=True)
        return jnp.broadcast_to(mean, episodes.y.shape)

    found = evaluate.make_test(task, apply)({"scale": jnp.float32(1)}, tested)
    y, shown = np.asarray(tested.y), np.asarray(tested.context_y)
    for count in lengths:
        error = np.mean((shown[:, :count].mean(1, keepdims=True) - y) ** 2)
        assert float(found["lengths"][str(count)]["loss"]) == pytest.approx(error, rel=1e-4)
    by_context = {name: float(each["loss"]) for name, each in found["contexts"].items()}
    assert by_context["own"] == float(found["lengths"]["10"]["loss"])
    assert by_context["shuffled"] == pytest.approx(by_context["own"], rel=1e-4)
    other = np.roll(shown[:, :10].mean(1, keepdims=True), -1, 0)
    assert by_context["another task"] == pytest.approx(np.mean((other - y) ** 2), rel=1e-4)


def trainer(rates, *, steps=30):
    """Train one number towards the answers of sines, or nothing."""
    task = TASKS["sine"]
    sampled = train.Sampled((), evaluate.validation_tasks(task, ()), evaluate.test_tasks(task, ()))
    method = Method(
        lambda key, episodes: {"w": jax.random.normal(key, (1,))},
        lambda params, episodes: params["w"][None, None] * jnp.ones_like(episodes.x),
    )
    return train.Trainer("sine-number", task, method, train.Recipe(steps, 2, rates), sampled)


def test_the_rate_with_the_least_loss_is_chosen_and_tried_once(tmp_path, monkeypatch):
    ours = trainer((1e-4, 0.1, 1e30))
    rate, tried = train.chosen_rate(ours, tmp_path, 0)
    assert rate == 0.1
    assert tried["0.1"] < tried["0.0001"]
    assert tried["1e+30"] is None  # diverged, and ends nothing
    monkeypatch.setattr(train, "_tried", lambda *_: pytest.fail("tried again"))
    assert train.chosen_rate(ours, tmp_path, 0) == (rate, tried)
    assert train.chosen_rate(trainer((0.5,)), tmp_path / "none", 0) == (0.5, {})
    assert not (tmp_path / "none").exists()


def test_a_run_that_diverges_after_all_gets_the_next_rate(tmp_path, monkeypatch):
    ours, taken = trainer((0.1, 0.2)), []
    monkeypatch.setattr(train, "_tried", lambda trainer, rate: rate)

    def at_rate(run, rate, tried):
        taken.append(rate)
        if rate == 0.1:
            raise NonFiniteError("sine-number seed 0: the loss is not finite; last good: none")
        return {"rate": rate, "rates": tried}

    monkeypatch.setattr(train, "_at_rate", at_rate)
    for seed, rates in ((0, [0.1, 0.2]), (0, [0.2]), (1, [0.1, 0.2])):
        taken.clear()
        found = train.train_and_test(Run(ours, seed, tmp_path), tmp_path / "rates")
        assert found == {"rate": 0.2, "rates": {"0.1": 0.1, "0.2": 0.2}}
        assert taken == rates
    with pytest.raises(NonFiniteError, match="not finite"):  # without a choice
        train.train_and_test(Run(trainer((0.1,)), 0, tmp_path), tmp_path / "rates")


def test_where_all_rates_diverge_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tried", lambda *_: None)
    with pytest.raises(FloatingPointError, match="sine-number: training diverges at each rate"):
        train.chosen_rate(trainer((1.0, 2.0)), tmp_path, 0)


# --- what the figures say -----------------------------------------------------------------------


def cell(task, method, values):
    metric = "loss" if TASKS[task].regression else "accuracy"
    found = {metric: statistic(values)}
    if metric == "accuracy":
        found["loss"] = statistic([1.0] * len(values))
    contexts = {"own": found, "another task": found, "mixed": found}
    if TASKS[task].labelled:
        contexts["shuffled"] = found
    lengths = {str(n): found for n in evaluate.lengths(TASKS[task])}
    return {
        "task": task,
        "method": method,
        "test": {"contexts": contexts, "lengths": lengths},
        "sizes": {"hidden": 1, "encoder": 1, "style": 1, "rank": 1},
        "parameters": 60_000 if method != "static" else 20_000,
        "multiply_adds": 17_500,
        "context": 12_345,
        "seconds": 12.0,
        "rate": 0.001,
        "rates": {"0.001": 1.0, "0.003": None},
    }


def summary(results, **changes):
    tasks = {
        name: {
            "metric": "loss" if TASKS[name].regression else "accuracy",
            "labelled": TASKS[name].labelled,
            "length": TASKS[name].length,
            "queries": TASKS[name].queries,
            "without context": {"accuracy": 0.1} if name == "labels" else {},
        }
        for name in dict.fromkeys(task for task, _ in results)
    }
    cells = {f"{t}-{m}": cell(t, m, values) for (t, m), values in results.items()}
    found = {"tasks": tasks, "results": cells}
    return {
        "study": "necessity",
        "data": {"images": "glyphs"},
        "budget": {"parameters": 60_000, "multiply_adds": 17_500},
        "methods": list(dict.fromkeys(method for _, method in results)),
        "tested": 400,
        "unseen": [1, 2],
        "device": "cpu",
        "jobs": 1,
        "command": "python experiments/necessity.py",
        "commit": None,
        "versions": {"jax": "1"},
        "config": {"steps": 5, "batch_size": 2, "rates": [0.001, 0.003], "precision": "float32"},
        "seeds": [0, 1],
        **found,
        **analysis.conclusions(found),
        **changes,
    }


RESULTS = {
    ("labels", "static"): [0.10, 0.10],
    ("labels", "static_wide"): [0.11, 0.12],
    ("labels", "low_rank"): [0.30, 0.31],
    ("labels", "delta"): [0.90, 0.91],
    ("labels", "attention"): [0.50, 0.52],
    ("sine", "static"): [4.0, 4.0],
    ("sine", "low_rank"): [2.0, 2.0],
    ("sine", "delta"): [1.0, 1.2],
    ("signs", "static_wide"): [0.80, 0.81],
    ("signs", "low_rank"): [0.81, 0.80],
}


def test_the_best_are_named_by_group():
    found = summary(RESULTS)["best"]
    assert found["labels"] == {"all": "delta", "static": "static_wide", "written": "delta"}
    assert found["sine"] == {"all": "delta", "static": "static", "written": "delta"}
    alone = summary({("sine", "attention"): [1.0, 1.0]})
    assert alone["best"]["sine"] == {"all": "attention", "static": None, "written": None}


def test_shares_of_the_gap():
    ours = summary(RESULTS)
    assert analysis.gap_share(ours, "labels", "static") == 0
    assert analysis.gap_share(ours, "labels", "delta") == 1
    share = analysis.gap_share(ours, "labels", "low_rank")
    assert share == pytest.approx((0.305 - 0.1) / (0.905 - 0.1))
    assert analysis.gap_share(ours, "sine", "low_rank") == pytest.approx(2 / 2.9)
    assert analysis.gap_share(ours, "signs", "low_rank") is None  # without the static network
    assert analysis.gap_share(summary({("sine", "static"): [1.0, 1.0]}), "sine", "static") is None


@pytest.mark.parametrize(
    ("changed", "verdicts"),
    [
        ({}, ["undecided", "not tested", "right", "not tested", "undecided"]),
        (
            {("signs", "low_rank"): [0.70, 0.71]},
            ["right", "not tested", "right", "not tested", "right"],
        ),
        (
            {("signs", "low_rank"): [0.90, 0.91]},
            ["wrong", "not tested", "right", "not tested", "wrong"],
        ),
        (
            {("labels", "attention"): [0.95, 0.96], ("signs", "low_rank"): [0.7, 0.7]},
            ["right", "not tested", "wrong", "not tested", "right"],
        ),
    ],
)
def test_predictions_are_judged_by_the_figures(changed, verdicts):
    found = summary({**RESULTS, **changed})["predictions"]
    assert [each["verdict"] for each in found] == verdicts


def test_less_is_better_of_errors_and_one_seed_decides_nothing():
    ours = summary(RESULTS)
    delta = Prediction("", ("sine",), ("delta",))
    assert analysis.verdict(ours, delta) == "right"
    assert analysis.verdict(ours, delta._replace(methods=("static",))) == "wrong"
    single = summary({key: values[:1] for key, values in RESULTS.items()})
    assert analysis.verdict(single, delta) == "undecided"


# --- the report ---------------------------------------------------------------------------------


def test_table_and_report_show_methods_by_tasks():
    ours = summary(RESULTS)
    text = report.table(ours)
    (row,) = (line for line in text.splitlines() if line.startswith("delta rule"))
    assert "90.5 ± 0.7" in row
    assert "1.100 ± 0.141" in row
    assert "right      A delta rule is best on permuted labels." in text
    pages = report.markdown(ours, {"a picture": "here.png"})
    assert "| (at best without a context) | 10.0 | - | - |" in pages
    assert "| permuted labels | delta rule 90.5 ± 0.7 % | delta rule " in pages
    assert "| static | 20,000 † | 17,500 | 12.35 k | 6.0 s | 0.001 |" in pages
    judged = "permuted labels: delta rule 90.5 ± 0.7 %; attention 51.0 ± 1.4 %"
    assert f"| A delta rule is best on permuted labels. | right | {judged} |" in pages
    assert "![a picture](here.png)" in pages
    assert report.score(ours, "sine", "delta") == "1.100 ± 0.141"


def test_what_has_not_run_is_empty_and_what_cannot_is_a_dash():
    ours = summary({("rotation", "static"): [0.5], ("sine", "static"): [1.0]})
    partial = {**ours, "methods": ["static", "pose", "gradient"]}
    lines = report.progress(partial).splitlines()
    assert "| static | 50.0 | 1.000 |" in lines
    assert "| pose |  | - |" in lines
    assert "| gradient steps | - |  |" in lines


def test_contexts_and_lengths_are_in_their_order_although_json_is_in_that_of_letters():
    stored = json.loads(json.dumps(summary(RESULTS), sort_keys=True))
    header = report.contexts_table(stored, "labels").splitlines()[0]
    assert header == "|  | own | another task's | mixed | pairs shuffled |"
    assert report.lengths_table(stored, "sine").splitlines()[0] == "| items | 1 | 2 | 5 | 10 | 20 |"
    assert list(analysis.by_length(stored["results"]["sine-static"])) == [1, 2, 5, 10, 20]


def test_pictures_are_drawn(tmp_path):
    drawn = figures.draw(summary(RESULTS), tmp_path)
    assert sorted(drawn.values()) == ["lengths.png", "matrix.png"]
    assert all((tmp_path / name).stat().st_size > 1_000 for name in drawn.values())


# --- the script ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_that_goes_on_is_one_that_was_never_stopped(tmp_path):
    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).choice(["so", "many", "words", "in", "a", "row"], 20_000)
    text.write_text(" ".join(words))
    flags = (
        "--tasks sine cipher --methods static delta neighbours --steps 6 --batch-size 2"
        f" --rates 0.001 0.01 --jobs 1 --text {text} --out here"
    )

    def ran(*more):
        return subprocess.run(
            [sys.executable, str(SCRIPT), *flags.split(), *more],
            cwd=tmp_path, env=scripts.environment(), capture_output=True, text=True,
        )  # fmt: skip

    first = ran()
    assert first.returncode == 0, first.stderr
    out = tmp_path / "here"
    before = json.loads((out / "summary.json").read_text())
    assert len(before["results"]) == 6
    assert before["results"]["sine-neighbours"]["parameters"] == 0
    assert {"progress.md", "report.md", "matrix.png", "lengths.png"} <= {
        path.name for path in out.iterdir()
    }
    rates = {path: path.stat().st_mtime_ns for path in out.glob("rates/*/loss.json")}
    assert len(rates) == 2 * 2 * 2  # two tasks, two methods that are trained, two rates
    assert "delta rule" in first.stdout
    (out / "summary.json").unlink()
    (out / "runs" / "sine-delta-seed0" / "result.json").unlink()  # is tested again
    for path in sorted((out / "runs" / "cipher-delta-seed0").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()  # is trained again
    again = ran("--resume")
    assert again.returncode == 0, again.stderr
    assert "trying the rate" not in again.stderr
    after = json.loads((out / "summary.json").read_text())
    for name, each in before["results"].items():
        assert after["results"][name]["test"] == each["test"]
        assert after["results"][name]["rate"] == each["rate"]
    assert rates == {path: path.stat().st_mtime_ns for path in out.glob("rates/*/loss.json")}
