import itertools
from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from jax import lax
from reference import assert_close, random_array

from straw_jax import (
    DoRA,
    Factors,
    Gain,
    LowRank,
    Mixture,
    Network,
    Quantised,
    SharedLowRank,
    dequantise,
    factor_spec,
    make_straw,
    materialize,
    modulate,
    quantise,
)
from straw_jax.quantised import as_quantised, is_quantised

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def numpy_steps(kernel, bits, block, axes, symmetric):
    """The step of each entry's channel or block, by loops over channels."""
    inputs, size = axes.rindex("r"), kernel.shape[axes.rindex("r")]
    places = [[slice(None)] if letter == "r" else range(n)
              for letter, n in zip(axes, kernel.shape, strict=True)]  # fmt: skip
    block = block or size
    places[inputs] = [slice(start, start + block) for start in range(0, size, block)]
    steps = np.zeros(kernel.shape)
    for place in itertools.product(*places):
        group = kernel[place]
        spread = np.abs(group).max() if symmetric else group.max() - group.min()
        steps[place] = spread / ((2 ** (bits - 1) - 1) if symmetric else 2**bits - 1)
    return steps


def numpy_array(q):
    """The array that a quantised one stands for, entry by entry."""
    values = np.asarray(q.values)
    if q.packed:
        low, high = (values.astype(np.int16) & 15), (values >> 4).astype(np.int16)
        values = np.concatenate([np.where(low > 7, low - 16, low), high], -1)[..., : q.columns]

    def spread(array):
        array = np.asarray(array)
        for axis, size in enumerate(q.shape):
            array = np.repeat(array, size // array.shape[axis], axis)
        return array

    whole = values * spread(q.scales)
    return whole if q.minima is None else whole + spread(q.minima)


@st.composite
def kernels(draw):
    axes = draw(st.sampled_from(["rc", "rcc", "src", "rrrc"]))
    blocks, block = draw(st.integers(1, 3)), draw(st.sampled_from([None, 1, 2, 3]))
    shape = [draw(st.integers(1, 4)) for _ in axes]
    shape[axes.rindex("r")] = blocks * (block or 1)
    seed = draw(st.integers(0, 99))
    kernel = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return kernel, block, axes, draw(st.sampled_from([4, 8])), draw(st.booleans())


@given(kernels())
def test_entries_change_by_half_a_step(case):
    kernel, block, axes, bits, symmetric = case
    q = quantise(kernel, bits=bits, block=block, axes=axes, symmetric=symmetric)
    assert q.shape == kernel.shape
    assert q.values.dtype == jnp.int8
    got = numpy_array(q)
    steps = numpy_steps(kernel, bits, block, axes, symmetric)
    assert (np.abs(got - kernel) <= 0.5001 * steps + 1e-6).all()


def test_bytes_of_a_stored_tree():
    kernel = random_array(0, (64, 48))
    sizes = {
        (8, None): 64 * 48 + 48 * 4,
        (4, None): 64 * 24 + 48 * 4,
        (8, 32): 64 * 48 + 2 * 48 * 4,
        (4, 32): 64 * 24 + 2 * 48 * 4,
    }
    for (bits, block), size in sizes.items():
        q = quantise(kernel, bits=bits, block=block)
        assert q.nbytes == size == sum(leaf.nbytes for leaf in jax.tree.leaves(q))
        leaves = [leaf for leaf in jax.tree.leaves(q) if leaf.dtype == jnp.float32]
        assert all(leaf.size * 16 < kernel.size * 2 for leaf in leaves)  # scales alone
    assert quantise(kernel.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_integers_that_are_there():
    """As a file of Q4_1 has them: from 0 to 15, with a minimum for each block of inputs."""
    values = np.arange(8 * 6).reshape(8, 6) % 16
    scales, minima = random_array(1, (2, 6)), random_array(2, (2, 6))
    q = Quantised.of(values.astype(np.uint8), scales, minima, bits=4)
    want = values * np.repeat(scales, 4, 0) + np.repeat(minima, 4, 0)
    assert_close(dequantise(q), want, 1e-6)
    signed = Quantised.of(values.astype(np.int8) - 8, scales[:1], bits=4, dtype=jnp.bfloat16)
    assert signed.array.dtype == jnp.bfloat16
    assert_close(signed.array, (values - 8) * scales[:1], 1e-2)


# Products beside those of the dequantised kernels.


def loss_of(apply, scale=1.0):
    def loss(factors, x, params):
        y = modulate(apply, scale=scale)(params, factors, x)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def assert_as_dequantised(apply, params, factors, x, tolerance=1e-5):
    """Compare values, and gradients with respect to factors and input."""
    assert any(map(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised)))
    run = loss_of(apply)
    (_, y), gradients = run(factors, x, params)
    (_, want), expected = run(factors, x, dequantise(params))
    assert_close(y, want, tolerance)
    assert_close(gradients, expected, tolerance)


def entries(params, kinds, samples, dtype="float32", axes=None):
    spec = factor_spec(params, kinds, axes=axes)
    vector = 0.3 * random_array(1, (samples, spec.size))
    shared = {
        f"{leaf.path}/{name}": 0.3 * random_array(2, part.shape)
        for leaf in spec
        for name, part in leaf.shared.items()
    }
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), spec.unpack(vector, shared))


