"""The networks behind `models`: labelled rows write a classifier of further rows.

What is written is an MLP with one hidden layer and a way around it. Its last layer classifies the
rows shown: it solves a ridge regression, so that only the hidden layer must be learned to write.
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_experiments.table_classification.prior import CLASSES, FEATURES
from straw_jax.layers import AttentionBlock
from straw_jax.network import Network
from straw_jax.straw import Straw, make_straw

Weights: TypeAlias = Mapping[str, Array]

_NUMBERS = (10.0, 10.0, 4.0)  # of the regression at first: scales of units, of features, of answers
_SMALL = nn.initializers.normal(0.01)
_SEEN = FEATURES + CLASSES + 1  # numbers of a row that is shown: features, class, whether it is one
_STEEPEST = 1.5  # logarithm of what a number may be multiplied by: so the regression stays solvable


def pack(x: Array, y: Array, mask: Array) -> Array:
    """Return rows that are shown as vectors `[tables, rows, features + classes + 1]`.

    Features are standardised and zero where a row is none; classes are one-hot.
    """
    kept = mask[..., None].astype(x.dtype)
    return jnp.concatenate([x * kept, jax.nn.one_hot(y, CLASSES, dtype=x.dtype) * kept, kept], -1)


def unpack(seen: Array) -> tuple[Array, Array, Array]:
    """Return features, one-hot classes and the mask `[tables, rows, 1]` of packed rows."""
    return (
        seen[..., :FEATURES],
        seen[..., FEATURES : FEATURES + CLASSES],
        seen[..., FEATURES + CLASSES : _SEEN],
    )


def hidden_rows(weights: Weights, x: Array) -> Array:
    """Return what the last layer reads of rows: hidden units, the features themselves, and 1."""
    bias = weights["bias"][..., None, :]
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    units = nn.gelu(x @ weights["kernel"] + bias)
    return jnp.concatenate([units, x, jnp.ones_like(x[..., :1])], -1)


def classifier(units: int) -> Network:
    """Return the executor: an MLP of rows `[rows, FEATURES]` with a way around its hidden layer."""

    def init(key: Array, x: Array) -> dict[str, Array]:
        del x
        kernel = jax.random.normal(key, (FEATURES, units))
        read = units + FEATURES + 1
        return {"kernel": kernel, "bias": jnp.zeros(units), "last": jnp.zeros((read, CLASSES))}

    def apply(params: Weights, x: Array) -> Array:
        return hidden_rows(params, x) @ params["last"]

    return Network(init, apply)


class TableEncoder(nn.Module):
    """Encode labelled rows, in any order, as a vector for each feature and one for the table.

    Rows see each other; features are sums over rows, and see each other. The rows themselves follow
    these vectors, since what is written is fitted to them.

    Attributes:
        width: of the vectors.
        rows: blocks of attention over rows.
        features: blocks of attention over features.
        heads: of attention.
    """

    width: int = 64
    rows: int = 1
    features: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, seen: Array) -> Array:
        """Return vectors `[tables, FEATURES + 1 + rows, width]` of rows as `pack` returns them."""
        x, classes, kept = unpack(seen)
        count = kept.sum(1, keepdims=True)
        r = nn.Dense(self.width, name="row")(jnp.concatenate([x, classes], -1))
        for i in range(1, self.rows + 1):
            block = AttentionBlock(self.heads, 0.0, None, name=f"rows{i}")
            r = block(r, None, kept[..., 0] > 0, True)
        r = nn.RMSNorm(name="norm_rows")(r) * kept
        f = sum(
            jnp.einsum("bnf,bnd->bfd", form, nn.Dense(self.width, name=name)(r)) / count
            for name, form in {"linear": x, "even": jnp.abs(x)}.items()
        )
        f = f + nn.Dense(self.width, name="statistics")(_statistics(x, classes, kept, count))
        present = jnp.any(x != 0, 1)
        whole = jnp.sum(nn.Dense(self.width, name="whole")(r) * kept, 1, keepdims=True) / count
        whole = whole + nn.Dense(self.width, name="sizes")(_sizes(classes, count, present))
        kinds = self.param("kinds", nn.initializers.normal(0.5), (2, self.width))
        t = jnp.concatenate([f + kinds[None, :1], whole + kinds[None, 1:]], 1)
        mask = jnp.concatenate([present, jnp.ones_like(present[:, :1])], 1)
        for i in range(1, self.features + 1):
            t = AttentionBlock(self.heads, 0.0, None, name=f"features{i}")(t, None, mask, True)
        t = nn.RMSNorm(name="norm")(t)
        return jnp.concatenate([t, jnp.pad(seen, ((0, 0), (0, 0), (0, self.width - _SEEN)))], 1)


def _statistics(x: Array, classes: Array, kept: Array, count: Array) -> Array:
    """Return of each feature how far classes differ in it, and its moments: `[tables, F, 9]`."""
    members = jnp.maximum(classes.sum(1), 1)[:, None]
    found = []
    for form in (x, jnp.abs(x), x * x / 2):
        form = (form - form.sum(1, keepdims=True) / count) * kept
        means = jnp.einsum("bnf,bnc->bfc", form, classes) / members
        between = jnp.sum(means**2 * classes.sum(1)[:, None], -1) / count[:, 0]
        total = jnp.sum(form**2, 1) / count[:, 0]
        found += [between / (total + 1e-3), total]
    moments = [jnp.sum(x**power, 1) / count[:, 0] / (2 * power) for power in (3, 4)]
    return jnp.stack([*found, *moments, jnp.any(x != 0, 1).astype(x.dtype)], -1)


def _sizes(classes: Array, count: Array, present: Array) -> Array:
    """Return numbers of rows, classes and features, and the largest class: `[tables, 1, 4]`."""
    members = classes.sum(1)
    of_all = [
        jnp.log(count[:, 0, 0]) - 4,
        jnp.log(jnp.sum(members > 0, -1, dtype=classes.dtype)) - 1,
        jnp.log(jnp.sum(present, -1, dtype=classes.dtype) + 1) - 2,
        members.max(-1) / count[:, 0, 0],
    ]
    return jnp.stack(of_all, -1)[:, None].astype(classes.dtype)


class TableWriter(nn.Module):
    """Write a classifier's weights, from the vectors of features, the table and its rows.

    The hidden layer's kernel is a trained one, whose rows are multiplied by numbers of the
    features, plus what their vectors write. The last layer solves a ridge regression of the shown
    rows' classes on what it reads of them; how strict it is, and how sure of its answers, is
    written, too. Arrays are in the order of the executor's leaves: bias, kernel, last.

    Attributes:
        units: of the hidden layer.
        written: whether the hidden layer depends on the table. Otherwise all tables share it, and
            the numbers of the ridge regression, and only the last layer is the table's own.
    """

    units: int
    written: bool = True

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Return vectors of all weights, `[tables, size]`."""
        z, seen = z[:, : FEATURES + 1], z[:, FEATURES + 1 :, :_SEEN]
        x, classes, kept = unpack(seen)
        features, table = z[:, :FEATURES], z[:, FEATURES]
        if not self.written:
            features, table = jnp.zeros_like(features), jnp.zeros_like(table)
        base = self.param("kernel", nn.initializers.normal(1.0), (FEATURES, self.units))
        gains = jnp.exp(_bounded(nn.Dense(1, kernel_init=_SMALL, name="gains")(features)))
        own = nn.Dense(self.units, kernel_init=nn.initializers.zeros, name="rows")(features)
        present = jnp.any(x != 0, 1)[..., None]
        kernel = jnp.where(present, gains * base[None] + own, 0)
        kernel = kernel / jnp.sqrt(jnp.maximum(jnp.sum(present, 1, keepdims=True), 1))
        bias = nn.Dense(
            self.units, kernel_init=_SMALL, bias_init=nn.initializers.normal(0.5), name="bias"
        )(table)
        numbers = _bounded(nn.Dense(3, kernel_init=_SMALL, name="numbers")(table))
        numbers = jnp.asarray([_NUMBERS], numbers.dtype) * jnp.exp(numbers)
        last = _fitted({"kernel": kernel, "bias": bias}, numbers, x, classes, kept)
        return jnp.concatenate([leaf.reshape(len(z), -1) for leaf in (bias, kernel, last)], -1)


