"""Affine maps of the image plane, and kernels that are composed with them."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

_SHARP = 1e6  # In place of infinity, which is not a number times 0.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posed:
    """A geometric update: the kernel is composed with a resampling of what its layer sees.

    The layer computes `kernel(R x)`, where `R` is `resample` with a matrix, linear in `x`. The
    kernel is the layer's own, or with an update as any other; `kernel` after `R`, which would be
    another kernel at every position, is never formed. To a convolution `x` is its own operand: a
    model that pads an image itself ("CIRCULAR" and "REFLECT" do, too) has the padded one resampled.

    Attributes:
        matrix: `[2, 3]`, as from `affine`, or from `invert` to undo it; or `[batch, 2, 3]` with
            one a sample.
        update: what is added to the kernel: `Factors`, an array of its shape, or None.
        grid: height and width of the image, where it is a vector to the layer, as of a dense layer
            on all pixels `[h, w, c]`; a convolution sees them. Where the composition is formed
            after all (`materialize`), such a kernel is taken for `[h * w * c, out]`.
    """

    matrix: Array
    update: Any = None
    grid: tuple[int, int] | None = field(default=None, metadata={"static": True})


def affine(
    degrees: ArrayLike,
    scale: ArrayLike = 1.0,
    shear: ArrayLike = 0.0,
    down: ArrayLike = 0.0,
    right: ArrayLike = 0.0,
) -> Array:
    """Return the matrix by which `resample` scales, then slants, then turns, then moves an image.

    Args:
        degrees: counter-clockwise, as seen.
        scale: above 1 what is seen gets larger.
        shear: by which part of its height above the centre a point moves to the right.
        down: a move, in halves of the image's height, like the next.
        right: another.

    Returns:
        `[..., 2, 3]`: where each point of the result, (down, right, 1), comes from. Both are
        measured from the centre, in halves of the height. Arguments are arrays `[...]`, or numbers.
    """
    degrees, scale, shear, down, right = jnp.broadcast_arrays(
        *(jnp.asarray(value, jnp.float32) for value in (degrees, scale, shear, down, right))
    )
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    first = jnp.stack([cos, sin], -1)  # turned back
    second = jnp.stack([shear * cos - sin, shear * sin + cos], -1)  # and made upright
    linear = jnp.stack([first, second], -2) / scale[..., None, None]
    return _with_offset(linear, -_times(linear, jnp.stack([down, right], -1)))


def invert(matrix: Array) -> Array:
    """Return the matrix that undoes another, `[..., 2, 3]` both."""
    (a, b, x), (c, d, y) = (
        tuple(matrix[..., row, column] for column in range(3)) for row in range(2)
    )
    determinant = a * d - b * c
    linear = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    linear = linear / determinant[..., None, None]
    return _with_offset(linear, -_times(linear, jnp.stack([x, y], -1)))


def compose(matrix: Array, then: Array) -> Array:
    """Return the matrix by which `resample` does what it does with one, `then` with another.

    All are `[..., 2, 3]`.
    """
    linear, offset = matrix[..., :2], matrix[..., 2]
    columns = [_times(linear, then[..., column]) for column in range(3)]
    columns[2] = columns[2] + offset
    return jnp.stack(columns, axis=-1)


def resample(x: Array, matrix: Array, *, sharpness: ArrayLike = 1.0) -> Array:
    """Look an image up at other places: linear in it, and each result a mean of four pixels.

    Args:
        x: `[..., h, w, c]`; axes in front are resampled alike.
        matrix: `[2, 3]`, as from `affine`; for one a sample, `jax.vmap(resample)(x, matrices)`.
        sharpness: from 1, where the mean is weighted linearly by nearness, to infinity, where the
            nearest pixel is taken.

    Returns:
        As `x`. Beyond the image its edge goes on.

    Raises:
        ValueError: if pixels are integers, of which there are no means, or shapes are others.

    References:
        Jaderberg et al., "Spatial Transformer Networks" (2015), equations 1 and 5.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"resample: expected pixels of a floating-point type, got {x.dtype}. Convert them."
        )
    if x.ndim < 3 or matrix.shape != (2, 3):
        raise ValueError(
            f"resample: expected an image [..., h, w, c] and a matrix [2, 3], got {x.shape} and"
            f" {matrix.shape}. With a matrix for each sample: jax.vmap(resample)(x, matrices)."
        )
    *_, height, width, channels = x.shape
    sharpness = jnp.minimum(sharpness, _SHARP)
    half = height / 2
    down = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2) / half
    right = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2) / half
    down, right = jnp.meshgrid(down, right, indexing="ij")

    def source(row: Array, size: int) -> tuple[Array, Array, Array]:
        """Return the two nearest places along an axis, and how near the second is."""
        place = (row[0] * down + row[1] * right + row[2]) * half + (size - 1) / 2
        place = jnp.clip(place, 0, size - 1).reshape(-1)
        first = jnp.floor(jax.lax.stop_gradient(place))
        nearness = jnp.clip((place - first - 0.5) * sharpness + 0.5, 0, 1).astype(x.dtype)[:, None]
        first = first.astype(jnp.int32)
        return first, jnp.minimum(first + 1, size - 1), nearness

    top, bottom, lower = source(matrix[0].astype(jnp.float32), height)
    left, rightmost, later = source(matrix[1].astype(jnp.float32), width)
    pixels = x.reshape(*x.shape[:-3], height * width, channels)

    def look_up(row: Array, column: Array, weight: Array) -> Array:
        found = jnp.take(pixels, row * width + column, axis=-2)
        return found * jnp.broadcast_to(weight, found.shape)

    y = (
        look_up(top, left, (1 - lower) * (1 - later))
        + look_up(top, rightmost, (1 - lower) * later)
        + look_up(bottom, left, lower * (1 - later))
        + look_up(bottom, rightmost, lower * later)
    )
    return y.reshape(x.shape)


def composed(kernel: Array, matrix: Array, grid: tuple[int, int]) -> Array:
    """Return a dense layer's kernel on all pixels composed with `resample`, formed.

    Args:
        kernel: `[h * w * c, out]`.
        matrix: `[2, 3]`.
        grid: height and width.

    Returns:
        As `kernel`.

    Raises:
        ValueError: if the kernel has not a row for each pixel and channel.
    """
    rows = kernel.shape[0]
    if rows % (grid[0] * grid[1]):
        raise ValueError(
            f"composed: expected a kernel [h * w * c, out] of {grid[0]} x {grid[1]} pixels, got"
            f" {kernel.shape}. Transpose a kernel [out, in]."
        )
    shape = (*grid, rows // (grid[0] * grid[1]))
    one = jax.ShapeDtypeStruct((rows,), kernel.dtype)
    transposed = jax.linear_transpose(
        lambda image: resample(image.reshape(shape), matrix).reshape(rows), one
    )
    return jax.vmap(lambda column: transposed(column)[0], in_axes=1, out_axes=1)(kernel)


def _times(linear: Array, vector: Array) -> Array:
    return jnp.sum(linear * vector[..., None, :], axis=-1)


def _with_offset(linear: Array, offset: Array) -> Array:
    return jnp.concatenate([linear, offset[..., None]], axis=-1)