CASES = [  # bits, block, symmetric, inputs, outputs
    (4, None, True, 8, 6), (4, None, False, 8, 5), (4, 4, True, 12, 1), (4, 2, False, 8, 7),
    (8, None, True, 8, 6), (8, None, False, 5, 3), (8, 4, True, 12, 5), (8, 1, True, 3, 4),
    (4, 32, True, 2048, 66), (8, None, True, 2048, 66), (4, None, True, 384, 101),  # by chunks
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_with_and_without_factors(dtype):
    params, factors, x, want = {}, {}, {}, {}
    for i, (bits, block, symmetric, rows, columns) in enumerate(CASES):
        W = random_array(i, (rows, columns)).astype(dtype)
        params[f"{i}"] = q = quantise(W, bits=bits, block=block, symmetric=symmetric)
        x[f"{i}"] = x_i = random_array(i + 1, (2, 3, rows)).astype(dtype)
        W = numpy_array(q)
        want[f"{i}"] = np.float64(x_i) @ W
        if i % 3:
            factors |= entries({f"{i}": q}, {f"{i}": 2}, 2, dtype)
            B, A = (np.asarray(part, np.float64) for part in jax.tree.leaves(factors[f"{i}"]))
            want[f"{i}"] += np.float64(x_i) @ B @ A
            W = W + B @ A
        want[f"{i} tied"] = want[f"{i}"] @ np.swapaxes(W, -1, -2)

    def apply(params, x):
        y = {name: x[name] @ W for name, W in params.items()}
        tied = {f"{name} tied": y[name] @ W.T for name, W in params.items()}
        return y | tied

    got = jax.jit(modulate(apply))(params, factors, x)
    for name, y in got.items():
        assert y.dtype == dtype
        assert_close(y, want[name], TOLERANCE[dtype])


class Model(nn.Module):
    """A look-up, a convolution, grouped, and attention with its kernels of three axes."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(12, 8, name="table")
        x = table(tokens).reshape(-1, 4, 3, 8)
        x = nn.relu(nn.Conv(8, (3, 2), strides=(2, 1), name="conv")(x))
        x = nn.relu(nn.Conv(6, (2, 2), feature_group_count=2, name="grouped")(x))
        x = x.reshape(x.shape[0], -1, 6)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4, name="attention")(x)
        return table.attend(nn.Dense(8, name="dense")(nn.LayerNorm(name="norm")(x)))


def model():
    tokens = jnp.arange(24).reshape(2, 12) % 12
    shapes = jax.eval_shape(Model().init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: 0.3 * random_array(leaf.size, leaf.shape), shapes)
    return (lambda params, x: Model().apply({"params": params}, x)), params, tokens


def quantised_kernels(params, **options):
    return jax.tree.map(
        lambda leaf: quantise(leaf, **options) if leaf.ndim > 1 and min(leaf.shape) > 1 else leaf,
        params,
    )


KINDS = {
    "table/*": Gain(),
    "conv/kernel": LowRank(2),
    "grouped/kernel": [SharedLowRank(1), Gain()],
    "attention/query/kernel": DoRA(1),
    "attention/out/kernel": [LowRank(1), Mixture(2)],
    "dense/kernel": [Gain(inputs=True), "whole"],
    "norm/*": "whole",
}


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "block"), [(4, 2), (8, None)])
def test_every_operation_and_kind(bits, block):
    apply, params, tokens = model()
    params = quantised_kernels(params, bits=bits, block=block)
    factors = entries(params, KINDS, 2, axes={"attention/query/kernel": "rcc"})

    def loss(factors, params):
        y = modulate(apply)(params, factors, tokens)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), gradients = run(factors, params)
    (_, want), expected = run(factors, dequantise(params))
    assert_close(y, want, 1e-5)
    assert_close(gradients, expected, 1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_of_a_scan_stay_quantised(bits):
    layers, width = 3, 64
    kernel = random_array(0, (layers, width, width)) / 8
    params = {
        "W": quantise(kernel, bits=bits, block=32, axes="src"),
        "b": jnp.ones((layers, 1, 1, 1)),
    }
    factors = entries(params, {"W": 2}, 2, axes={"W": "src"})
    x = random_array(1, (2, 5, width))

    def apply(params, x):
        def layer(x, own):
            return jnp.tanh(x @ own["W"] + own["b"]), None

        y = lax.scan(jax.checkpoint(layer), x, params)[0]
        return y @ params["W"][1]

    def loss(factors, params):
        y = modulate(apply)(params, factors, x)
        return jnp.sum(y**2), y

    run = jax.value_and_grad(loss, has_aux=True)
    (_, y), gradients = jax.jit(run)(factors, params)
    (_, want), expected = jax.jit(run)(factors, dequantise(params))
    assert_close(y, want, 1e-5)
    assert_close(gradients, expected, 1e-5)
    text = str(jax.make_jaxpr(run)(factors, params))
    assert f"f32[{layers},{width},{width}]" not in text  # floating, of one layer at a time
    assert f"f32[{width},{width}]" in text or f"f32[{width},{width // 2}]" in text


def test_no_floating_kernel_is_kept_for_the_gradient():
    """What the backward pass of a product needs is made again of the integers."""
    params = {f"{i}": quantise(random_array(i, (64, 64)), bits=4) for i in range(3)}

    def apply(params, x):
        for W in params.values():
            x = jnp.tanh(x @ W)
        return x

    x, factors = random_array(1, (2, 3, 64)), entries(params, {"*": 2}, 2)
    _, backward = jax.vjp(lambda factors: modulate(apply)(params, factors, x), factors)
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "dtype")]
    assert all(leaf.size < 64 * 64 for leaf in kept if leaf.dtype == jnp.float32)
    assert any(leaf.dtype == jnp.int8 for leaf in kept)


def test_frozen_base_of_a_straw():
    """Styles, merging and gradients; the parameters hold no floating array of a kernel's size."""

    def apply(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    params = {"first": random_array(0, (8, 6)), "second": random_array(1, (6, 5))}
    x = random_array(2, (2, 8))
    encoder = Network(lambda key, x: jnp.zeros(()), lambda params, x: x[:, :4] + params)
    straw = make_straw(
        Network(lambda key, x: params, apply), x, rank=1, base="frozen", hidden=4, encoder=encoder
    )
    weights = quantised_kernels(params, bits=4)
    shapes = jax.eval_shape(straw.init, jax.random.key(0))
    own = jax.tree.map(lambda leaf: 0.3 * random_array(leaf.size, leaf.shape), shapes)

    def loss(own, weights):
        y = straw.apply({**own, "executor": weights}, x)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), gradients = run(own, weights)
    (_, want), expected = run(own, dequantise(weights))
    assert_close(y, want, 1e-5)
    assert_close(gradients, expected, 1e-5)
    merged = jax.jit(straw.merge)({**own, "executor": weights}, x[0])
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert_close(apply(merged, x[:1]), y[:1], 1e-5)
    stored = jax.tree.leaves(weights)
    assert all(leaf.size < 30 for leaf in stored if leaf.dtype == jnp.float32)


def test_materialise_and_look_ups_outside():
    table = random_array(0, (6, 4))
    params = {"table": quantise(table, bits=4, block=2), "W": quantise(table)}
    factors = {"W": Factors(jnp.ones((6, 1)), jnp.ones((1, 4)))}
    whole = materialize(params, factors)
    assert_close(whole["table"], numpy_array(params["table"]), 1e-6)
    assert_close(whole["W"], numpy_array(params["W"]) + 1, 1e-6)
    apply = modulate(lambda params, ids: jnp.take(params["table"], ids, axis=0))
    got = np.asarray(apply(params, {}, jnp.array([[1], [7]])))[:, 0]
    assert_close(got[0], numpy_array(params["table"])[1], 1e-6)
    assert np.isnan(got[1]).all()  # as of an ordinary table


# Arrays of qwix


def of_qwix(values, scale, zero_point=None, qtype=None):
    return SimpleNamespace(
        qvalue=jnp.asarray(values), scale=scale, zero_point=zero_point,
        qtype=qtype or jnp.asarray(values).dtype,
    )  # fmt: skip


def test_arrays_like_those_of_qwix():
    values = np.arange(-12, 12, dtype=np.int8).reshape(6, 4) // 2
    scale, zero = random_array(0, (3, 4)), np.ones((1, 4), np.int8)
    for stored in (values, jnp.asarray(values, jnp.int4), jnp.asarray(values, jnp.float8_e4m3fn)):
        q = as_quantised(of_qwix(stored, scale))
        assert q.values is not None
        assert_close(q.array, values * np.repeat(scale, 2, 0), 1e-6)
    q = as_quantised(of_qwix(values, scale, zero))
    assert_close(q.array, (values - 1.0) * np.repeat(scale, 2, 0), 1e-6)
    with pytest.raises(ValueError, match=r"integers or 8-bit floats, got qtype 'nf4' stored as"):
        as_quantised(of_qwix(values, scale, qtype="nf4"))
    with pytest.raises(ValueError, match=r"scale of as many axes as the values \(6, 4\).*\(4, 4\)"):
        as_quantised(of_qwix(values, random_array(0, (4, 4))))


def test_arrays_of_qwix():
    qarray = pytest.importorskip("qwix._src.core.qarray")
    kernel, x = random_array(0, (64, 12)), random_array(1, (2, 3, 64))
    apply = jax.jit(modulate(lambda params, x: x @ params["W"]))
    for qtype, tiles in ((jnp.int8, {}), (jnp.int4, {0: 32})):
        how = qarray.HowToQuantize(qtype=qtype, channelwise_axes=[1], tiled_axes=tiles)
        params = {"W": qarray.quantize(kernel, how)}
        factors = entries(params, {"W": 2}, 2)
        want = apply({"W": qarray.dequantize(params["W"])}, factors, x)
        assert_close(apply(params, factors, x), want, 1e-5)


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantise(jnp.ones((4, 4)), bits=3), r"expected bits to be 8 or 4, got 3"),
        (lambda: quantise(jnp.ones((4, 4), int)), r"floating numbers, got int32 \[4, 4\]. Of inte"),
        (lambda: quantise(jnp.ones(4)), r"of two axes or more, got float32 \[4\]. Leave"),
        (lambda: quantise(jnp.ones((0, 4))), r"a kernel of two axes or more, got float32 \[0, 4\]"),
        (lambda: quantise(jnp.ones((6, 4)), block=4), r"the input axis, of size 6 .* got 4"),
        (lambda: quantise(jnp.ones((6, 4)), axes="cr"), r"axes to be one of \['rc'\], got 'cr'"),
        (lambda: Quantised.of(jnp.ones((2, 2)), jnp.ones((1, 2))), r"integers, got float32 \[2, 2"),
        (
            lambda: Quantised.of(np.ones((2, 2), np.uint8), jnp.ones((1, 2))),
            r"expected minima for values of uint8, got none: they would all be positive",
        ),
        (
            lambda: Quantised.of(np.ones((2, 2), np.int8), jnp.ones((3, 2))),
            r"scales of as many axes as the values \(2, 2\), each of size 1 or .* got \(3, 2\)",
        ),
        (
            lambda: Quantised.of(np.full((2, 2), 8, np.int8), jnp.ones((1, 2)), bits=4),
            r"values of 4 bits from -8 to 7, got 8 to 8",
        ),
        (lambda: quantise(jnp.array([[jnp.inf, 1.0]])), r"finite kernel, got infinite numbers or"),
    ],
)  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_quantised_values_have_no_gradient():
    params = {"W": quantise(random_array(0, (6, 4)))}
    x = random_array(1, (2, 6))

    def loss(params):
        return jnp.sum(modulate(lambda params, x: x @ params["W"])(params, {}, x))

    with pytest.raises(TypeError, match=r"int8"):
        jax.grad(loss)(params)
    gradient = jax.grad(loss, allow_int=True)(params)["W"]
    assert gradient.values.dtype == jax.dtypes.float0
    assert_close(
        gradient.scales, jnp.sum(x, 0)[None] @ params["W"].values.astype(jnp.float32), 1e-4
    )
