"""What the machine can do: one large matrix product, one pass over a large array."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def build(what: str, size: int) -> Callable[[], object]:
    """Return the step to time; it returns when its work is done.

    Args:
        what: "product" of two matrices `[size, size]`, or "copy": read and write `size` numbers. In
            place, since a new array would make the system hand out its pages first. All float32.
        size: See `what`.
    """
    if what == "product":
        matrix = jnp.ones((size, size))
        product = jax.jit(jnp.matmul)
        return lambda: product(matrix, matrix).block_until_ready()
    array = jnp.ones(size)
    negated = jax.jit(jnp.negative, donate_argnums=0)

    def step() -> object:
        nonlocal array
        array = negated(array).block_until_ready()
        return array

    return step
