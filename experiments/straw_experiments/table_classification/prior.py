"""Synthetic tables: where their rows and labels come from, drawn on the device without end."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

FEATURES, CLASSES = 32, 10
"""The most that a table may have: arrays are of these sizes, and the rest of them is empty."""

_CAUSES, _UNITS = 8, 24  # of the network that makes a table


class Tables(NamedTuple):
    """Labelled rows of some tables, and other rows of the same.

    Attributes:
        x: features of the rows shown, `[tables, rows, FEATURES]`; those that a table lacks are 0.
        y: their classes, int32 `[tables, rows]`.
        mask: which rows there are, boolean `[tables, rows]`.
        asked: features of the other rows, `[tables, queries, FEATURES]`.
        answers: their classes, int32 `[tables, queries]`.
    """

    x: Array
    y: Array
    mask: Array
    asked: Array
    answers: Array


class _Numbers:
    """Random numbers, drawn all at once: a program that draws them one by one compiles slowly."""

    def __init__(self, key: Array, tables: int, uniform: int, normal: int):
        keys = jax.random.split(key)
        self._uniform = jax.random.uniform(keys[0], (tables, uniform))
        self._normal = jax.random.normal(keys[1], (tables, normal))
        self._used = [0, 0]

    def _next(self, which: int, numbers: Array, shape: tuple[int, ...]) -> Array:
        start = self._used[which]
        self._used[which] = end = start + math.prod(shape)
        assert end <= numbers.shape[1], (which, end)
        return numbers[:, start:end].reshape(numbers.shape[0], *shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        return low + (high - low) * self._next(0, self._uniform, shape)

    def log_uniform(self, *shape: int, low: float, high: float) -> Array:
        return jnp.exp(self.uniform(*shape, low=math.log(low), high=math.log(high)))

    def up_to(self, *shape: int, low: int, high: int) -> Array:
        """Whole numbers from `low` to `high`, small ones as often as large ones."""
        return self.log_uniform(*shape, low=low, high=high + 0.99).astype(jnp.int32)

    def normal(self, *shape: int) -> Array:
        return self._next(1, self._normal, shape)

    def chance(self, *shape: int, of: Array | float) -> Array:
        return self.uniform(*shape) < of

    def kept(self, *shape: int, of: Array | float) -> Array:
        """Ones by chance, else zeros."""
        return self.chance(*shape, of=of).astype(jnp.float32)


def draw(key: Array, tables: int, *, rows: int, queries: int, least: int = 12) -> Tables:
    """Draw tables, each of another kind.

    A few causes, of one normal distribution or of clusters, pass two random layers of mixed
    activations. Features are sums of few of all these units, with noise. Classes are the clusters,
    the greatest of random scores, or intervals of one score, some rare, and some labels are wrong.
    Some features are rounded, some skewed. Numbers of rows, features and classes vary.

    Args:
        key: a random key.
        tables: how many.
        rows: that are shown of each at most.
        queries: other rows of each.
        least: rows that are shown of each at least.

    References:
        Hollmann et al., "TabPFN" (2023), for such a prior.
    """
    n, hold = rows + queries, jax.lax.optimization_barrier  # else XLA computes parts many times
    wide = _CAUSES + 2 * _UNITS
    of = _Numbers(
        key, tables,
        uniform=4_000 + 12 * n + 3 * _UNITS * _UNITS + wide * FEATURES,
        normal=4_000 + n * (_CAUSES + FEATURES) + 3 * _UNITS * _UNITS + wide * FEATURES,
    )  # fmt: skip

    def standard(x: Array) -> Array:
        x = x - x.mean(1, keepdims=True)
        return hold(x / (x.std(1, keepdims=True) + 1e-3))

    count = of.up_to(1, low=2, high=CLASSES)
    there, number = jnp.arange(CLASSES)[None] < count, count.astype(jnp.float32)

    # Causes.
    clustered = of.chance(1, 1, of=0.4)
    cluster = (of.uniform(n) ** of.log_uniform(1, low=0.7, high=1.5) * number).astype(jnp.int32)
    cluster = jnp.minimum(cluster, count - 1)
    twin = of.chance(n, of=of.uniform(1, low=-0.5, high=0.5))
    twins = jnp.where(twin, cluster + CLASSES, cluster)
    centres = of.normal(2 * CLASSES, _CAUSES) * of.log_uniform(1, 1, low=0.5, high=4.0)
    centres = centres * of.kept(1, _CAUSES, of=0.7)
    widths = jnp.exp(0.4 * of.normal(2 * CLASSES, _CAUSES))
    centre, width = (jnp.take_along_axis(a, twins[..., None], 1) for a in (centres, widths))
    z = of.normal(n, _CAUSES)
    few = jnp.arange(_CAUSES)[None, None] < of.up_to(1, 1, low=1, high=_CAUSES)
    z = jnp.where(clustered, centre + width * z, jnp.where(few, z, 0))
    z = standard(jnp.where(of.chance(1, _CAUSES, of=0.3), jnp.tanh(2 * z), z))

    # Two layers.
    def layer(x: Array) -> Array:
        size = x.shape[-1]
        kernel = of.normal(size, _UNITS) * of.kept(size, _UNITS, of=0.5)
        x = standard(x @ kernel) * of.log_uniform(1, _UNITS, low=0.3, high=2.5)
        x = x + 0.7 * of.normal(1, _UNITS)
        kind = of.uniform(1, _UNITS)
        forms = [x, jnp.tanh(2 * x), jax.nn.relu(x), jnp.sin(2 * x)]
        return standard(jnp.select([kind < p for p in (0.4, 0.6, 0.75, 0.9)], forms, jnp.abs(x)))

    first = layer(z)
    second = layer(first)

    # Features: sums of few units, most often of causes.
    units = jnp.concatenate([z, first, second], -1)
    weight = [4 * of.uniform(1), of.uniform(1), of.uniform(1) * of.kept(1, of=0.5)]
    sizes = (_CAUSES, _UNITS, _UNITS)
    share = jnp.concatenate([jnp.repeat(w, s, -1) for w, s in zip(weight, sizes, strict=True)], -1)
    share = (share / share.sum(-1, keepdims=True))[..., None]
    share = share * of.log_uniform(1, 1, low=1.0, high=6.0)
    x = standard(units @ (of.normal(wide, FEATURES) * of.kept(wide, FEATURES, of=share)))
    noise = of.log_uniform(1, FEATURES, low=0.02, high=1.0) * of.log_uniform(
        1, 1, low=0.1, high=1.0
    )
    x = x + noise * of.normal(n, FEATURES)

    # Classes.
    depth = of.uniform(1, 1)
    padded = jnp.pad(z, ((0, 0), (0, 0), (0, _UNITS - _CAUSES)))
    source = jnp.select([depth < 0.5, depth < 0.85], [padded, first], second)
    kernel = of.normal(_UNITS, CLASSES) * of.kept(_UNITS, 1, of=of.uniform(1, 1, low=0.1))
    scores = standard(source @ kernel)
    scores = scores + of.uniform(1, CLASSES, low=-1.0) * of.uniform(1, 1, high=0.7)
    greatest = jnp.argmax(jnp.where(there[:, None], scores, -jnp.inf), -1)
    place = jax.scipy.stats.norm.cdf(standard(scores[..., :1]))[..., 0]
    place = place ** of.log_uniform(1, low=0.7, high=1.5)
    interval = jnp.minimum((place * number).astype(jnp.int32), count - 1)
    order = jnp.argsort(jnp.where(there, of.uniform(CLASSES), 2.0), -1)
    interval = jnp.take_along_axis(order, interval, 1)
    y = jnp.where(of.chance(1, of=0.6), greatest, interval)
    y = jnp.where(clustered[..., 0], cluster, y)
    wrong = of.chance(n, of=of.uniform(1, low=-0.2, high=0.2))
    y = jnp.where(wrong, (of.uniform(n) * number).astype(jnp.int32), y)

    # Forms of features, and which of them there are.
    steps = of.log_uniform(1, FEATURES, low=1.0, high=6.0)
    x = jnp.where(of.chance(1, FEATURES, of=0.1), jnp.round(x * steps), x)
    x = jnp.where(of.chance(1, FEATURES, of=0.15), jnp.exp(jnp.clip(x, -3, 2)), x)
    x = jnp.where(jnp.arange(FEATURES)[None, None] < of.up_to(1, 1, low=2, high=FEATURES), x, 0)
    x = jnp.take_along_axis(x, jnp.argsort(of.uniform(1, FEATURES), -1), -1)
    y = jnp.take_along_axis(jnp.argsort(of.uniform(CLASSES), -1), y, 1).astype(jnp.int32)

    mask = jnp.arange(rows)[None] < of.up_to(1, low=min(least, rows), high=rows)
    return Tables(x[:, :rows], y[:, :rows], mask, x[:, rows:], y[:, rows:])
