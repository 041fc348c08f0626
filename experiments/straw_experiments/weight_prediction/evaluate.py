"""Scores of predicted outputs, and the test of a predictor."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from straw_experiments.weight_prediction.objectives import Objective, Params

TESTED = 8_192  # tasks in the end
_BATCH = 512  # of these at a time
TESTING, LOOKING = 2, 4  # of a seed's keys: the tasks of the final test, and of those before it


class Score(NamedTuple):
    """How well outputs are predicted.

    Attributes:
        loss: mean squared error.
        explained: share of the variance of the true outputs that the predicted ones explain, 1 -
            loss / variance; below 0 where their mean would be a better prediction.
    """

    loss: Any
    explained: Any


def score(predicted: Array, y: Array) -> Score:
    """Score predicted outputs, over all axes."""
    loss = jnp.mean((predicted - y) ** 2)
    return Score(loss, 1 - loss / jnp.var(y))


def make_test(objective: Objective) -> Callable[..., Score]:
    """Build the jitted test of parameters on tasks that no training step draws.

    Returns:
        `(params, seed, tasks, number=2) -> Score`; tasks are taken 512 at a time, and are others
        for another number of the seed's key.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def test(params: Params, seed: int, tasks: int, number: int = TESTING) -> Score:
        batches = max(tasks // _BATCH, 1)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), batches)

        def outputs(key: Array) -> tuple[Array, Array]:
            return objective.outputs(params, objective.draw(key, min(tasks, _BATCH)))

        return score(*jax.lax.map(outputs, keys))

    return test
