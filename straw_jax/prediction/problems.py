"""What predictors are trained for: a loss on tasks that were drawn for it, and a score."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax.prediction.predictors import (
    OutputKind,
    OutputPredictor,
    predict,
)
from straw_jax.prediction.targets import compute, draw
from straw_jax.straw import Straw

Params: TypeAlias = Any


class Problem(NamedTuple):
    """What a predictor is trained for, as pure functions.

    Attributes:
        init: `(key) -> params`.
        outputs: `(params, key, tasks) -> (predicted, true)`, of so many tasks drawn for the key;
            their mean squared difference is the loss.
    """

    init: Callable[[Array], Params]
    outputs: Callable[[Params, Array, int], tuple[Array, Array]]


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


def weights_problem(
    sizes: tuple[int, ...], pairs: int, *, straw: Straw, fresh: int = 64
) -> Problem:
    """Return the problem of predicting weights from pairs, by what they compute.

    Args:
        sizes: of the target networks, as in `target`.
        pairs: that the predictor is shown of each.
        straw: from `weight_predictor`.
        fresh: other inputs of each target, on which predicted weights are judged.

    References:
        The weight prediction post, its second part, which judges by one input a network.
    """

    def outputs(params: Params, key: Array, tasks: int) -> tuple[Array, Array]:
        drawn = draw(sizes, key, tasks, pairs=pairs, fresh=fresh)
        weights = predict(straw, params, drawn.context)
        return compute(sizes, weights, drawn.fresh.x), drawn.fresh.y

    return Problem(straw.init, outputs)


def outputs_problem(sizes: tuple[int, ...], kind: OutputKind) -> Problem:
    """Return the problem of predicting outputs from weights and inputs.

    Args:
        sizes: of the target networks, as in `target`.
        kind: of predictor, as in `OutputPredictor`.

    References:
        The weight prediction post, its first part.
    """
    module = OutputPredictor(kind, sizes[-1])

    def inputs(key: Array, tasks: int) -> tuple[Array, Array]:
        drawn = draw(sizes, key, tasks, pairs=0, fresh=1)
        weights = [leaf.reshape(tasks, -1) for leaf in jax.tree.leaves(drawn.weights)]
        return jnp.concatenate([drawn.fresh.x[:, 0], *weights], axis=1), drawn.fresh.y[:, 0]

    def outputs(params: Params, key: Array, tasks: int) -> tuple[Array, Array]:
        x, y = inputs(key, tasks)
        return cast(Array, module.apply({"params": params}, x)), y

    def init(key: Array) -> Params:
        return module.init(key, inputs(jax.random.key(0), 1)[0])["params"]

    return Problem(init, outputs)
