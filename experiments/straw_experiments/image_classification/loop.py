"""Epochs of training, with progress and a stop at the first non-finite loss."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from straw_experiments.image_classification.step import Metrics, TrainStep, TrainSteps
from straw_experiments.runner.batches import (
    batches,
    cut,
    epoch_order,
    near_device,
    steps_per_epoch,
)
from straw_experiments.runner.runs import NonFiniteError
from straw_experiments.runner.state import State, training_key
from straw_jax.sharding import batch_sharding, mesh_of, place

# A loss is read this many steps late: reading the newest would make host and device take turns.
_LAG = 8
CHUNK = 100  # steps that a device takes by itself, of about a millisecond each


class Epoch(NamedTuple):
    """What an epoch of training showed.

    Attributes:
        epoch: Counted from 1.
        step: Steps taken since the start of training.
        loss: Mean cross-entropy over the epoch's samples in nats, as they were met.
        accuracy: Share classified rightly, 0 to 1, as they were met.
        seconds: Time the epoch's steps took.
        images_per_second: Training images over these seconds.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    seconds: float
    images_per_second: float


def train(
    train_step: TrainStep,
    state: State,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    title: str | None = "training",
) -> Iterator[tuple[State, Epoch]]:
    """Train up to an epoch, from wherever the state stands.

    Each epoch takes every sample once, in an order that seed and epoch alone decide. A state saved
    at the end of an epoch therefore continues exactly as if it had never stopped. On a terminal a
    bar on stderr shows loss, accuracy, images a second and time left.

    Args:
        train_step: From `make_train_step`, or that compiled for this batch size. If it is not yet
            compiled, the first epoch's time includes compiling.
        state: At the end of an epoch, or before the first. Donated. Batches go where it lies: to
            one device, or dealt out over a mesh.
        images: uint8 [n, 28, 28, 1].
        labels: int32 [n].
        epochs: Epochs in all, those that `state` has behind it included.
        batch_size: Samples a step.
        seed: Decides the order of samples and every dropout mask.
        title: Shown before the progress bar; None for no bar.

    Yields:
        State and figures at the end of each epoch. The state is donated to the next epoch: save or
        evaluate it before asking for more. Its values are finite.

    Raises:
        NonFiniteError: A loss or the state at the end of an epoch is not finite; names the step.
    """
    mesh = mesh_of(state)
    key = training_key(seed, mesh)
    near = near_device if mesh is None else np.asarray
    images_near, labels_near = near(images), near(labels)

    def train_epoch(state: State, order: np.ndarray, tally: _Tally) -> State:
        waiting: deque[Metrics] = deque()
        for chosen, real in batches(order, batch_size):
            batch = images_near[chosen], labels_near[chosen], real
            if mesh is not None:
                batch = place(batch, batch_sharding(mesh))
            state, metrics = train_step(state, key, *batch)
            waiting.append(metrics)
            if len(waiting) > _LAG:
                tally.add(waiting.popleft())
        for metrics in waiting:
            tally.add(metrics)
        return state

    return _epochs(train_epoch, state, len(labels), epochs, batch_size, seed, title)


