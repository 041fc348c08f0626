"""What is measured of a modulator, compared with whole matrices; and its figures."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from summaries import UNOFFICIAL

from straw_experiments.data import normalise
from straw_experiments.image_classification import analysis as modulator
from straw_experiments.image_classification import analysis_figures, models, networks
from straw_experiments.runner.tables import statistic
from straw_jax import CNN, factor_spec, make_straw


class Executor(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="dense")(x.reshape(x.shape[0], -1))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(4)(x.reshape(x.shape[0], -1)))


GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (90, 28, 28, 1), np.uint8)
LABELS = np.arange(90) % 3
PATHS = ["dense/bias", "dense/kernel"]


def trained(base):
    """A STRAW of random weights, as if trained."""
    straw = make_straw(Executor(), jnp.zeros((1, 28, 28, 1)), rank=2, base=base, encoder=Encoder())
    params = straw.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    generator = np.random.default_rng(1)
    leaves = [0.1 * generator.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return straw, {"params": jax.tree.unflatten(treedef, leaves)}


def dense_updates(straw, variables, images):
    factors = straw.factors(variables["params"], normalise(images))
    bias, (B, A) = (jax.tree.map(np.float64, factors[path]) for path in PATHS)
    return {"dense/bias": bias, "dense/kernel": (B @ A).reshape(len(B), -1)}


@pytest.mark.parametrize("base", ["none", "trained"])
def test_statistics_of_updates(base):
    straw, variables = trained(base)
    groups = [np.flatnonzero(label == LABELS)[:25] for label in range(3)]
    found = modulator.update_statistics(straw, variables, IMAGES, groups)
    assert list(found) == PATHS
    chosen = np.concatenate(groups)
    for path, updates in dense_updates(straw, variables, IMAGES[chosen]).items():
        mean = updates.mean(0)
        unit = np.linalg.norm(mean)
        assert found[path]["variation"] == pytest.approx(
            np.sqrt(updates.var(0).sum()) / unit, rel=1e-3
        )
        if base == "trained":
            unit = np.linalg.norm(variables["params"]["executor"]["dense"][path.split("/")[1]])
        norms = np.linalg.norm(updates, axis=1) / unit
        assert found[path]["norm"] == pytest.approx(
            {"mean": norms.mean(), "p5": np.percentile(norms, 5), "p95": np.percentile(norms, 95)},
            rel=1e-4,
        )
        assert found[path]["mean_update"] == pytest.approx(np.linalg.norm(mean) / unit, rel=1e-4)
        centres = np.stack([updates[LABELS[chosen] == label].mean(0) for label in range(3)])
        between = centres.var(0).sum() / updates.var(0).sum()
        assert found[path]["between_classes"] == pytest.approx(
            {"share": between, "chance": 2 / 74, "corrected": (between - 2 / 74) / (1 - 2 / 74)},
            abs=1e-3,
        )
    assert 1 <= found["dense/kernel"]["effective_rank"]["mean"] <= 2
    assert "effective_rank" not in found["dense/bias"]


def test_movements_and_their_yardsticks():
    straw, variables = trained("none")
    turned = IMAGES[:, ::-1]
    changed = {"rotation": {0: IMAGES, 180: turned}}
    found = modulator.movements(straw, variables, changed, LABELS)
    own, other = (dense_updates(straw, variables, images) for images in (IMAGES, turned))
    for path in PATHS:
        norm = np.linalg.norm(own[path], axis=1).mean()
        distance = np.linalg.norm(own[path] - other[path], axis=1).mean()
        assert found[path]["rotation"] == pytest.approx([0, distance / norm], rel=1e-4)
        pairs = np.linalg.norm(own[path][:, None] - own[path], axis=-1)
        same_class = pairs[(LABELS[:, None] == LABELS) & ~np.eye(90, dtype=bool)]
        assert found[path]["same class"] == pytest.approx(same_class.mean() / norm, rel=0.15)
        assert found[path]["another image"] == pytest.approx(pairs.mean() / norm, rel=0.15)


@pytest.mark.parametrize("base", ["none", "trained"])
def test_costs_add_up_to_the_models_own(base):
    straw = networks.article_straw(classes=47, rank=16, base=base)
    rows = modulator.costs(straw, CNN(), base)
    layers = ["encoder", "hidden", "conv1", "conv2", "fc1", "fc2", "total"]
    assert [row["layer"] for row in rows] == layers
    total, model = rows[-1], networks.straw_model(straw)
    assert total["factors"]["multiply_adds"] == networks.sample_cost(model)
    assert total["factors"]["parameters"] == networks.parameters(model)
    assert total["factors"]["bytes"] == 4 * total["generated_numbers"] == 4 * 158_863
    executor = models.build_model("standalone", classes=47, rank=16, base=base)
    assert total["static"]["multiply_adds"] == networks.sample_cost(executor)
    assert total["static"]["parameters"] == networks.parameters(executor) == 1_204_655
    assert total["dense_numbers"] == 1_204_655
    fc1 = rows[4]
    assert fc1["static"] == {
        "parameters": 9216 * 128 + 128, "multiply_adds": 9216 * 128, "bytes": 0
    }  # fmt: skip
    assert fc1["whole"]["multiply_adds"] == 128 * (9216 * 128 + 128) + 9216 * 128
    assert fc1["generated_numbers"] == 149_504 + 128


def test_costs_of_another_executor_add_up():
    straw = networks.compact_straw(classes=47)
    executor = models.executor_of("compact", classes=47, rank=4, base="trained")
    total = modulator.costs(straw, executor, "trained")[-1]
    model = networks.straw_model(straw)
    assert total["factors"]["multiply_adds"] == networks.sample_cost(model)
    assert total["factors"]["parameters"] == networks.parameters(model) == 342_702


def test_ranks_say_what_is_possible():
    shapes = {"kernel": jnp.zeros((3, 3, 1, 32)), "bias": jnp.zeros(32)}
    assert modulator.ranks(factor_spec(shapes, 16)) == {
        "bias": {"shape": [32], "rank": "whole", "largest": None},
        "kernel": {"shape": [3, 3, 1, 32], "rank": 16, "largest": 9},
    }


def test_images_are_chosen_evenly_and_as_many_of_each_class():
    labels = np.repeat([0, 1, 3], [10, 20, 3])
    assert [group.tolist() for group in modulator.evenly(labels, 15)] == [
        [0, 2, 4, 6, 8], [10, 14, 18, 22, 26], [30, 31, 32]
    ]  # fmt: skip
    assert [len(group) for group in modulator.evenly(labels, 1)] == [2, 2, 2]


def analysis_of(seeds):
    generator = np.random.default_rng(seeds)

    def figure():
        return statistic(generator.uniform(0.2, 0.9, seeds).tolist())

    def figures(count):
        return [figure() for _ in range(count)]

    def quantiles():
        return {name: figure() for name in ("mean", "p5", "p95")}

    paths = [f"{layer}/{leaf}" for layer in ("conv1", "fc1") for leaf in ("bias", "kernel")]
    kernels = [path for path in paths if path.endswith("kernel")]
    updates = {
        path: {
            "norm": quantiles(),
            "mean_update": figure(),
            "variation": figure(),
            "between_classes": {name: figure() for name in ("share", "chance", "corrected")},
            **({"effective_rank": quantiles()} if path in kernels else {}),
        }
        for path in paths
    }
    movement = {
        path: {"rotation": figures(7), "blur": figures(5), "same class": figure(),
               "another image": figure()}
        for path in paths
    }  # fmt: skip
    styles = ("own", "same class style", "turned style", "upright style")
    return {
        "dataset": UNOFFICIAL,
        "reference": "mean update",
        "seeds": {"straw": list(range(seeds))},
        "images": {"updates": 2350, "accuracy": 4700},
        "largest_standard_error": 0.5 / math.sqrt(4700),
        "angles": list(modulator.ANGLES),
        "sigmas": list(modulator.SIGMAS),
        "straw": {
            "straw": {
                "leaves": {path: {"largest": 9 if path in kernels else None} for path in paths},
                "updates": updates,
                "movement": movement,
            }
        },
        "turned": {
            "standalone": {"own": figures(7)},
            "straw": {style: figures(7) for style in styles},
            "resnet34": {"own": figures(7)},
        },
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_sound_files(seeds, tmp_path):
    analysis = json.loads(json.dumps(analysis_of(seeds)))
    analysis_figures.plot_updates(analysis, "straw", tmp_path / "updates.png")
    analysis_figures.plot_movement(analysis, "straw", tmp_path / "movement.png")
    analysis_figures.plot_rotated(analysis, tmp_path / "angles.png")
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            assert picture.width > 900
    assert len(list(tmp_path.iterdir())) == 3
