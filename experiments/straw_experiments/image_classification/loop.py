"""Epochs of training, with progress and a stop at the first non-finite loss."""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from straw_experiments.image_classification.step import Metrics, TrainStep
from straw_experiments.runner.batches import batches, epoch_order, near_device, steps_per_epoch
from straw_experiments.runner.runs import NonFiniteError
from straw_experiments.runner.state import State, training_key
from straw_jax.sharding import batch_sharding, mesh_of, place

# A loss is read this many steps late: reading the newest would make host and device take turns.
_LAG = 8


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
    count = len(labels)
    mesh = mesh_of(state)
    key = training_key(seed, mesh)
    near = near_device if mesh is None else np.asarray
    images_near, labels_near = near(images), near(labels)
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
            tally = _Tally(int(state.step))
            waiting: deque[Metrics] = deque()
            for chosen, real in batches(epoch_order(count, seed=seed, epoch=epoch), batch_size):
                batch = images_near[chosen], labels_near[chosen], real
                if mesh is not None:
                    batch = place(batch, batch_sharding(mesh))
                state, metrics = train_step(state, key, *batch)
                waiting.append(metrics)
                if len(waiting) > _LAG:
                    tally.add(waiting.popleft(), bar)
            while waiting:
                tally.add(waiting.popleft(), bar)
            seconds = time.perf_counter() - start
            if not _all_finite(state):
                raise NonFiniteError(f"the parameters are not finite after step {tally.step}")
            yield (
                state,
                Epoch(epoch, tally.step, tally.loss, tally.accuracy, seconds, count / seconds),
            )


class _Tally:
    """Running means of an epoch, step by step."""

    def __init__(self, step: int):
        self.step = step
        self._loss, self._correct, self._count = 0.0, 0, 0

    @property
    def loss(self) -> float:
        return self._loss / self._count

    @property
    def accuracy(self) -> float:
        return self._correct / self._count

    def add(self, metrics: Metrics, bar: tqdm) -> None:
        self.step += 1
        loss, count = float(metrics.loss), int(metrics.samples)
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss} at step {self.step}")
        self._loss += loss
        self._correct += int(metrics.correct)
        self._count += count
        bar.set_postfix_str(f"loss {self.loss:.4f}, accuracy {self.accuracy:.1%}", refresh=False)
        bar.update(count)


@jax.jit
def _finite(tree: State) -> jax.Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _all_finite(state: State) -> bool:
    return bool(_finite(state))
