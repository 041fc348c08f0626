"""The benchmark's arithmetic, its processes, and that it compares like with like."""

import importlib
import json
import signal
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import assert_close

from straw_experiments.image_classification.networks import article_straw
from straw_experiments.image_classification.step import lower_train_step

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
# Scripts' modules, not a package's.
import article
import cells
import floor
import jax_models
import layers
import measure
import results
import run
import tables
import worker

sys.path.pop(0)
MEMORY = {"peak": 2**30, "imports": 2**28, "device_peak": None}
WHOLE = 10**12  # bytes: everything fits


def case(name, module="none", **more):
    return cells.Case(name, module, {}, **more)


class FakeWorker:
    """Answers from a script: seconds of steps, or an error to raise."""

    def __init__(self, log, times):
        self.log, self.times = log, times

    def __call__(self, case):
        worker = FakeWorker(self.log, self.times)
        worker.name, worker.answers = case.name, iter(self.times[case.name])
        return worker

    def ask(self, message):
        self.log.append((message or "ready", self.name))
        if message == "stop":
            return MEMORY
        answer = next(self.answers)
        if isinstance(answer, str):
            raise measure.WorkerError(answer)
        return {"first_call": answer} if message is None else answer

    def close(self):
        self.log.append(("close", self.name))


def side_by_side(times, cases=None, *, repeats=2, seconds=100.0, free=WHOLE):
    log = []
    cases = cases or [case(name) for name in times]
    found = measure.side_by_side(cases, repeats, seconds, free, FakeWorker(log, times))
    return found, log


def test_cases_are_timed_in_turn():
    found, log = side_by_side({"a": [9.0, 1.0, 2.0], "b": [8.0, 3.0, 4.0]})
    names = "ab"
    messages = ["ready", "step", "step", "stop", "close"]
    assert log == [(message, name) for message in messages for name in names]
    assert found == {
        "a": {"first_call": 9.0, "seconds": [1.0, 2.0], "memory": MEMORY},
        "b": {"first_call": 8.0, "seconds": [3.0, 4.0], "memory": MEMORY},
    }


def test_a_case_leaves_when_its_time_is_spent_but_not_before_its_least_steps():
    times = {"quick": [0.0] + [1.0] * 9, "slow": [0.0] + [7.0] * 9, "slowest": [0.0] + [50.0] * 9}
    cases = [case("quick"), case("slow"), case("slowest", least=1)]
    found, _ = side_by_side(times, cases, repeats=6, seconds=10.0)
    steps = {name: len(result["seconds"]) for name, result in found.items()}
    assert steps == {"quick": 6, "slow": 3, "slowest": 1}


def test_a_failing_case_leaves_the_others():
    found, log = side_by_side({"a": [0.0, 1.0, "killed"], "b": ["no"], "c": [0.0, 1.0, 1.0]})
    assert found["a"] == {"reason": "killed"}
    assert found["b"] == {"reason": "no"}
    assert found["c"]["seconds"] == [1.0, 1.0]
    assert [name for message, name in log if message == "close"] == ["b", "a", "c"]


def test_what_does_not_fit_beside_the_others_is_not_started():
    cases = [
        case("fits", needs=6 * cells.GIB),
        case("too large", needs=5 * cells.GIB),
        case("fits too", needs=4 * cells.GIB),
        case("skipped", needs=0, skip="over 4 GiB"),
    ]
    times = {"fits": [0.0] * 9, "fits too": [0.0] * 9}
    found, _ = side_by_side(times, cases, free=10 * cells.GIB)
    assert found["too large"] == {"reason": "needs about 5 GiB, 4 are free"}
    assert found["skipped"] == {"reason": "over 4 GiB"}
    assert len(found["fits"]["seconds"]) == len(found["fits too"]["seconds"]) == 2
    assert 0 < measure.free_memory() < WHOLE * 100


