"""Analysis of per-sample updates: norms, distances, ranks, and how they vary over samples.

The functions take trees of factors, as `FactorSpec` describes and `Straw.factors` returns them,
with a sample axis `n` in front of what is per sample, and return plain dicts by path. They measure
the change `W_s - W_0` of each leaf, for every kind of update, for several on one leaf, and for
kinds of one's own.

A sample's change is not formed. It is a sum of products of small arrays (`straw_jax.operators`):
norms and inner products come from products of pairs of them, singular values from an `r x r` core.
A dense layer's `Posed` is the exception: its change is formed, for one sample after the other.

Low-rank updates (`Factors`, `InBasis`), whole leaves and mixtures need nothing else. Other kinds
need `params=`, a tree or a dict by path: the base weights, which gains and DoRA change, or
`jax.ShapeDtypeStruct` for leaves without a base, as for `modulate`. The factors of stacked layers
(axes "s" of `factor_spec`) do not show the number of layers: give `params`, or split them with
`by_layer`.

All results are for the update without the `scale` with which a layer applies it, as if it were 1.
Where a leaf has low-rank updates alone, norms are proportional to the scale, and ranks and shares
do not depend on it. For DoRA, and for several kinds on one leaf, multiply `A` by the scale first.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from straw_jax import expect
from straw_jax.changes import (
    Difference,
    Leaf,
    each_leaf,
    effective_rank,
    factors_of,
    is_lowrank,
    leaves_of,
    matrices_of,
    not_none,
    one_by_one,
    over_samples,
    paired_products,
    squares_of,
    sum_one_by_one,
    wide,
)
from straw_jax.factors import Entry, FactorSpec, FactorTree, as_updates, named_leaves
from straw_jax.kinds import Factors
from straw_jax.lowrank import formed
from straw_jax.operations import combine
from straw_jax.operators import Contraction, Kernel
from straw_jax.quantised import dequantise
from straw_jax.readings import matrix_shape


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
        A tree of factors in which `"path[0]"`, `"path[1]"`, ... replace each leaf `"path"` whose
        axes begin with "s", in C order if it is stacked along several axes. What layers have in
        common, such as the weights of a mixture, is in each. Functions that need `params` take
        `params_by_layer(spec, params)`.

    Raises:
        ValueError: if the updates do not fit the specification, or cannot be split.

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
        entry = updates[leaf.path]
        count = leaf.axes.count("s")
        if not count:
            apart[leaf.path] = entry
            continue
        split = [_split_layers(leaf.path, each, leaf.axes, leaf.shape[:count])
                 for each in as_updates(formed(entry))]  # fmt: skip
        for i, layer in enumerate(zip(*split, strict=True)):
            apart[f"{leaf.path}[{i}]"] = layer if len(layer) > 1 else layer[0]
    return apart


def params_by_layer(spec: FactorSpec, params: Any) -> dict[str, Any]:
    """Split the weights of stacked layers as `by_layer` splits their updates.

    Args:
        spec: the specification of the updates.
        params: a tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Its leaves by path, with `"path[0]"`, `"path[1]"`, ... in place of each generated leaf
        `"path"` whose axes begin with "s".

    Raises:
        ValueError: if a generated leaf is missing or has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import analysis, factor_spec
        >>> params = {"W": jnp.zeros((2, 6, 5)), "b": jnp.zeros(5)}
        >>> spec = factor_spec(params, {"W": 4}, axes={"W": "src"})
        >>> {path: leaf.shape for path, leaf in analysis.params_by_layer(spec, params).items()}
        {'b': (5,), 'W[0]': (6, 5), 'W[1]': (6, 5)}
    """
    apart = named_leaves(dequantise(params))
    like = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in spec}
    expect.fits("params_by_layer", like, apart, "Give those that the specification was made of.")
    for leaf in spec:
        if count := leaf.axes.count("s"):
            whole, shape = apart.pop(leaf.path), leaf.shape[count:]
            stacked = math.prod(leaf.shape[:count])
            if isinstance(whole, jax.ShapeDtypeStruct):
                layers: Iterable[Any] = [jax.ShapeDtypeStruct(shape, whole.dtype)] * stacked
            else:
                layers = whole.reshape(stacked, *shape)
            apart |= {f"{leaf.path}[{i}]": layer for i, layer in enumerate(layers)}
    return apart


def inner_products(left: FactorTree, right: FactorTree, *, params: Any = None) -> dict[str, Array]:
    """Compute the inner products `sum(U * V)` of paired samples' updates.

    Args:
        left: the updates `U`, a tree of factors with a sample axis.
        right: the updates `V`, of the same leaves and number of samples; ranks and kinds may
            differ.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.

    Returns:
        `[n]` by path, float32 or wider.

    Raises:
        ValueError: if a factor has no sample axis, the two do not fit together, `params` is needed
            and missing, or the update of a convolution is a pose.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.inner_products(updates, updates)["W"].shape
        (8,)
    """
    u, v = leaves_of(left, params), leaves_of(right, params)
    _check_leaves("inner_products", u, v)
    for path, leaf in u.items():
        got, want = ((each.samples, *each.shape) for each in (v[path], leaf))
        if got != want:
            raise _unpaired("inner_products", path, want, got)
    return each_leaf(_inner_products, u, v)


def squared_norms(updates: FactorTree, *, params: Any = None) -> dict[str, Array]:
    """Compute the squared Frobenius norm of each sample's update.

    Args:
        updates: a tree of factors with a sample axis.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.

    Returns:
        `[n]` by path, float32 or wider.

    Raises:
        ValueError: if a factor has no sample axis, `params` is needed and missing, or the update of
            a convolution is a pose.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.squared_norms(updates)["W"].tolist()  # 3 x 4 matrices of twos
        [48.0, 48.0, 48.0, 48.0, 48.0, 48.0, 48.0, 48.0]
    """
    return each_leaf(squares_of, leaves_of(updates, params))


def differences(left: FactorTree, right: FactorTree) -> dict[str, Entry]:
    """Return the differences `U - V` of paired samples' updates, as factors of twice the rank.

    The distance between two updates is `jnp.sqrt(squared_norms(differences(left, right))[path])`.
    It is accurate for nearly equal updates too, since `B A - D C = (B - D) A + D (A - C)`, also
    for products of more arrays.

    Args:
        left: the updates `U = B A`, a tree of factors with a sample axis.
        right: the updates `V = D C`, of the same specification and number of samples.

    Returns:
        A tree of factors, of rank `2 r` where they are low-rank. Of other kinds than low-rank and
        whole it has a `Difference`, which the functions of this module take.

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
    u, v = wide(left), wide(right)
    _check_leaves("differences", u, v)
    for path in u:
        want, got = _sizes(u[path]), _sizes(v[path])
        if want != got:
            raise _unpaired("differences", path, want, got)
    return each_leaf(_difference, u, v)


