"""Products of data with one array of a kernel, of which little is formed at a time.

Data and array have named axes, see `straw_jax.parts`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from straw_jax.lowrank import Indexed, PerVector, accumulator_dtype, apply_factor, dot, multiply
from straw_jax.parts import Axes, Part, as_matrix
from straw_jax.quantised import Quantised

# Products of at most so many vectors read a quantised kernel by chunks, on a CPU.
_FEW = 16


def along(part: Part, axes: Axes, dtype: Any) -> Array:
    """Return a part with an axis of size one for each axis that it lacks."""
    part = part.ordered(axes.index)
    array = part.array.astype(dtype)
    return array.reshape([part.size(axis) for axis in axes])


def along_vectors(
    part: Part, axes: Axes, sizes: Mapping[int, int], free: Axes, dtype: Any
) -> Array:
    """Return a part as `along`; one of a bank's arrays a vector, of vectors along free axes."""
    value = part.value
    if not isinstance(value, PerVector):
        return along(part, axes, dtype)
    shape = tuple(sizes[axis] for axis in free)
    value.check(shape)
    named = (*free, *part.axes)
    array = value.each.astype(dtype).reshape(*shape, *part.shape)
    array = array.transpose(sorted(range(len(named)), key=lambda place: axes.index(named[place])))
    return array.reshape([sizes[axis] if axis in named else 1 for axis in axes])


def dense(x: Array, x_axes: Axes, part: Part, out_axes: Axes, precision: Any) -> Array:
    """Multiply by one array, as a plain matrix."""
    if isinstance(part.value, Quantised):
        product = jax.checkpoint(partial(_quantised, axes=(x_axes, out_axes), precision=precision))
        return product(x, part)
    rows = [axis for axis in part.axes if axis in x_axes]
    columns = [axis for axis in part.axes if axis not in x_axes]
    free = [axis for axis in x_axes if axis not in rows]
    part = part.ordered([*rows, *columns].index)
    size = math.prod(part.size(axis) for axis in rows)
    x = x.transpose([x_axes.index(axis) for axis in (*free, *rows)])
    x = x.reshape(*x.shape[: len(free)], size)
    if isinstance(part.value, Indexed):
        y = apply_factor(x, as_matrix(part, size), precision)
    else:
        y = dot(x, part.array.reshape(size, -1), precision)
    y = y.reshape(*y.shape[:-1], *(part.size(axis) for axis in columns))
    return y.transpose([[*free, *columns].index(axis) for axis in out_axes])


def times(x: Array, x_axes: Axes, part: Part, out_axes: Axes, precision: Any) -> Array:
    """Multiply by one array, and sum over axes not in `out_axes`."""
    summed = set(part.axes) & set(x_axes)
    one_matrix = summed and set(out_axes) == set(part.axes) ^ set(x_axes)
    if isinstance(part.value, Indexed) and one_matrix:
        return dense(x, x_axes, part, out_axes, precision)
    return _einsum(x, x_axes, part, out_axes, precision)


def _einsum(x: Array, x_axes: Axes, part: Part, out_axes: Axes, precision: Any) -> Array:
    def product(x: Array, y: Array, **options: Any) -> Array:
        return jnp.einsum(
            x, list(x_axes), y, list(part.axes), list(out_axes), precision=precision, **options
        )

    return with_array(lambda x, y: multiply(product, x, y.astype(x.dtype)), x, part)


def with_array(function: Callable[[Array, Array], Array], x: Array, part: Part) -> Array:
    """Return a function of `x` and a part's array; its gradient forms a quantised one again."""
    if not isinstance(part.value, Quantised):
        return function(x, part.array)
    return jax.checkpoint(lambda x, part: function(x, part.array))(x, part)


def _quantised(x: Array, part: Part, *, axes: tuple[Axes, Axes], precision: Any) -> Array:
    """Multiply by a quantised array, of which little is formed at a time."""
    x_axes, out_axes = axes
    value = part.quantised
    if value is None:
        return dense(x, x_axes, replace(part, value=part.array), out_axes, precision)
    vectors = math.prod(
        size for axis, size in zip(x_axes, x.shape, strict=True) if axis not in part.axes
    )
    if vectors <= _FEW and jax.default_backend() == "cpu":
        chunks = value.chunks()
        if chunks is not None:
            return _by_chunks(x, part, chunks, axes, precision)
    return _by_pieces(x, part, value, axes, precision)


def _by_pieces(
    x: Array, part: Part, value: Quantised, axes: tuple[Axes, Axes], precision: Any
) -> Array:
    """Multiply by each half of an array whose values are packed."""
    x_axes, out_axes = axes
    last = part.axes[-1]
    products = []
    for start, piece in value.pieces():
        array = piece.formed()
        own = x
        if last in x_axes:
            place = x_axes.index(last)
            own = lax.slice_in_dim(x, start, start + piece.columns, axis=place)
        products.append(
            dense(own, x_axes, Part(array, part.axes, array.shape), out_axes, precision)
        )
    if last in x_axes:
        return reduce(jnp.add, products)
    return lax.concatenate(products, out_axes.index(last)) if len(products) > 1 else products[0]


def _by_chunks(
    x: Array, part: Part, chunks: Quantised, axes: tuple[Axes, Axes], precision: Any
) -> Array:
    """Multiply by a few rows of an array at a time, which a cache holds."""
    x_axes, out_axes = axes
    first = part.axes[0]
    count, rows = chunks.values.shape[:2]
    moving = jax.tree.map(lambda array: array if array.shape[0] == count else None, chunks)
    summed = first in x_axes
    own = x
    if summed:
        place = x_axes.index(first)
        own = x.reshape(*x.shape[:place], count, rows, *x.shape[place + 1 :])
        own = jnp.moveaxis(own, place, 0)

    def step(total: Any, given: Any) -> tuple[Any, Any]:
        chunk, moved = given
        fixed = replace(
            chunks,
            **{
                name: getattr(moved, name)
                for name in ("values", "scales", "minima")
                if getattr(moved, name) is not None
            },
        )
        y = _by_pieces(chunk if summed else x, part, fixed, axes, precision)
        return (y if total is None else total + y, None) if summed else (None, y)

    if not summed:
        _, y = lax.scan(step, None, (None, moving))
        place = out_axes.index(first)
        y = jnp.moveaxis(y, 0, place)
        return y.reshape(*y.shape[:place], count * rows, *y.shape[place + 2 :])
    sizes = {**dict(zip(part.axes, part.shape, strict=True)), **dict(zip(x_axes, x.shape,
                                                                         strict=True))}  # fmt: skip
    zeros = jnp.zeros([sizes[axis] for axis in out_axes], accumulator_dtype(x.dtype))
    total, _ = lax.scan(step, zeros, (own, moving))
    return total
