"""What a trained weight predictor does outside its training, and which weights it predicts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.weight_prediction import equivalence
from straw_experiments.weight_prediction.evaluate import score
from straw_experiments.weight_prediction.fitting import fit, least_squares, random_weights
from straw_experiments.weight_prediction.networks import predict
from straw_experiments.weight_prediction.objectives import Params
from straw_experiments.weight_prediction.targets import (
    Inputs,
    Tasks,
    Weights,
    compute,
    draw,
    normal,
    positive,
    uniform,
    unknowns,
)
from straw_jax.straw import Straw

INPUTS: Mapping[str, tuple[Inputs, float]] = {
    "scale 0.5": (normal, 0.5),
    "scale 2": (normal, 2.0),
    "scale 4": (normal, 4.0),
    "uniform": (uniform, 1.0),
    "positive": (positive, 1.0),
}
"""Inputs that no predictor is trained on: a distribution, and what is multiplied with it."""

_DRAWN: tuple[Inputs, ...] = (normal, uniform, positive)

RATIOS = (0.5, 1.0, 4 / 3, 2.0, 3.0, 5.0)  # pairs an unknown
FITS = (0, 1, 3, 10, 30)  # steps of `fit`
SOLVED = 1e-4  # of the variance: an error below it counts as none

_TASKS, _BATCH, _FRESH = 2_048, 256, 64


class _Trained(NamedTuple):
    """What does not change from one run of a cell to the next: nothing is compiled twice."""

    sizes: tuple[int, ...]
    straw: Straw


class _Inputs(NamedTuple):
    """A distribution's place in `_DRAWN`, and what is multiplied with it: one program for all."""

    drawn: int
    scale: float


class _Case(NamedTuple):
    """A batch of tasks, and what weights may be guessed from."""

    trained: _Trained
    params: Params
    tasks: Tasks
    key: Array
    steps: int


def analyse(
    sizes: tuple[int, ...], pairs: int, straw: Straw, params: Params, seed: int
) -> dict[str, Any]:
    """Measure what a trained predictor does where it was not trained.

    Args:
        sizes: of the target networks, as in `target`.
        pairs: a set, in training.
        straw: from `weight_predictor`; the same one for all seeds saves compiling.
        params: its trained parameters.
        seed: decides the tasks, which no training step draws.

    Returns:
        Shares of the variance of true outputs that are explained, by what was changed: "fresh
        inputs" and "context inputs" by name in `INPUTS`; "pairs" by their number; "other task", of
        weights predicted from another network's pairs. "fit": after so many steps of `fit` to the
        context, from the "predicted" weights and from "random" ones, "explained" and "solved", the
        share of tasks with an error below 1e-4 of the variance. With one hidden layer "units", see
        `_units`. Of linear targets "least squares", by number of pairs.
    """
    trained, keys = _Trained(sizes, straw), _keys(seed)

    def measure(
        guess: Callable[[_Case], Weights],
        count: int = pairs,
        steps: int = 0,
        **others: tuple[Inputs, float],
    ) -> dict[str, float]:
        both = (others.get(which, (normal, 1.0)) for which in ("fresh", "context"))
        inputs = (_Inputs(_DRAWN.index(drawn), scale) for drawn, scale in both)
        found = _measure(trained, guess, params, keys, steps, *inputs, pairs=count)
        return {name: float(value) for name, value in found.items()}

    counts = sorted({max(1, round(ratio * unknowns(sizes))) for ratio in RATIOS} | {pairs})
    found: dict[str, Any] = {
        f"{which} inputs": {
            name: measure(_predicted, pairs, 0, **{which: inputs})["explained"]
            for name, inputs in INPUTS.items()
        }
        for which in ("fresh", "context")
    }
    found["pairs"] = {str(n): measure(_predicted, n)["explained"] for n in counts}
    found["other task"] = measure(_anothers)["explained"]
    found["fit"] = {
        start: {str(steps): measure(guess, steps=steps) for steps in FITS}
        for start, guess in {"predicted": _fit_predicted, "random": _fit_random}.items()
    }
    if len(sizes) == 2:
        found["least squares"] = {str(n): measure(_least_squares, n)["explained"] for n in counts}
    if len(sizes) == 3:
        found["units"] = _units(trained, pairs, params, keys)
    return found


def _predicted(case: _Case) -> Weights:
    return predict(case.trained.straw, case.params, case.tasks.context)