def singular_values(
    updates: FactorTree, *, params: Any = None, allow_materialise: bool = False
) -> dict[str, Array]:
    """Compute the singular values of each sample's update.

    Args:
        updates: a tree of factors with a sample axis; leaves whose change is not low-rank (whole
            ones, gains, mixtures, DoRA) are left out.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.
        allow_materialise: form these, too, one sample after the other; leaves of fewer than two
            axes are left out.

    Returns:
        `[n, min(in, r, out)]` by path, float32 or wider, the largest first; `r` is the sum of the
        ranks of a leaf's updates.

    Raises:
        ValueError: if a factor has no sample axis, `params` is needed and missing, layers are
            stacked, or the update of a convolution is a pose.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.singular_values(updates)["W"].shape
        (8, 2)
    """
    return each_leaf(_singular_values, matrices_of(updates, params, allow_materialise))


def effective_ranks(
    updates: FactorTree, *, params: Any = None, allow_materialise: bool = False
) -> dict[str, Array]:
    """Compute the effective rank of each sample's update.

    This is `exp(entropy)` of the singular values divided by their sum: `k` for `k` equal values,
    and less the more they differ.

    Args:
        updates: a tree of factors with a sample axis; leaves whose change is not low-rank (whole
            ones, gains, mixtures, DoRA) are left out.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.
        allow_materialise: form these, too, one sample after the other; leaves of fewer than two
            axes are left out.

    Returns:
        `[n]` by path, float32 or wider, from 1 to `min(in, r, out)`; 0 for an update of zero.

    Raises:
        ValueError: as for `singular_values`.

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.effective_ranks(updates)["W"].round(2).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return each_leaf(_effective_ranks, matrices_of(updates, params, allow_materialise))


def means(updates: FactorTree, *, params: Any = None) -> dict[str, Array]:
    """Compute the mean update over samples, as one dense array.

    Args:
        updates: a tree of factors with a sample axis.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.

    Returns:
        By path, of the leaf's shape, or `[in, out]` where the leaf is low-rank and its shape not
        known from `params`; float32 or wider.

    Raises:
        ValueError: as for `squared_norms`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, analysis
        >>> updates = {"W": Factors(jnp.ones((8, 3, 2)), jnp.ones((8, 2, 4)))}
        >>> analysis.means(updates)["W"].shape
        (3, 4)
    """
    return each_leaf(_mean, leaves_of(updates, params))


def variance(groups: Iterable[FactorTree], *, params: Any = None) -> dict[str, Variance]:
    """Compute the variance of updates over samples, and its share between groups of samples.

    Groups are, for example, classes. Each is used once, one after the other: to save memory, pass a
    generator that makes the factors of one group at a time. The factors of one class are
    `straw_jax.lift.take(params, factors, labels == label)`.

    Sums are in float32: a variance below about 1e-5 of the mean squared norm is rounding.

    Args:
        groups: one tree of factors for each group, with a sample axis of 1 or more.
        params: the base weights, or shapes of leaves without a base; see above for when it is
            needed.

    Returns:
        Variances by path, see `Variance`: the share as it is and corrected for chance.

    Raises:
        ValueError: if there is no group, groups differ in their leaves, a group is empty; and as
            for `squared_norms`.

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
        leaves = leaves_of(group, params)
        _check_group(count, leaves, totals)
        for path, (squares, total, square) in each_leaf(_moments, leaves).items():
            n = leaves[path].samples
            old = sums.get(path, (0, 0.0, 0.0))
            new = n, float(squares), n * float(square)
            sums[path] = old[0] + new[0], old[1] + new[1], old[2] + new[2]
            totals[path] = totals[path] + total if path in totals else total
    if not count:
        raise ValueError("variance: expected at least one group of samples, got none.")
    return {path: _variance(count, *sums[path], totals[path]) for path in sums}


