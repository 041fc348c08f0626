"""A small model with everything the loop must handle: dropout and batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from straw_experiments.image_classification.step import (
    Model,
    init_state,
    make_train_step,
    make_train_steps,
)
from straw_experiments.runner.state import State

CLASSES = 5
SHAPE = (28, 28, 1)


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, training):
        x = nn.max_pool(x, (7, 7), (7, 7)).reshape(len(x), -1)
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(16)(x))
        x = nn.Dropout(0.25, deterministic=not training)(nn.relu(x))
        return nn.Dense(CLASSES)(x)


def small_model() -> Model:
    """Pool, dense, batch norm, dropout, dense."""
    net = _Net()

    def apply(variables, images, key):
        if key is None:
            return net.apply(variables, images, training=False), {}
        return net.apply(
            variables, images, training=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )

    return Model(init=lambda key, images: net.init(key, images, training=False), apply=apply)


def images_and_labels(n, *, classes=CLASSES, seed=0):
    """Images whose upper rows tell the class, uint8 [n, 28, 28, 1], and labels, int32 [n]."""
    rng = np.random.default_rng([seed, n])
    labels = rng.integers(classes, size=n).astype(np.int32)
    images = rng.integers(0, 40, size=(n, 28, 28, 1)).astype(np.uint8)
    images[:, :7] += (labels * (200 // classes)).astype(np.uint8)[:, None, None, None]
    return images, labels


# Compiled once for all tests.
MODEL, OPTIMIZER = small_model(), optax.adam(3e-2)
STEP = make_train_step(MODEL, OPTIMIZER)
STEPS = make_train_steps(MODEL, OPTIMIZER)
_START = jax.tree.map(np.array, init_state(MODEL, OPTIMIZER, SHAPE, seed=1))


def start() -> State:
    """A new state each time, since the step donates it."""
    return jax.tree.map(jnp.array, _START)
