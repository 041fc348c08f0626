"""What the machine can do: one large matrix product, one pass over a large array."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def build(what: str, size: int) -> Callable[[], object]:
    """Return the step to time; it returns when its work is done.

    Args:
        what: "product" or "copy", see the functions of these names. Float32.
        size: Of it.
    """
    step = product(size) if what == "product" else copy(size)
    return lambda: step().block_until_ready()


def product(size: int, dtype: str = "float32", precision: Any = None) -> Callable[[], jax.Array]:
    """Return what multiplies two matrices `[size, size]`, and does not wait for the result."""
    matrix = jnp.ones((size, size), dtype)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return lambda: multiply(matrix, matrix)


def copy(size: int) -> Callable[[], jax.Array]:
    """Return what reads and writes `size` float32 numbers, and does not wait until it is done.

    In place, since a new array would make the system hand out its pages first.
    """
    array = jnp.ones(size)
    negated = jax.jit(jnp.negative, donate_argnums=0)

    def step() -> jax.Array:
        nonlocal array
        array = negated(array)
        return array

    return step
