"""Measures of novelty: do generated weights do something, and something new?

`utilised_ranks` says how many directions an update uses on given data, `rotations` how far it turns
a layer's weights, `nearest` how far it is from the closest of stored updates, such as those of
training, and `error_overlap` whether two models fail on the same inputs. A copy of a stored update
has distance 0, and a model that is a copy fails where the other fails.

Updates are trees of factors with a sample axis, of any kinds, and `params` is needed for those for
which `straw_jax.analysis` needs it. As there, changes `W_s - W_0` are not formed, and the `scale`
of low-rank updates counts as 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from straw_jax import expect
from straw_jax.changes import (
    Difference,
    Leaf,
    arrays_at,
    each_leaf,
    effective_rank,
    factors_of,
    inner_products,
    is_lowrank,
    leaves_of,
    matrices_of,
    one_by_one,
    squares_of,
    widest,
)
from straw_jax.factors import FactorTree
from straw_jax.operators import Contraction, Kernel
from straw_jax.readings import matrix_shape

_CANDIDATES = 4  # stored updates whose distance is computed exactly


class Nearest(NamedTuple):
    """The nearest of stored updates, for each sample.

    Attributes:
        number: `[n]`, which of the stored updates it is; of several as near, the first.
        distance: `[n]`, `|U - V| / |U|` over all leaves: 0 for a copy, about 1 where nothing is as
            near as no update at all, and about `sqrt(2)` between random updates of equal norms; inf
            for an update of zero that is no copy.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import novelty
        >>> stored = {"bias": jnp.array([[3.0, 4.0], [0.0, 1.0]])}
        >>> number, distance = novelty.nearest({"bias": jnp.array([[3.0, 4.0]])}, stored)
        >>> number.tolist(), distance.tolist()
        ([0], [0.0])
    """

    number: Array
    distance: Array


class ErrorOverlap(NamedTuple):
    """How far two models fail on the same inputs.

    Attributes:
        shared: inputs on which both fail, over those on which one or both do (Jaccard's index): 1
            for a copy. NaN where neither fails.
        consistency: agreement beyond chance in what fails and what does not (Cohen's kappa): 1 for
            a copy, 0 on average for independent errors. NaN where both always fail, or never.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import novelty
        >>> one, other = jnp.array([True, True, False, False]), jnp.array([True, False] * 2)
        >>> shared, consistency = novelty.error_overlap(one, other)
        >>> round(float(shared), 3), float(consistency)
        (0.333, 0.0)
    """

    shared: Array
    consistency: Array


def utilised_ranks(
    updates: FactorTree,
    inputs: Mapping[str, Array],
    *,
    params: Any = None,
    allow_materialise: bool = False,
) -> dict[str, Array]:
    """Compute the effective rank of what each sample's update adds to a layer's outputs.

    This is the effective rank (`analysis.effective_ranks`) of `x @ (W_s - W_0)` for inputs `x` of
    the layer: the number of directions that the update uses on these data. Data of few directions
    use few of an update's.

    Args:
        updates: a tree of factors with a sample axis.
        inputs: what layers read, by path, for the leaves to be measured: `[n, points, in]`, one set
            for each sample, or `[points, in]`, one for all; `in` are the rows of the leaf read as a
            matrix. Those of a convolution are patches, `straw_jax.lowrank.patches`.
        params: the base weights, or shapes of leaves without a base, as in `straw_jax.analysis`.
        allow_materialise: form changes that are not low-rank, one sample after the other.

    Returns:
        `[n]` by path, float32 or wider, from 1 to `min(points, r, out)`; 0 where nothing is added.

    Raises:
        ValueError: if inputs do not fit, are of a leaf without an update, or of one whose change is
            not low-rank and must not be formed; and as for `analysis.singular_values`.

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (2007).

    Example:
        An update of rank 2, and data that have one direction:

        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, novelty
        >>> updates = {"W": Factors(jnp.eye(3, 2)[None], jnp.eye(2, 4)[None])}
        >>> found = [novelty.utilised_ranks(updates, {"W": x})["W"]
        ...          for x in (jnp.eye(3), jnp.ones((5, 3)))]
        >>> [round(float(each[0]), 2) for each in found]
        [2.0, 1.0]
    """
    if not isinstance(inputs, Mapping):
        raise ValueError(
            "utilised_ranks: expected inputs of layers by path, {'path': x}, got"
            f" {expect.describe(inputs)}."
        )
    expect.factors("utilised_ranks", updates)
    if unknown := sorted(set(inputs) - set(updates)):
        raise ValueError(
            f"utilised_ranks: expected inputs of layers with updates, {sorted(updates)}, got also"
            f" those of {unknown}. Leave them out."
        )
    asked = {path: updates[path] for path in inputs}
    leaves = matrices_of(asked, params, allow_materialise)
    if left_out := sorted(set(asked) - set(leaves)):
        raise ValueError(
            f"utilised_ranks: expected low-rank changes of matrices, got others of {left_out}."
            " Leave them out, or give allow_materialise=True for matrices."
        )
    for path, leaf in leaves.items():
        _check_inputs(path, leaf, inputs[path])
    return each_leaf(_utilised_ranks, leaves, inputs)


def rotations(params: Any, updates: FactorTree) -> dict[str, Array]:
    """Compute how far each sample's update turns the weights of each leaf.

    This is the cosine distance `1 - cos(W_0, W_s)` of the weights as one vector: 0 for weights that
    are only scaled, 1 for orthogonal ones. Its differences from 0 are accurate, however small.

    Args:
        params: the base weights `W_0`, a tree or a dict by path.
        updates: a tree of factors with a sample axis.

    Returns:
        `[n]` by path, float32 or wider, from 0 to 2; NaN where `W_0` or `W_s` is 0.

    Raises:
        ValueError: if updates do not fit the weights, or a leaf has a shape only.

    References:
        Carbonnelle and De Vleeschouwer, "Layer rotation: a surprisingly powerful indicator of
        generalization in deep networks?" (2018).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import novelty
        >>> params = {"bias": jnp.array([1.0, 0.0])}
        >>> updates = {"bias": jnp.array([[1.0, 0.0], [-1.0, 1.0], [-2.0, 0.0]])}
        >>> novelty.rotations(params, updates)["bias"].tolist()
        [0.0, 1.0, 2.0]
    """
    leaves = leaves_of(updates, params)
    if without := [path for path, leaf in leaves.items() if leaf.base is None]:
        raise ValueError(
            f"rotations: expected params with the weights of {without}, got shapes only. Leave"
            " these leaves out: without a base there is nothing to turn."
        )
    return each_leaf(_rotations, leaves)


def nearest(
    updates: FactorTree,
    stored: FactorTree,
    *,
    params: Any = None,
    chunk: int = 256,
    leave_one_out: bool = False,
) -> Nearest:
    """Find the nearest of stored updates for each sample's update, and its distance.

    Inner products of all pairs choose a few candidates; of these distances are computed array by
    array, so that those of copies are exactly 0. How near training updates are to each other,
    `nearest(stored, stored, leave_one_out=True)`, says what is near.

    Args:
        updates: the updates `U`, a tree of factors with a sample axis `n`.
        stored: the updates `V`, of the same leaves, with a sample axis of any length.
        params: the base weights, or shapes of leaves without a base, as in `straw_jax.analysis`.
        chunk: number of stored updates that are compared at once, with `n * chunk * r * r` numbers
            for low-rank ones.
        leave_one_out: do not compare an update with the stored one of the same number.

    Returns:
        Numbers and relative distances, see `Nearest`.

    Raises:
        ValueError: if the two do not fit together, there is nothing to compare with, or for updates
            that `analysis.squared_norms` refuses.

    References:
        Zeng et al., "Generative Modeling of Weights: Generalization or Memorization?" (2025), whose
        distance is over weights, not updates.

    Example:
        The second update is a copy, of another number.

        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import factor_spec, novelty
        >>> spec = factor_spec({"W": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}, 2)
        >>> numbers = jax.random.normal(jax.random.key(0), (12, spec.size))
        >>> stored, new = spec.unpack(numbers[:10]), numbers[10:].at[1].set(numbers[7])
        >>> number, distance = novelty.nearest(spec.unpack(new), stored)
        >>> int(number[1]), float(distance[1]), bool(distance[0] > 0.5)
        (7, 0.0, True)
    """
    where = "nearest"
    expect.positive(where, chunk=chunk)
    u, v = leaves_of(updates, params), leaves_of(stored, params)
    _check_pair(u, v, leave_one_out)
    pairs = [(u[path], v[path]) for path in u]
    return Nearest(*_nearest(pairs, min(chunk, pairs[0][1].samples), leave_one_out))


def error_overlap(errors: Array, others: Array) -> ErrorOverlap:
    """Compute how far two models fail on the same inputs.

    Args:
        errors: `[..., inputs]`, booleans: whether a model's prediction is wrong.
        others: those of another model for the same inputs. Leading axes are broadcast: `[inputs]`
            and `[k, inputs]` compare one model with k.

    Returns:
        Two measures, `[...]` each, see `ErrorOverlap`; the first one's maximum over stored models
        is the paper's similarity.

    Raises:
        ValueError: if the arrays are not boolean, or not of the same inputs.

    References:
        Zeng et al., "Generative Modeling of Weights: Generalization or Memorization?" (2025), for
        the share; Geirhos et al., "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs
        and humans by measuring error consistency" (2020), for the consistency.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import novelty
        >>> errors = jnp.array([True, False, False, True])
        >>> stored = jnp.stack([errors, ~errors])
        >>> novelty.error_overlap(errors, stored).shared.tolist()
        [1.0, 0.0]
    """
    _check_errors(errors, others)
    shape = np.broadcast_shapes(errors.shape, others.shape)
    one, other = (jnp.broadcast_to(jnp.asarray(each), shape) for each in (errors, others))

    def share(of: Array) -> Array:
        return jnp.mean(of, axis=-1, dtype=jnp.float32)

    shared = share(one & other) / share(one | other)
    right = (1 - share(one)) * (1 - share(other))
    expected = share(one) * share(other) + right
    return ErrorOverlap(shared, (share(one == other) - expected) / (1 - expected))


def _utilised_ranks(leaf: Leaf, x: Array) -> Array:
    dtype = widest([leaf.structure, jnp.zeros((), jnp.float32)])
    x = jnp.asarray(x, dtype)
    own = x.ndim == 3

    def of_factors(x: Array, *arrays: Array) -> Array:
        # With x B = Q R and A^T = P S, x B A = Q (R S^T) P^T has the singular values of R S^T.
        B, A = (each.astype(dtype) for each in factors_of(leaf.change(arrays), leaf.reading))
        R, S = (jnp.linalg.qr(each, mode="r") for each in (x @ B, A.T))
        return jnp.linalg.svd(R @ S.T, compute_uv=False)

    def of_array(index: Array) -> Array:
        change = leaf.formed(arrays_at(leaf, index)).astype(dtype)
        matrix = change.reshape(matrix_shape(leaf.shape, leaf.reading))
        return jnp.linalg.svd((x[index] if own else x) @ matrix, compute_uv=False)

    if is_lowrank(leaf):
        values = jax.vmap(of_factors, in_axes=(0 if own else None, *leaf.axes))(x, *leaf.arrays)
    else:
        values = lax.map(of_array, jnp.arange(leaf.samples))
    return effective_rank(values)


def _rotations(leaf: Leaf) -> Array:
    assert leaf.base is not None
    base = leaf.base
    if leaf.is_structured:
        kernel = Kernel((Contraction.of(base),), base.shape, base.dtype, leaf.path)
        changes = leaf.changes()
        along = inner_products(changes, kernel, ((0,), ()), (leaf.samples,))
    else:
        along = one_by_one(lambda change: jnp.sum(change * base), leaf)
    square = jnp.sum(base.astype(along.dtype) ** 2)
    changed = squares_of(leaf).astype(along.dtype)
    product = square + along  # of W_0 and W_s
    squares = square * (square + 2 * along + changed)
    cosine = product / jnp.sqrt(squares)
    # The square of the sine, times |W_0|^2 |W_s|^2, has no difference of large numbers.
    sine = jnp.maximum(square * changed - along**2, 0) / squares
    return jnp.where(cosine > 0, sine / (1 + cosine), 1 - jnp.maximum(cosine, -1))


@partial(jax.jit, static_argnums=(1, 2))
def _nearest(pairs: list[tuple[Leaf, Leaf]], chunk: int, leave_one_out: bool) -> Any:
    with jax.default_matmul_precision("highest"):
        n, m = (leaf.samples for leaf in pairs[0])
        # Less |U|^2, which is the same for all: a difference of large numbers for near ones.
        squares = _total(squares_of(v) for _, v in pairs)
        gaps = jnp.broadcast_to(squares, (n, m)) - 2 * _total(_products(*each, chunk)
                                                              for each in pairs)  # fmt: skip
        if leave_one_out:
            gaps = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, gaps)
        _, chosen = lax.top_k(-gaps, min(_CANDIDATES, m - leave_one_out))
        chosen = jnp.sort(chosen, axis=-1).T  # [candidates, n]
        found = lax.map(
            lambda numbers: _total(_distances(*each, numbers) for each in pairs), chosen
        )
        best = jnp.argmin(found, axis=0)[None]
        number, square = (jnp.take_along_axis(each, best, axis=0)[0] for each in (chosen, found))
        norms = jnp.sqrt(_total(squares_of(u) for u, _ in pairs))
        return number, jnp.where(square > 0, jnp.sqrt(square) / norms, 0)


def _total(arrays: Any) -> Array:
    """Return the sum over leaves, whose dtypes may differ."""
    arrays = list(arrays)
    dtype = widest(arrays)
    return reduce(jnp.add, (array.astype(dtype) for array in arrays))


def _products(left: Leaf, right: Leaf, chunk: int) -> Array:
    """Return inner products of all pairs of changes, `[n, m]`, for some stored ones at a time."""
    n, m = left.samples, right.samples
    numbers = jnp.minimum(jnp.arange(-(-m // chunk) * chunk), m - 1).reshape(-1, chunk)

    def of_chunk(numbers: Array) -> Array:
        some = _some(right, numbers)
        if left.is_structured and right.is_structured:
            return inner_products(left.changes(), some.changes(), ((0,), (1,)), (n, chunk))

        def with_one(number: Array) -> Array:
            other = some.formed(arrays_at(some, number))
            return one_by_one(lambda change: jnp.sum(change * other), left)

        return lax.map(with_one, jnp.arange(chunk)).T

    by_chunk = lax.map(of_chunk, numbers)  # [chunks, n, chunk]
    return jnp.moveaxis(by_chunk, 0, 1).reshape(n, -1)[:, :m]


def _distances(left: Leaf, right: Leaf, numbers: Array) -> Array:
    """Return squared distances of changes `[n]` from the stored ones of these numbers."""
    other = _some(right, numbers)
    difference = Difference(left.updates, other.updates)
    return squares_of(replace(left, updates=(difference,), axes=(*left.axes, *other.axes)))


def _some(leaf: Leaf, numbers: Array) -> Leaf:
    """Return the updates of some samples."""
    chosen = arrays_at(leaf, numbers)
    return replace(leaf, updates=jax.tree.unflatten(jax.tree.structure(leaf.updates), chosen))


def _check_inputs(path: str, leaf: Leaf, x: Any) -> None:
    rows = matrix_shape(leaf.shape, leaf.reading)[0]
    real = expect.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
    shape: tuple[int, ...] = x.shape if real else ()
    fits = len(shape) in (2, 3) and shape[-1] == rows and 0 not in shape
    if not fits or shape[:-2] not in ((), (leaf.samples,)):
        raise ValueError(
            f"utilised_ranks: expected inputs of {path} to be floating-point numbers [points,"
            f" {rows}] or [{leaf.samples}, points, {rows}], got {expect.describe(x)}. Join further"
            " axes with reshape."
        )


def _check_pair(u: dict[str, Leaf], v: dict[str, Leaf], leave_one_out: bool) -> None:
    shapes = [{path: leaf.shape for path, leaf in leaves.items()} for leaves in (u, v)]
    counts = [sorted({leaf.samples for leaf in leaves.values()}) for leaves in (u, v)]
    if shapes[0] != shapes[1] or any(len(each) != 1 for each in counts):
        raise ValueError(
            f"nearest: expected updates of the same leaves twice, each with one number of samples,"
            f" got {shapes[0]} of {counts[0]} samples and {shapes[1]} of {counts[1]}. Were both"
            " generated from one specification?"
        )
    (n,), (m,) = counts
    if m < 1 + leave_one_out or n < 1 or (leave_one_out and n != m):
        same = ", and the same number of updates" if leave_one_out else ""
        raise ValueError(
            f"nearest: expected at least one stored update to compare with{same}, got {n} updates"
            f" and {m} stored ones."
        )


def _check_errors(errors: Any, others: Any) -> None:
    boolean = all(expect.is_array(each) and each.dtype == bool for each in (errors, others))
    shapes: list[tuple[int, ...]] = [each.shape if boolean else () for each in (errors, others)]
    fits = boolean and all(shapes) and shapes[0][-1] == shapes[1][-1] and 0 not in shapes[0]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            "error_overlap: expected two boolean arrays [..., inputs] for the same inputs, got"
            f" {expect.describe(errors)} and {expect.describe(others)}. Compare predictions with"
            " labels first: predictions != labels."
        )
