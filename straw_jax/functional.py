"""Layers as plain functions: dense and convolution, with per-sample low-rank updates."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from straw_jax import expect
from straw_jax.lowrank import ConvGeometry, lowrank_conv, lowrank_dot

Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]


def hyperlora(
    x: Array,
    B: Array,
    A: Array,
    kernel: Array | None = None,
    bias: Array | None = None,
    *,
    scale: ArrayLike = 1.0,
    precision: lax.PrecisionLike = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Apply a dense layer whose kernel has a low-rank update, shared or per sample.

    Computes `x @ kernel + scale * (x @ B) @ A + bias`. Products of 16-bit numbers are summed in
    float32. No array `[in, out]` is formed.

    Args:
        x: `[batch, ..., in]` where any of `B`, `A`, `bias` has a sample axis, else `[..., in]`.
        B: `[in, r]`, or `[batch, in, r]`.
        A: `[r, out]`, or `[batch, r, out]`.
        kernel: shared base weights `[in, out]`; if omitted, the update is the whole kernel.
        bias: `[out]`, or `[batch, out]`; none if omitted.
        scale: scalar factor of the update (LoRA's alpha / r).
        precision: of all matrix products, as in `jax.lax.dot_general`.
        dtype: of computation and result; by default the one to which all arguments promote.

    Returns:
        `[..., out]`, in `dtype`.

    Raises:
        ValueError: if shapes do not fit, or the scale is no scalar.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), equation 3; with
        per-sample `B` and `A`: the STRAW article, "The Adaptive Forward Pass".

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import hyperlora
        >>> x, kernel = jnp.ones((8, 3)), jnp.ones((3, 4))
        >>> B, A = jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4))  # of rank 2, one pair per sample
        >>> hyperlora(x, B, A, kernel).shape
        (8, 4)
    """
    _check_arrays("hyperlora", {"x": x, "B": B, "A": A}, {"kernel": kernel, "bias": bias})
    x, B, A, kernel, bias = _promote(x, B, A, kernel, bias, dtype=dtype)
    where = "hyperlora"
    _check_scale(where, scale)
    _check_factors(where, "x.shape[-1]", x.shape[-1], B, A)
    if kernel is not None and kernel.shape != (B.shape[-2], A.shape[-1]):
        raise _misfit(
            where, "kernel", [B.shape[-2], A.shape[-1]], kernel.shape, "B @ A must fit onto it."
        )

    def dense(x: Array, B: Array, A: Array, bias: Array | None) -> Array:
        y = lowrank_dot(x, B, A, kernel, scale=scale, precision=precision)
        return _finish(y, bias, x.dtype)

    return _per_sample(where, dense, x, B, A, bias)


