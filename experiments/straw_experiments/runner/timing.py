"""Times of compiled calls."""

import time
from collections.abc import Callable
from typing import Any

import jax


def fastest(call: Callable[[], Any], calls: int = 5) -> float:
    """Return the seconds of the fastest of some calls, after one that compiles.

    Args:
        call: Returns arrays, which are waited for.
        calls: How many.
    """
    jax.block_until_ready(call())
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken)