def _check_group(count: int, group: "dict[str, Leaf]", before: dict[str, Array]) -> None:
    """Raise a `ValueError` unless a group has samples, and the leaves of the groups before it."""
    got = {path: leaf.shape for path, leaf in group.items()}
    want = {path: total.shape for path, total in before.items()} if count > 1 else got
    samples = [leaf.samples for leaf in group.values()]
    if got != want or 0 in samples:
        raise ValueError(
            f"variance: expected groups of one sample or more, with the same leaves {want}, got"
            f" {got} with {samples} samples. Leave empty groups out, and generate all from one"
            " specification."
        )


def _variance(groups: int, n: int, squares: float, group_squares: float, total: Array) -> Variance:
    mean_square = float(_square_of_mean(total, n))
    variance = max(squares / n - mean_square, 0.0)
    between = (group_squares / n - mean_square) / variance if variance else float("nan")
    chance = (groups - 1) / (n - 1) if n > 1 else float("nan")
    corrected = (between - chance) / (1 - chance) if n > groups else float("nan")
    return Variance(variance, mean_square**0.5, between, chance, corrected)


@jax.jit
def _square_of_mean(total: Array, n: ArrayLike) -> Array:
    return jnp.sum((total / n) ** 2)


def _inner_products(left: Leaf, right: Leaf) -> Array:
    if left.is_structured and right.is_structured:
        return paired_products(left.changes(), right.changes())
    return one_by_one(lambda left, right: jnp.sum(left * right), left, right)


def _mean(leaf: Leaf) -> Array:
    if not leaf.is_structured:
        return sum_one_by_one(leaf) / leaf.samples
    changes = leaf.changes()
    one = Kernel((Contraction(()),), (), changes.dtype, leaf.path)
    axes = tuple(range(len(leaf.shape)))
    out = jax.ShapeDtypeStruct(leaf.shape, changes.dtype)
    total = not_none(leaf.path, combine(changes, (*axes, -1), one, (), axes, out))
    mean: Array = total.materialise() / leaf.samples
    return mean


def _moments(leaf: Leaf) -> tuple[Array, Array, Array]:
    """Sum of squared norms, sum of updates, and the squared norm of their mean."""
    mean = _mean(leaf)
    return squares_of(leaf).sum(), leaf.samples * mean, jnp.sum(mean**2)


