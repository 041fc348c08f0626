"""Several processes, each with devices of its own, that train one model together.

Every process runs the same program. The first alone reads and writes results: the others receive
what it read, so that folders need not be shared.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Join this process with the others; call before anything else asks JAX for devices.

    Args:
        address: "host:port" of the first process; None where JAX finds out by itself, as on a TPU
            pod or under Slurm. So it is with the next two.
        count: How many processes there are.
        index: Which of them this is; the first is 0.

    Raises:
        RuntimeError: The others cannot be found.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    try:
        jax.distributed.initialize(address, count, index)
    except ValueError as error:  # nothing says where the others are
        raise RuntimeError(str(error)) from error


def is_first() -> bool:
    """Say whether this process reads and writes results."""
    return jax.process_index() == 0


def from_first(read: Callable[[], Any], like: Any) -> Any:
    """Let the first process read something, and send it to the others, which all have to call this.

    Args:
        read: Returns a tree of numbers or arrays; called in the first process alone.
        like: A tree of such shapes and dtypes, as numbers, arrays, or `jax.ShapeDtypeStruct`.

    Returns:
        What was read; from another process, as NumPy arrays.
    """
    if jax.process_count() == 1:
        return read()
    value = read() if is_first() else jax.tree.map(_nothing, like)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def first_then_others(load: Callable[[], T]) -> T:
    """Load something in the first process, and then in the others, which find it prepared."""
    if jax.process_count() == 1:
        return load()
    value = load() if is_first() else None
    multihost_utils.sync_global_devices("first_then_others")
    return load() if value is None else value


def _nothing(leaf: Any) -> np.ndarray:
    like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return np.zeros(like.shape, like.dtype)
