"""Batches of one fixed size, so that whatever takes them compiles once."""

from collections.abc import Iterator

import jax
import numpy as np


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Shuffle the samples of one epoch.

    Args:
        count: How many samples there are.
        seed: The run's seed.
        epoch: Counted from 1. Seed and epoch alone decide the order, so that an epoch can be
            repeated without those before it.

    Returns:
        int64 [count], a permutation.
    """
    return np.random.default_rng([seed, epoch]).permutation(count)


def cut(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut an order into batches of equal size.

    The last batch is filled up from the start of the order, again and again if need be. These
    fillers are samples like any other, so that batch statistics stay sound, but they are marked as
    not real: losses and counts leave them out.

    Args:
        order: int64 [n], indices of samples.
        batch_size: Samples in a batch.

    Returns:
        Indices int64 [batches, batch_size], and bool of the same shape that says which are real.
    """
    filled = np.resize(order, (steps_per_epoch(len(order), batch_size), batch_size))
    return filled, (np.arange(filled.size) < len(order)).reshape(filled.shape)


def batches(order: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the batches of `cut` one by one."""
    yield from zip(*cut(order, batch_size), strict=True)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Count the batches that hold `count` samples, the last one perhaps not full."""
    return -(-count // batch_size)


def on_device() -> bool:
    """Say whether many batches are one program, in which the device picks them itself.

    A GPU or TPU would wait for the host between batches. A CPU does not, and takes convolutions
    within a loop slowly.
    """
    return jax.default_backend() != "cpu"


def near_device(array: np.ndarray) -> np.ndarray | jax.Array:
    """Put a whole split onto an accelerator once; leave it in host memory where that is the device.

    Args:
        array: The split's images or labels.

    Returns:
        The same values, to be indexed batch by batch.
    """
    return jax.device_put(array) if on_device() else array
