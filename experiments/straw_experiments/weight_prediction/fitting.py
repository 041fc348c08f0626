"""What pairs say by themselves: networks fitted to them, without a predictor."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from straw_experiments.weight_prediction.targets import Pairs, Weights, target

_EASIER, _HARDER = 0.3, 4.0  # factors of the damping after a step that helped, and one that did not


class _Fit(NamedTuple):
    flat: Array
    error: Array
    damping: Array


def fit(sizes: Sequence[int], weights: Weights, context: Pairs, steps: int) -> Weights:
    """Move weights towards what their tasks' pairs ask for, by Levenberg-Marquardt steps.

    A step that would raise a task's squared error on its pairs is not taken. Units' scales are not
    determined by any pairs, which damping allows for.

    Args:
        sizes: of the networks, as in `target`.
        weights: where to start, by layer, `[tasks, in, out]`.
        context: the pairs.
        steps: how many.

    Returns:
        As `weights`.

    References:
        Marquardt, "An Algorithm for Least-Squares Estimation of Nonlinear Parameters" (1963).
    """
    apply = target(sizes).apply

    def of_task(weights: Weights, pairs: Pairs) -> Weights:
        flat, unravel = ravel_pytree(weights)

        def residual(flat: Array) -> Array:
            return (apply(unravel(flat), pairs.x) - pairs.y).ravel()

        def step(_: int, now: _Fit) -> _Fit:
            jacobian = jax.jacfwd(residual)(now.flat)
            curvature = jacobian.T @ jacobian
            scale = jnp.trace(curvature) / len(flat)
            damped = curvature + (now.damping * scale + 1e-12) * jnp.eye(len(flat))
            move = jax.scipy.linalg.solve(damped, jacobian.T @ residual(now.flat), assume_a="pos")
            moved = now.flat - move
            error = jnp.sum(residual(moved) ** 2)
            helps = error < now.error  # not where it is NaN either
            return _Fit(
                jnp.where(helps, moved, now.flat),
                jnp.where(helps, error, now.error),
                now.damping * jnp.where(helps, _EASIER, _HARDER),
            )

        start = _Fit(flat, jnp.sum(residual(flat) ** 2), jnp.asarray(0.01, flat.dtype))
        return unravel(jax.lax.fori_loop(0, steps, step, start).flat)

    return jax.vmap(of_task)(weights, context)


def least_squares(context: Pairs) -> Weights:
    """Return the linear networks that fit pairs best, the smallest where several do.

    For normal weights and exact pairs this is the mean of all networks that the pairs allow: no
    predictor can be better.

    Args:
        context: of linear targets, without a hidden layer.
    """
    return {"layer1": jax.vmap(lambda x, y: jnp.linalg.lstsq(x, y)[0])(*context)}


def random_weights(sizes: Sequence[int], key: Array, tasks: int) -> Weights:
    """Draw weights as those of targets are drawn: a start for `fit` that knows nothing."""
    return jax.vmap(target(sizes).init)(jax.random.split(key, tasks))
