import io
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_models import MODEL, OPTIMIZER, SHAPE, STEP, STEPS, images_and_labels, start

from straw_experiments.image_classification import loop
from straw_experiments.image_classification.loop import train, train_on_device
from straw_experiments.image_classification.step import (
    init_state,
    make_train_step,
    make_train_steps,
)
from straw_experiments.runner.batches import batches, epoch_order
from straw_experiments.runner.runs import NonFiniteError

IMAGES, LABELS = images_and_labels(22)
HOW = {"batch_size": 8, "seed": 1}  # Three steps an epoch, the last with two fillers.


by_host_and_device = pytest.mark.parametrize(
    "trained",
    [partial(train, STEP), partial(train_on_device, STEPS)],
    ids=["host", "device"],
)


@pytest.fixture(autouse=True)
def two_steps_at_a_time(monkeypatch):
    monkeypatch.setattr(loop, "CHUNK", 2)


def _host(state):
    return jax.tree.map(np.array, state)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 16))
def test_batches_hold_every_sample_once(count, batch_size):
    order = epoch_order(count, seed=0, epoch=1)
    cut = list(batches(order, batch_size))
    assert len(cut) == -(-count // batch_size)
    assert all(chosen.shape == real.shape == (batch_size,) for chosen, real in cut)
    chosen, real = (np.concatenate(parts) for parts in zip(*cut, strict=True))
    np.testing.assert_array_equal(chosen[real], order)
    np.testing.assert_array_equal(chosen[~real], np.resize(order, chosen.size)[~real])


def test_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(100, seed=2, epoch=3)
    np.testing.assert_array_equal(order, epoch_order(100, seed=2, epoch=3))
    assert (order != epoch_order(100, seed=2, epoch=4)).any()
    assert (order != epoch_order(100, seed=3, epoch=3)).any()


def test_step_is_traced_once():
    traces = []

    def apply(*args):
        traces.append(1)
        return MODEL.apply(*args)

    step = make_train_step(MODEL._replace(apply=apply), OPTIMIZER)
    state = start()
    assert [epoch.step for _, epoch in train(step, state, IMAGES, LABELS, epochs=2, **HOW)] == [
        3,
        6,
    ]
    assert len(traces) == 1


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_device_takes_the_same_steps(monkeypatch, chunk):
    monkeypatch.setattr(loop, "CHUNK", chunk)
    by_host = [(_host(s), e) for s, e in train(STEP, start(), IMAGES, LABELS, epochs=3, **HOW)]
    calls = train_on_device(STEPS, start(), IMAGES, LABELS, epochs=3, **HOW)
    for (state, epoch), (expected, of_host) in zip(calls, by_host, strict=True):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), _host(state), expected
        )
        assert (epoch.step, epoch.accuracy) == (of_host.step, of_host.accuracy)
        assert epoch.loss == pytest.approx(of_host.loss, rel=1e-5)


def test_any_number_of_steps_is_one_program():
    traces = []

    def apply(*args):
        traces.append(1)
        return MODEL.apply(*args)

    steps = make_train_steps(MODEL._replace(apply=apply), OPTIMIZER)
    assert len(list(train_on_device(steps, start(), IMAGES, LABELS, epochs=2, **HOW))) == 2
    assert len(traces) == 1
    assert steps._cache_size() == 1


@by_host_and_device
def test_epochs_report_means_over_the_real_samples_and_learn(trained):
    images, labels = images_and_labels(200)
    state = start()
    epochs = [e for _, e in trained(state, images, labels, epochs=40, batch_size=16, seed=0)]
    assert [e.epoch for e in epochs] == list(range(1, 41))
    assert all(0 <= e.accuracy <= 1 and (e.accuracy * 200) % 1 == pytest.approx(0) for e in epochs)
    assert all(e.images_per_second == pytest.approx(200 / e.seconds) for e in epochs)
    assert epochs[-1].loss < epochs[0].loss / 2
    assert epochs[-1].accuracy > 0.8


@by_host_and_device
def test_resumed_at_an_epoch_gives_the_same_bits(trained):
    state = start()
    states = [_host(state) for state, _ in trained(state, IMAGES, LABELS, epochs=4, **HOW)]
    stopped = jax.tree.map(jnp.array, states[1])
    resumed = list(trained(stopped, IMAGES, LABELS, epochs=4, **HOW))
    assert [epoch.epoch for _, epoch in resumed] == [3, 4]
    jax.tree.map(np.testing.assert_array_equal, states[-1], _host(resumed[-1][0]))


@by_host_and_device
def test_finished_training_takes_no_step(trained):
    state = start()
    *_, (state, _) = trained(state, IMAGES, LABELS, epochs=1, **HOW)
    assert list(trained(state, IMAGES, LABELS, epochs=1, **HOW)) == []


def test_non_finite_loss_names_the_step():
    state = start()

    def poisoned(state, *batch):
        if state.step == 4:
            state = jax.tree.map(lambda leaf: leaf * np.nan if leaf.ndim else leaf, state)
        return STEP(state, *batch)

    epochs = []
    with pytest.raises(NonFiniteError, match="the loss is nan at step 5"):
        epochs.extend(e for _, e in train(poisoned, state, IMAGES, LABELS, epochs=9, **HOW))
    assert [epoch.epoch for epoch in epochs] == [1]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_device_stops_at_a_loss_that_is_not_finite(monkeypatch, chunk):
    monkeypatch.setattr(loop, "CHUNK", chunk)
    optimizer = optax.sgd(lambda step: jnp.where(step == 3, jnp.nan, 0.01))
    steps, epochs = make_train_steps(MODEL, optimizer), []
    state = init_state(MODEL, optimizer, SHAPE, seed=1)
    with pytest.raises(NonFiniteError, match="the loss is nan at step 5"):
        epochs.extend(e for _, e in train_on_device(steps, state, IMAGES, LABELS, epochs=9, **HOW))
    assert [epoch.epoch for epoch in epochs] == [1]


@pytest.mark.parametrize(
    ("trained", "make"), [(train, make_train_step), (train_on_device, make_train_steps)]
)
def test_parameters_that_are_not_finite_are_not_handed_out(trained, make):
    # The loss before the last update of an epoch is finite; what the update leaves is not.
    step = make(MODEL, optax.sgd(np.inf))
    state = init_state(MODEL, optax.sgd(np.inf), SHAPE, seed=1)
    with pytest.raises(NonFiniteError, match="parameters are not finite after step 1"):
        list(trained(step, state, IMAGES, LABELS, epochs=1, batch_size=22, seed=0))


@by_host_and_device
def test_bar_shows_progress_on_a_terminal_only(monkeypatch, trained):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        state = start()
        list(trained(state, IMAGES, LABELS, epochs=1, title="small seed 1", **HOW))
        assert ("small seed 1" in stream.getvalue() and "images/s" in stream.getvalue()) is shown