def test_a_worker_times_its_steps_after_two_calls(monkeypatch, tmp_path):
    (tmp_path / "counts.py").write_text("calls = []\ndef build(x): return lambda: calls.append(x)")
    monkeypatch.syspath_prepend(tmp_path)
    clock = iter(range(100))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(clock) ** 2))

    class Connection:
        def __init__(self):
            self.sent, self.messages = [], iter(["step", "step", "stop"])

        def send(self, answer):
            self.sent.append((len(importlib.import_module("counts").calls), answer))

        def recv(self):
            return next(self.messages)

    connection = Connection()
    worker.serve(connection, "counts", {"x": 1})
    *steps, (_, memory) = connection.sent
    assert steps == [(2, {"first_call": 1.0}), (3, 9.0), (4, 13.0)]
    assert 0 < memory["imports"] <= memory["peak"]


def test_processes_that_fail_or_die(monkeypatch, tmp_path):
    modules = {
        "works": "def build(): return lambda: None",
        "raises": "def build(): raise MemoryError('no room\\nfor this')",
        "dies": "import os\ndef build(): return lambda: os.kill(os.getpid(), 9)",
        "exits": "import os\ndef build(): os._exit(3)",
        "hangs": "import time\ndef build(): time.sleep(600)",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []

    def start(case):
        monkeypatch.setattr(measure, "PATIENCE", 0.1 if case.name == "hangs" else 60.0)
        started.append(measure.Worker(case))
        return started[-1]

    found = measure.side_by_side([case(name, name) for name in modules], 2, 9.0, WHOLE, start)
    assert len(found["works"]["seconds"]) == 2
    assert found["works"]["memory"]["peak"] > 2**20
    assert {name: result.get("reason") for name, result in found.items()} == {
        "works": None,
        "raises": "MemoryError: no room for this",
        "dies": "killed by signal 9 (out of memory?)",
        "exits": "exit code 3",
        "hangs": "no answer in 0 s",
    }
    assert all(worker.process.poll() is not None for worker in started)
    assert started[-1].process.returncode == -signal.SIGKILL


def timed_result(*seconds):
    return {"first_call": 3.25, "seconds": list(seconds), "memory": MEMORY}


def test_summary_gives_minimum_median_and_their_ratios():
    timings = {
        "ours": timed_result(2.0, 1.0, 4.0),
        "theirs": timed_result(9.0, 5.0, 8.0, 6.0),
        "other": {"reason": "died"},
    }
    rows = measure.summary(timings, "ours")
    ours = {"min": 1.0, "median": 2.0, "steps": 3, "min_ratio": 1.0, "median_ratio": 1.0}
    theirs = {"min": 5.0, "median": 7.0, "steps": 4, "min_ratio": 5.0, "median_ratio": 3.5}
    assert rows == {"ours": ours, "theirs": theirs}
    assert "min_ratio" not in measure.summary(timings, "other")["ours"]


def test_table_of_models():
    found = {
        "straw": timed_result(0.002, 0.001, 0.004),
        "torch": timed_result(0.05, 0.07),
        "naive": {"reason": "killed by signal 9 (out of memory?)"},
    }
    header, ours, theirs, reason = tables.model_table(found).splitlines()
    assert header.split()[:2] == ["min,", "ms"]
    figures = ["1.000", "2.000", "3", "1.00", "1.00", "3.2", "1.00", "0.25"]
    assert ours.split() == ["straw_jax", *figures]
    assert theirs.split()[:6] == ["PyTorch,", "vmap", "50.0", "60.0", "2", "50.00"]
    assert reason == "JAX, naive vmap: killed by signal 9 (out of memory?)"
    on_device = {"straw": timed_result(1.0) | {"memory": MEMORY | {"device_peak": 3 * 2**30}}}
    header, ours = tables.model_table(on_device).splitlines()
    assert header.endswith("device, GiB")
    assert ours.endswith(" 3.00")


def test_exponent_of_a_power_law():
    seconds = {width: 1e-9 * width**1.5 for width in (1024, 2048, 8192)} | {256: 1.0}
    slope, low, high = measure.exponent(seconds, 1024, 8192)
    assert (round(slope, 6), low, high) == (1.5, 1024, 8192)
    assert measure.exponent(seconds, 4096, 8192) is None


def test_table_of_layers():
    by_width = {
        width: {
            "straw": timed_result(1e-6 * width),
            "einsum": timed_result(1e-9 * width**2),
            "kernels": {"reason": "over 4 GiB" if width > 1024 else "exit code 3"},
        }
        for width in (256, 1024, 4096)
    }
    lines = tables.layer_table(by_width).splitlines()
    assert lines[1].split() == ["256", "0.256", "failed", "0.066"]
    assert lines[3].split() == ["4096", "4.096", "over", "4", "GiB", "16.8"]
    assert lines[4].split() == [
        "exponent", "from", "256", "1.00", "(256..4096)", "-", "2.00", "(256..4096)",
    ]  # fmt: skip
    assert lines[5].split()[3:5] == ["1.00", "(1024..4096)"]
    assert lines[6] == "B @ A formed, width 256: exit code 3"


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("base", ["none", "trained"])
def test_sizes_are_those_of_the_library(rank, base):
    straw = article_straw(classes=article.CLASSES, rank=rank, base=base)
    assert article.generated(rank) == straw.spec.size
    params = jax.eval_shape(straw.init, jax.random.key(0))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()
    }
    assert sum(counts.values()) == article.parameters(rank, base)
    assert counts["encoder"] == article.weights(article.ENCODER)
    if base == "trained":
        assert counts["executor"] == article.weights(article.EXECUTOR) == 1_204_655


