"""Fast weights are those of the rules, applied step by step."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference import assert_close, intermediates, random_array, relative_error

from straw_jax import Factors, delta_rule, delta_rule_outputs, hebb, materialize, modulate

EXACT = 1e-12  # in float64
FORGETTING = {
    "nothing": lambda T: None,
    "one factor": lambda T: 0.9,
    "a factor a step": lambda T: np.where(np.arange(T) == T // 2, 0.0, np.linspace(0.3, 1.0, T)),
}


def sequence(seed, T, n=4, m=3, dtype="float64"):
    """Queries, keys, values, strengths, and weights at the start; two keys are the same."""
    shapes = (T, n), (T, n), (T, m), (T,), (n, m)
    queries, keys, values, strengths, base = (
        random_array(seed + i, shape, dtype) for i, shape in enumerate(shapes)
    )
    keys[-1] = keys[0]
    strengths[T // 3] = 0
    return queries, keys, values, strengths, base


def loop(keys, values, strengths, base, forgetting=None, rule="delta"):
    """The weights after each step."""
    keys, values, strengths, W = (
        np.asarray(x, np.float64) for x in (keys, values, strengths, base)
    )
    kept = np.broadcast_to(1.0 if forgetting is None else forgetting, len(keys))
    weights = []
    for k, v, b, g in zip(keys, values, strengths, kept, strict=True):
        W = g * W
        error = v - k @ W if rule == "delta" else v
        W = W + b * np.outer(k, error)
        weights.append(W)
    return np.stack(weights)


def scanned(queries, keys, values, strengths, base, forgetting=None):
    """What queries return in each step, and the last weights, by a scan over single steps."""

    def step(W, now):
        q, k, v, b, g = now
        W = g * W
        W = W + b * jnp.outer(k, v - k @ W)
        return W, q @ W

    kept = jnp.broadcast_to(1.0 if forgetting is None else forgetting, strengths.shape)
    W, outputs = lax.scan(step, base, (queries, keys, values, strengths, kept))
    return outputs, W


def dense(base, entry):
    """A base with what one of the rules returned."""
    return materialize({"W": base}, {"W": entry})["W"]


def weighted(function):
    """A number of which all results of a function have a share."""

    def number(*args):
        leaves = jax.tree.leaves(function(*args))
        return sum(
            jnp.sum(leaf * random_array(leaf.size, leaf.shape, leaf.dtype)) for leaf in leaves
        )

    return number


@pytest.mark.parametrize(
    ("T", "chunk", "forgotten"),
    [
        (7, 3, "a factor a step"),
        pytest.param(7, 3, "nothing", marks=pytest.mark.slow),
        pytest.param(7, None, "a factor a step", marks=pytest.mark.slow),
        pytest.param(6, None, "nothing", marks=pytest.mark.slow),
        pytest.param(6, 2, "one factor", marks=pytest.mark.slow),
        pytest.param(1, 64, "one factor", marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_single_steps(T, chunk, forgotten):
    queries, keys, values, strengths, base = sequence(T, T)
    forgetting = FORGETTING[forgotten](T)
    weights = loop(keys, values, strengths, base, forgetting)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(x) for x in (queries, keys, values, strengths, base)]
        if forgetting is not None:
            arguments.append(jnp.asarray(forgetting))

        def by_factors(_, keys, values, strengths, base, forgetting=None):
            entry = delta_rule(keys, values, strengths, base, forgetting=forgetting, chunk=chunk)
            return dense(base, entry)

        def by_chunks(*args):
            return delta_rule_outputs(
                *args[:5], forgetting=args[5] if args[5:] else None, chunk=chunk or 64
            )

        assert_close(by_factors(*arguments), weights[-1], EXACT)
        outputs, state = by_chunks(*arguments)
        assert_close(state, weights[-1], EXACT)
        assert_close(outputs, np.einsum("ti,tio->to", queries, weights), EXACT)

        def gradients(function):
            return jax.jit(jax.grad(weighted(function), range(len(arguments))))(*arguments)

        assert_close(gradients(by_chunks), gradients(scanned), EXACT)
        last_weights = gradients(lambda *args: scanned(*args)[1])
        assert_close(gradients(by_factors)[1:], last_weights[1:], EXACT)


@pytest.mark.parametrize("forgotten", FORGETTING)
def test_hebb_sums_values_by_keys(forgotten):
    T = 5
    _, keys, values, _, base = sequence(0, T)
    forgetting = FORGETTING[forgotten](T)
    want = loop(keys, values, np.ones(T), np.zeros_like(base), forgetting, "hebb")[-1]
    with jax.enable_x64(True):
        factors = hebb(jnp.asarray(keys), jnp.asarray(values), forgetting=forgetting)
        assert_close(dense(base, factors), base + want, EXACT)


@pytest.mark.accelerator
def test_without_a_base_weights_start_from_zero():
    queries, keys, values, strengths, base = sequence(0, 7, dtype="float32")
    strengths = np.abs(strengths) / 4
    want = loop(keys, values, strengths, np.zeros_like(base), 0.9)
    for chunk in (None, 3):
        factors = delta_rule(keys, values, strengths, forgetting=0.9, chunk=chunk)
        assert isinstance(factors, Factors)
        assert_close(factors.B @ factors.A, want[-1], 1e-5)
    outputs, state = delta_rule_outputs(queries, keys, values, strengths, forgetting=0.9, chunk=3)
    assert_close(state, want[-1], 1e-5)
    assert_close(outputs, np.einsum("ti,tio->to", queries, want), 1e-5)


def test_one_strength_is_for_all_steps():
    _, keys, values, _, base = sequence(0, 3, dtype="float32")
    want = delta_rule(keys, values, np.full(3, 0.5, "float32"), base)
    assert_close(delta_rule(keys, values, 0.5, base), want, 1e-6)


def test_pieces_are_the_whole():
    queries, keys, values, strengths, base = sequence(3, 9, dtype="float32")
    steps = queries, keys, values, np.abs(strengths) / 4
    whole, last = delta_rule_outputs(*steps, base, chunk=4)
    state, pieces = base, []
    for start in (0, 3, 6):
        piece = (array[start : start + 3] for array in steps)
        outputs, state = delta_rule_outputs(*piece, state, chunk=4)
        pieces.append(outputs)
    assert_close(np.concatenate(pieces), whole, 1e-5)
    assert_close(state, last, 1e-5)


@pytest.mark.accelerator
def test_sums_of_bfloat16_are_float32():
    queries, keys, values, strengths, _ = sequence(1, 40, dtype="bfloat16")
    strengths = np.abs(strengths) / 8
    weights = loop(keys, values, strengths, np.zeros((4, 3)), 0.99)
    outputs, state = delta_rule_outputs(queries, keys, values, strengths, forgetting=0.99, chunk=16)
    assert (outputs.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(state, weights[-1], 1e-5)
    want = np.einsum("ti,tio->to", queries.astype("float64"), weights)
    assert_close(outputs, want, 1e-2)
    factors = delta_rule(keys, values, strengths, forgetting=0.99)
    assert {factor.dtype for factor in factors} == {jnp.dtype(jnp.bfloat16)}
    B, A = (np.asarray(factor, np.float64) for factor in factors)
    assert_close(B @ A, weights[-1], 1e-2)
    assert hebb(keys, values).A.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.accelerator
def test_gradients_of_bfloat16():
    arguments = sequence(2, 9, dtype="bfloat16")
    arguments[3][:] = np.abs(arguments[3]) / 8
    wide = [array.astype("float32") for array in arguments]

    def gradients(rule, arguments):
        last = weighted(lambda *args: rule(*args)[1])
        return jax.jit(jax.grad(last, range(1, 5)))(*arguments)

    got = gradients(partial(delta_rule_outputs, chunk=4), arguments)
    assert {gradient.dtype for gradient in got} == {jnp.dtype(jnp.bfloat16)}
    assert_close(got, gradients(scanned, wide), 2e-2)


@pytest.mark.accelerator
@pytest.mark.parametrize("forgetting", [None, 0.9])
def test_of_each_sample_through_modulate(forgetting):
    batch, T, n, m = 5, 3, 8, 7
    keys, values = random_array(0, (batch, T, n)) / 3, random_array(1, (batch, T, m))
    strengths, W = np.abs(random_array(2, (batch, T))), random_array(3, (n, m))
    x = random_array(4, (batch, n))

    def updates(base, keys, values, strengths):
        rule = partial(delta_rule, base=base, forgetting=forgetting)
        return jax.vmap(rule)(keys, values, strengths)

    def layer(base, *context):
        entry = updates(base, *context)
        return modulate(lambda params, x: x @ params["W"])({"W": base}, {"W": entry}, x)

    want = np.stack([
        row @ loop(*context, W, forgetting)[-1]
        for row, *context in zip(x, keys, values, strengths, strict=True)
    ])  # fmt: skip
    assert_close(jax.jit(layer)(W, keys, values, strengths), want, 1e-5)
    formed = batch * n * m
    assert max(map(math.prod, intermediates(layer, W, keys, values, strengths))) < formed


def test_chunks_need_no_numbers_for_each_pair_of_steps():
    queries, keys, values, strengths, base = sequence(0, 50, dtype="float32")

    def largest(function, *args):
        return max(map(math.prod, intermediates(function, *args)))

    in_chunks = partial(delta_rule_outputs, chunk=5, forgetting=0.9)
    gradients = jax.grad(weighted(in_chunks), range(5))
    assert largest(gradients, queries, keys, values, strengths, base) <= 50 * 5
    factors = partial(delta_rule, chunk=5)
    assert largest(jax.grad(weighted(factors), range(4)), keys, values, strengths, base) <= 50 * 5
    assert largest(delta_rule, keys, values, strengths, base) >= 50 * 50


def test_which_label_is_which_and_what_it_is_now():
    """Ten classes have other labels in each task, and new ones in the middle of the context."""
    rng = np.random.default_rng(0)
    tasks, classes, size, shots = 20, 10, 32, 5
    prototypes = rng.standard_normal((classes, size))

    def images(count):
        x = np.tile(prototypes, (count, 1)) + 0.2 * rng.standard_normal(
            (tasks, count * classes, size)
        )
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")

    before, after = (
        rng.permuted(np.tile(np.arange(classes), (tasks, 1)), axis=1) for _ in range(2)
    )
    labels = np.concatenate([np.tile(names, (1, shots)) for names in (before, after)], axis=1)
    keys, values, queries = images(2 * shots), np.eye(classes, dtype="float32")[labels], images(1)
    layer = modulate(lambda params, x: x @ params["W"])
    params = {"W": jax.ShapeDtypeStruct((size, classes), "float32")}

    def accuracy(rule, names):
        factors = jax.vmap(rule)(keys, values)
        return np.mean(layer(params, {"W": factors}, queries).argmax(-1) == names)

    assert accuracy(partial(delta_rule, strengths=0.5), after) > 0.99
    assert accuracy(partial(delta_rule, strengths=0.5), before) < 0.2
    assert accuracy(hebb, after) < 0.8


KEYS, VALUES = np.ones((5, 3), "float32"), np.ones((5, 2), "float32")
WRONG = {
    "list": (delta_rule, ([[1.0]], VALUES, 1.0), {}, "keys to be an array of real numbers"),
    "complex": (hebb, (KEYS * 1j, VALUES), {}, r"keys .*real numbers \[T, in\], got complex64"),
    "key of random numbers": (hebb, (KEYS, jax.random.key), {}, "values .*, got function"),
    "samples": (hebb, (KEYS[None], VALUES), {}, r"keys of shape \[T, in\].*\[1, 5, 3\].*jax.vmap"),
    "no steps": (hebb, (KEYS[:0], VALUES[:0]), {}, r"keys .*, at least 1 of each, got \[0, 3\]"),
    "fewer values": (hebb, (KEYS, VALUES[:4]), {}, r"values of .* with T = 5, .*\[4, 2\]"),
    "fewer strengths": (delta_rule, (KEYS, VALUES, VALUES[:4, 0]), {}, r"strengths of shape \[T\]"),
    "no strengths": (delta_rule, (KEYS, VALUES, None), {}, "strengths to be an array"),
    "transposed base": (
        delta_rule, (KEYS, VALUES, 1.0, np.ones((2, 3))), {},
        r"base of shape \[in, out\] with in = 3 and out = 2, .* got \[2, 3\]",
    ),
    "number for a base": (delta_rule, (KEYS, VALUES, 1.0, 1.0), {}, "base to be an array"),
    "forgetting": (hebb, (KEYS, VALUES), {"forgetting": VALUES}, r"forgetting of shape \[T\]"),
    "chunk": (delta_rule, (KEYS, VALUES, 1.0), {"chunk": 0}, "chunk to be a whole number"),
    "chunk of outputs": (
        delta_rule_outputs, (KEYS, KEYS, VALUES, 1.0), {"chunk": 2.0}, "chunk to be a whole number",
    ),
    "queries": (delta_rule_outputs, (KEYS[:4], KEYS, VALUES, 1.0), {}, "queries of shape"),
    "state": (delta_rule_outputs, (KEYS, KEYS, VALUES, 1.0, KEYS), {}, "state of shape"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments(wrong):
    function, args, options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=f"^{function.__name__}: expected {message}"):
        function(*args, **options)


def test_reference_has_a_sequence_that_matters():
    """Strength 0, repeated keys and forgetting all change the result."""
    _, keys, values, strengths, base = sequence(0, 7)
    last = loop(keys, values, strengths, base)[-1]
    assert (strengths == 0).sum() == 1
    assert relative_error(loop(keys, values, strengths, base, 0.9)[-1], last) > 1e-2
    assert relative_error(loop(keys, values, strengths, base, rule="hebb")[-1], last) > 1e-2
