import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from straw_experiments.fields import config, evaluate, fitting, networks, report, study
from straw_experiments.fields.config import Config
from straw_experiments.fields.models import MODELS
from straw_experiments.runner.tables import statistic

SCRIPT = scripts.EXPERIMENTS / "fields.py"
SIZES = (6, 5)
BUILT = {"style": 4, "hidden": 3, "rank": 2, "image": (8, 8)}


def _dense(weights, points, frequency=networks.FREQUENCY):
    """Compute a SIREN with NumPy."""
    features = np.asarray(points, np.float64)
    for number in range(1, len(weights)):
        layer = weights[f"layer{number}"]
        features = np.sin(frequency * (features @ layer["kernel"] + layer["bias"]))
    last = weights[f"layer{len(weights)}"]
    return (features @ last["kernel"] + last["bias"])[..., 0]


def test_sine_and_its_gradient():
    x = np.linspace(-300, 300, 20_001, dtype=np.float32)
    sine = jax.jit(networks.sine)
    np.testing.assert_allclose(sine(x), np.sin(x.astype(np.float64)), atol=3e-5)
    near = x[np.abs(x) < 30]
    np.testing.assert_allclose(sine(x)[np.abs(x) < 30], np.sin(near.astype(np.float64)), atol=3e-6)
    slope = jax.jit(jax.vmap(jax.grad(networks.sine)))(near)
    np.testing.assert_allclose(slope, np.cos(near.astype(np.float64)), atol=1e-5)


def test_grid_is_of_pixel_centres_row_by_row():
    points = networks.grid(2, 4)
    assert points.shape == (8, 2)
    np.testing.assert_allclose(points[:, 0], [-0.5] * 4 + [0.5] * 4)
    np.testing.assert_allclose(points[:4, 1], [-0.75, -0.25, 0.25, 0.75])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("last", 5 + 1),
        ("last_heads", 5 + 1),
        ("top", 5 + 5 + 1),
        ("biases", 6 + 5 + 1),
        ("ends", 2 * 6 + 6 + 5 + 5 + 1),
        ("lowrank", 2 * (6 + 5) + 6 + 5 + 5 + 1),
        ("lowrank_shared", 2 * (6 + 5) + 6 + 5 + 5 + 1),
        ("whole", 2 * 6 + 6 * 5 + 5 + 6 + 5 + 1),
    ],
)
def test_numbers_written_for_an_image(name, written):
    assert MODELS[name].build(SIZES, **BUILT).spec.size == written


