"""Affine maps of the image plane, and kernels composed with them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from straw_jax import expect

_SHARP = 1e6  # stands for infinity, whose product with 0 is not a number


def affine(
    degrees: ArrayLike,
    scale: ArrayLike = 1.0,
    shear: ArrayLike = 0.0,
    down: ArrayLike = 0.0,
    right: ArrayLike = 0.0,
) -> Array:
    """Return the matrix with which `resample` scales, then shears, rotates and shifts an image.

    Args:
        degrees: counter-clockwise rotation. All arguments are numbers, or arrays `[...]`.
        scale: factor; above 1 the image is enlarged.
        shear: shift to the right of a point above the centre, per unit of its height there.
        down: shift, in halves of the image's height.
        right: shift, in halves of the image's height too.

    Returns:
        float32 `[..., 2, 3]`: maps each point of the result, (down, right, 1), to its source.
        Points are measured from the centre, in halves of the image's height.

    Raises:
        ValueError: if arrays do not broadcast to one shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import affine
        >>> affine(0.0, scale=2.0, down=0.5, right=1.0).tolist()
        [[0.5, 0.0, -0.25], [0.0, 0.5, -0.5]]
        >>> affine(jnp.array([0.0, 15.0, 30.0])).shape
        (3, 2, 3)
    """
    values = [jnp.asarray(value, jnp.float32) for value in (degrees, scale, shear, down, right)]
    try:
        degrees, scale, shear, down, right = jnp.broadcast_arrays(*values)
    except ValueError as error:
        raise ValueError(
            "affine: expected numbers, or arrays that broadcast to one shape, got degrees, scale,"
            f" shear, down and right of shapes {[value.shape for value in values]}. Reshape them."
        ) from error
    return _affine(degrees, scale, shear, down, right)


# One program each where they are called outside of any, and the operations alone within others.
_program = partial(jax.jit, inline=True)


@_program
def _affine(degrees: Array, scale: Array, shear: Array, down: Array, right: Array) -> Array:
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    first = jnp.stack([cos, sin], -1)  # rotated back
    second = jnp.stack([shear * cos - sin, shear * sin + cos], -1)  # and sheared back
    linear = jnp.stack([first, second], -2) / scale[..., None, None]
    return _with_offset(linear, -_times(linear, jnp.stack([down, right], -1)))


def invert(matrix: Array) -> Array:
    """Return the inverse of an affine map.

    Args:
        matrix: `[..., 2, 3]`.

    Returns:
        `[..., 2, 3]`.

    Example:
        >>> from straw_jax import affine, invert
        >>> from straw_jax.geometry import compose
        >>> matrix = affine(30.0, scale=2.0, down=0.5)
        >>> compose(matrix, invert(matrix)).round().astype(int).tolist()
        [[1, 0, 0], [0, 1, 0]]
    """
    _check_matrix("invert", matrix)
    return _invert(matrix)


@_program
def _invert(matrix: Array) -> Array:
    (a, b, x), (c, d, y) = (
        tuple(matrix[..., row, column] for column in range(3)) for row in range(2)
    )
    determinant = a * d - b * c
    linear = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
    linear = linear / determinant[..., None, None]
    return _with_offset(linear, -_times(linear, jnp.stack([x, y], -1)))


def compose(matrix: Array, then: Array) -> Array:
    """Return the matrix of one resampling followed by another.

    Args:
        matrix: `[..., 2, 3]`, of the first.
        then: `[..., 2, 3]`, of the second.

    Returns:
        `[..., 2, 3]`.

    Example:
        >>> from straw_jax import affine
        >>> from straw_jax.geometry import compose
        >>> both = compose(affine(0.0, scale=2.0), affine(0.0, down=0.5, right=1.0))
        >>> both.tolist()
        [[0.5, 0.0, -0.25], [0.0, 0.5, -0.5]]
    """
    _check_matrix("compose", matrix)
    _check_matrix("compose", then)
    return _compose(matrix, then)


@_program
def _compose(matrix: Array, then: Array) -> Array:
    linear, offset = matrix[..., :2], matrix[..., 2]
    columns = [_times(linear, then[..., column]) for column in range(3)]
    columns[2] = columns[2] + offset
    return jnp.stack(columns, axis=-1)


def resample(x: Array, matrix: Array, *, sharpness: ArrayLike = 1.0) -> Array:
    """Resample an image by an affine map; each result is a weighted mean of four pixels.

    Linear in the image, and differentiable in the matrix too. Beyond the image its edge repeats.

    Args:
        x: `[..., h, w, c]`, floating; leading axes are resampled alike.
        matrix: `[2, 3]`, as from `affine`; for one per sample, `jax.vmap(resample)(x, matrices)`.
        sharpness: from 1, bilinear interpolation, to infinity, the nearest pixel.

    Returns:
        Of the shape and dtype of `x`.

    Raises:
        ValueError: if pixels are not floating-point numbers, or shapes do not fit.

    References:
        Jaderberg et al., "Spatial Transformer Networks" (2015), equations 1 and 5.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import affine, resample
        >>> image = jnp.arange(4.0).reshape(2, 2, 1)
        >>> resample(image, affine(90.0))[..., 0].round().astype(int).tolist()
        [[1, 3], [0, 2]]
    """
    expect.arrays("resample", "the image and the matrix", [x, matrix])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"resample: expected pixels of a floating-point type, got {x.dtype}. Convert them."
        )
    if x.ndim < 3 or matrix.shape != (2, 3):
        raise ValueError(
            f"resample: expected an image [..., h, w, c] and a matrix [2, 3], got {x.shape} and"
            f" {matrix.shape}. With a matrix for each sample: jax.vmap(resample)(x, matrices)."
        )
    return _resample(x, matrix, jnp.minimum(sharpness, _SHARP))


@_program
def _resample(x: Array, matrix: Array, sharpness: Array) -> Array:
    *_, height, width, channels = x.shape
    half = height / 2
    down = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2) / half
    right = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2) / half
    down, right = jnp.meshgrid(down, right, indexing="ij")

    def source(row: Array, size: int) -> tuple[Array, Array, Array]:
        """Return the two nearest pixels along an axis, and the weight of the second."""
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
    """Return the composition of a dense layer's kernel with `resample`, formed.

    Args:
        kernel: `[h * w * c, out]`, of a layer on flat images.
        matrix: `[2, 3]`.
        grid: height and width.

    Returns:
        `[h * w * c, out]`.

    Raises:
        ValueError: if the kernel does not have one row for each pixel and channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import affine
        >>> from straw_jax.geometry import composed
        >>> kernel = composed(jnp.arange(4.0)[:, None], affine(90.0), (2, 2))
        >>> kernel.round().astype(int).ravel().tolist()
        [2, 0, 3, 1]
    """
    grid = check_grid("composed", grid)
    expect.arrays("composed", "the kernel", kernel)
    rows = kernel.shape[0] if kernel.ndim == 2 else -1
    if rows < 0 or rows % (grid[0] * grid[1]):
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


def check_grid(where: str, grid: Any) -> tuple[int, int]:
    """Return height and width as a tuple of whole numbers.

    Args:
        where: the function, for errors.
        grid: of an image.

    Returns:
        Height and width.

    Raises:
        ValueError: if it is not two whole numbers of at least 1.

    Example:
        >>> from straw_jax.geometry import check_grid
        >>> check_grid("Posed", [6, 7])
        (6, 7)
    """
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise ValueError(
            f"{where}: expected a grid (height, width), got {grid!r}. For a convolution, leave it"
            " out."
        )
    height, width = grid
    expect.positive(where, height=height, width=width)
    return int(height), int(width)


def _check_matrix(where: str, matrix: Any) -> None:
    if not expect.is_array(matrix) or matrix.shape[-2:] != (2, 3):
        raise ValueError(
            f"{where}: expected a matrix [..., 2, 3], as from affine, got"
            f" {expect.describe(matrix)}. Convert lists with jnp.asarray."
        )


def _times(linear: Array, vector: Array) -> Array:
    return jnp.sum(linear * vector[..., None, :], axis=-1)


def _with_offset(linear: Array, offset: Array) -> Array:
    return jnp.concatenate([linear, offset[..., None]], axis=-1)
