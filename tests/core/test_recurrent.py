import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze
from flax.errors import InvalidRngError
from hypothesis import given
from hypothesis import strategies as st
from reference import random_array, to_numpy

from straw_jax.recurrent import HyperLSTMCell, LowRankLSTMCell, LSTMCell

CELLS = {
    "lstm": LSTMCell(5),
    "hyper": HyperLSTMCell(5, hyper_features=3, embedding=2),
    "low-rank": LowRankLSTMCell(5, hyper_features=3, rank=2),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(p, x):
    """Layer norm over the last axis."""
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def step(p, memory, gates, *, layer_norm):
    """One step of an LSTM of one sample, from its gates."""
    gates = gates.reshape(4, -1)
    if layer_norm:
        gates = norm(p["gates_norm"], gates)
    enter, candidate, forget, leave = gates
    memory = sigmoid(forget + 1) * memory + sigmoid(enter) * np.tanh(candidate)
    shown = norm(p["memory_norm"], memory) if layer_norm else memory
    return memory, sigmoid(leave) * np.tanh(shown)


def lstm(p, memory, state, x, *, layer_norm):
    joined = np.concatenate([x, state])
    gates = joined @ p["gates"]["kernel"] + p["gates"]["bias"]
    return step(p, memory, gates, layer_norm=layer_norm)


def hyper_gates(p, x, state, seen):
    """The gates as the paper writes them: whole weights, each row scaled, one gate at a time."""
    gates = []
    for gate in range(4):
        unit = slice(5 * gate, 5 * gate + 5)
        number = slice(2 * gate, 2 * gate + 2)

        def factors(name, number=number, gate=gate):
            dense = p[f"{name}_embeddings"]
            z = seen @ dense["kernel"][:, number] + dense["bias"][number]
            return z @ p[f"{name}_factors"][gate]

        z = seen @ p["bias_embeddings"]["kernel"][:, number]
        bias = z @ p["bias_change"][gate] + p["bias"][unit]
        kernels = {name: p[name]["kernel"][:, unit] * factors(name) for name in ("input", "state")}
        gates.append(x @ kernels["input"] + state @ kernels["state"] + bias)
    return np.concatenate(gates)


def low_rank_gates(p, x, state, seen):
    """The gates with whole updated weights."""
    joined = np.concatenate([x, state])
    B = 0.1 * (seen @ p["B"]["kernel"]).reshape(len(joined), 2)
    A = (seen @ p["A"]["kernel"]).reshape(2, 20)
    return joined @ (p["kernel"] + B @ A) + p["bias"]


def reference(name, p, xs, *, layer_norm):
    """States of one sample, step by step."""
    memory, state, small, seen = np.zeros(5), np.zeros(5), np.zeros(3), np.zeros(3)
    states = []
    for x in xs:
        if name == "lstm":
            memory, state = lstm(p, memory, state, x, layer_norm=layer_norm)
        else:
            joined = np.concatenate([x, state])
            small, seen = lstm(p["hyper"], small, seen, joined, layer_norm=layer_norm)
            gates = {"hyper": hyper_gates, "low-rank": low_rank_gates}[name](p, x, state, seen)
            memory, state = step(p, memory, gates, layer_norm=layer_norm)
        states.append(state)
    return np.stack(states)


X = random_array(0, (2, 6, 4))


@cache
def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), X)["params"]


def random_params(model, seed):
    """Parameters none of which is at its usual start, where many are 0 or 1."""
    leaves, tree = jax.tree.flatten(shapes_of(model))
    return tree.unflatten(
        [0.5 * random_array([seed, i], leaf.shape) for i, leaf in enumerate(leaves)]
    )


@cache
def initial_params(name):
    return jax.jit(nn.RNN(CELLS[name]).init)(jax.random.key(1), X)["params"]


@partial(jax.jit, static_argnums=0)  # compiled once for each cell and number of steps
def run(model, params, x):
    return model.apply({"params": params}, x)


@pytest.mark.accelerator
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("name", CELLS)
@given(seed=st.integers(0, 99), steps=st.integers(1, 4))
def test_cells_do_what_plain_loops_do(name, layer_norm, seed, steps):
    model = nn.RNN(CELLS[name].clone(layer_norm=layer_norm))
    x = random_array(seed, (2, steps, 4))
    params = random_params(model, seed)
    found = run(model, params, x)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["cell"])
    for sample, states in zip(np.asarray(x, np.float64), found, strict=True):
        expected = reference(name, exact, sample, layer_norm=layer_norm)
        np.testing.assert_allclose(states, expected, atol=1e-5)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", CELLS)
def test_half_precision_is_close_and_stays_half(name):
    """Inputs and parameters are float32, as those of Flax's cells may be."""
    params = random_params(nn.RNN(CELLS[name]), 1)

    @partial(jax.jit, static_argnums=0)
    def states_and_gradient(dtype, params, x):
        model = nn.RNN(CELLS[name].clone(dtype=dtype))

        def loss(params):
            states = model.apply({"params": params}, x)
            return jnp.sum(states.astype(jnp.float32) ** 2), states

        gradient, states = jax.grad(loss, has_aux=True)(params)
        return states, gradient

    found, gradient = states_and_gradient(jnp.bfloat16, params, X[:, :3])
    assert found.dtype == jnp.bfloat16
    expected, exact = states_and_gradient(None, params, X[:, :3])
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(exact), strict=True
    ):
        assert ours.dtype == jnp.float32
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 0.1, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize("name", CELLS)
def test_float32_is_what_none_is(name):
    params = shapes_of(nn.RNN(CELLS[name].clone(layer_norm=True)))

    def program(dtype):
        model = nn.RNN(CELLS[name].clone(layer_norm=True, dtype=dtype), return_carry=True)
        return re.sub(
            " at 0x[0-9a-f]+",
            "",
            str(jax.make_jaxpr(lambda p: model.apply({"params": p}, X))(params)),
        )

    assert program(jnp.float32) == program(None)
    assert "bf16" not in program(None)


