"""Analysis of per-sample updates: norms, distances, ranks, and how they vary over samples.

The functions take trees of factors, as `FactorSpec` describes and `Straw.factors` returns them, in
which every factor has a sample axis: `Factors` with `B [n, in, r]` and `A [n, r, out]`, or an array
`[n, ...]` where a leaf is generated whole. They return plain dicts by path.

A sample's update `U = B @ A` is never formed: norms and inner products come from `r x r` Gram
matrices, singular values from an `r x r` core. Split the kernels of stacked layers (axes "s" of
`factor_spec`) with `by_layer` first: their factors do not show the number of layers. All results
are for the update without the `scale` with which a layer applies it: norms are proportional to the
scale; ranks and shares do not depend on it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from straw_jax import expect
from straw_jax.factors import Entry, FactorSpec, FactorTree
from straw_jax.kinds import Factors, Posed
from straw_jax.lowrank import form


class _Pair(NamedTuple):
    """The factors of one leaf as arrays, formed."""

    B: Array
    A: Array


_Formed: TypeAlias = dict[str, _Pair | Array]


class Variance(NamedTuple):
    """How the updates of one leaf vary over samples in groups.

    Attributes:
        total: the variance `E|U|^2 - |E U|^2`, the mean squared distance from the mean update.
        mean_norm: `|E U|`, the norm of the mean update.
        between: share of `total` between the means of groups, 0 to 1 (eta squared). Not corrected
            for chance: random groups have `chance` on average.
        chance: `(groups - 1) / (n - 1)`, the mean of `between` over random groups of these sizes.
        corrected: `(between - chance) / (1 - chance)` (epsilon squared): 0 on average for random
            groups, and about as often below; 1 where all updates of a group are the same. NaN where
            every group has one sample.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import analysis
        >>> groups = [{"bias": jnp.array([[1.0], [2.0]])}, {"bias": jnp.array([[4.0], [5.0]])}]
        >>> total, mean_norm, between, chance, corrected = analysis.variance(groups)["bias"]
        >>> total, mean_norm, round(between, 2), round(chance, 2), round(corrected, 2)
        (2.5, 3.0, 0.9, 0.33, 0.85)
    """

    total: float
    mean_norm: float
    between: float
    chance: float
    corrected: float


def by_layer(spec: FactorSpec, updates: FactorTree) -> dict[str, Entry]:
    """Split the updates of stacked layers: one entry per layer.

    Args:
        spec: the specification of the updates.
        updates: a tree of factors, with or without a sample axis.

    Returns:
        A tree of factors in which `"path[0]"`, `"path[1]"`, ... replace each low-rank leaf `"path"`
        whose axes begin with "s", in C order if it is stacked along several axes.

    Raises:
        ValueError: if the updates do not fit the specification.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import analysis, factor_spec
        >>> spec = factor_spec({"W": jnp.zeros((2, 6, 5))}, 4, axes={"W": "src"})
        >>> layers = analysis.by_layer(spec, spec.unpack(jnp.zeros((8, spec.size))))
        >>> {path: factors.A.shape for path, factors in layers.items()}
        {'W[0]': (8, 4, 5), 'W[1]': (8, 4, 5)}
    """
    spec.check(updates)
    apart: dict[str, Entry] = {}
    for leaf in spec:
        factor = updates[leaf.path]
        if not isinstance(factor, Factors) or "s" not in leaf.axes:
            apart[leaf.path] = factor
            continue
        stacked = math.prod(leaf.shape[: leaf.axes.count("s")])
        rows = jnp.split(form(factor.B), stacked, axis=-2)
        columns = jnp.split(form(factor.A), stacked, axis=-1)
        for i, (B, A) in enumerate(zip(rows, columns, strict=True)):
            apart[f"{leaf.path}[{i}]"] = Factors(B, A)
    return apart


def inner_products(left: FactorTree, right: FactorTree) -> dict[str, Array]:
    """Compute the inner products `sum(U * V)` of paired samples' updates.

    Args:
        left: the updates `U`, a tree of factors with a sample axis.
        right: the updates `V`, of the same leaves and number of samples; ranks may differ.

    Returns:
        `[n]` by path, float32 or wider.

    Raises:
        ValueError: if a factor has no sample axis, or the two do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.inner_products(updates, updates)["W"].shape
        (8,)
    """
    u, v = _formed(left), _formed(right)
    _check_pair("inner_products", u, v)
    return _each(_inner_product, u, v)


def squared_norms(updates: FactorTree) -> dict[str, Array]:
    """Compute the squared Frobenius norm of each sample's update.

    Args:
        updates: a tree of factors with a sample axis.

    Returns:
        `[n]` by path, float32 or wider.

    Raises:
        ValueError: if a factor has no sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.squared_norms(updates)["W"].tolist()  # 3 x 4 matrices of twos
        [48.0, 48.0, 48.0, 48.0, 48.0, 48.0, 48.0, 48.0]
    """
    return _each(_squared_norm, _formed(updates))


def differences(left: FactorTree, right: FactorTree) -> dict[str, Factors | Array]:
    """Return the differences `U - V` of paired samples' updates, as factors of twice the rank.

    The distance between two updates is `jnp.sqrt(squared_norms(differences(left, right))[path])`.
    It is accurate for nearly equal updates too, since `B A - D C = (B - D) A + D (A - C)`.

    Args:
        left: the updates `U = B A`, a tree of factors with a sample axis.
        right: the updates `V = D C`, of the same specification and number of samples.

    Returns:
        A tree of factors, of rank `2 r` where they are low-rank.

    Raises:
        ValueError: if a factor has no sample axis, or the two do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> difference = analysis.differences(updates, updates)
        >>> difference["W"].B.shape, float(analysis.squared_norms(difference)["W"].max())
        ((8, 3, 4), 0.0)
    """
    u, v = _formed(left), _formed(right)
    _check_pair("differences", u, v, same_rank=True)
    return _each(_difference, u, v)


def singular_values(updates: FactorTree) -> dict[str, Array]:
    """Compute the singular values of each sample's update.

    Args:
        updates: a tree of factors with a sample axis; leaves generated whole are left out.

    Returns:
        `[n, min(in, r, out)]` by path, float32 or wider, the largest first.

    Raises:
        ValueError: if a factor has no sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.singular_values(updates)["W"].shape
        (8, 2)
    """
    return _each(_singular_values, _pairs(updates))


def effective_ranks(updates: FactorTree) -> dict[str, Array]:
    """Compute the effective rank of each sample's update.

    This is `exp(entropy)` of the singular values divided by their sum: `k` for `k` equal values,
    and less the more they differ.

    Args:
        updates: a tree of factors with a sample axis; leaves generated whole are left out.

    Returns:
        `[n]` by path, float32 or wider, from 1 to `min(in, r, out)`; 0 for an update of zero.

    Raises:
        ValueError: if a factor has no sample axis.

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.effective_ranks(updates)["W"].round(2).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return _each(_effective_rank, _pairs(updates))


