"""Low-rank weights, applied in factored form.

Throughout this package a kernel is `[in, out]`, `B` is `[in, r]`, `A` is `[r, out]`, and the update
of the kernel is `scale * B @ A`. The kernel `[*window, in, out]` of a convolution is read as the
matrix `[prod(window) * in, out]`. The product `B @ A` is never formed: `x @ B` comes first.

The functions here take the factors of one sample and do not check shapes; `jax.vmap` adds a sample
axis. `straw_jax.functional` and `straw_jax.lift` have the versions with checks and sample axes.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike


class Generated(NamedTuple):
    """A factor `[m, n]`, stored as the output layer of a generator that is not applied yet.

    Its value is `bias + sum_h hidden[h] * kernel[:, :, h]`. Contracting `x` with `kernel` before
    the sum over `h` needs no per-sample factor in memory. This is cheaper for a layer with a single
    input vector per sample (`apply_factor` chooses).

    Attributes:
        hidden: the generator's hidden vector, `[h]`, or `[batch, h]` for a batch of factors.
        kernel: `[m, n, h]`, shared by all samples; the long axis last, for element-wise updates.
        bias: `[m, n]`, shared by all samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated, form
        >>> factor = Generated(jnp.ones((8, 4)), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> form(factor).shape
        (8, 3, 2)
    """

    hidden: Array
    kernel: Array
    bias: Array


Factor: TypeAlias = Array | Generated


def factor_shape(factor: Factor) -> tuple[int, ...]:
    """Return the shape of a factor once it is formed.

    Args:
        factor: an array, or a `Generated` factor.

    Returns:
        `(m, n)`, or `(batch, m, n)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import factor_shape
        >>> factor_shape(Generated(jnp.ones((8, 4)), jnp.ones((3, 2, 4)), jnp.zeros((3, 2))))
        (8, 3, 2)
    """
    if not isinstance(factor, Generated):
        return factor.shape
    m, n, _ = factor.kernel.shape
    return (*factor.hidden.shape[:-1], m, n)


def form(factor: Factor) -> Array:
    """Return a factor as an ordinary array.

    Args:
        factor: an array, returned as it is, or a `Generated` factor, with or without a sample axis.

    Returns:
        `[m, n]`, or `[batch, m, n]` where the factor has a sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated, form
        >>> form(Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))).tolist()
        [[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]
    """
    if not isinstance(factor, Generated):
        return factor
    product = jnp.tensordot(factor.hidden, factor.kernel, axes=(-1, -1))
    dtype = accumulator_dtype(product.dtype)  # in which the bias's gradient sums over samples
    bias = jnp.broadcast_to(factor.bias.astype(dtype), product.shape)
    return (product.astype(dtype) + bias).astype(product.dtype)


def formed(tree: Any) -> Any:
    """Return a tree with `Generated` factors as ordinary arrays.

    Args:
        tree: of arrays and factors, such as a tree of factors.

    Returns:
        The same tree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import formed
        >>> factor = Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> formed({"B": factor})["B"].shape
        (3, 2)
    """
    return jax.tree.map(form, tree, is_leaf=lambda leaf: isinstance(leaf, Generated))


class ConvGeometry(NamedTuple):
    """How a convolution's window moves over its input; one entry per spatial axis in each field.

    Attributes:
        window: spatial shape of the kernel.
        strides: of the window.
        pads: zeros before and after the input.
        dilation: of the window (atrous convolution).
        input_dilation: of the input (transposed convolution); None for none.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, patches
        >>> geometry = ConvGeometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
        >>> patches(jnp.ones((2, 8, 8, 5)), geometry).shape
        (2, 4, 4, 45)
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...] | None = None


def apply_factor(x: Array, factor: Factor, precision: lax.PrecisionLike = None) -> Array:
    """Multiply by a factor, in the cheaper order of operations.

    Args:
        x: `[..., m]`, all vectors of one sample.
        factor: `[m, n]`, an array or `Generated`, of the dtype of `x`.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[..., n]`, summed in float32 or wider and returned so.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import apply_factor
        >>> factor = Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> apply_factor(jnp.ones((5, 3)), factor).shape
        (5, 2)
    """
    if not isinstance(factor, Generated):
        return dot(x, factor, precision)
    m, n, h = factor.kernel.shape
    one_vector = math.prod(x.shape[:-1]) == 1
    if not one_vector or h >= m:
        return dot(x, form(factor), precision)
    # As many operations as forming the factor, but `[n, h]` numbers per sample, not `[m, n]`.
    # As plain vector and matrix: XLA's CPU compiler copies arrays of other shapes.
    vector = x.reshape(m)
    xk = dot(vector, factor.kernel.reshape(m, n * h), precision).reshape(n, h)
    hidden = jnp.broadcast_to(factor.hidden.astype(xk.dtype), xk.shape)
    xf = jnp.sum(xk * hidden, axis=1) + dot(vector, factor.bias, precision)
    return xf.reshape(*x.shape[:-1], n)


def lowrank_dot(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
) -> Array:
    """Compute `x @ kernel + scale * (x @ B) @ A`.

    Args:
        x: `[..., in]`, all vectors of one sample.
        B: `[in, r]`.
        A: `[r, out]`.
        kernel: `[in, out]`, or None for the update alone.
        scale: of the update.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[..., out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import lowrank_dot
        >>> x, B, A = jnp.ones((5, 3)), jnp.ones((3, 2)), jnp.ones((2, 4))
        >>> lowrank_dot(x, B, A, None, scale=1.0, precision=None).shape
        (5, 4)
    """
    xB = apply_factor(x, B, precision)
    update = _update(xB, A, scale, precision, x.dtype)
    return update if kernel is None else dot(x, kernel, precision) + update


def lowrank_conv(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    geometry: ConvGeometry,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
) -> Array:
    """Compute `conv(x, kernel + scale * B @ A)`.

    Args:
        x: `[n, *spatial, in]`, all images of one sample.
        B: `[prod(window) * in, r]`.
        A: `[r, out]`.
        kernel: `[*window, in, out]`, or None for the update alone.
        geometry: of the convolution.
        scale: of the update.
        precision: of the products, as in `jax.lax.dot_general`.

    Returns:
        `[n, *spatial_out, out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, lowrank_conv
        >>> x, B, A = jnp.ones((1, 6, 6, 3)), jnp.ones((27, 2)), jnp.ones((2, 4))
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> lowrank_conv(x, B, A, None, geometry, scale=1.0, precision=None).shape
        (1, 4, 4, 4)
    """
    xB = _apply_to_windows(x, B, geometry, precision)
    update = _update(xB, A, scale, precision, x.dtype)
    return update if kernel is None else conv(x, kernel, geometry, precision) + update


def conv(x: Array, kernel: Array, geometry: ConvGeometry, precision: lax.PrecisionLike) -> Array:
    """Compute `conv(x, kernel)`.

    Args:
        x: `[n, *spatial, in]`.
        kernel: `[*window, in, out]`.
        geometry: of the convolution.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[n, *spatial_out, out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, conv
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> conv(jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 4)), geometry, None).shape
        (1, 4, 4, 4)
    """
    if jax.default_backend() == "cpu":  # where the gradient of XLA's convolution is slow
        return _apply_to_windows(x, kernel.reshape(-1, kernel.shape[-1]), geometry, precision)
    spatial = "".join(chr(ord("0") + axis) for axis in range(x.ndim - 2))
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=geometry.strides,
        padding=geometry.pads,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        precision=precision,
    )
    return multiply(convolve, x, kernel)


def _update(
    xB: Array, A: Factor, scale: ArrayLike, precision: lax.PrecisionLike, dtype: DTypeLike
) -> Array:
    # Scaled at rank r, where it is cheapest.
    xB = xB * jnp.asarray(scale, xB.dtype)
    return apply_factor(xB.astype(dtype), A, precision)


def _apply_to_windows(
    x: Array, B: Factor, geometry: ConvGeometry, precision: lax.PrecisionLike
) -> Array:
    """Compute `conv(x, B)`, `B [prod(window) * in, r]` read as a kernel, with fewer copies."""
    size, stride, dilation = geometry.window[0], geometry.strides[0], geometry.dilation[0]
    rest = math.prod(geometry.window[1:]) * x.shape[-1]
    r = factor_shape(B)[-1]
    if size * rest <= stride * (rest + size * r):
        return apply_factor(patches(x, geometry), B, precision)
    # Patches of one row of the window, multiplied by all its rows at once. The products of one
    # window are then some rows apart; shift and add them.
    row = geometry._replace(window=(1, *geometry.window[1:]), strides=(1, *geometry.strides[1:]))
    matrix = form(B).reshape(size, rest, r).swapaxes(0, 1).reshape(rest, size * r)
    products = dot(patches(x, row), matrix, precision)
    span = products.shape[1] - dilation * (size - 1)
    shifted = (
        lax.slice_in_dim(part, i * dilation, i * dilation + span, stride, axis=1)
        for i, part in enumerate(jnp.split(products, size, axis=-1))
    )
    return functools.reduce(jnp.add, shifted)


def patches(x: Array, geometry: ConvGeometry) -> Array:
    """Gather the input of each window position.

    Uses slices: `lax.conv_general_dilated_patches` computes a convolution, which is slow on CPU and
    forms a kernel.

    Args:
        x: `[n, *spatial, c]`.
        geometry: of the convolution.

    Returns:
        `[n, *spatial_out, prod(window) * c]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, patches
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> patches(jnp.ones((2, 8, 8, 5)), geometry).shape
        (2, 6, 6, 45)
    """
    window, strides, pads, dilation, input_dilation = geometry
    interior = [d - 1 for d in input_dilation or [1] * len(window)]
    config = [(low, high, inner) for (low, high), inner in zip(pads, interior, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    extents = [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]
    sizes = [
        (size - extent) // stride + 1
        for size, extent, stride in zip(x.shape[1:-1], extents, strides, strict=True)
    ]
    views = []
    for offsets in itertools.product(*map(range, window)):
        starts = [o * d for o, d in zip(offsets, dilation, strict=True)]
        limits = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, sizes, strides, strict=True)
        ]
        views.append(
            lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))
        )
    return jnp.concatenate(views, axis=-1)


def dot(x: Array, matrix: Array, precision: lax.PrecisionLike) -> Array:
    """Compute `x @ matrix`.

    Args:
        x: `[..., in]`.
        matrix: `[in, out]`.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[..., out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import dot
        >>> dot(jnp.ones((5, 2, 3)), jnp.ones((3, 4)), None).shape
        (5, 2, 4)
    """
    # As plain matrices: XLA would transpose `x` to join several axes over which a gradient sums.
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x
    y = multiply(functools.partial(jnp.matmul, precision=precision), rows, matrix)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def multiply(product: Callable[..., Array], x: Array, y: Array) -> Array:
    """Compute a product that is linear in both factors, summed in float32 or wider.

    Of 16-bit factors, its gradient is made of products of 16-bit numbers, too, each summed in
    float32 and rounded. JAX's own multiplies by the float32 gradient of the result, with twice the
    bytes, and in float32.

    Args:
        product: `(x, y, preferred_element_type=...) -> array`, such as `jnp.matmul`.
        x: of a floating dtype.
        y: of the same.

    Returns:
        The product, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import multiply
        >>> x = jnp.ones((2, 3), jnp.bfloat16)
        >>> multiply(jnp.matmul, x, x.T).dtype
        dtype('float32')
    """
    dtype = accumulator_dtype(x.dtype)
    if dtype == x.dtype:
        return product(x, y, preferred_element_type=dtype)

    @jax.custom_jvp
    def widened(x: Array, y: Array) -> Array:
        return product(x, y, preferred_element_type=dtype)

    def tangent(primals: Any, tangents: Any) -> tuple[Array, Any]:
        (x, y), (dx, dy) = primals, tangents
        parts = [
            product(*factors, preferred_element_type=None).astype(dtype)
            for factors, changed in (((dx, y), dx), ((x, dy), dy))
            if not isinstance(changed, SymbolicZero)
        ]
        return widened(x, y), functools.reduce(jnp.add, parts)

    widened.defjvp(tangent, symbolic_zeros=True)
    return widened(x, y)


def accumulator_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which products are summed.

    Args:
        dtype: of the factors, floating.

    Returns:
        float32, or `dtype` where it is wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import accumulator_dtype
        >>> jnp.dtype(accumulator_dtype(jnp.bfloat16))
        dtype('float32')
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
