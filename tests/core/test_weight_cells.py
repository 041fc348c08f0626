"""Cells whose weights move in time do what plain loops with whole weights do."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import intermediates, random_array, to_numpy

from straw_jax import Network, delta_rule, delta_rule_outputs, factor_spec, linen, materialize
from straw_jax.kinds import Gain, LowRank, Mixture
from straw_jax.weight_cells import DeltaCell, SelfReferentialCell, WeightSpaceCell

IN = 4
X = random_array(0, (2, 6, IN))
MLP = nn.Sequential((nn.Dense(3), nn.tanh, nn.Dense(2)))  # a list has no hash


def mlp(width):
    shapes = jax.eval_shape(linen(MLP).init, jax.random.key(0), np.ones((1, width), "f"))
    return partial(factor_spec, shapes)


def last(x):
    return x[:, -1:]


CELLS = {
    "delta": DeltaCell(6, heads=2),
    "delta, forgetting": DeltaCell(3, key_features=5, forgetting=True, forget_bias=1.0),
    "self-referential": SelfReferentialCell(6, heads=2),
    "whole": WeightSpaceCell(MLP, mlp(IN)({"*": "whole"})),
    "whole, full": WeightSpaceCell(MLP, mlp(IN)({"*": "whole"}), full=True),
    "low-rank": WeightSpaceCell(MLP, mlp(IN)(1)),
    "low-rank, base": WeightSpaceCell(MLP, mlp(IN)({"*/kernel": 1}), base="trained"),
    "mixture and gain, base": WeightSpaceCell(
        MLP, mlp(IN)({"layers_0/kernel": [Mixture(2), Gain()]}), base="trained"
    ),
    "at a coordinate": WeightSpaceCell(MLP, mlp(1)(1), read=last),
}
DELTA = ["delta", "delta, forgetting"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def delta(cell, p, xs):
    """Outputs of one sample, step by step, and the last weights."""
    heads, size = cell.heads, cell.features // cell.heads
    weights = [np.zeros((cell.key_features or size, size)) for _ in range(heads)]
    outputs = []
    for x in xs:
        numbers = {name: np.split(x @ layer["kernel"] + layer.get("bias", 0), heads)
                   for name, layer in p.items()}  # fmt: skip
        row = []
        for h, W in enumerate(weights):
            q, k = (numbers[name][h] * sigmoid(numbers[name][h]) for name in ("query", "key"))
            q, k = (each / np.sqrt(each @ each + 1e-6) for each in (q, k))
            if cell.forgetting:
                W = sigmoid(numbers["forget"][h]) * W
            b = sigmoid(numbers["strength"][h])
            weights[h] = W = W + b * np.outer(k, numbers["value"][h] - k @ W)
            row.append(q @ W)
        outputs.append(np.concatenate(row))
    return np.stack(outputs), np.stack(weights)


def self_referential(cell, p, xs):
    d, out = xs.shape[1] // cell.heads, cell.features // cell.heads
    parts = ("outputs", "queries", "keys", "strengths")
    first = [np.concatenate([p[name][h] for name in parts], axis=1) for h in range(cell.heads)]
    weights, outputs = list(first), []
    for x in xs:
        row = []
        for h, W in enumerate(weights):
            y, q, k, b = np.split(
                softmax(np.split(x, cell.heads)[h]) @ W, [out, out + d, out + 2 * d]
            )
            new, old = softmax(q) @ W, softmax(k) @ W
            strengths = np.repeat(sigmoid(b), [out, d, d, 4])
            weights[h] = W + np.outer(softmax(k), strengths * (new - old))
            row.append(y)
        outputs.append(np.concatenate(row))
    return np.stack(outputs), np.stack(weights) - np.stack(first)


def weight_space(cell, p, xs):
    def network(w, x):
        hidden = np.tanh(x @ w["layers_0"]["kernel"] + w["layers_0"]["bias"])
        return hidden @ w["layers_2"]["kernel"] + w["layers_2"]["bias"]

    numbers, before, outputs = p["start"], np.zeros(xs.shape[1]), []
    for x in xs:
        kept = numbers @ p["decay"] if cell.full else p["decay"] * numbers
        numbers, before = kept + (x - before) @ p["drive"], x
        parts, done = {}, 0
        for leaf in cell.spec:
            for name, shape in leaf.parts.items():
                size = int(np.prod(shape))
                parts[leaf.path, name] = numbers[done : done + size].reshape(shape)
                done += size
        weights = {layer: dict(p["weights"][layer]) if "weights" in p else {}
                   for layer in ("layers_0", "layers_2")}  # fmt: skip
        for leaf in cell.spec:
            layer, name = leaf.path.split("/")
            own = {each: parts[leaf.path, each] for each in leaf.parts}
            W = weights[layer].get(name, 0)
            if "B" in own:
                W = W + own["B"] @ own["A"]
            if "whole" in own:
                W = W + own["whole"]
            if "weights" in own:  # of templates
                shared = p[f"{layer}.{name}.templates"]
                W = W + np.einsum("k,kio->io", own["weights"], shared)
            if "outputs" in own:
                W = W * own["outputs"]
            weights[layer][name] = W
        outputs.append(network(weights, x[-1:] if cell.read else x))
    return np.stack(outputs), numbers - p["start"]


LOOPS = {DeltaCell: delta, SelfReferentialCell: self_referential, WeightSpaceCell: weight_space}


@cache
def shapes_of(name):
    return jax.eval_shape(nn.RNN(CELLS[name]).init, jax.random.key(0), X)["params"]


def random_params(name, seed):
    """Parameters none of which is at its usual start, where many are 0 or 1."""

    def leaf(path, shape):
        grows = path[-1].key == "decay" and len(shape.shape) > 1  # from step to step
        size = np.float32(shape.shape[0] ** -0.5 if grows else 0.5)
        return size * random_array([seed, *map(ord, str(path))], shape.shape)

    return jax.tree.map_with_path(leaf, shapes_of(name))


@partial(jax.jit, static_argnums=0)  # compiled once for each cell and number of steps
def run(model, params, x):
    return model.apply({"params": params}, x)


def in_numpy(name, params, x):
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["cell"])
    loop = LOOPS[type(CELLS[name])]
    return [loop(CELLS[name], exact, sample) for sample in np.asarray(x, np.float64)]


@pytest.mark.accelerator
@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=6)
@given(seed=st.integers(0, 99))
def test_cells_do_what_plain_loops_do(name, seed):
    x = random_array(seed, (2, 5, IN))
    params = random_params(name, seed)
    state, found = run(nn.RNN(CELLS[name], return_carry=True), params, x)
    state = state[0] if isinstance(state, tuple) else state
    for own, states, (expected, last_state) in zip(
        found, state, in_numpy(name, params, x), strict=True
    ):
        np.testing.assert_allclose(own, expected, atol=1e-5)
        np.testing.assert_allclose(states, last_state, atol=1e-5)


@pytest.mark.parametrize("name", ["delta, forgetting", "self-referential", "low-rank"])
def test_gradients_are_those_of_the_loop(name):
    """By differences of the loop in float64, along random directions."""
    params, x = random_params(name, 3), X[:, :4]

    def loss(params):
        return jnp.sum(nn.RNN(CELLS[name]).apply({"params": params}, x) ** 2)

    leaves, tree = jax.tree.flatten(params)
    for i, gradient in enumerate(jax.tree.leaves(jax.jit(jax.grad(loss))(params))):
        direction = random_array(5, gradient.shape, "float64")

        def moved(by, i=i, direction=direction):
            changed = [*leaves[:i], leaves[i] + by * direction, *leaves[i + 1 :]]
            return sum((y**2).sum() for y, _ in in_numpy(name, tree.unflatten(changed), x))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        got = np.sum(np.float64(gradient) * direction)
        np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-3)


@pytest.mark.accelerator
@pytest.mark.parametrize("name", ["delta, forgetting", "self-referential", "low-rank"])
def test_half_precision_is_close_and_the_state_is_float32(name):
    params = random_params(name, 1)
    cell = CELLS[name].clone(dtype=jnp.bfloat16)
    if isinstance(cell, WeightSpaceCell):
        layers = nn.Dense(3, dtype=jnp.bfloat16), nn.tanh, nn.Dense(2, dtype=jnp.bfloat16)
        cell = cell.clone(executor=nn.Sequential(layers))

    @partial(jax.jit, static_argnums=0)
    def states_and_gradient(cell, params):
        def loss(params):
            carry, y = nn.RNN(cell, return_carry=True).apply({"params": params}, X)
            return jnp.sum(y.astype(jnp.float32) ** 2), (carry, y)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (carry, found) = states_and_gradient(cell, params)
    exact, (_, expected) = states_and_gradient(CELLS[name], params)
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, gradient))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.06)
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(each)])
                    for each in (gradient, exact))  # fmt: skip
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)


def test_every_parameter_is_trained():
    for name in ("delta, forgetting", "self-referential", "whole, full", "mixture and gain, base"):
        loss = jax.grad(lambda p, name=name: run(nn.RNN(CELLS[name]), p, X)[..., 0].sum())
        gradient = to_numpy(jax.jit(loss)(random_params(name, 2)))
        assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient)), name


@pytest.mark.parametrize("name", DELTA)
def test_all_steps_at_once_are_those_of_the_delta_rule(name):
    cell, params = CELLS[name], random_params(name, 4)["cell"]

    @jax.jit
    def all_ways(params):
        start = random_array(7, (2, cell.heads, *cell._sizes()))
        carry, outputs = cell.apply({"params": params}, start, X, method="sequence", chunk=4)
        steps = nn.RNN(cell, return_carry=True).apply(
            {"params": {"cell": params}}, X, initial_carry=start
        )
        (queries, keys, values, strengths, kept), _ = cell.apply(
            {"params": params}, X, method="_read"
        )
        forgetting = kept if cell.forgetting else jnp.ones_like(kept)

        def of_head(queries, keys, values, strengths, forgetting, state):
            outputs, _ = delta_rule_outputs(
                queries, keys, values, strengths, state, forgetting=forgetting
            )
            entry = delta_rule(keys, values, strengths, state, forgetting=forgetting)
            return outputs, materialize({"W": state}, {"W": entry})["W"]

        by_head = jax.vmap(of_head, in_axes=(1, 1, 1, 1, 1, 0), out_axes=(1, 0))
        rule, last_weights = jax.vmap(by_head)(queries, keys, values, strengths, forgetting, start)
        return (carry, outputs), steps, (last_weights, rule.reshape(outputs.shape))

    at_once, *others = all_ways(params)
    for other in others:
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), at_once, other)


def test_state_is_carried_and_lengths_differ():
    lengths = np.array([4, 6])

    @partial(jax.jit, static_argnums=0)
    def ways(model, params):
        carry, first = model.apply(params, X[:, :4])
        end, second = model.apply(params, X[:, 4:], initial_carry=carry)
        of_lengths = model.apply(params, X, seq_lengths=lengths)
        return carry, end, jnp.concatenate([first, second], axis=1), of_lengths

    for name in ("delta", "self-referential", "low-rank"):
        model, params = nn.RNN(CELLS[name], return_carry=True), random_params(name, 3)
        carry, end, joined, (at_length, whole) = ways(model, {"params": params})
        np.testing.assert_allclose(joined, whole, atol=1e-6)
        for middle, late, found in zip(*map(jax.tree.leaves, (carry, end, at_length)), strict=True):
            np.testing.assert_allclose(found[0], middle[0], atol=1e-6)
            np.testing.assert_allclose(found[1], late[1], atol=1e-6)


def test_small_changes_are_summed():
    """Each step adds a thousandth to 1: a bfloat16 state would stay 1."""
    model = Network(
        lambda key, x: {"W": jnp.ones((1, 1))}, lambda params, x: x.astype("f") @ params["W"]
    )
    cell = WeightSpaceCell(model, factor_spec({"W": jnp.ones((1, 1))}, {"W": "whole"}),
                           dtype=jnp.bfloat16)  # fmt: skip
    params = {"start": jnp.ones(1), "drive": jnp.ones((1, 1)), "decay": jnp.array([1.001])}
    carry, _ = nn.RNN(cell, return_carry=True).apply(
        {"params": {"cell": params}}, jnp.zeros((1, 64, 1), jnp.bfloat16)
    )
    assert carry[0][0, 0] == pytest.approx(1.001**64 - 1, abs=1e-4)


@pytest.mark.parametrize(
    "name", ["whole", "whole, full", "low-rank, base", "mixture and gain, base"]
)
def test_an_untrained_executor_is_the_plain_one(name):
    cell = CELLS[name]
    y, params = jax.jit(nn.RNN(cell).init_with_output)(jax.random.key(1), X)
    params = to_numpy(params["params"]["cell"])
    weights = params.get("weights")
    if weights is None:
        packed = cell.spec.unpack(jnp.asarray(params["start"]))
        weights = {"layers_0": {}, "layers_2": {}}
        for path, array in packed.items():
            layer, leaf = path.split("/")
            weights[layer][leaf] = array
    np.testing.assert_allclose(y, MLP.apply({"params": weights}, X), atol=1e-5)
    assert params["drive"].shape == (IN, cell.spec.size)
    assert not params["drive"].any()


def test_low_rank_weights_start_with_the_plain_sizes():
    shapes = jax.eval_shape(linen(nn.Dense(64)).init, jax.random.key(0), np.ones((1, 64), "f"))
    cell = WeightSpaceCell(
        nn.Dense(64), factor_spec(shapes, {"kernel": LowRank(2), "bias": "whole"})
    )
    x = random_array(1, (1, 1, 64))
    params = jax.jit(nn.RNN(cell).init)(jax.random.key(0), x)["params"]["cell"]
    found = cell.spec.unpack(params["start"])
    assert np.std(found["kernel"].B @ found["kernel"].A) == pytest.approx(1 / 8, rel=0.4)
    assert not np.any(found["bias"])


def test_an_initial_network_as_in_the_paper():
    """`w_0 = phi(x_0)`, and the first difference is 0."""
    name = "whole"
    params = random_params(name, 5)
    cell = dict(params["cell"], start=np.zeros_like(params["cell"]["start"]))
    phi = random_array(9, (IN, cell["start"].size))
    carry = X[:, 0] @ phi, X[:, 0]
    model = nn.RNN(CELLS[name], return_carry=True)
    (numbers, before), _ = model.apply({"params": {"cell": cell}}, X, initial_carry=carry)
    expected = X[:, 0] @ phi
    for t in range(X.shape[1]):
        change = X[:, t] - X[:, max(t - 1, 0)]
        expected = cell["decay"][None] * expected + change @ cell["drive"]
    np.testing.assert_allclose(numbers, expected, atol=1e-5)
    np.testing.assert_array_equal(before, X[:, -1])


def test_by_hand_and_for_any_leading_axes():
    x = random_array(2, (2, 3, IN))
    for name in ("delta, forgetting", "self-referential", "low-rank"):
        cell, params = CELLS[name], {"params": random_params(name, 1)["cell"]}

        @jax.jit
        def step(x, cell=cell, params=params):
            return cell.apply(params, cell.initialize_carry(None, x.shape), x)[1]

        together, alone = step(x), step(x[1, 2])
        assert alone.shape == together.shape[2:]
        np.testing.assert_allclose(together[1, 2], alone, atol=1e-5)


def test_what_is_written_is_shown():
    params = random_params("low-rank", 0)
    model = nn.RNN(CELLS["low-rank"], variable_axes={"intermediates": 1})
    _, shown = model.apply({"params": params}, X, mutable=["intermediates"])
    (numbers,) = shown["intermediates"]["cell"]["written"]
    assert CELLS["low-rank"].spec.unpack(numbers)["layers_0/kernel"].B.shape == (2, 6, IN, 1)


def test_no_sample_has_a_kernel_of_its_own():
    wide = nn.Dense(40, use_bias=False)
    shapes = jax.eval_shape(linen(wide).init, jax.random.key(0), np.ones((1, 30), "f"))
    cell = WeightSpaceCell(wide, factor_spec(shapes, {"kernel": 2}))
    x = np.ones((7, 3, 30), "f")
    params = jax.eval_shape(nn.RNN(cell).init, jax.random.key(0), x)
    shapes = intermediates(jax.grad(lambda p: nn.RNN(cell).apply(p, x).sum()), params)
    assert (7, 30, 2) in shapes
    assert not [shape for shape in shapes if {30, 40} <= {*shape} and len(shape) > 2]


def test_errors():
    x, key = np.ones((2, IN), "f"), jax.random.key(0)
    spec = CELLS["whole"].spec
    partly = mlp(IN)({"*/kernel": 2})

    def call(cell, carry=None, x=x, method="__call__"):
        def of():
            own = cell.initialize_carry(key, x.shape) if carry is None else carry
            return jax.eval_shape(partial(cell.init, method=method), key, own, x)

        return of

    wrong = {
        "features to be a whole number": call(DeltaCell(0)),
        "multiple of the heads, got width 5": call(DeltaCell(5, heads=2)),
        "key_features": call(DeltaCell(4, key_features=0)),
        "forget_bias to be a finite": call(DeltaCell(4, forgetting=True, forget_bias=np.inf)),
        r"carry of float32 .2, 1, 4, 4.": call(DeltaCell(4), x),
        "of one step or more": call(DeltaCell(4), np.ones((1, 4, 4), "f"), x[:0], "sequence"),
        "dtype to be bfloat16": call(DeltaCell(4, dtype="int8")),
        "inputs to be an array": lambda: DeltaCell(4).init(key, np.ones((1, 4, 4), "f"), [1.0]),
        "got width 4 and 3 heads": call(SelfReferentialCell(6, heads=3)),
        "got none of .*bias": call(WeightSpaceCell(MLP, partly)),
        "or one that changes weights only": call(
            WeightSpaceCell(MLP, mlp(IN)({"*/kernel": Gain(), "*": "whole"}))
        ),
        "base of .'none', 'trained'.": call(WeightSpaceCell(MLP, spec, base="frozen")),
        "expected a FactorSpec": call(WeightSpaceCell(MLP, 3)),
        "a Linen module .* or a Network": call(WeightSpaceCell(np.tanh, spec)),
        "what is read to be": call(WeightSpaceCell(MLP, spec, read=lambda x: None)),
        "modulate: ": call(WeightSpaceCell(MLP, mlp(3)(1))),
    }
    for message, of in wrong.items():
        with pytest.raises(ValueError, match=message):
            of()