def means(updates: FactorTree) -> dict[str, Array]:
    """Compute the mean update over samples, as one dense matrix.

    Args:
        updates: a tree of factors with a sample axis.

    Returns:
        By path `[in, out]` where the leaf is low-rank, `[...]` where it is generated whole; float32
        or wider.

    Raises:
        ValueError: if a factor has no sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.means(updates)["W"].shape
        (3, 4)
    """
    return _each(_mean, _formed(updates))


def variance(groups: Iterable[FactorTree]) -> dict[str, Variance]:
    """Compute the variance of updates over samples, and its share between groups of samples.

    Groups are, for example, classes. Each is used once, one after the other: to save memory, pass a
    generator that makes the factors of one group at a time. The factors of one class are
    `jax.tree.map(lambda leaf: leaf[labels == label], factors)`.

    Sums are in float32: a variance below about 1e-5 of the mean squared norm is rounding.

    Args:
        groups: one tree of factors for each group, with a sample axis of 1 or more.

    Returns:
        Variances by path, see `Variance`: the share as it is and corrected for chance.

    Raises:
        ValueError: if there is no group, groups differ in their leaves, a group is empty, or a
            factor has no sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> other = {"W": Factors(-jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> found = analysis.variance([updates, other])["W"]
        >>> found.total, found.between
        (48.0, 1.0)
    """
    # By path: samples, squared norms, squared norms of the groups' means times their samples.
    sums: dict[str, tuple[int, float, float]] = {}
    totals: dict[str, Array] = {}
    count = 0
    if isinstance(groups, Mapping) or not isinstance(groups, Iterable):
        raise ValueError(
            "variance: expected trees of factors, one for each group, got"
            f" {expect.describe(groups)}. One group is a list of one; of a dict, give the values."
        )
    for group in groups:
        count += 1
        formed = _formed(group)
        _check_group(count, formed, totals)
        for path, (squares, total, square) in _each(_moments, formed).items():
            n = _samples(group[path])
            old = sums.get(path, (0, 0.0, 0.0))
            new = n, float(squares), n * float(square)
            sums[path] = old[0] + new[0], old[1] + new[1], old[2] + new[2]
            totals[path] = totals[path] + total if path in totals else total
    if not count:
        raise ValueError("variance: expected at least one group of samples, got none.")
    return {path: _variance(count, *sums[path], totals[path]) for path in sums}


