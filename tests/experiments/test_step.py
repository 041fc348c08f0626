import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from training_models import CLASSES, MODEL, OPTIMIZER, SHAPE, STEP, images_and_labels, start

from straw_experiments.data import normalise
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import straw_model
from straw_experiments.image_classification.step import (
    Model,
    init_state,
    initializer,
    lower_train_step,
    make_train_step,
    state_like,
)
from straw_experiments.runner.state import training_key
from straw_jax import make_straw

ALL_REAL = np.ones(4, bool)


def _dense_model(classes=3):
    module = nn.Dense(classes)
    return Model(
        init=lambda key, images: module.init(key, images.reshape(len(images), -1)),
        apply=lambda variables, images, key: (
            module.apply(variables, images.reshape(len(images), -1)),
            {},
        ),
    )


def test_step_equals_plain_gradient_descent():
    model, optimizer = _dense_model(), optax.sgd(0.5)
    images, labels = images_and_labels(4, classes=3)
    state = init_state(model, optimizer, SHAPE, seed=3)
    kernel, bias = (
        np.asarray(state.variables["params"][k], np.float64) for k in ("kernel", "bias")
    )

    x = np.asarray(normalise(images), np.float64).reshape(4, -1)
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradient = (p - np.eye(3)[labels]) / 4
    state, metrics = make_train_step(model, optimizer)(
        state, training_key(3), images, labels, ALL_REAL
    )

    np.testing.assert_allclose(metrics.loss, -np.log(p[np.arange(4), labels]).sum(), rtol=1e-5)
    assert metrics.correct == (logits.argmax(-1) == labels).sum()
    assert metrics.samples == 4
    assert state.step == 1
    params = state.variables["params"]
    np.testing.assert_allclose(params["kernel"], kernel - 0.5 * x.T @ gradient, atol=1e-5)
    np.testing.assert_allclose(params["bias"], bias - 0.5 * gradient.sum(0), atol=1e-5)


def test_fillers_change_neither_gradient_nor_counts():
    model, optimizer = _dense_model(), optax.sgd(0.5)
    images, labels = images_and_labels(4, classes=3)
    step = make_train_step(model, optimizer)
    whole, filled = (init_state(model, optimizer, SHAPE, seed=3) for _ in range(2))
    whole, expected = step(whole, training_key(3), images[:2], labels[:2], ALL_REAL[:2])
    real = np.array([True, True, False, False])
    filled, metrics = step(filled, training_key(3), images, labels, real)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (whole, expected),
        (filled, metrics),
    )


def test_only_params_are_trained_and_statistics_move():
    state = start()
    before = jax.tree.map(np.array, state.variables)
    assert set(before) == {"params", "batch_stats"}
    assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(before["params"])
    state, _ = STEP(state, training_key(0), *images_and_labels(4), ALL_REAL)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.variables)
    assert all(jax.tree.leaves(moved)), moved


def test_dropout_is_decided_by_seed_and_step():
    def loss(seed, step):
        state = start()._replace(step=jnp.int32(step))
        _, metrics = STEP(state, training_key(seed), *images_and_labels(4), ALL_REAL)
        return float(metrics.loss)

    assert loss(0, 3) == loss(0, 3)
    assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3


def test_state_is_donated():
    state = start()
    STEP(state, training_key(0), *images_and_labels(4), ALL_REAL)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.variables))


def test_parameters_are_updated_in_place():
    model = build_model("straw", classes=5, rank=2, base="none")
    step = lower_train_step(model, optax.adam(1e-3), (28, 28, 1), batch_size=4).compile()
    largest = r"= f32\[9216,2,128\]\S* "
    assert re.search(largest, step.as_text())
    assert not re.search(largest + r"copy\(", step.as_text())


def test_seed_decides_the_initial_state_which_is_traced_once():
    traces = []

    def init(key, images):
        traces.append(images.shape)
        return MODEL.init(key, images)

    make = initializer(MODEL._replace(init=init), OPTIMIZER, SHAPE)
    assert jax.eval_shape(lambda: make(0)) == state_like(MODEL, OPTIMIZER, SHAPE)
    one, same, other = (make(seed) for seed in (1, 1, 2))
    assert traces == [(1, *SHAPE)]
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernels = [state.variables["params"]["Dense_0"]["kernel"] for state in (one, other)]
    assert (kernels[0] != kernels[1]).all()
    assert jax.eval_shape(lambda: one) == state_like(MODEL, OPTIMIZER, SHAPE)


def test_a_step_in_bfloat16_keeps_a_float32_state_and_learns():
    images, labels = images_and_labels(16)
    layers = [lambda x: x[:, ::4, ::4, 0].reshape(len(x), -1), _dense(CLASSES)]
    straw = make_straw(
        nn.Sequential(layers),
        jnp.zeros((1, *SHAPE)),
        rank=2,
        base="trained",
        encoder=nn.Sequential([*layers, nn.tanh]),
        hidden=8,
        dtype=jnp.bfloat16,
    )
    model = straw_model(straw)._replace(
        apply=lambda variables, x, key: (straw.apply(variables["params"], x), {})
    )
    optimizer = optax.adam(1e-2)
    step = make_train_step(model, optimizer)
    state, losses = init_state(model, optimizer, SHAPE, seed=0), []
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert {str(dtype) for dtype in dtypes} == {"float32", "int32"}
    for _ in range(20):
        state, metrics = step(state, training_key(0), images, labels, np.ones(16, bool))
        losses.append(float(metrics.loss))
    assert [leaf.dtype for leaf in jax.tree.leaves(state)] == dtypes
    assert metrics.loss.dtype == jnp.float32
    assert losses[-1] < 0.7 * losses[0]


def _dense(features):
    return nn.Dense(features, dtype=jnp.bfloat16)


def test_lowered_step_counts_multiply_adds_and_keeps_its_shape():
    model, optimizer = _dense_model(30), optax.sgd(0.1)
    images, labels = images_and_labels(4)
    cost = [
        lower_train_step(model, optimizer, SHAPE, batch_size=b).cost_analysis() for b in (64, 128)
    ]
    # Forward and the kernel's gradient: 2 x 2 flops for every image, pixel and class.
    assert cost[1]["flops"] - cost[0]["flops"] == pytest.approx(64 * 784 * 30 * 4, rel=0.1)
    step = lower_train_step(model, optimizer, SHAPE, batch_size=4).compile()
    state, _ = step(
        init_state(model, optimizer, SHAPE, seed=0), training_key(0), images, labels, ALL_REAL
    )
    with pytest.raises(TypeError, match="compiled with uint8"):
        step(state, training_key(0), images[:3], labels[:3], ALL_REAL[:3])


def test_bfloat16_logits_are_scored_in_float32():
    model, optimizer = _dense_model(), optax.sgd(0.0)
    low = model._replace(apply=lambda *args: (model.apply(*args)[0].astype(jnp.bfloat16), {}))
    images, labels = images_and_labels(4, classes=3)
    state = init_state(low, optimizer, SHAPE, seed=0)
    _, metrics = make_train_step(low, optimizer)(state, training_key(0), images, labels, ALL_REAL)
    assert metrics.loss.dtype == jnp.float32
