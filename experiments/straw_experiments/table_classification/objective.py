"""What models are trained for: the classes of further rows of a table."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_experiments.table_classification.networks import pack
from straw_experiments.table_classification.prior import CLASSES, Tables
from straw_jax.straw import Straw

Params: TypeAlias = Any

_LIMIT = 4.0  # standard deviations: outliers are cut


class Score(NamedTuple):
    """How well rows are classified.

    Attributes:
        loss: cross entropy, in nats.
        accuracy: share of right answers.
    """

    loss: Any
    accuracy: Any


def standardised(x: Array, mask: Array, asked: Array) -> tuple[Array, Array]:
    """Scale features by mean and deviation of the rows shown; a constant feature becomes 0.

    Args:
        x: rows shown, `[tables, rows, features]`.
        mask: which of them there are.
        asked: further rows.
    """
    kept = mask[..., None].astype(x.dtype)
    count = kept.sum(1, keepdims=True)
    mean = jnp.sum(x * kept, 1, keepdims=True) / count
    deviation = jnp.sqrt(jnp.sum((x - mean) ** 2 * kept, 1, keepdims=True) / count)
    varies = deviation > 1e-5 * (1 + jnp.abs(mean))
    scale = jnp.where(varies, deviation, 1)

    def scaled(rows: Array) -> Array:
        return jnp.where(varies, jnp.clip((rows - mean) / scale, -_LIMIT, _LIMIT), 0)

    return scaled(x) * kept, scaled(asked)


def context_of(tables: Tables) -> tuple[Array, Array]:
    """Return packed rows that are shown, and the further rows, both standardised."""
    x, asked = standardised(tables.x, tables.mask, tables.asked)
    return pack(x, tables.y, tables.mask), asked


def among_shown(logits: Array, tables: Tables) -> Array:
    """Return logits of which those of classes that are not shown are minus infinity."""
    members = jax.nn.one_hot(tables.y, CLASSES, dtype=bool) & tables.mask[..., None]
    return jnp.where(jnp.any(members, 1)[:, None], logits, -jnp.inf)


def logits_of(straw: Straw, params: Params, tables: Tables) -> Array:
    """Return logits `[tables, queries, CLASSES]` of further rows."""
    seen, asked = context_of(tables)
    return among_shown(straw.apply(params, asked, context=seen), tables)


def score(logits: Array, answers: Array) -> Score:
    """Score logits; rows of a class that is not among those shown count as wrong, without a loss.

    Args:
        logits: `[..., CLASSES]`.
        answers: the true classes.
    """
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), answers[..., None], -1)[..., 0]
    known = jnp.isfinite(logs)
    loss = -jnp.sum(jnp.where(known, logs, 0)) / jnp.maximum(jnp.sum(known, dtype=logs.dtype), 1)
    return Score(loss, jnp.mean(jnp.argmax(logits, -1) == answers, dtype=jnp.float32))