def _difference(left: Any, right: Any) -> Any:
    if isinstance(left, Factors):
        (B, A), (D, C) = ((vars(each)["B"], vars(each)["A"]) for each in (left, right))
        return Factors(
            jnp.concatenate([B - D, D], axis=-1), jnp.concatenate([A, A - C], axis=-2), left.axes
        )
    if expect.is_array(left):
        return left - right
    return Difference(as_updates(left), as_updates(right))


def _singular_values(leaf: Leaf) -> Array:
    def of_factors(change: Kernel) -> Array:
        # With B = Q R and A^T = P S, U = Q (R S^T) P^T has the singular values of R S^T.
        B, A = factors_of(change, leaf.reading)
        R, S = (jnp.linalg.qr(each, mode="r") for each in (B, A.T))
        return jnp.linalg.svd(R @ S.T, compute_uv=False)

    def of_array(change: Array) -> Array:
        matrix = change.reshape(matrix_shape(leaf.shape, leaf.reading))
        return jnp.linalg.svd(matrix, compute_uv=False)

    return over_samples(of_factors, leaf) if is_lowrank(leaf) else one_by_one(of_array, leaf)


def _effective_ranks(leaf: Leaf) -> Array:
    return effective_rank(_singular_values(leaf))


def _split_layers(path: str, update: Any, axes: str, stacked: tuple[int, ...]) -> list[Any]:
    """Return the update of each of the stacked layers."""
    whole, layer = update, update
    if hasattr(update, "axes"):
        fields: list[dict[str, Any]] = [{"axes": axes}, {"axes": axes[len(stacked) :]}]
        whole, layer = (replace(update, **each) for each in fields)
    # Sizes that no rank has: they show which axis of an array is which of the leaf's.
    sizes = tuple(10_007 + 2 * i for i in range(len(axes)))
    expected = whole.given_shapes(sizes)
    of_layer = layer.given_shapes(sizes[len(stacked) :])
    arrays = {
        name: _of_layers(path, vars(update)[name], expected[name], of_layer[name], sizes, stacked)
        for name in expected
    }
    layers = [
        replace(layer, **{name: each[i] for name, each in arrays.items()})
        for i in range(math.prod(stacked))
    ]
    return [getattr(each, "whole", each) for each in layers]


def _of_layers(
    path: str, array: Array, expected: tuple[int, ...], of_layer: tuple[int, ...],
    sizes: tuple[int, ...], stacked: tuple[int, ...],
) -> list[Array]:  # fmt: skip
    """Return an array's part for each layer, by the shapes that it has for all and for one."""
    total = math.prod(stacked)
    if expected == of_layer:
        return [array] * total
    lead, own = array.ndim - len(expected), sizes[: len(stacked)]
    for place in range(len(of_layer) + 1):
        if expected == (*of_layer[:place], *own, *of_layer[place:]):
            axis = lead + place
            rest = array.shape[axis + len(stacked) :]
            apart = jnp.moveaxis(array.reshape(*array.shape[:axis], total, *rest), axis, 0)
            return list(apart)
        if place < len(of_layer):
            joined = math.prod(own) * of_layer[place]
            if expected == (*of_layer[:place], joined, *of_layer[place + 1 :]):
                return list(jnp.split(array, total, axis=lead + place))
    raise ValueError(
        f"by_layer: expected updates of {path} with an axis for its layers, or joined with one, got"
        f" an array {array.shape}. Measure the whole leaf, with params."
    )


def _check_leaves(function: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    if set(left) != set(right):
        raise ValueError(
            f"{function}: expected the same leaves twice, got {sorted(left)} and {sorted(right)}. "
            "Were both generated from one specification?"
        )


def _unpaired(function: str, path: str, want: object, got: object) -> ValueError:
    return ValueError(
        f"{function}: expected {path} to fit {want}, got {got}. Pair as many samples, generated for"
        " the same layer."
    )


def _sizes(entry: Any) -> tuple[Any, ...]:
    """Return what the updates of a pair must have in common."""
    if isinstance(entry, Factors):
        B, A = vars(entry)["B"], vars(entry)["A"]
        if B.ndim == A.ndim == 3:
            return *B.shape[:-1], A.shape[-1], f"rank {B.shape[-1]}"
    if expect.is_array(entry):
        shape: tuple[int, ...] = entry.shape
        return shape
    return tuple(
        (type(update).__name__, *(array.shape for array in jax.tree.leaves(update)))
        for update in as_updates(entry)
    )
