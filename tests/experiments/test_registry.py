"""One entry makes a model known to the command line, the training, the tables and the figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from straw_experiments.data import Dataset
from straw_experiments.image_classification import models
from straw_experiments.image_classification.config import parse
from straw_experiments.image_classification.models import MODELS, ImageModel
from straw_experiments.image_classification.study import Study
from straw_experiments.runner.registry import Entry, Registry
from straw_experiments.runner.study import conduct


def _linear(sizes):
    """A model of one's own, in one function: softmax regression."""
    from flax import linen as nn

    from straw_experiments.image_classification.networks import flax_model

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(sizes.classes)(x.reshape(x.shape[0], -1))

    return flax_model(Linear())


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    return MODELS.register(
        ImageModel(
            name="linear",
            build=_linear,
            label="softmax regression",
            colour="#123456",
            help="a linear classifier",
        )
    )


@pytest.mark.slow
def test_a_registered_model_is_trained_and_reported(linear, tmp_path, capsys):
    out = tmp_path / "out"
    config = parse(
        ["--models", "linear", "standalone", "--epochs", "1", "--jobs", "1", "--out", str(out)]
    )
    assert config.models == ["standalone", "linear"]  # in the order of the registry
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 28, 28, 1), np.uint8)
    labels = np.arange(12, dtype=np.int32) % 3
    dataset = Dataset("noise", images, labels, images, labels, ("a", "b", "c"))
    conduct(Study(config, dataset), "a command")
    assert "softmax regression" in capsys.readouterr().out
    assert "| softmax regression | 2,355 |" in (out / "report.md").read_text()
    rows = (out / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("model,seed,epoch,step,train/loss,train/accuracy,test/loss")
    assert rows[2].startswith("linear,0,1,1,")
    from straw_experiments.image_classification.figures import model_colour

    assert model_colour("linear") == "#123456"
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "a linear classifier" in capsys.readouterr().out


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_built(name):
    model = MODELS[name]
    for executor in model.executors:
        sizes = {"classes": 3, "rank": 1, "base": "trained", "executor": executor}
        built = models.build_model(name, **sizes)
        images = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
        variables = jax.eval_shape(built.init, jax.random.key(0), images)
        logits, _ = jax.eval_shape(lambda v, x, m=built: m.apply(v, x, None), variables, images)
        assert logits.shape == (2, 3)
        straw = models.straw_of(name, **sizes)
        assert (straw is None) == (model.straw is None)
        if straw is not None:
            executor_params = jax.eval_shape(
                models.executor_of(name, **sizes).init, jax.random.key(0), images
            )["params"]
            paths = {
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, _ in jax.tree.leaves_with_path(executor_params)
            }
            assert {leaf.path for leaf in straw.spec} <= paths


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("wide", "wrn_40")))
        for name in MODELS
    ],
)
def test_every_model_computes_in_bfloat16_if_told_to(name):
    """By its logits' dtype; a model that resamples images averages float32 probabilities."""
    sizes = {"classes": 3, "rank": 1, "base": "trained"}
    images = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # as scripts run
        model = models.build_model(name, **sizes, precision="bfloat16")
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, None), variables, images)
        if straw := models.straw_of(name, **sizes, precision="bfloat16"):
            styles = jax.eval_shape(straw.styles, variables["params"], images)
            poses = name.startswith("geometric")
            assert styles.dtype == (jnp.float32 if poses else jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == (jnp.float32 if name == "compact_fan" else jnp.bfloat16)


def test_labels_and_colours_are_distinguishable():
    for preset in ("compact", "geometric"):
        chosen = [model for model in MODELS.values() if preset in model.presets]
        assert len({model.colour for model in chosen}) == len(chosen) > 2
    labels = [MODELS.label(name) for name in MODELS]
    assert len(set(labels)) == len(labels)
    assert MODELS.label("of an earlier version") == "of an earlier version"
    assert MODELS.colour("of an earlier version") == "#777777"


def test_a_name_is_registered_once():
    registry = Registry([Entry(name="a", build=dict, help="")])
    with pytest.raises(ValueError, match="register: there is a model 'a'; choose another name"):
        registry.register(Entry(name="a", build=list, help=""))
    with pytest.raises(ValueError, match="--models: expected any of a, got b"):
        registry.check("--models", ["a", "b"])