def test_floor_counts_by_hand():
    assert (article.generated(16), article.parameters(16, "none")) == (158_863, 20_606_863)
    b = 128
    encoder = 196 * 9 * 16 + 49 * 144 * 32 + 1568 * 64
    generator = 64 * 128 + 128 * 158_863
    executor = 676 * 656 + 576 * 5632 + (128 * 16 + 16 * 128) + (128 * 16 + 16 * 47)
    base = 676 * 9 * 32 + 576 * 288 * 64 + 9216 * 128 + 128 * 47
    factors = b * (656 + 32 + 5632 + 64)
    encoded, activations = b * (784 + 3136 + 1568), b * (784 + 21_632 + 9216 + 128)
    wanted = {  # multiplications a sample, numbers moved
        "encoder forward": (encoder, 105_216 + encoded),
        "generator forward": (generator, 65 * 128 + 129 * 158_863 + factors),
        "executor forward": (executor, factors + activations),
        "base forward": (base, 1_204_655),
        "base backward": (2 * base - 676 * 9 * 32, 2 * 1_204_655),
        "executor backward": (2 * executor - 676 * 9 * 16, 2 * factors + activations),
        "generator backward": (2 * generator, 2 * (65 * 128 + 129 * 158_863) + factors),
        "encoder backward": (2 * encoder - 196 * 9 * 16, 2 * 105_216 + encoded),
        "optimiser": (0, 7 * 21_811_518),
    }
    got = {phase.name: phase for phase in floor.phases("training", b, 16, "trained")}
    assert list(got) == list(wanted)
    for name, (products, numbers) in wanted.items():
        assert (got[name].flops, got[name].bytes) == (2 * b * products, 4 * numbers), name
    without_base = floor.phases("training", b, 16, "none")
    assert [phase.name for phase in without_base] == [n for n in wanted if "base" not in n]
    assert without_base[-1].bytes == 28 * 20_606_863
    inference = {phase.name: phase for phase in floor.phases("inference", b, 16, "none")}
    assert list(inference) == ["encoder forward", "generator forward", "executor forward"]
    assert inference["executor forward"].bytes == 4 * (factors + 2 * activations)


def test_floor_is_the_slower_of_operations_and_bytes_in_each_phase():
    parts = [floor.Phase("a", 100, 10), floor.Phase("b", 10, 100)]
    rates = floor.Rates(flops=10.0, bytes=5.0)
    assert [part.seconds(rates) for part in parts] == [10.0, 20.0]
    assert floor.least_seconds(parts, rates) == 30.0
    lines = [line.split() for line in tables.floor_table(parts, rates, 45.0).splitlines()]
    assert [line[-1] for line in lines[1:3]] == ["operations", "bytes"]
    assert lines[-1][-4:] == ["45000.0", "1.50", "x", "floor"]
    assert "disturbed" in tables.floor_table(parts, rates, 29.0)


