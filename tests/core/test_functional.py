from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    TOLERANCE,
    assert_close,
    conv_layer,
    dense_layer,
    largest_intermediate,
    random_array,
    to_float32,
)

from straw_jax import hyperlora, hyperlora_conv

sizes = st.sampled_from([1, 2, 5])  # samples are looped over in the reference: few of them
dtypes = st.sampled_from(["float32", "bfloat16"])


def layer_arguments(data, batch, rows, out, dtype):
    """Random factors, kernel and bias, each with or without what is optional."""
    rank = data.draw(sizes, "rank")
    sampled = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()), "sample axes")
    B = random_array(1, ((batch,) if sampled[0] else ()) + (rows, rank), dtype)
    A = random_array(2, ((batch,) if sampled[1] else ()) + (rank, out), dtype)
    bias = random_array(3, ((batch,) if sampled[2] else ()) + (out,), dtype)
    return B, A, bias if data.draw(st.booleans(), "bias") else None


def compare(ours, reference, arguments, dtype):
    """Compare values and all gradients of two layers of the same arguments."""
    present = {name: value for name, value in arguments.items() if value is not None}

    def loss(layer, arguments):
        y = layer(**arguments)
        weights = random_array(9, y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    grads, y = jax.jit(jax.grad(lambda a: loss(ours, a), has_aux=True))(present)
    exact = to_float32(present)
    expected, want = jax.jit(jax.grad(lambda a: loss(reference, a), has_aux=True))(exact)
    assert y.dtype == dtype
    assert_close(y, want, TOLERANCE[dtype])
    assert_close(grads, expected, TOLERANCE[dtype])


@pytest.mark.accelerator
@given(st.data(), sizes, sizes, sizes, dtypes, st.lists(sizes, max_size=2))
def test_dense_equals_the_full_kernels(data, batch, rows, out, dtype, between):
    B, A, bias = layer_arguments(data, batch, rows, out, dtype)
    kernel = random_array(4, (rows, out), dtype) if data.draw(st.booleans(), "kernel") else None
    x = random_array(5, (batch, *between, rows), dtype)
    arguments = {"x": x, "B": B, "A": A, "kernel": kernel, "bias": bias}

    def ours(x, B, A, kernel=None, bias=None):
        return hyperlora(x, B, A, kernel, bias, scale=0.5)

    def reference(x, B, A, kernel=None, bias=None):
        return dense_layer(x, B, A, kernel, bias, scale=0.5)

    compare(ours, reference, arguments, dtype)


@pytest.mark.accelerator
@settings(max_examples=min(12, settings().max_examples))
@given(st.data(), sizes, sizes, sizes, dtypes, st.integers(1, 3))
def test_convolution_equals_the_full_kernels(data, batch, channels, out, dtype, axes):
    def each(strategy, name):
        return tuple(data.draw(st.lists(strategy, min_size=axes, max_size=axes), name))

    window, strides = each(st.integers(1, 3), "window"), each(st.integers(1, 2), "strides")
    dilation = each(st.integers(1, 2), "dilation")
    spatial = each(st.sampled_from([5, 6]), "spatial")
    padding = data.draw(st.sampled_from(["SAME", "VALID", 1, [(1, 0)] * axes]), "padding")
    rows = int(np.prod(window)) * channels
    B, A, bias = layer_arguments(data, batch, rows, out, dtype)
    has_kernel = data.draw(st.booleans(), "kernel")
    kernel = random_array(4, (*window, channels, out), dtype) if has_kernel else None
    x = random_array(5, (batch, *spatial, channels), dtype)
    pads = padding if isinstance(padding, str) else [(1, 1)] * axes if padding == 1 else padding
    backend = data.draw(st.sampled_from(["cpu", "gpu"]), "backend, as far as its choices go")

    def ours(x, B, A, kernel=None, bias=None):
        with mock.patch.object(jax, "default_backend", return_value=backend):
            return hyperlora_conv(
                x, B, A, kernel, bias,
                window=window, strides=strides, padding=padding, dilation=dilation, scale=0.5,
            )  # fmt: skip

    def reference(x, B, A, kernel=None, bias=None):
        return conv_layer(
            x, B, A, kernel, bias,
            window=window, strides=strides, pads=pads, dilation=dilation, scale=0.5,
        )  # fmt: skip

    compare(ours, reference, {"x": x, "B": B, "A": A, "kernel": kernel, "bias": bias}, dtype)


@pytest.mark.accelerator
def test_transformations_agree():
    """The sample axis of the function is what vmap makes of the function without it."""
    x, B, A = random_array(0, (4, 3, 8)), random_array(1, (4, 8, 2)), random_array(2, (4, 2, 5))
    kernel = random_array(3, (8, 5))
    want = hyperlora(x, B, A, kernel)
    assert_close(jax.vmap(lambda x, B, A: hyperlora(x, B, A, kernel))(x, B, A), want, 1e-6)
    assert_close(jax.jit(hyperlora)(x, B, A, kernel), want, 1e-6)


def test_dtype_is_the_callers():
    x, B, A = random_array(0, (2, 4)), random_array(1, (4, 2)), random_array(2, (2, 3))
    assert hyperlora(x, B, A, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    image = random_array(0, (2, 5, 5, 1))
    B = random_array(1, (9, 2))
    y = hyperlora_conv(image, B, A, window=(3, 3), dtype=jnp.float16)
    assert y.dtype == jnp.float16
    assert y.shape == (2, 5, 5, 3)


def test_precision_reaches_every_product():
    x, B, A, kernel = (random_array(i, s) for i, s in enumerate([(2, 4), (4, 2), (2, 3), (4, 3)]))
    jaxpr = str(jax.make_jaxpr(lambda *a: hyperlora(*a, precision="highest"))(x, B, A, kernel))
    assert jaxpr.count("dot_general[") == 3
    assert jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3


@pytest.mark.accelerator
def test_half_precision_sums_in_float32():
    """4,096 ones: a bfloat16 sum would stop at 256."""
    x, B, A = (jnp.ones(s, jnp.bfloat16) for s in [(1, 4096), (4096, 1), (1, 1)])
    assert hyperlora(x, B, A)[0, 0] == 4096


@pytest.mark.parametrize("with_kernel", [True, False])
def test_no_full_kernel_in_the_jaxpr(with_kernel):
    batch, rows, out, rank = 16, 40, 50, 2
    x, B = random_array(0, (batch, rows)), random_array(1, (batch, rows, rank))
    A = random_array(2, (batch, rank, out))
    kernel = random_array(3, (rows, out)) if with_kernel else None

    def gradient(layer):
        return jax.grad(lambda *a: jnp.sum(layer(*a, kernel) ** 2), (0, 1, 2))

    assert largest_intermediate(gradient(hyperlora), x, B, A) < batch * rows * out
    assert largest_intermediate(gradient(dense_layer), x, B, A) < batch * rows * out
    formed = jax.vmap(lambda x, B, A: x @ (B @ A))
    assert largest_intermediate(formed, x, B, A) == batch * rows * out


def test_no_full_kernel_in_the_jaxpr_of_a_convolution():
    batch, channels, out = 16, 32, 64
    x = random_array(0, (batch, 6, 6, channels))
    B, A = random_array(1, (batch, 9 * channels, 2)), random_array(2, (batch, 2, out))
    gradient = jax.grad(lambda *a: jnp.sum(hyperlora_conv(*a, window=(3, 3)) ** 2), (0, 1, 2))
    assert largest_intermediate(gradient, x, B, A) < batch * 9 * channels * out


@pytest.mark.accelerator
def test_rank_above_full_rank_is_allowed():
    x, B, A = random_array(0, (3, 4)), random_array(1, (3, 4, 9)), random_array(2, (3, 9, 2))
    assert_close(hyperlora(x, B, A), dense_layer(x, B, A), 1e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"B": (512, 4)}, r"B.shape\[-2\] == x.shape\[-1\] \(784\), got 512. Was B generated"),
        ({"A": (3, 10)}, r"A.shape\[-2\] == B.shape\[-1\] \(4\), got 3"),
        ({"A": (4,)}, r"A of shape \[r, out\], got \[4\]"),
        ({"kernel": (10, 784)}, r"kernel of shape \[784, 10\], got \[10, 784\]"),
        ({"bias": (9,)}, r"bias of shape \[10\], got \[9\]"),
        ({"B": (3, 784, 4)}, r"same samples, got x \(2, 784\) and B \(3, 784, 4\)"),
        ({"bias": (3, 10)}, r"same samples"),
    ],
)
def test_dense_errors_say_what_does_not_fit(shapes, message):
    fitting = {"x": (2, 784), "B": (784, 4), "A": (4, 10), "kernel": (784, 10), "bias": (10,)}
    arguments = {name: jnp.ones(shape) for name, shape in (fitting | shapes).items()}
    with pytest.raises(ValueError, match="hyperlora: expected .*" + message):
        hyperlora(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": None}, "a kernel, or the window's shape"),
        ({"x": (8, 8, 3)}, r"x of shape \[batch, spatial 0, spatial 1, in\], got \[8, 8, 3\]"),
        ({"B": (9, 2)}, r"prod\(window\) \* x.shape\[-1\] \(27\), got 9"),
        ({"kernel": (3, 3, 1, 5)}, r"kernel of shape \[3, 3, 3, 5\]"),
        ({"strides": 0}, "strides as a positive number"),
        ({"dilation": (1, 2, 3)}, "dilation as a positive number, or one for each axis"),
        ({"padding": [1, 1, 1]}, "padding as 'SAME'"),
        ({"padding": "VALID", "dilation": 4}, r"window's size \[9, 9\], got \[8, 8\]"),
    ],
)
def test_convolution_errors_say_what_does_not_fit(changes, message):
    fitting = {"x": (2, 8, 8, 3), "B": (27, 2), "A": (2, 5), "kernel": (3, 3, 3, 5)}
    arguments = fitting | changes
    for name in fitting:
        if arguments[name] is not None:
            arguments[name] = jnp.ones(arguments[name])
    with pytest.raises(ValueError, match="hyperlora_conv: expected .*" + message):
        hyperlora_conv(**arguments)