def _anothers(case: _Case) -> Weights:
    return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), _predicted(case))


def _fit_predicted(case: _Case) -> Weights:
    return fit(case.trained.sizes, _predicted(case), case.tasks.context, case.steps)


def _fit_random(case: _Case) -> Weights:
    start = random_weights(case.trained.sizes, case.key, len(case.tasks.context.x))
    return fit(case.trained.sizes, start, case.tasks.context, case.steps)


def _least_squares(case: _Case) -> Weights:
    return least_squares(case.tasks.context)


@partial(jax.jit, static_argnames=("trained", "guess", "pairs"))
def _measure(
    trained: _Trained,
    guess: Callable[[_Case], Weights],
    params: Params,
    keys: Array,
    steps: int,
    fresh_inputs: _Inputs,
    context_inputs: _Inputs,
    *,
    pairs: int,
) -> dict[str, Array]:
    """Score guessed weights on tasks that are the same for every guess."""

    def outputs(key: Array) -> tuple[Array, Array]:
        tasks = draw(
            trained.sizes,
            key,
            _BATCH,
            pairs=pairs,
            fresh=_FRESH,
            context_inputs=partial(_draw_inputs, context_inputs),
            fresh_inputs=partial(_draw_inputs, fresh_inputs),
        )
        weights = guess(_Case(trained, params, tasks, jax.random.fold_in(key, 1), steps))
        return compute(trained.sizes, weights, tasks.fresh.x), tasks.fresh.y

    predicted, y = jax.lax.map(outputs, keys)
    errors = jnp.mean((predicted - y) ** 2, axis=(-2, -1))
    solved = jnp.mean(errors < SOLVED * jnp.var(y), dtype=jnp.float32)
    return {"explained": score(predicted, y).explained, "solved": solved}


def _draw_inputs(inputs: _Inputs, key: Array, shape: tuple[int, ...]) -> Array:
    branches = [lambda key, one=one: one(key, shape) for one in _DRAWN]
    return inputs.scale * jax.lax.switch(inputs.drawn, branches, key)


def _keys(seed: int) -> Array:
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), _TASKS // _BATCH)


def _units(trained: _Trained, pairs: int, params: Params, keys: Array) -> dict[str, float]:
    """Compare predicted weights with the true ones, and with those predicted from other pairs.

    Returns:
        "share", `equivalence.match` of the true networks and the predicted; "share by chance", the
        same with the predicted of another task; "same place", share of units that are paired with
        that in the same place where the same networks are predicted from two sets of pairs;
        "agreement" of the two as numbers; "agreement in function", share of variance that one
        explains of the other's outputs; "preference", `equivalence.preference` of the predicted,
        and "preference of targets" of the true networks.
    """
    true, first, again, same = jax.device_get(_twice(trained, params, keys, pairs=pairs))
    other = {name: np.roll(leaf, 1, axis=0) for name, leaf in first.items()}
    order = equivalence.match(first, again).order
    return {
        "share": equivalence.match(true, first).share,
        "share by chance": equivalence.match(true, other).share,
        "same place": float(np.mean(order == np.arange(order.shape[1]))),
        "agreement": equivalence.agreement(first, again),
        "agreement in function": float(same),
        "preference": equivalence.preference(first),
        "preference of targets": equivalence.preference(true),
    }


@partial(jax.jit, static_argnames=("trained", "pairs"))
def _twice(
    trained: _Trained, params: Params, keys: Array, *, pairs: int
) -> tuple[Weights, Weights, Weights, Array]:
    """Predict networks from two sets of pairs; return them, both predictions, their likeness."""
    sizes, straw = trained

    def one(key: Array) -> tuple[tuple[Weights, Weights, Weights], tuple[Array, Array]]:
        tasks = draw(sizes, key, _BATCH, pairs=pairs, fresh=pairs)  # the fresh are the second set
        first, again = (predict(straw, params, each) for each in (tasks.context, tasks.fresh))
        x = jax.random.normal(jax.random.fold_in(key, 1), (_BATCH, _FRESH, sizes[0]))
        outputs = compute(sizes, again, x), compute(sizes, first, x)
        return (tasks.weights, first, again), outputs

    weights, outputs = jax.lax.map(one, keys)
    true, first, again = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), weights)
    return true, first, again, score(*outputs).explained