def _bounded(x: Array) -> Array:
    return _STEEPEST * jnp.tanh(x / _STEEPEST)


def _fitted(weights: Weights, numbers: Array, x: Array, classes: Array, kept: Array) -> Array:
    """Return last layers `[tables, read, CLASSES]`: ridge regressions in their dual form."""
    units = weights["kernel"].shape[-1]
    of_units, of_features, sure = (numbers[:, i : i + 1] for i in range(3))
    ones = jnp.ones_like(of_units)
    scales = jnp.concatenate(
        [
            jnp.repeat(of_units / math.sqrt(units), units, -1),
            jnp.repeat(of_features / math.sqrt(FEATURES), FEATURES, -1),
            ones,
        ],
        -1,
    )
    read = hidden_rows(weights, x) * kept * scales[:, None]
    gram = jnp.einsum("bnp,bmp->bnm", read, read) + jnp.eye(x.shape[1], dtype=x.dtype)[None]
    solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram), classes)
    return sure[..., None] * scales[..., None] * jnp.einsum("bnp,bnc->bpc", read, solved)


def table_straw(
    rows: int, *, width: int = 64, units: int = 128, blocks: int = 1, written: bool = True
) -> Straw:
    """Return a STRAW whose executor is `classifier` and whose context is a table's labelled rows.

    Args:
        rows: that a table has at most; another number may be given later.
        width: of the encoder's vectors.
        units: of the written hidden layer.
        blocks: of the encoder's attention over rows.
        written: as in `TableWriter`.
    """
    return make_straw(
        classifier(units),
        jax.ShapeDtypeStruct((1, 1, FEATURES), jnp.float32),
        rank={"*": "whole"},
        encoder=TableEncoder(width, blocks),
        context=jax.ShapeDtypeStruct((1, rows, _SEEN), jnp.float32),
        generator=TableWriter(units, written),
    )