def test_best_rates():
    rates = run.best_rates({"product": [2.0, 1.0], "copy": [0.5, 0.25]})
    assert rates == (2 * 4096**3, 8 * 20_000_000 / 0.25)


@pytest.mark.parametrize("base", ["none", "trained"])
def test_floor_is_near_the_operations_that_xla_counts(base):
    """XLA counts what is not a product as well, and products that a trick would spare."""
    batch, rank = 8, 16
    straw = article_straw(classes=article.CLASSES, rank=rank, base=base)
    params = jax.eval_shape(straw.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *article.IMAGE), jnp.float32)
    model = jax_models.model("straw", rank, base)
    lowered = {
        "inference": jax.jit(straw.apply).lower(params, images),
        "training": lower_train_step(model, optax.adam(1e-4), article.IMAGE, batch_size=batch),
    }
    for work, program in lowered.items():
        flops = sum(phase.flops for phase in floor.phases(work, batch, rank, base))
        assert 0.95 < program.cost_analysis()["flops"] / flops < 1.6, work


def test_cells_of_the_grid():
    grid = cells.model_cells(cells.WORKS, [1, 512], [4], cells.BASES, list(cells.MODELS))
    assert len({cell.key for cell in grid}) == len(grid) == 2 * 2 * 2
    assert [case.name for case in grid[0].cases] == list(cells.MODELS)
    assert [case.least for case in grid[0].cases] == [3, 3, 3, 3, 1, 1]
    single = cells.layer_cells(["dense"], [2048, 4096])
    skipped = {
        (cell.settings["work"], cell.settings["width"]): case.skip
        for cell in single
        for case in cell.cases
        if case.name == "kernels"
    }
    assert [key for key, why in skipped.items() if why] == [("forward", 4096), ("gradient", 4096)]
    assert not any(case.skip for cell in single for case in cell.cases if case.name != "kernels")


def test_dense_hypernetwork_generates_every_weight():
    model = jax_models.model("dense", 16, "none")
    variables = jax.eval_shape(model.init, jax.random.key(0), None)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == 105_216 + article.generator_weights(1_204_655)
    assert cells.model_bytes("dense", "training", 1, 16, "none") > 5 * 4 * count
    images = jnp.zeros((2, *article.IMAGE))
    logits, _ = jax.eval_shape(model.apply, variables, images, jax.random.key(1))
    assert logits.shape == (2, article.CLASSES)


@pytest.mark.parametrize("layer", cells.LAYERS)
def test_layers_agree_in_value_and_gradient(layer):
    arguments = layers.make_arguments(layer, width=5, batch=2, rank=3)
    weights = jnp.cos(jnp.arange(arguments[0].size, dtype=jnp.float32)).reshape(arguments[0].shape)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradient(method, *arguments):
        y, pull_back = jax.vjp(layers.forward(method, layer), *arguments)
        return y, pull_back(weights)

    ours = value_and_gradient("straw", *arguments)
    for method in ("kernels", "einsum"):
        assert_close(value_and_gradient(method, *arguments), ours, 1e-5)


@pytest.mark.parametrize("work", cells.PASSES)
def test_layers_are_built(work, monkeypatch):
    monkeypatch.setitem(layers.LAYER_BATCH, "dense", 2)
    found = jax.tree.leaves(layers.build("straw", "dense", work, 4)())
    assert len(found) == {"forward": 1, "gradient": 4}[work]


