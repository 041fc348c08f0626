"""Mixed precision: the dtypes of the model, and its values and gradients, with dense weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from lifting import random_factors
from reference import TOLERANCE, assert_close, random_array, to_float32

from straw_jax import Factors, Generated, Posed, form, materialize, modulate

SAMPLES, DTYPES = 3, ("float32", "bfloat16")

LAYERS = {
    "matmul": lambda p, x: x @ p["W"],
    "left": lambda p, x: jnp.einsum("io,nti->not", p["W"], x),
    "dot_general": lambda p, x: lax.dot_general(x, p["W"], (((2,), (0,)), ((), ()))),
    "heads": lambda p, x: jnp.einsum(
        "ntai,iab->ntb", jnp.stack([x, x], 2), p["W"].reshape(6, 2, 2)
    ),
    "look up": lambda p, x: p["W"][jnp.argmax(x, axis=-1)],
    "scaled": lambda p, x: x @ (p["W"] / 3),
    "bias": lambda p, x: x @ p["W"] + p["b"][None, None],
    "flax": lambda p, x: nn.Dense(4).apply({"params": {"kernel": p["W"], "bias": p["b"]}}, x),
    "convolution": lambda p, x: lax.conv_general_dilated(
        x.astype(p["W"].dtype), p["W"][None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
}


def half_precision(params, x):
    variables = {"params": {"kernel": params["W"], "bias": params["b"]}}
    return nn.Dense(4, dtype=jnp.bfloat16).apply(variables, x)


def model(base, dtype):
    params = {"W": random_array(0, (6, 4), base), "b": random_array(1, (4,), base)}
    return params, random_factors(params, 2, (SAMPLES,), dtype)


def dense(apply, params, factors, x):
    """Each sample's weights formed in float32, then of the model's dtypes."""

    def weights(i):
        own = jax.tree.map(lambda leaf: leaf[i], to_float32(factors))
        merged = materialize(to_float32(params), own)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), merged, params)

    @jax.jit
    def every():
        samples = [apply(weights(i), x[i : i + 1]) for i in range(len(x))]
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *samples)

    return every()


def values_and_gradients(function, layers, params, factors, x):
    def every(params, x):
        return {name: layer(params, x) for name, layer in layers.items()}

    def loss(*arguments):
        results = function(every, *arguments)
        rows = [
            jnp.sum(y.astype(jnp.float32) * random_array(i, y.shape))
            for i, y in enumerate(results.values())
        ]
        return sum(rows), results

    is_floating = jnp.issubdtype(x.dtype, jnp.inexact)
    with_respect_to = (0, 1, 2) if is_floating else (0, 1)
    return jax.jit(jax.grad(loss, with_respect_to, has_aux=True))(params, factors, x)


def assert_equals_dense(layers, params, factors, x, tolerance):
    def ours(apply, *arguments):
        return modulate(apply)(*arguments)

    (dparams, dfactors, *dx), results = values_and_gradients(ours, layers, params, factors, x)
    want, expected = values_and_gradients(dense, layers, params, factors, x)
    for name, layer in layers.items():
        plain = jax.eval_shape(layer, params, x)
        assert (name, results[name].dtype) == (name, plain.dtype)
        assert_close(results[name], expected[name], tolerance)
    assert dtypes((dparams, dfactors, *dx)) == dtypes(want)
    assert_close((dparams, dfactors), want[:2], tolerance)
    of_x = "bfloat16" if x.dtype == jnp.bfloat16 else "float32"
    assert_close(dx, list(want[2:]), max(tolerance, TOLERANCE[of_x]))


def dtypes(tree):
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize(("x", "base", "dtype"), list(itertools.product(DTYPES, repeat=3)))
def test_results_have_the_dtypes_of_the_model(x, base, dtype):
    params, factors = model(base, dtype)
    x = random_array(2, (SAMPLES, 5, 6), x)
    tolerance = TOLERANCE["float32" if base == dtype == "float32" else "bfloat16"]
    assert_equals_dense(LAYERS, params, factors, x, tolerance)


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_of_16_bits_with_weights_of_32(dtype):
    params, factors = model("float32", dtype)
    x = random_array(2, (SAMPLES, 5, 6))
    assert_equals_dense({"flax": half_precision}, params, factors, x, TOLERANCE["bfloat16"])


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_and_booleans_are_promoted(dtype):
    params, factors = model("float32", "float32")
    x = np.round(3 * np.abs(random_array(2, (SAMPLES, 5, 6)))).astype(dtype)
    products = {name: LAYERS[name] for name in ("matmul", "left", "dot_general")}
    assert_equals_dense(products, params, factors, x, TOLERANCE["float32"])


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_a_posed_kernel_promotes_as_the_dense_one(dtype):
    params, factors = model("float32", "float32")
    matrix = np.eye(2, 3, dtype="float32") + 0.2 * random_array(3, (SAMPLES, 2, 3))
    factors = {"W": Posed(matrix, factors["W"], (3, 2))}
    x = (3 * random_array(2, (SAMPLES, 5, 6))).astype(dtype)
    got = jax.jit(modulate(LAYERS["matmul"]))(params, factors, x)
    assert got.dtype == jnp.float32
    assert_close(got, dense(LAYERS["matmul"], params, factors, x), TOLERANCE["float32"])


def test_generated_factors_are_of_the_dtype_of_the_model():
    params, _ = model("bfloat16", "float32")
    hidden = random_array(3, (SAMPLES, 8))
    B = Generated(hidden, 0.2 * random_array(4, (6, 2, 8)), random_array(5, (6, 2)))
    A = Generated(hidden, 0.2 * random_array(6, (2, 4, 8)), random_array(7, (2, 4)))
    x = random_array(2, (SAMPLES, 5, 6), "bfloat16")
    got = jax.jit(modulate(LAYERS["matmul"]))(params, {"W": Factors(B, A)}, x)
    formed = {"W": Factors(form(B), form(A))}
    assert got.dtype == jnp.bfloat16
    assert_close(got, dense(LAYERS["matmul"], params, formed, x), TOLERANCE["bfloat16"])


def test_factors_alone_keep_their_dtype():
    params, factors = model("bfloat16", "float32")
    shapes = jax.eval_shape(lambda: params)
    x = random_array(2, (SAMPLES, 5, 6))
    got = modulate(LAYERS["matmul"])(shapes, factors, x)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    assert_close(got, dense(LAYERS["matmul"], zeros, factors, x), TOLERANCE["float32"])


def test_materialised_weights_keep_the_dtypes_of_the_parameters():
    params, factors = model("bfloat16", "float32")
    own = jax.tree.map(lambda leaf: leaf[0], factors)
    merged = materialize(params, own)
    assert dtypes(merged) == dtypes(params)
    exact = materialize(to_float32(params), own)
    assert_close(merged, exact, TOLERANCE["bfloat16"])


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_weights_of_8_bits_take_the_dtype_of_their_factors(dtype):
    params, factors = model("float32", "float32")
    x = random_array(2, (SAMPLES, 5, 6))
    params = {"W": (8 * params["W"]).astype(dtype), "b": params["b"]}
    got = modulate(LAYERS["matmul"])(params, factors, x)
    want = dense(LAYERS["matmul"], to_float32(params), factors, x)
    assert_close(got, want, TOLERANCE["float32"])
    own = jax.tree.map(lambda leaf: leaf[0], factors)
    assert_close(materialize(params, own), materialize(to_float32(params), own), 1e-6)


def test_a_scale_from_numpy_keeps_the_dtype_of_the_model():
    params, factors = model("bfloat16", "bfloat16")
    own = jax.tree.map(lambda leaf: leaf[0], factors)
    got = materialize(params, own, scale=np.float64(0.5))
    assert dtypes(got) == dtypes(params)
    assert_close(got, materialize(params, own, scale=0.5), TOLERANCE["bfloat16"])