def train_on_device(
    train_steps: TrainSteps,
    state: State,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    title: str | None = "training",
) -> Iterator[tuple[State, Epoch]]:
    """Train as `train` does, from batches that the device picks itself, many steps at a time.

    The order of the samples, all random numbers, and what is yielded are the same. The host looks
    at the losses once in `CHUNK` steps.

    Args:
        train_steps: From `make_train_steps`. It is compiled before the first epoch's clock starts.
        state: As in `train`. Images and labels are put, whole, to where it lies.
        images: uint8 [n, 28, 28, 1].
        labels: int32 [n].
        epochs: As in `train`.
        batch_size: Samples a step.
        seed: As in `train`.
        title: As in `train`.

    Yields:
        As `train`.

    Raises:
        NonFiniteError: As `train`.
    """
    mesh = mesh_of(state)
    key = training_key(seed, mesh)
    most = min(CHUNK, steps_per_epoch(len(labels), batch_size))

    def put(array: np.ndarray, *spec: str | None) -> jax.Array:
        if mesh is None:
            return jax.device_put(array)
        placed: jax.Array = place(array, NamedSharding(mesh, PartitionSpec(*spec)))
        return placed

    images_there, labels_there = put(images), put(labels)

    def call(state: State, chosen: np.ndarray, real: np.ndarray) -> tuple[State, Metrics]:
        steps = len(chosen)
        chosen, real = (np.pad(array, ((0, most - steps), (0, 0))) for array in (chosen, real))
        these = put(chosen.astype(np.int32), None, "data"), put(real, None, "data")
        count = put(np.asarray(steps, np.int32))
        return train_steps(state, key, images_there, labels_there, *these, count)

    def train_epoch(state: State, order: np.ndarray, tally: _Tally) -> State:
        chosen, real = cut(order, batch_size)
        waiting: list[Metrics] = []
        for first in range(0, len(chosen), most):
            state, metrics = call(state, chosen[first : first + most], real[first : first + most])
            waiting.append(metrics)
            if len(waiting) > 1:  # these are read while the device takes the next steps
                tally.add(waiting.pop(0))
        tally.add(waiting.pop())
        return state

    nothing = np.zeros((0, batch_size), np.int32), np.zeros((0, batch_size), np.bool_)
    state, _ = call(state, *nothing)  # compiles
    return _epochs(train_epoch, state, len(labels), epochs, batch_size, seed, title)


def _epochs(
    train_epoch: Callable[[State, np.ndarray, "_Tally"], State],
    state: State,
    count: int,
    epochs: int,
    batch_size: int,
    seed: int,
    title: str | None,
) -> Iterator[tuple[State, Epoch]]:
    """Train epoch by epoch: `train_epoch(state, order, tally)` takes an epoch's steps."""
    done = int(state.step) // steps_per_epoch(count, batch_size)
    with tqdm(
        total=epochs * count,
        initial=done * count,
        desc=title,
        unit=" images",
        leave=False,
        disable=True if title is None else None,  # None: no bar where stderr is no terminal
    ) as bar:
        for epoch in range(done + 1, epochs + 1):
            start = time.perf_counter()
            tally = _Tally(int(state.step), bar)
            state = train_epoch(state, epoch_order(count, seed=seed, epoch=epoch), tally)
            seconds = time.perf_counter() - start
            if not _all_finite(state):
                raise NonFiniteError(f"the parameters are not finite after step {tally.step}")
            yield (
                state,
                Epoch(epoch, tally.step, tally.loss, tally.accuracy, seconds, count / seconds),
            )


class _Tally:
    """Running means of an epoch, step by step, which a bar shows."""

    def __init__(self, step: int, bar: tqdm):
        self.step, self._bar = step, bar
        self._loss, self._correct, self._count = 0.0, 0, 0

    @property
    def loss(self) -> float:
        return self._loss / self._count

    @property
    def accuracy(self) -> float:
        return self._correct / self._count

    def add(self, metrics: Metrics) -> None:
        """Count a step; or of several, [n], all that were taken."""
        for loss, correct, count in zip(*map(np.atleast_1d, metrics), strict=True):
            if not count:
                break
            self.step += 1
            if not math.isfinite(loss):
                raise NonFiniteError(f"the loss is {loss} at step {self.step}")
            self._loss += float(loss)
            self._correct += int(correct)
            self._count += int(count)
            self._bar.update(int(count))
        shown = f"loss {self.loss:.4f}, accuracy {self.accuracy:.1%}"
        self._bar.set_postfix_str(shown, refresh=False)


@jax.jit
def _finite(tree: State) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _all_finite(state: State) -> bool:
    return bool(_finite(state))
