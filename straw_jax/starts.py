"""How generators start: sizes of what is written that do not depend on rank or width."""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax.kinds import Shared, Start, Written
from straw_jax.lowrank import accumulator_dtype

StartName: TypeAlias = Literal["article", "plain"]
"""How a generator starts: as the article's, or with the plain model's sizes at every rank."""


def own_share(start_at_base: bool) -> float:
    """Return how far what is written differs from sample to sample at first, in deviations.

    Encoders take large steps at first, and what depends on the sample moves with them. With a base
    it is multiplied by a factor that starts at 0.
    """
    return 0.5**0.5 if start_at_base else 0.2


def unit_init(deviation: float) -> Any:
    """Return the initialiser of a dense layer from `averaged` vectors to a deviation."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(
            deviation * shape[0] ** 0.5, dtype
        )

    return init


def shared_init(part: Shared, start: Start | None, start_at_base: bool = False) -> Any:
    """Return the initialiser of what all samples share: the article's without a start."""
    if start is not None:

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            drawn = 0.0 if start.zero else start.scale * jax.random.normal(key, shape)
            return jnp.full(shape, start.mean) + drawn

        return init
    bound = part.fan_in**-0.5

    def uniform(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return nn.initializers.zeros if start_at_base and part.zero else uniform


def finished(numbers: Array, part: Written, start: Start) -> Array:
    """Return what is written, `[batch, *shape]`, of numbers of deviation 1 or 0 at the start."""
    array = numbers.reshape(numbers.shape[0], *part.shape)
    array = array * jnp.asarray(start.scale, array.dtype)
    added = np.asarray(part.offset, np.float32) + np.float32(start.mean)
    if np.any(added):
        array = array + jnp.broadcast_to(jnp.asarray(added, array.dtype), array.shape)
    return array


def balanced(x: Array) -> Array:
    """Return vectors of about the norm of random ones, whatever their own is.

    Numbers below 0.1 count as small: so vectors of one number keep more than their sign.
    """
    wide = x.astype(accumulator_dtype(x.dtype))
    mean = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + 0.01)).astype(x.dtype)


def averaged(x: Array) -> Array:
    """Return hidden vectors whose products with a kernel are averages, not sums.

    Their numbers have a mean square of `1 / width ** 2`. So one step of Adam changes what a head
    writes by about the learning rate, for any width.
    """
    wide = x.astype(accumulator_dtype(x.dtype))
    mean = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * (jax.lax.rsqrt(mean + 1e-6) / x.shape[-1])).astype(x.dtype)


def cast(array: Array, dtype: DTypeLike | None) -> Array:
    """Return an array in a dtype, or as it is."""
    return array if dtype is None else array.astype(dtype)


def check_start(where: str, start: Any, only: str | None = None) -> None:
    """Raise unless a start is known, and one that a generator has."""
    known = get_args(StartName) if only is None else (only,)
    if start is not None and start not in known:
        raise ValueError(f"{where}: expected a start of {known} or None, got {start!r}.")
