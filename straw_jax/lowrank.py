"""Low-rank weights, applied in factored form.

Everywhere in this package a kernel is `[in, out]` (a convolution's `[*window, in, out]`, read as
the matrix `[prod(window) * in, out]`), `B` is `[in, r]`, `A` is `[r, out]`, and the update of the
kernel is `scale * B @ A`. The product `B @ A` is never formed: `x @ B` comes first.

Functions here take the factors of one sample, and arrays that fit; `jax.vmap` gives them a sample
axis. What users call, with checks and sample axes, is in `functional.py` and `lift.py`.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike


class Generated(NamedTuple):
    """A factor `[m, n]` of one sample, carried as what generates it.

    Its value is `bias + sum_h hidden[h] * kernel[:, :, h]`. Contracting `x` with `kernel` before
    the sum over `h` needs no per-sample factor in memory, which is cheaper where a layer sees one
    vector a sample (`apply_factor` chooses).

    Attributes:
        hidden: the generator's hidden vector, `[h]`, or `[batch, h]` for a batch of factors.
        kernel: `[m, n, h]`, shared by all samples; the long axis last, for element-wise updates.
        bias: `[m, n]`, shared by all samples.
    """

    hidden: Array
    kernel: Array
    bias: Array


Factor: TypeAlias = Array | Generated


class Factors(NamedTuple):
    """The low-rank update `B @ A` of one kernel.

    Attributes:
        B: `[in, r]`, or `[batch, in, r]` with one update a sample.
        A: `[r, out]`, or `[batch, r, out]`.
    """

    B: Factor
    A: Factor


def factor_shape(factor: Factor) -> tuple[int, ...]:
    """Return the shape that a factor has once formed: `(m, n)`, or `(batch, m, n)`."""
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
    """
    if not isinstance(factor, Generated):
        return factor
    product = jnp.tensordot(factor.hidden, factor.kernel, axes=(-1, -1))
    return product + jnp.broadcast_to(factor.bias, product.shape)


class ConvGeometry(NamedTuple):
    """How a convolution's window moves over its input; every field has one entry an axis."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...] | None = None


FusedApply: TypeAlias = Callable[[Array, Generated, lax.PrecisionLike], Array]


def apply_factor(
    x: Array,
    factor: Factor,
    precision: lax.PrecisionLike = None,
    *,
    fused: FusedApply | None = None,
) -> Array:
    """Multiply `x [..., m]` by a factor `[m, n]`, in the cheaper order; sums are in float32."""
    if not isinstance(factor, Generated):
        return _dot(x, factor, precision)
    if fused is not None:
        return fused(x, factor, precision)
    m, n, h = factor.kernel.shape
    one_vector = math.prod(x.shape[:-1]) == 1
    if not one_vector or h >= m:
        return _dot(x, form(factor), precision)
    # As many operations as forming the factor, but `[n, h]` numbers a sample in place of `[m, n]`.
    # As plain vector and matrix: XLA's CPU compiler turns other shapes into copies.
    vector = x.reshape(m)
    xk = _dot(vector, factor.kernel.reshape(m, n * h), precision).reshape(n, h)
    hidden = jnp.broadcast_to(factor.hidden.astype(xk.dtype), xk.shape)
    xf = jnp.sum(xk * hidden, axis=1) + _dot(vector, factor.bias, precision)
    return xf.reshape(*x.shape[:-1], n)


def lowrank_dot(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
    fused: FusedApply | None = None,
) -> Array:
    """Compute `x @ kernel + scale * (x @ B) @ A`, of the accumulator's dtype."""
    xB = apply_factor(x, B, precision, fused=fused)
    update = _update(xB, A, scale, precision, x.dtype, fused)
    return update if kernel is None else _dot(x, kernel, precision) + update


def lowrank_conv(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    geometry: ConvGeometry,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
    fused: FusedApply | None = None,
) -> Array:
    """Compute `conv(x, kernel + scale * B @ A)`, of the accumulator's dtype."""
    xB = _apply_to_windows(x, B, geometry, precision, fused)
    update = _update(xB, A, scale, precision, x.dtype, fused)
    return update if kernel is None else _conv(x, kernel, geometry, precision) + update


def _conv(x: Array, kernel: Array, geometry: ConvGeometry, precision: lax.PrecisionLike) -> Array:
    """Compute `conv(x, kernel)` with a kernel that all samples share."""
    if jax.default_backend() == "cpu":  # where the gradient of XLA's convolution is slow
        return _apply_to_windows(x, kernel.reshape(-1, kernel.shape[-1]), geometry, precision)
    spatial = "".join(chr(ord("0") + axis) for axis in range(x.ndim - 2))
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.pads,
        geometry.input_dilation,
        geometry.dilation,
        (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        precision=precision,
        preferred_element_type=accumulator_dtype(x.dtype),
    )


def _update(
    xB: Array,
    A: Factor,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
    dtype: DTypeLike,
    fused: FusedApply | None,
) -> Array:
    # Scaled at rank r, where it is cheapest.
    xB = xB * jnp.asarray(scale, xB.dtype)
    return apply_factor(xB.astype(dtype), A, precision, fused=fused)


def _apply_to_windows(
    x: Array,
    B: Factor,
    geometry: ConvGeometry,
    precision: lax.PrecisionLike,
    fused: FusedApply | None = None,
) -> Array:
    """Compute `conv(x, B)`, `B [prod(window) * in, r]` read as a kernel, with the fewer copies."""
    size, stride, dilation = geometry.window[0], geometry.strides[0], geometry.dilation[0]
    rest = math.prod(geometry.window[1:]) * x.shape[-1]
    r = factor_shape(B)[-1]
    is_fused = fused is not None and isinstance(B, Generated)
    if is_fused or size * rest <= stride * (rest + size * r):
        return apply_factor(patches(x, geometry), B, precision, fused=fused)
    # Patches of one row of the window only, multiplied by all its rows at once; the products that
    # belong together lie some rows apart, and are added.
    row = geometry._replace(window=(1, *geometry.window[1:]), strides=(1, *geometry.strides[1:]))
    matrix = form(B).reshape(size, rest, r).swapaxes(0, 1).reshape(rest, size * r)
    products = _dot(patches(x, row), matrix, precision)
    span = products.shape[1] - dilation * (size - 1)
    shifted = (
        lax.slice_in_dim(part, i * dilation, i * dilation + span, stride, axis=1)
        for i, part in enumerate(jnp.split(products, size, axis=-1))
    )
    return functools.reduce(jnp.add, shifted)


def patches(x: Array, geometry: ConvGeometry) -> Array:
    """Gather each window: `[n, *spatial, c]` to `[n, *spatial_out, prod(window) * c]`.

    Slices, since the patches of `lax.conv_general_dilated_patches` are a convolution themselves,
    which is slow on CPU and forms a kernel.
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


def _dot(x: Array, matrix: Array, precision: lax.PrecisionLike) -> Array:
    # As plain matrices: XLA would transpose `x` to join several axes over which a gradient sums.
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x
    y = jnp.matmul(
        rows, matrix, precision=precision, preferred_element_type=accumulator_dtype(x.dtype)
    )
    return y.reshape(*x.shape[:-1], y.shape[-1])


def accumulator_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which products of a floating dtype are summed: float32 or wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
