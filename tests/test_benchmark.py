"""The benchmark's own arithmetic, and that it compares like with like."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("measure")


@pytest.fixture
def training_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("training_step")


def test_cases_are_timed_in_turn_after_two_untimed_calls(measure, monkeypatch):
    calls: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: float(next(clock) ** 2))
    seconds = measure.interleaved({n: lambda n=n: calls.append(n) for n in "ab"}, repeats=3)
    assert "".join(calls) == "aabb" + "ababab"
    assert seconds == {"a": [1.0, 9.0, 17.0], "b": [5.0, 13.0, 21.0]}


def test_summary_gives_minimum_median_and_their_ratios(measure):
    rows = measure.summary({"ours": [2.0, 1.0, 4.0], "theirs": [9.0, 5.0, 8.0, 6.0]}, "ours")
    assert rows["ours"] == {"min": 1.0, "median": 2.0, "min_ratio": 1.0, "median_ratio": 1.0}
    assert rows["theirs"] == {"min": 5.0, "median": 7.0, "min_ratio": 5.0, "median_ratio": 3.5}
    header, columns, *lines = measure.table(rows, "ours").splitlines()
    assert header.split() == ["seconds", "times", "ours"]
    assert columns.split() == ["min", "median"] * 2
    assert [line.split() for line in lines] == [
        ["ours", "1.000", "2.000", "1.000", "1.000"],
        ["theirs", "5.000", "7.000", "5.000", "3.500"],
    ]


def test_command_line(training_step, tmp_path, capsys):
    args = training_step.parse([])
    assert (args.batch_size, args.rank, args.naive) == (128, 16, False)
    assert args.out.parent == Path("results")
    args = training_step.parse(["--rank", "4", "--repeats", "7", "--out", str(tmp_path / "a.json")])
    assert (args.rank, args.repeats, args.out) == (4, 7, tmp_path / "a.json")
    (tmp_path / "a.json").touch()
    for wrong in (["--rank", "0"], ["--repeats", "x"], ["--out", str(tmp_path / "a.json")]):
        with pytest.raises(SystemExit, match="2"):
            training_step.parse(wrong)
        assert f"{wrong[0]}" in capsys.readouterr().err.splitlines()[-1]


def test_the_versions_are_the_same_model_and_their_timings_are_written(
    training_step, monkeypatch, tmp_path
):
    pytest.importorskip("torch")
    monkeypatch.setattr(training_step, "jax_case", lambda *_: lambda: None)  # slow to compile
    monkeypatch.setattr(training_step, "torch_case", lambda *_: lambda: None)
    out = tmp_path / "new" / "out.json"
    arguments = ["--batch-size", "2", "--rank", "1", "--repeats", "3", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["training_step.py", *arguments])
    training_step.main()
    result = json.loads(out.read_text())
    assert result["logits_relative_difference"] < 1e-5
    assert {name: len(times) for name, times in result["seconds"].items()} == {
        training_step.OURS: 3,
        training_step.TORCH: 3,
    }


def test_another_model_is_refused(training_step, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(importlib.import_module("torch_straw"), "load_params", lambda *_: None)
    images, _ = training_step.make_batch(2)
    with pytest.raises(RuntimeError, match="logits differ"):
        training_step.check_same_model(images, rank=1)


def test_pytorch_trains_every_part_of_its_model(training_step):
    torch = pytest.importorskip("torch")
    torch_straw = importlib.import_module("torch_straw")
    torch.manual_seed(0)
    model = torch_straw.Straw(training_step.CLASSES, rank=1)
    before = [parameter.detach().clone() for parameter in torch_straw.trained(model)]
    step = torch_straw.make_train_step(model, learning_rate=1e-3)
    step(torch.randn(2, 1, 28, 28), torch.tensor([0, 1]))
    changes = [
        float((parameter - old).detach().abs().max())
        for parameter, old in zip(torch_straw.trained(model), before, strict=True)
    ]
    # Adam's first step moves each number that has a gradient by the learning rate.
    np.testing.assert_allclose(changes, 1e-3, rtol=1e-2)


def test_naive_jax_is_the_same_model_too(training_step):
    model = training_step.naive_model(rank=1)
    straw = training_step.article_straw(classes=training_step.CLASSES, rank=1, base="none")
    key = jax.random.key(0)
    variables = jax.jit(model.init)(key, None)
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 1), np.float32)
    naive, _ = jax.jit(model.apply)(variables, images, key)
    ours = jax.jit(straw.apply, static_argnames="train")(
        variables["params"], images, train=True, rngs={"dropout": key}
    )
    np.testing.assert_allclose(naive, ours, rtol=1e-4, atol=1e-5)