@pytest.mark.parametrize("base", ["none", "trained"])
def test_naive_jax_is_the_same_model_too(base):
    model = jax_models.model("naive", 1, base)
    straw = article_straw(classes=article.CLASSES, rank=1, base=base)
    key = jax.random.key(0)
    params = jax.jit(straw.init)(key)
    if base == "trained":  # it starts with updates of zero
        params["generator"] = jax.tree.map(lambda leaf: leaf + 0.01, params["generator"])
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 1), np.float32)
    naive, _ = jax.jit(model.apply)({"params": params}, images, key)
    ours = jax.jit(straw.apply, static_argnames="train")(
        params, images, train=True, rngs={"dropout": key}
    )
    np.testing.assert_allclose(naive, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("work", cells.WORKS)
def test_jax_model_is_built(work):
    step = jax_models.build("standalone", work, 2, rank=1, base="none")
    found = [jax.tree.leaves(step()) for _ in range(2)]
    moved = any(not np.array_equal(*pair) for pair in zip(*found, strict=True))
    assert moved == (work == "training")


@pytest.mark.parametrize("base", ["none", "trained"])
def test_pytorch_is_the_same_model(base):
    pytest.importorskip("torch")
    same_model = benchmark_module("same_model")
    found = same_model.check(batch=2, rank=1, base=base)
    assert found["logits_relative_difference"] < 1e-5
    assert found["parameters"] == article.parameters(1, base)


def test_another_model_is_refused(monkeypatch):
    pytest.importorskip("torch")
    same_model = benchmark_module("same_model")
    monkeypatch.setattr(same_model.torch_straw, "load_params", lambda *_: None)
    with pytest.raises(RuntimeError, match="logits differ"):
        same_model.check(batch=2, rank=1, base="none")


@pytest.mark.parametrize("base", ["none", "trained"])
def test_pytorch_trains_every_part_of_its_model(base):
    torch = pytest.importorskip("torch")
    torch_straw = benchmark_module("torch_straw")
    torch.manual_seed(0)
    model = torch_straw.Straw(article.CLASSES, rank=1, base=base)
    before = [parameter.detach().clone() for parameter in torch_straw.trained(model)]
    step = torch_straw.make_train_step(model, learning_rate=1e-3)
    step(torch.randn(2, 1, 28, 28), torch.tensor([0, 1]))
    changes = [
        float((parameter - old).detach().abs().max())
        for parameter, old in zip(torch_straw.trained(model), before, strict=True)
    ]
    # Adam's first step moves each number that has a gradient by the learning rate.
    np.testing.assert_allclose(changes, 1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", ["straw", "straw_muon"])
def test_predictors_of_weights_are_built(name):
    take_steps = benchmark_module("jax_prediction").build(name, [2, 5, 1], 3, 4, 5)
    assert take_steps() == 134_287


@pytest.mark.parametrize("name", ["torch_pairwise", "torch"])
def test_pytorch_predictor_of_weights_is_as_large_as_ours_and_learns(name):
    torch = pytest.importorskip("torch")
    torch_prediction = benchmark_module("torch_prediction")
    torch.manual_seed(0)
    assert torch_prediction.build(name, [2, 5, 1], 3, 4, 5)() == 134_287
    model = torch_prediction.WeightPredictor([2, 5, 1])
    weights = model(torch.randn(4, 3, 2), torch.randn(4, 3, 1))
    assert [tuple(each.shape) for each in weights] == [(4, 2, 5), (4, 5, 1)]
    assert torch_prediction.compute(weights, torch.randn(4, 7, 2)).shape == (4, 7, 1)


@pytest.mark.parametrize("name", ["lstm", "hyper"])
def test_pytorch_character_model_is_as_large_as_ours(name):
    pytest.importorskip("torch")
    sizes = {"features": 6, "hyper": 3, "characters": 5, "batch": 2, "length": 4}
    ours, theirs = (
        benchmark_module(module).build(name, **sizes)()
        for module in ("jax_language", "torch_language")
    )
    twice = 4 * {"lstm": 6, "hyper": 3}[name]  # PyTorch's LSTM has two biases
    assert theirs == ours + twice


@pytest.mark.slow
def test_character_models_are_built():
    language, build = benchmark_module("language"), benchmark_module("jax_language").build
    for name, module, _, features in language.MODELS.values():
        if module == "jax_language" and name != "lowrank":
            sizes = {"hyper": language.HYPER, "characters": language.CHARACTERS}
            with jax.default_prng_impl("unsafe_rbg"):  # compiled in a fraction of the time
                count = build(name, features, batch=1, length=2, **sizes)()
            assert 0.99e6 < count <= 1e6


def test_pytorch_model_is_built():
    pytest.importorskip("torch")
    build = benchmark_module("torch_straw").build
    assert np.isfinite(build("torch", "training", 2, 1, "trained")())
    assert build("torch", "inference", 2, 1, "none")().shape == (2, article.CLASSES)


def benchmark_module(name):
    """Import a module of the benchmark that needs PyTorch."""
    sys.path.insert(0, str(Path(cells.__file__).parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(run.util, "find_spec", lambda name: True)
    args = run.parse([])
    assert (args.batch_sizes, args.ranks, args.bases) == ([128], [16], ["none"])
    assert args.models == list(cells.MODELS)
    assert args.out.parent == Path("results")
    args = run.parse(["--full", "--repeats", "7", "--out", "a.json"])
    assert (args.batch_sizes, args.ranks) == ([1, 32, 128, 512], [4, 16, 64])
    assert (args.bases, args.repeats, args.out) == (["none", "trained"], 7, Path("a.json"))
    assert run.parse(["layers", "--widths", "256", "512"]).widths == [256, 512]
    monkeypatch.setattr(run.util, "find_spec", lambda name: None)
    assert run.parse(["--models", "straw"]).models == ["straw"]
    for wrong, where in (
        (["--ranks", "0"], "--ranks"),
        (["--seconds", "nan"], "--seconds"),
        (["--models", "other"], "--models"),
        (["everything"], "what"),
        ([], "PyTorch is missing"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run.parse(wrong)
        (line,) = capsys.readouterr().err.splitlines()
        assert where in line


ENVIRONMENT = {"device": "cpu", "versions": {"jax": "1"}, "threads": {"jax": 2}}


def test_results_are_continued_only_with_the_same_settings_on_the_same_device(tmp_path):
    path = tmp_path / "new" / "a.json"
    first = results.Results(path, {"repeats": 3})
    first.start(ENVIRONMENT)
    first.add("cell", {"straw": 1})
    again = results.Results(path, {"repeats": 3})
    again.start(ENVIRONMENT)
    assert again.cells == {"cell": {"straw": 1}}
    assert len(json.loads(path.read_text())["starts"]) == 2
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="measured with"):
        results.Results(path, {"repeats": 4})
    with pytest.raises(ValueError, match="device"):
        again.start(ENVIRONMENT | {"device": "gpu"})
    path.write_text("[]")
    with pytest.raises(ValueError, match="no results file"):
        results.Results(path, {"repeats": 3})


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    monkeypatch.setattr(run, "PRODUCT", 16)
    monkeypatch.setattr(run, "COPY", 1000)
    return run.main()


@pytest.mark.slow
def test_benchmark_measures_and_continues(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--batch-sizes", "2", "--ranks", "1", "--repeats", "3", "--out", str(out)]
    words += ["--models", "straw", "standalone", "--works", "inference"]
    assert main(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert "executor alone" in printed
    assert "x floor" in printed
    content = json.loads(out.read_text())
    cell = content["cells"]["inference, batch 2, rank 1, base none"]
    assert {name: len(result["seconds"]) for name, result in cell.items()} == {
        "straw": 3,
        "standalone": 3,
    }
    assert all(result["memory"]["peak"] > result["memory"]["imports"] for result in cell.values())
    assert content["starts"][0]["threads"]["jax"] >= 1

    monkeypatch.setattr(run, "_script", lambda *_: content["starts"][0])  # no process needed
    monkeypatch.setattr(run, "side_by_side", None)  # nothing is measured again
    assert main(monkeypatch, *words) == 0
    assert printed.splitlines()[-3:] == capsys.readouterr().out.splitlines()[-3:]
    assert main(monkeypatch, *words, "--repeats", "4") == 2
    assert "--out" in capsys.readouterr().err


def test_layers_are_measured(monkeypatch, tmp_path, capsys):
    def side_by_side(cases, *_):
        return {case.name: timed_result(case.arguments["width"] ** 2 * 1e-9) for case in cases}

    monkeypatch.setattr(run, "side_by_side", side_by_side)
    monkeypatch.setattr(run, "_script", lambda *_: ENVIRONMENT)
    words = ["layers", "--layers", "dense", "--widths", "2048", "1024", "--out"]
    assert main(monkeypatch, *words, str(tmp_path / "out.json")) == 0
    printed = capsys.readouterr().out
    assert printed.count("2.00 (1024..2048)") == 2 * 2 * 3
