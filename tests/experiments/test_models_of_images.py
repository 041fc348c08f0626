"""The models are what their names say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from straw_experiments.image_classification import models
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import parameters, sample_cost


def _model(name, rank=4, base="none"):
    return build_model(name, classes=47, rank=rank, base=base)


def test_multiply_adds_are_those_of_kernels():
    # 3x3 kernels on 26x26 and 24x24 positions, and two dense layers.
    convolutions = 26**2 * 9 * 32 + 24**2 * 9 * 32 * 64
    assert sample_cost(_model("standalone")) == convolutions + 9216 * 128 + 128 * 47


@pytest.mark.parametrize("name", ["straw", "compact"])
def test_costs_do_not_depend_on_the_precision(name):
    costs = []
    for precision in ("float32", "bfloat16"):
        with jax.numpy_dtype_promotion("standard"):
            model = build_model(name, classes=5, rank=2, base="trained", precision=precision)
            costs.append((sample_cost(model), parameters(model)))
    assert costs[0] == costs[1]


@pytest.mark.slow
@pytest.mark.parametrize("base", ["none", "trained"])
@pytest.mark.parametrize("rank", [2, 16])
def test_widened_executors_are_as_large_or_dear_as_straw(rank, base):
    straw = _model("straw", rank, base)
    for name, count in (
        ("wide_dense", parameters),
        ("wide", parameters),
        ("wide_compute", sample_cost),
    ):
        # Widths are whole: a channel more or less is at most some per cent.
        assert count(_model(name, rank, base)) == pytest.approx(count(straw), rel=0.03)


def test_compact_models_cost_little_more_than_static_ones():
    compact, static, wide = (
        _model(name, 4, "trained") for name in ("compact", "compact_static", "compact_wide")
    )
    assert sample_cost(compact) < 1.2 * sample_cost(static) < sample_cost(wide)


def test_unfit_executors_and_encoders_are_refused():
    with pytest.raises(
        ValueError, match=r"standalone, wide, straw with .* got 'compact' with 'vit'"
    ):
        build_model("compact", classes=47, rank=4, base="trained", executor="vit")
    with pytest.raises(ValueError, match=r"expected an encoder of conv, trm, got 'lens'"):
        build_model("straw", classes=47, rank=4, base="none", encoder="lens")


def test_widened_executors_keep_their_proportions():
    def kernels(name):
        shapes = jax.eval_shape(_model(name, 16).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        return {layer: leaves["kernel"].shape for layer, leaves in shapes["params"].items()}

    assert kernels("wide_dense")["conv2"] == kernels("standalone")["conv2"]
    wide = kernels("wide")
    assert wide["conv2"][3] == pytest.approx(2 * wide["conv2"][2], abs=1)
    assert wide["fc1"][1] == pytest.approx(4 * wide["conv1"][3], abs=2)


@pytest.mark.parametrize("name", models.MODELS)
def test_only_straws_write_weights(name):
    straw = models.straw_of(name, classes=47, rank=1, base="none")
    writers = ("straw", "compact", "compact_shared", "compact_gain", "compact_context")
    assert (straw is not None) == (name in writers or name.startswith("geometric"))


@pytest.mark.slow
def test_models_give_logits():
    images = jnp.zeros((2, 28, 28, 1))
    for name in ("standalone", "wide_compute", "straw"):
        model = _model(name, rank=1)
        logits, state = jax.jit(
            lambda m=model: m.apply(m.init(jax.random.key(0), images), images, None)
        )()
        assert logits.shape == (2, 47)
        assert state == {}
        assert np.isfinite(logits).all()


def test_unknown_model_lists_the_known():
    with pytest.raises(ValueError, match=r"expected any of standalone, .* got resnet18"):
        _model("resnet18")


@pytest.mark.parametrize(
    ("name", "plain", "generated"), [("conv7", 12_544, 4_244), ("wrn_16_1", 170_496, 7_984)]
)
def test_kernels_of_one_generator_take_the_place_of_free_ones(name, plain, generated):
    free, narrow, written = (
        parameters(build_model(name + form, classes=10, rank=4, base="none"))
        for form in ("", "_narrow", "_generated")
    )
    assert free - plain == written - generated  # all else is the same
    assert narrow < written


def test_wide_residual_networks_have_about_the_sizes_of_the_papers():
    free, written = (
        parameters(build_model(f"wrn_40_2{form}", classes=10, rank=4, base="none"))
        for form in ("", "_generated")
    )
    assert free == pytest.approx(2.236e6, rel=0.01)  # with BatchNorm and three channels
    assert written == pytest.approx(0.148e6, rel=0.06)


@pytest.mark.parametrize("name", ["conv7_generated", "wrn_16_1_generated"])
def test_generated_kernels_are_trained_through_their_generator(name):
    model = build_model(name, classes=3, rank=4, base="none")
    images = np.random.default_rng(0).standard_normal((2, 28, 28, 1), np.float32)

    def loss(params):
        logits, state = model.apply({"params": params}, images, jax.random.key(2))
        assert state == {}
        return jnp.sum(logits**2)

    @jax.jit
    def gradient_at(key):
        return jax.grad(loss)(model.init(key, images)["params"])

    gradient = gradient_at(jax.random.key(1))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient["generator"]))


@pytest.mark.parametrize("name", ["straw", "wide", "compact", "wrn_16_1_generated"])
def test_images_may_be_larger_and_in_colour(name):
    image = (32, 32, 3)
    base = "trained" if name == "compact" else "none"
    model = build_model(name, classes=3, rank=1, base=base, image=image)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(v, x, None), variables, images)
    assert logits.shape == (2, 3)
    assert parameters(model, image) == sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert sample_cost(model, image) > 0
