"""What the library is compared with: plain dense computations, and a look into jaxprs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def random_array(seed, shape, dtype="float32"):
    """An array of NumPy's: JAX compiles a program for each operation on its own arrays."""
    array = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(array, jnp.dtype(dtype))


def moved(tree, by=0.1):
    """Parameters away from initial values, of which some are zero or one."""
    return jax.tree.map(lambda p: np.asarray(p) + by * random_array(p.size, p.shape), tree)


def random_params(init, *args, by=0.1):
    """Parameters that are about as large as what `moved` makes of initial ones.

    To draw initial values takes a program that is compiled for most of a second.
    """

    def leaf(path, shape):
        kernel = len(shape.shape) > 1
        spread = (by**2 + shape.shape[-1] / shape.size * kernel) ** 0.5
        start = float(path[-1] == jax.tree_util.DictKey("scale"))
        return np.asarray(start + spread * random_array(shape.size, shape.shape), shape.dtype)

    return jax.tree.map_with_path(leaf, jax.eval_shape(init, jax.random.key(0), *args))


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-30)


def assert_close(got, want, tolerance):
    jax.tree.map(lambda g, w: _assert_close(g, w, tolerance), got, want)


def _assert_close(got, want, tolerance):
    error = relative_error(got, want)
    assert error < tolerance, f"relative error {error:.2e} of {want.shape}"


def to_float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float32"), tree)


def to_numpy(tree):
    """The arrays of a tree as NumPy's, of which parts are taken without a program of JAX's."""
    return jax.tree.map(np.asarray, tree)


def full_kernel(B, A, kernel, scale, shape):
    """The kernel of one sample, `[*window, in, out]`."""
    update = scale * jnp.matmul(B, A, precision="highest").reshape(shape)
    return update if kernel is None else kernel + update


def dense_layer(x, B, A, kernel=None, bias=None, *, scale=1.0):
    """`hyperlora` with every sample's kernel formed, in a Python loop over samples."""

    def one(x, B, A, bias):
        weights = full_kernel(B, A, kernel, scale, (B.shape[0], A.shape[1]))
        y = jnp.matmul(x, weights, precision="highest")
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)

    return loop_over_samples(one, x, B, A, bias)


def conv_layer(x, B, A, kernel=None, bias=None, *, window, strides, pads, dilation, scale=1.0):
    """`hyperlora_conv` with every sample's kernel formed, in a Python loop over samples."""
    axes = len(window)
    spatial = "HWD"[:axes]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def one(x, B, A, bias):
        batched = x.ndim == axes + 2
        weights = full_kernel(B, A, kernel, scale, (*window, x.shape[-1], A.shape[1]))
        y = lax.conv_general_dilated(
            x if batched else x[None],
            weights,
            strides,
            pads,
            rhs_dilation=dilation,
            dimension_numbers=layout,
            precision="highest",
        )
        y = y if batched else y[0]
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)

    return loop_over_samples(one, x, B, A, bias)


def loop_over_samples(one, x, B, A, bias):
    if B.ndim == A.ndim == 2 and (bias is None or bias.ndim == 1):
        return one(x, B, A, bias)

    def at(array, i, ndim):
        return array[i] if array is not None and array.ndim == ndim else array

    rows = [one(x[i], at(B, i, 3), at(A, i, 3), at(bias, i, 2)) for i in range(x.shape[0])]
    return jnp.stack(rows)


def intermediates(function, *args):
    """Shapes of everything that a function computes, in every nested jaxpr."""
    return list(_shapes(jax.make_jaxpr(function)(*args).jaxpr))


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars if hasattr(var.aval, "shape"))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _shapes(inner)


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def largest_intermediate(function, *args):
    return max(math.prod(shape) for shape in intermediates(function, *args))