def _changed(tree):
    """Take parameters away from their first values, at which nothing is written."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    moved = [np.asarray(x) + 0.1 * rng.standard_normal(x.shape).astype("f") for x in leaves]
    return jax.tree.unflatten(structure, moved)


def test_written_field_is_that_of_its_merged_weights():
    straw = MODELS["lowrank"].build(SIZES, **BUILT)
    images = jnp.asarray(np.random.default_rng(1).random((3, 8, 8), np.float32))
    points = networks.grid(4, 4)
    first = jax.jit(straw.init)(jax.random.key(0))

    @jax.jit
    def both(params):
        read = evaluate.fields(straw, params, straw.styles(params, images), points)
        return read, jax.vmap(straw.merge, in_axes=(None, 0))(params, images)

    plain, merged = both(first)
    weights = jax.tree.map(np.asarray, first["executor"])
    np.testing.assert_allclose(plain, [_dense(weights, points)] * 3, atol=1e-5)
    read, merged = both(_changed(first))
    assert np.ptp(np.asarray(read), axis=0).max() > 0.01
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), merged)
        np.testing.assert_allclose(read[i], _dense(own, points), atol=1e-3)


def test_linear_generator_writes_linear_functions_of_the_style():
    spec = MODELS["lowrank"].build(SIZES, **BUILT).spec
    generator = networks.Linear(spec, start_at_base=True)
    styles = np.random.default_rng(2).standard_normal((3, 4)).astype("f")
    first = jax.jit(generator.init)(jax.random.key(1), styles)["params"]
    assert np.ptp(first["layer2.kernel.B"]["kernel"]) > 0.1  # or nothing would ever be learned
    for name, head in first.items():
        assert name == "layer2.kernel.B" or not np.any(head["kernel"])
    params = _changed(first)
    written = jax.jit(generator.apply)({"params": params}, styles)
    for path in ("layer3/kernel", "layer1/bias"):
        head = params[path.replace("/", ".") + ".whole"]
        expected = 0.05 * (styles @ head["kernel"] + head["bias"])
        np.testing.assert_allclose(written[path].reshape(3, -1), expected, rtol=1e-5, atol=1e-6)
    head = params["layer2.kernel.A"]
    expected = 0.05 * (styles @ head["kernel"] + head["bias"])
    np.testing.assert_allclose(
        written["layer2/kernel"].A.reshape(3, -1), expected, rtol=1e-5, atol=1e-6
    )


def test_psnr_and_principal_components():
    np.testing.assert_allclose(evaluate.psnr(jnp.asarray([1.0, 1e-3, 0.0])), [0, 30, 100])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 4, 4), np.uint8)
    found = evaluate.components(images, {"x": images}, [0, 8, 16])["x"]
    flat = images.reshape(50, 16) / 255
    errors = np.mean((flat - flat.mean(axis=0)) ** 2, axis=1)
    assert found["0"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-3)
    assert found["0"] < found["8"] < 60 < found["16"]


def test_fit_at_the_best_rate_of_other_images():
    choosing = np.zeros((len(fitting.RATES), len(fitting.STEPS)))
    choosing[1, 2] = 1
    tested = np.arange(choosing.size, dtype=float).reshape(choosing.shape)
    curve = fitting._best(choosing, tested)
    assert curve["psnr"][1:3] == [tested[0, 1], tested[1, 2]]
    assert curve["rate"][1:3] == [fitting.RATES[0], fitting.RATES[1]]
    assert fitting._reached([1, 2, 3, 4, 5, 6], 2.5) == fitting.STEPS[2]
    assert fitting._reached([1] * 6, 2.5) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sizes 64", "expected sizes of two hidden layers or more, such as 784-384, got '64'"),
        ("--sizes 64-x", "expected sizes of two hidden layers"),
        ("--models top first", "argument --models: expected any of last, last_heads"),
        ("--models top top", "argument --models: got top+top; name each once"),
        ("--steps 0", "argument --steps: expected a whole number of at least 1, got '0'"),
        ("--learning-rate -1", "argument --learning-rate: expected a number above 0, got '-1'"),
        ("--style 999999999999", "argument --style: 999999999999 needs at least"),
        ("--precision bfloat16", "argument --precision: expected float32, got bfloat16"),
        ("--archive missing.zip", "argument --archive: expected EMNIST's gzip.zip, found no file"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        config.parse(flags.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_names_of_results_are_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.parse([]).out == "results/fields"
    assert config.parse(["--dataset", "my/images"]).out == "results/fields_dataset-my-images"


def test_without_mnist_there_are_glyphs_and_a_warning(tmp_path, monkeypatch):
    arrays = np.zeros((40, 8, 8, 1), np.uint8), np.zeros(40, np.int32)
    glyphs = study.data.Dataset("glyphs", *arrays, *arrays, ("a",))

    def load(name, **options):
        if name != "glyphs":
            raise ValueError(f"no {name}")
        return glyphs

    monkeypatch.setattr(study.data, "load", load)
    with pytest.warns(UserWarning, match="INSTEAD OF|HELD-OUT") as caught:
        images = study.load_images(Config(out=str(tmp_path), limit=30))
    texts = [str(each.message) for each in caught]
    assert texts[0].startswith("GLYPHS INSTEAD OF MNIST")
    assert texts[1].startswith("NO HELD-OUT DATA SET")
    assert images.name == "glyphs"
    assert list(images.tested) == ["glyphs"]
    assert (len(images.training), len(images.validation)) == (27, 3)


def _summary():
    curve = {
        "psnr": [statistic([10.0 + i, 11.0 + i]) for i in range(6)],
        "rate": [statistic([1e-3, 1e-3])] * 6,
    }
    times = {"one": statistic([1e-3, 1e-3]), "batch": statistic([2e-3, 2e-3])}
    of_writer = {
        "written": 513,
        "parameters": 1_500_000,
        "seconds": 100.0,
        "steps_per_second": 60.0,
        "psnr": {"mnist": statistic([25.0, 26.0])},
        "controls": {
            "mnist": {
                "another image": statistic([8.0, 8.0]),
                "mean context": statistic([11.0, 11.0]),
            }
        },
        "fitting": {
            "images": 4,
            "curves": dict.fromkeys(("siren", "base", "written"), curve),
            "reached": {"siren": [None, 100], "base": [30, 30], "written": [0, 0]},
            "seconds": {"forward": times, "step": times},
        },
    }
    return {
        "study": "fields",
        "dataset": "mnist",
        "tested": {"mnist": 10_000},
        "training images": 58_976,
        "steps of fitting": list(fitting.STEPS),
        "device": "cpu (test)",
        "command": "straw-jax fields",
        "commit": None,
        "jobs": 1,
        "versions": {"jax": "1"},
        "config": {**vars(Config())},
        "seeds": [0, 1],
        "results": {"top": of_writer},
        "components": {"mnist": {"0": 11.0, "384": 37.7}},
    }


def test_table_and_report():
    text = report.table(_summary())
    assert "trained on mnist" in text
    assert "25.50 ± 0.71" in text
    text = report.markdown(_summary(), {"a picture": "x.png"})
    assert "| mnist | 11.00 | 37.70 |" in text
    assert "| top | mnist | 25.50 ± 0.71 | 8.00 ± 0.00 | 11.00 ± 0.00 |" in text
    assert "| top | reached after | never, 100 | 30, 30 | 0, 0 |" in text
    assert "| top | 1 | 11.5 ± 0.7 | 11.5 ± 0.7 | 11.5 ± 0.7 |" in text
    assert "| top | 4 | 1.00 ms | 1.00 ms | 2.00 ms | 2.00 ms |" in text
    assert "![a picture](x.png)" in text


@pytest.mark.slow
def test_script_trains_tests_and_reports(tmp_path):
    out = tmp_path / "out"
    np.savez(
        tmp_path / "noise.npz",
        images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8),
        labels=np.arange(60) % 2,
    )
    flags = (
        "--models top --sizes 6-5 --style 16 --hidden 8 --rank 2 --steps 24"
        " --batch-size 4 --pixels 10 --fitted 1 --held-out none --seeds 2 --jobs 1"
    )
    command = [sys.executable, SCRIPT, *flags.split(), "--dataset", str(tmp_path / "noise.npz")]
    command = [*map(str, command), "--out", str(out)]

    def run(*more):
        return subprocess.run(
            [*command, *more],
            env=scripts.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    first = run()
    assert first.returncode == 0, first.stderr
    summary = json.loads((out / "summary.json").read_text())
    found = summary["results"]["top"]
    (data,) = found["psnr"]
    assert data.startswith("noise (npz file")
    assert len(found["psnr"][data]["seeds"]) == 2
    curves = found["fitting"]["curves"]
    for each in curves.values():  # fitted fields get better
        assert each["psnr"][-1]["mean"] > each["psnr"][0]["mean"] + 1
    lines = (out / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 12
    for name in ("report.md", "curves.png", "fitting.png", "images.png"):
        assert (out / name).stat().st_size
    again = run()
    assert again.returncode == 2
    assert "holds an earlier run; continue it with --resume" in again.stderr
    again = run("--resume")
    assert again.returncode == 0
    assert "Already finished" in again.stdout