def test_memory_is_summed_in_float32():
    """Each step adds a thousandth to 1: a bfloat16 memory would stay 1."""
    cell = LSTMCell(1, dtype=jnp.bfloat16)
    bias = jnp.array([20.0, 1e-3, 20.0, 0.0])  # enter, candidate, forget, leave
    params = {"cell": {"gates": {"kernel": jnp.zeros((2, 4)), "bias": bias}}}
    memory, state = cell.initialize_carry(None, (1, 1))
    assert (memory.dtype, state.dtype) == (jnp.float32, jnp.bfloat16)
    model = nn.RNN(cell, return_carry=True)
    carry = memory + 1, state
    (memory, _), _ = model.apply({"params": params}, jnp.zeros((1, 64, 1)), initial_carry=carry)
    assert memory[0, 0] == pytest.approx(1.064, abs=1e-3)


def test_every_parameter_is_trained():
    for cell in CELLS.values():
        model = nn.RNN(cell.clone(layer_norm=True))
        params = random_params(model, 2)
        gradient = jax.jit(jax.grad(lambda p, model=model: run(model, p, X)[..., 0].sum()))(params)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(to_numpy(gradient)))


def test_low_rank_starts_as_an_ordinary_lstm():
    params = initial_params("low-rank")
    plain = {"cell": {"gates": {name: params["cell"][name] for name in ("kernel", "bias")}}}
    found = run(nn.RNN(CELLS["low-rank"]), params, X)
    expected = run(nn.RNN(CELLS["lstm"]), plain, X)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_factors_start_at_a_tenth_whatever_the_small_lstm_sees():
    params = initial_params("hyper")
    scaled = to_numpy(params["cell"])
    kernel = np.concatenate([scaled["input"]["kernel"], scaled["state"]["kernel"]])
    plain = {"cell": {"gates": {"kernel": 0.1 * kernel, "bias": scaled["bias"]}}}
    found, expected = run(nn.RNN(CELLS["hyper"]), params, X), run(nn.RNN(CELLS["lstm"]), plain, X)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_numbers_of_an_embedding_are_no_copies_of_one():
    """Were all weights of factors equal at the start, so would be these gradients, for ever."""
    model = nn.RNN(CELLS["hyper"])
    loss = jax.jit(jax.grad(lambda p: jnp.sum(run(model, p, X) ** 2)))
    gradient = loss(initial_params("hyper"))["cell"]
    for name in ("input", "state"):
        by_number = np.asarray(gradient[f"{name}_embeddings"]["kernel"]).reshape(3, 4, -1)
        assert by_number.shape[-1] > 1
        spread = by_number.std(axis=-1) / np.abs(by_number).max(axis=-1)
        assert np.median(spread) > 0.1


def test_gates_start_orthogonally_each_by_itself():
    carry = LSTMCell(6).initialize_carry(None, (2,))
    params = jax.jit(LSTMCell(6).init)(jax.random.key(0), carry, np.ones(2, np.float32))
    kernel = np.asarray(params["params"]["gates"]["kernel"]).reshape(8, 4, 6)
    for gate in range(4):
        np.testing.assert_allclose(kernel[:, gate].T @ kernel[:, gate], np.eye(6), atol=1e-5)


def test_dropout_is_of_candidates():
    split = freeze({"params": False, "dropout": True})
    params = random_params(nn.RNN(LSTMCell(5)), 1)

    @partial(jax.jit, static_argnums=0)
    def dropped(model, key):
        return model.apply({"params": params}, X, rngs={"dropout": key})

    def apply(seed, **settings):
        model = nn.RNN(LSTMCell(5, **settings), split_rngs=split)
        return dropped(model, jax.random.key(seed))

    without = apply(0)
    np.testing.assert_allclose(without, run(nn.RNN(LSTMCell(5)), params, X), atol=1e-6)
    np.testing.assert_array_equal(apply(0, dropout=0.5), without)
    one, two = (apply(seed, dropout=0.5, deterministic=False) for seed in (0, 1))
    assert not np.array_equal(one, two)
    nothing = apply(0, dropout=1.0, deterministic=False)
    assert not np.any(to_numpy(nothing))  # the memory never gets anything
    with pytest.raises(InvalidRngError):
        run(nn.RNN(LSTMCell(5, dropout=0.5, deterministic=False)), params, X)


def test_state_is_carried_from_one_piece_to_the_next():
    @partial(jax.jit, static_argnums=0)
    def pieces(model, params):
        carry, first = model.apply(params, X[:, :4])
        carry, second = model.apply(params, X[:, 4:], initial_carry=carry)
        return carry, jnp.concatenate([first, second], axis=1), model.apply(params, X)

    for cell in CELLS.values():
        model = nn.RNN(cell, return_carry=True)
        carry, joined, (end, whole) = pieces(model, {"params": random_params(model, 3)})
        np.testing.assert_allclose(joined, whole, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, end)


def test_no_sample_has_a_kernel_of_its_own():
    x = np.ones((7, 3, 4), "float32")
    model = nn.RNN(CELLS["low-rank"])
    params = {"params": random_params(model, 0)}
    loss = jax.grad(lambda p: model.apply(p, x).sum())
    text = str(jax.make_jaxpr(loss)(params))
    assert "7,9,2]" in text  # B
    assert "7,9,20]" not in text