def hyperlora_conv(
    x: Array,
    B: Array,
    A: Array,
    kernel: Array | None = None,
    bias: Array | None = None,
    *,
    window: Sequence[int] | None = None,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    scale: ArrayLike = 1.0,
    precision: lax.PrecisionLike = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Apply a convolution whose kernel has a low-rank update, shared or per sample.

    Computes `conv(x, kernel + scale * B @ A) + bias` without forming `B @ A`. Takes any number of
    spatial axes; channels are last.

    Args:
        x: `[batch, *spatial, in]`.
        B: `[prod(window) * in, r]`, or `[batch, prod(window) * in, r]`; the rows are those of the
            kernel read as a matrix: window positions first, then input channels.
        A: `[r, out]`, or `[batch, r, out]`.
        kernel: shared base weights `[*window, in, out]`; if omitted, the update is the whole
            kernel.
        bias: `[out]`, or `[batch, out]`; none if omitted.
        window: the kernel's spatial shape; needed only without `kernel`.
        strides: of the window, one number or one per axis.
        padding: `"SAME"`, `"VALID"`, a number, or a number or `(low, high)` for each axis.
        dilation: of the window (atrous convolution), one number or one per axis.
        scale: scalar factor of the update.
        precision: of all products, as in `jax.lax.dot_general`.
        dtype: of computation and result; by default the one to which all arguments promote.

    Returns:
        `[batch, *spatial_out, out]`, in `dtype`.

    Raises:
        ValueError: if shapes do not fit, neither `kernel` nor `window` is given, or the scale is no
            scalar.

    References:
        As for `hyperlora`, for the kernel read as a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import hyperlora_conv
        >>> x, kernel = jnp.ones((8, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
        >>> B, A = jnp.ones((8, 27, 2)), jnp.ones((8, 2, 4))  # of rank 2, one pair per sample
        >>> hyperlora_conv(x, B, A, kernel, strides=2).shape
        (8, 3, 3, 4)
    """
    _check_arrays("hyperlora_conv", {"x": x, "B": B, "A": A}, {"kernel": kernel, "bias": bias})
    x, B, A, kernel, bias = _promote(x, B, A, kernel, bias, dtype=dtype)
    where = "hyperlora_conv"
    _check_scale(where, scale)
    if window is None and kernel is None:
        raise ValueError(
            f"{where}: expected a kernel, or the window's shape, got neither. "
            "Give window=(height, width)."
        )
    window = tuple(kernel.shape[:-2]) if window is None else window
    expect.widths(where, window=window)
    window = tuple(window)
    if x.ndim != len(window) + 2:
        raise _misfit(
            where, "x", ["batch", *[f"spatial {i}" for i in range(len(window))], "in"], x.shape,
            f"The window {window} has {len(window)} axes.",
        )  # fmt: skip
    rows = math.prod(window) * x.shape[-1]
    _check_factors(where, "prod(window) * x.shape[-1]", rows, B, A)
    if kernel is not None and kernel.shape != (*window, x.shape[-1], A.shape[-1]):
        expected = [*window, x.shape[-1], A.shape[-1]]
        raise _misfit(where, "kernel", expected, kernel.shape, "Kernels are [*window, in, out].")
    strides, dilation = (_each_axis(where, "strides", strides, window),
                         _each_axis(where, "dilation", dilation, window))  # fmt: skip
    extents = [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]
    pads = _pads(where, padding, x.shape[1:-1], extents, strides)
    padded = [size + low + high for size, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    if any(size < extent for size, extent in zip(padded, extents, strict=True)):
        raise ValueError(
            f"{where}: expected a padded input of at least the dilated window's size {extents}, "
            f"got {padded}. Use padding='SAME', or a smaller window."
        )
    geometry = ConvGeometry(window, strides, pads, dilation)

    def conv(x: Array, B: Array, A: Array, bias: Array | None) -> Array:
        without_batch = x.ndim == len(window) + 1  # one sample, of a batch that was mapped over
        x = x[None] if without_batch else x
        y = lowrank_conv(x, B, A, kernel, geometry, scale=scale, precision=precision)
        y = _finish(y, bias, x.dtype)
        return y[0] if without_batch else y

    return _per_sample(where, conv, x, B, A, bias)


def _check_arrays(where: str, needed: dict[str, Any], optional: dict[str, Any]) -> None:
    given = {name: array for name, array in optional.items() if array is not None}
    for name, array in (needed | given).items():
        if not expect.is_array(array) or not array.shape:
            raise ValueError(
                f"{where}: expected {name} to be an array of one axis or more, got"
                f" {expect.describe(array)}. Convert lists with jnp.asarray."
            )


def _promote(*arrays: Array | None, dtype: DTypeLike | None) -> list[Any]:
    return promote_dtype(*arrays, dtype=dtype)


def _finish(y: Array, bias: Array | None, dtype: DTypeLike) -> Array:
    if bias is not None:
        y = y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)
    return y.astype(dtype)


def _per_sample(
    where: str,
    layer: Callable[[Array, Array, Array, Array | None], Array],
    x: Array,
    B: Array,
    A: Array,
    bias: Array | None,
) -> Array:
    """Map a layer over the leading axis of `x` where another argument has a sample axis."""
    if bias is not None and (bias.ndim not in (1, 2) or bias.shape[-1] != A.shape[-1]):
        raise _misfit(where, "bias", [A.shape[-1]], bias.shape, "A sample axis may come first.")
    axes = [0 if B.ndim == 3 else None, 0 if A.ndim == 3 else None]
    axes.append(0 if bias is not None and bias.ndim == 2 else None)
    if axes == [None, None, None]:
        return layer(x, B, A, bias)
    for name, array, axis in zip(("B", "A", "bias"), (B, A, bias), axes, strict=True):
        if array is None or axis is None:
            continue
        if x.ndim < 2 or array.shape[0] != x.shape[0]:
            raise ValueError(
                f"{where}: expected the first axis of x and {name} to be the same samples, got "
                f"x {x.shape} and {name} {array.shape}. Add a batch axis to x, or drop the sample "
                f"axis of {name}."
            )
    return jax.vmap(layer, in_axes=(0, *axes))(x, B, A, bias)


def _check_factors(where: str, rows_name: str, rows: int, B: Array, A: Array) -> None:
    for name, factor, form in (("B", B, ["in", "r"]), ("A", A, ["r", "out"])):
        if factor.ndim not in (2, 3):
            raise _misfit(where, name, form, factor.shape, "A sample axis may come first.")
    if B.shape[-2] != rows:
        raise ValueError(
            f"{where}: expected B.shape[-2] == {rows_name} ({rows}), got {B.shape[-2]}. "
            "Was B generated for another layer?"
        )
    if A.shape[-2] != B.shape[-1]:
        raise ValueError(
            f"{where}: expected A.shape[-2] == B.shape[-1] ({B.shape[-1]}), got {A.shape[-2]}. "
            "B is [in, r] and A is [r, out]: are both of one rank, and in this order?"
        )


def _check_scale(where: str, scale: ArrayLike) -> None:
    if jnp.ndim(scale):
        raise ValueError(
            f"{where}: expected a scalar scale, got shape {jnp.shape(scale)}. For one scale a "
            "sample, give A * scale[:, None, None]."
        )


def _misfit(
    where: str, name: str, expected: Sequence[object], got: Sequence[int], hint: str
) -> ValueError:
    shape = ", ".join(map(str, expected))
    return ValueError(f"{where}: expected {name} of shape [{shape}], got {list(got)}. {hint}")


def _each_axis(
    where: str, name: str, value: int | Sequence[int], window: Sequence[int]
) -> tuple[int, ...]:
    values: Any = (value,) * len(window) if expect.is_whole(value) else value
    whole = isinstance(values, tuple | list) and all(expect.is_whole(n) and n > 0 for n in values)
    if not whole or len(values) != len(window):
        raise ValueError(
            f"{where}: expected {name} as a positive number, or one for each axis of the window "
            f"{tuple(window)}, got {value}."
        )
    return tuple(values)


def _pads(
    where: str,
    padding: Padding,
    spatial: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
        return tuple(lax.padtype_to_pads(spatial, extents, strides, padding.upper()))
    each: Any = [padding] * len(spatial) if expect.is_whole(padding) else padding
    fits = isinstance(each, tuple | list) and all(
        expect.is_whole(p)
        or (isinstance(p, tuple | list) and len(p) == 2 and all(map(expect.is_whole, p)))
        for p in each
    )
    if not fits or len(each) != len(spatial):
        raise ValueError(
            f"{where}: expected padding as 'SAME', 'VALID', a number, or one number or (low, high) "
            f"for each of {len(spatial)} spatial axes, got {padding!r}."
        )
    return tuple((p, p) if expect.is_whole(p) else (p[0], p[1]) for p in each)
