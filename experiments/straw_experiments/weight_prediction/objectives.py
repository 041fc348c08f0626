"""What predictors are trained for: predicted outputs of tasks that are drawn at every step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_experiments.weight_prediction.networks import predict
from straw_experiments.weight_prediction.targets import Pairs, compute, draw
from straw_jax.lowrank import accumulator_dtype
from straw_jax.straw import Straw

Params: TypeAlias = Any


class Objective(NamedTuple):
    """What a predictor is trained for, as pure functions.

    Attributes:
        init: `(key) -> params`.
        draw: `(key, tasks) -> drawn`, arrays whose first axis is that of the tasks.
        outputs: `(params, drawn) -> (predicted, true)`; their mean squared difference is the loss.
        vectors: that a predictor's hidden layers see of each task.
    """

    init: Callable[[Array], Params]
    draw: Callable[[Array, int], Any]
    outputs: Callable[[Params, Any], tuple[Array, Array]]
    vectors: int


def weights_objective(
    sizes: tuple[int, ...], pairs: int, *, straw: Straw, fresh: int = 64
) -> Objective:
    """Return the objective of predicting weights from pairs, by what they compute.

    Args:
        sizes: of the target networks, as in `target`.
        pairs: that the predictor is shown of each.
        straw: from `weight_predictor`.
        fresh: other inputs of each target, on which predicted weights are judged.

    References:
        The weight prediction post, its second part, which judges by one input a network.
    """

    def drawn(key: Array, tasks: int) -> tuple[Pairs, Pairs]:
        drawn = draw(sizes, key, tasks, pairs=pairs, fresh=fresh)
        return drawn.context, drawn.fresh

    def outputs(params: Params, drawn: tuple[Pairs, Pairs]) -> tuple[Array, Array]:
        context, fresh = drawn
        return compute(sizes, predict(straw, params, context), fresh.x), fresh.y

    return Objective(straw.init, drawn, outputs, pairs)


def outputs_objective(sizes: tuple[int, ...], predictor: nn.Module) -> Objective:
    """Return the objective of predicting outputs from weights and inputs.

    Args:
        sizes: of the target networks, as in `target`.
        predictor: from weights and input, `[batch, weights + in]`, to outputs `[batch, out]`.

    References:
        The weight prediction post, its first part.
    """

    def drawn(key: Array, tasks: int) -> tuple[Array, Array]:
        drawn = draw(sizes, key, tasks, pairs=0, fresh=1)
        weights = [leaf.reshape(tasks, -1) for leaf in jax.tree.leaves(drawn.weights)]
        return jnp.concatenate([drawn.fresh.x[:, 0], *weights], axis=1), drawn.fresh.y[:, 0]

    def outputs(params: Params, drawn: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = drawn
        predicted = cast(Array, predictor.apply({"params": params}, x))
        return predicted.astype(accumulator_dtype(predicted.dtype)), y

    def init(key: Array) -> Params:
        return predictor.init(key, drawn(jax.random.key(0), 1)[0])["params"]

    return Objective(init, drawn, outputs, 1)
