"""How a trained model classifies: synthetic tables, given ones, and with wrong contexts."""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.table_classification.objective import (
    Params,
    Score,
    among_shown,
    context_of,
    logits_of,
    score,
)
from straw_experiments.table_classification.prior import FEATURES, Tables, draw
from straw_jax.straw import Straw

TESTING, LOOKING = 2, 4  # of a seed's keys: tables of the end, and those by which all is chosen
MEMBERS = (1, 4, 8)
"""Orders of features over which answers may be averaged."""
QUERIES = 512  # rows of a given table that are classified at once, and at most

_BATCH, _ASKED, _CHOSEN_BY = 32, 64, 128  # tables at a time, rows of each, tables for a choice


class Split(NamedTuple):
    """A given table: rows that are shown and rows that are asked for, as NumPy arrays."""

    x: np.ndarray
    y: np.ndarray
    asked: np.ndarray
    answers: np.ndarray


def validated(
    straw: Straw, params: Params, seed: int, number: int, tables: int, rows: int
) -> Score:
    """Score a model on synthetic tables of another key than those of training."""
    return _validated(straw, params, _keys(seed, number, tables), rows)


def _keys(seed: int, number: int, tables: int) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), number)
    return jax.random.split(key, max(tables // _BATCH, 1))


@partial(jax.jit, static_argnums=(0, 3))
def _validated(straw: Straw, params: Params, keys: Array, rows: int) -> Score:
    def scored(key: Array) -> Score:
        tables = draw(key, _BATCH, rows=rows, queries=_ASKED)
        return score(logits_of(straw, params, tables), tables.answers)

    return jax.tree.map(jnp.mean, jax.lax.map(scored, keys))


def orders(members: int) -> np.ndarray:
    """Return the orders of features over which answers are averaged, the first as it is."""
    made = np.random.default_rng(0)
    return np.stack(
        [np.arange(FEATURES), *(made.permutation(FEATURES) for _ in range(members - 1))]
    )


@partial(jax.jit, static_argnums=0)
def probabilities(straw: Straw, params: Params, tables: Tables, orders: Array) -> Array:
    """Return probabilities `[tables, queries, CLASSES]`, means over orders of the features."""

    def of_order(order: Array) -> Array:
        turned = tables._replace(x=tables.x[..., order], asked=tables.asked[..., order])
        return jax.nn.softmax(logits_of(straw, params, turned))

    return jnp.mean(jax.lax.map(of_order, orders), 0)


def chosen_members(straw: Straw, params: Params, seed: int, rows: int) -> int:
    """Choose on synthetic tables over how many orders answers are averaged; few, if level."""
    keys = _keys(seed, LOOKING, _CHOSEN_BY)
    right = dict.fromkeys(MEMBERS, 0.0)
    for key in keys:
        tables = _drawn(key, rows)
        for members in MEMBERS:
            found = jnp.argmax(probabilities(straw, params, tables, orders(members)), -1)
            right[members] += float(jnp.mean(found == tables.answers, dtype=jnp.float32))
    return max(MEMBERS, key=lambda members: round(right[members] / len(keys), 4))


@partial(jax.jit, static_argnums=1)
def _drawn(key: Array, rows: int) -> Tables:
    return draw(key, _BATCH, rows=rows, queries=_ASKED)


def validation_splits(seed: int, rows: int, tables: int) -> list[Split]:
    """Return synthetic tables as given ones, for rivals: those by which all is chosen."""
    found: list[Split] = []
    for key in _keys(seed, LOOKING, tables):
        drawn = jax.device_get(_drawn(key, rows))
        for x, y, mask, asked, answers in zip(*drawn, strict=True):
            found.append(Split(x[mask], y[mask], asked, answers))
    return found[:tables]


def as_tables(split: Split, rows: int) -> Tables:
    """Return a given table as one of the sizes that models take; its rows fit."""

    def padded(array: np.ndarray, length: int) -> Array:
        missing = [(0, length - len(array)), (0, FEATURES - array.shape[1])]
        return jnp.asarray(np.pad(array.astype(np.float32), missing)[None])

    def classes(y: np.ndarray, length: int) -> Array:
        return jnp.asarray(np.pad(y.astype(np.int32), (0, length - len(y)))[None])

    mask = jnp.arange(rows)[None] < len(split.x)
    return Tables(
        padded(split.x, rows), classes(split.y, rows), mask,
        padded(split.asked, QUERIES), classes(split.answers, QUERIES),
    )  # fmt: skip


class Classified(NamedTuple):
    """What a model makes of a given table: accuracy, and seconds to write and to answer."""

    accuracy: float
    seconds: float


def classify(straw: Straw, params: Params, split: Split, members: int, rows: int) -> Classified:
    """Classify the further rows of a given table."""
    tables = as_tables(split, rows)
    probabilities(straw, params, tables, orders(members))  # compiled before the clock starts
    start = time.perf_counter()
    found = np.asarray(probabilities(straw, params, tables, orders(members)))
    return Classified(_right(found[0], split), time.perf_counter() - start)


def _right(found: np.ndarray, split: Split) -> float:
    return float(np.mean(found[: len(split.answers)].argmax(-1) == split.answers))


def controls(straw: Straw, params: Params, split: Split, rows: int, seed: int) -> dict[str, float]:
    """Classify a given table by weights that were written from something else; one order each.

    Returns:
        Accuracy by context: "own"; "shuffled labels" of its rows; "another table", of as many
        rows, features and classes, random clusters; "mean", the mean of the vectors that the
        encoder returns for 32 synthetic tables.
    """
    made = np.random.default_rng(seed)
    centres = made.normal(size=(int(split.y.max()) + 1, split.x.shape[1]))
    another = 2 * centres[split.y] + made.normal(size=split.x.shape)
    contexts = {
        "own": split,
        "shuffled labels": split._replace(y=made.permutation(split.y)),
        "another table": split._replace(x=another),
    }
    own = as_tables(split, rows)
    found = {}
    for name, shown in contexts.items():
        logits = _of_context(straw, params, as_tables(shown, rows), own)
        found[name] = _right(np.asarray(logits)[0], split)
    synthetic = _drawn(_keys(seed, LOOKING, _BATCH)[0], rows)
    found["mean"] = _right(np.asarray(_of_mean(straw, params, synthetic, own))[0], split)
    return found


@partial(jax.jit, static_argnums=0)
def _of_context(straw: Straw, params: Params, shown: Tables, own: Tables) -> Array:
    asked = context_of(own)[1]
    return among_shown(straw.apply(params, asked, context=context_of(shown)[0]), own)


@partial(jax.jit, static_argnums=0)
def _of_mean(straw: Straw, params: Params, synthetic: Tables, own: Tables) -> Array:
    styles = straw.styles(params, context_of(synthetic)[0]).mean(0, keepdims=True)
    return among_shown(straw.apply_styles(params, styles, context_of(own)[1]), own)
