"""Controls: a trained STRAW with other style vectors than each image's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from straw_experiments.image_classification.controls import (
    control_scores,
    other_styles,
    style_function,
)
from straw_experiments.image_classification.evaluate import in_batches, score
from straw_experiments.image_classification.step import as_input
from straw_jax import make_straw, materialize


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_each_style_goes_to_just_one_other_image(labels):
    labels = np.array(labels)
    styles = np.arange(len(labels), dtype=np.float32)[:, None]
    others = other_styles(styles, labels, styles + 1)
    assert others["own"] is styles
    for name in ("same class", "shuffled"):
        assert sorted(others[name]) == sorted(styles)
    assert (others["shuffled"] != styles).all()
    sources = others["same class"][:, 0].astype(int)
    np.testing.assert_array_equal(labels[sources], labels)
    alone = np.bincount(labels)[labels] == 1
    np.testing.assert_array_equal(sources == np.arange(len(labels)), alone)
    np.testing.assert_allclose(others["mean"], np.full_like(styles, styles.mean() + 1))
    np.testing.assert_array_equal(others["zero"], np.zeros_like(styles))


class _Executor(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="fc")(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("base", ["none", "trained"])
def test_controls_are_the_executor_with_the_weights_that_they_name(base):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 28, 28, 1)).astype(np.uint8)
    training = rng.integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(9) % 3
    straw = make_straw(_Executor(), as_input(images), rank=2, base=base, hidden=8)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) / 8,
        straw.init(jax.random.key(0)),
    )
    scores = control_scores(straw, {"params": params}, training, {"standard": images}, labels)

    def static(style):
        """Logits of the executor with the weights that one style vector stands for."""
        own = {**params, "encoder": {}}
        given_style = make_straw(
            _Executor(), as_input(images), rank=2, base=base, hidden=8,
            encoder=_pass_on(), context=style[None],
        )  # fmt: skip
        factors = jax.tree.map(lambda part: part[0], given_style.factors(own, style[None]))
        weights = materialize(params["executor"] if base == "trained" else _shapes(images), factors)
        return np.asarray(_Executor().apply({"params": weights}, as_input(images)))

    styles = in_batches(style_function(straw), {"params": params}, training)
    for name, style in (("mean", styles.mean(axis=0)), ("zero", np.zeros(64, np.float32))):
        expected = score(static(jnp.asarray(style)), labels)
        assert scores[name]["standard"]["accuracy"] == expected.accuracy
        assert scores[name]["standard"]["loss"] == pytest.approx(expected.loss, rel=1e-4)
    assert list(scores) == ["own", "same class", "shuffled", "mean", "zero"]
    own = score(np.asarray(straw.apply(params, as_input(images))), labels)
    assert scores["own"]["standard"]["loss"] == pytest.approx(own.loss, rel=1e-5)
    assert scores["shuffled"]["standard"]["loss"] != pytest.approx(own.loss, rel=1e-4)


def _pass_on():
    from straw_jax import Network

    return Network(init=lambda key, style: {}, apply=lambda params, style: style)


def _shapes(images):
    variables = jax.eval_shape(_Executor().init, jax.random.key(0), as_input(images))
    return variables["params"]