def _check_group(count: int, group: _Formed, before: dict[str, Array]) -> None:
    """Raise a `ValueError` unless a group has samples, and the leaves of the groups before it."""

    def shape(factor: _Pair | Array) -> tuple[int, ...]:
        if isinstance(factor, _Pair):
            return factor.B.shape[1], factor.A.shape[2]
        return factor.shape[1:]

    got = {path: shape(factor) for path, factor in group.items()}
    want = {path: total.shape for path, total in before.items()} if count > 1 else got
    if got != want or 0 in map(_samples, group.values()):
        raise ValueError(
            f"variance: expected groups of one sample or more, with the same leaves {want}, got"
            f" {got} with {[_samples(factor) for factor in group.values()]} samples. Leave empty"
            " groups out, and generate all from one specification."
        )


def _variance(groups: int, n: int, squares: float, group_squares: float, total: Array) -> Variance:
    mean_square = float(_square_of_mean(total, n))
    variance = max(squares / n - mean_square, 0.0)
    between = (group_squares / n - mean_square) / variance if variance else float("nan")
    chance = (groups - 1) / (n - 1) if n > 1 else float("nan")
    corrected = (between - chance) / (1 - chance) if n > groups else float("nan")
    return Variance(variance, mean_square**0.5, between, chance, corrected)


def _each(function: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a function to every leaf of trees by path: one program, not one for each operation."""
    leaves = [tuple(tree[path] for path in trees[0]) for tree in trees]
    return dict(zip(trees[0], _program(function, *leaves), strict=True))


@partial(jax.jit, static_argnums=0, inline=True)
def _program(function: Callable[..., Any], *leaves: tuple[Any, ...]) -> list[Any]:
    return [function(*each) for each in zip(*leaves, strict=True)]


def _moments(factor: _Pair | Array) -> tuple[Array, Array, Array]:
    """Sum of squared norms, sum of updates, and the squared norm of their mean."""
    mean = _mean(factor)
    squares = _inner_product(factor, factor).sum()
    return squares, _samples(factor) * mean, jnp.sum(mean**2)


@jax.jit
def _square_of_mean(total: Array, n: ArrayLike) -> Array:
    return jnp.sum((total / n) ** 2)


def _inner_product(left: _Pair | Array, right: Any) -> Array:
    if isinstance(left, _Pair):
        inner = _einsum("nir,nis->nrs", left.B, right.B)
        return jnp.sum(inner * _einsum("nro,nso->nrs", left.A, right.A), axis=(1, 2))
    return jnp.sum((left * right).reshape(left.shape[0], -1), axis=1)


def _squared_norm(factor: _Pair | Array) -> Array:
    # The product of two Gram matrices may round to slightly below zero.
    return jnp.maximum(_inner_product(factor, factor), 0)


def _difference(left: _Pair | Array, right: Any) -> Factors | Array:
    if isinstance(left, _Pair):
        return Factors(
            jnp.concatenate([left.B - right.B, right.B], axis=-1),
            jnp.concatenate([left.A, left.A - right.A], axis=-2),
        )
    return left - right


def _singular_values(pair: _Pair) -> Array:
    # With B = Q R and A^T = P S, U = Q (R S^T) P^T has the singular values of R S^T.
    R = jnp.linalg.qr(pair.B, mode="r")
    S = jnp.linalg.qr(pair.A.swapaxes(-1, -2), mode="r")
    return jnp.linalg.svd(_einsum("nir,nor->nio", R, S), compute_uv=False)


def _effective_rank(pair: _Pair) -> Array:
    values = _singular_values(pair)
    total = values.sum(axis=-1, keepdims=True)
    shares = values / jnp.where(total > 0, total, 1)
    entropy = jax.scipy.special.entr(shares).sum(axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


def _mean(factor: _Pair | Array) -> Array:
    if isinstance(factor, _Pair):
        # One product [in, n * r] @ [n * r, out].
        return _einsum("nir,nro->io", factor.B, factor.A) / factor.B.shape[0]
    return factor.mean(axis=0)


def _einsum(subscripts: str, left: Array, right: Array) -> Array:
    return jnp.einsum(subscripts, left, right, precision="highest")


def _samples(factor: Any) -> int:
    return jax.tree.leaves(factor)[0].shape[0]


def _pairs(updates: FactorTree) -> dict[str, _Pair]:
    """Form the factors of all low-rank leaves."""
    formed = _formed(updates).items()
    return {path: factor for path, factor in formed if isinstance(factor, _Pair)}


def _formed(updates: FactorTree) -> _Formed:
    """Form all factors, in float32 or wider, and check that every one has a sample axis."""
    expect.factors("analysis", updates)

    def wide(array: Array) -> Array:
        return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array

    formed: _Formed = {}
    for path, factor in updates.items():
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(factor)):
            raise ValueError(
                f"analysis: expected the factors of {path} to be arrays of floating-point numbers,"
                f" got {expect.describe(factor)}. Convert them with jnp.asarray(factor, float)."
            )
        if isinstance(factor, Posed):
            raise ValueError(
                f"analysis: expected an update that is added to {path}, got a pose, which has no "
                "norm. Leave posed leaves out."
            )
        if not isinstance(factor, Factors):
            formed[path] = wide(factor)
            fits = factor.ndim >= 1
            shapes = str(factor.shape)
        else:
            B, A = wide(form(factor.B)), wide(form(factor.A))
            formed[path] = _Pair(B, A)
            fits = B.ndim == A.ndim == 3 and (B.shape[0], B.shape[2]) == A.shape[:2]
            shapes = f"B {B.shape} and A {A.shape}"
        if not fits:
            raise ValueError(
                f"analysis: expected {path} to have a sample axis, B [n, in, r] and A [n, r, out] "
                f"or a whole leaf [n, ...], got {shapes}. Add an axis to one sample's factors, "
                "factor[None]."
            )
    return formed


def _check_pair(
    function: str,
    left: _Formed,
    right: _Formed,
    *,
    same_rank: bool = False,
) -> None:
    def shape(factor: _Pair | Array) -> tuple[object, ...]:
        if not isinstance(factor, _Pair):
            return factor.shape
        (n, rows, rank), columns = factor.B.shape, factor.A.shape[2]
        return n, rows, columns, f"rank {rank}" if same_rank else "low-rank"

    if set(left) != set(right):
        raise ValueError(
            f"{function}: expected the same leaves twice, got {sorted(left)} and {sorted(right)}. "
            "Were both generated from one specification?"
        )
    for path in left:
        if shape(left[path]) != shape(right[path]):
            raise ValueError(
                f"{function}: expected {path} to fit {shape(left[path])}, got "
                f"{shape(right[path])}. Pair as many samples, generated for the same layer."
            )
