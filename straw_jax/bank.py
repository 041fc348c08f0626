"""Banks of adapters: several trees of factors as one, and numbers that say which a sample has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_jax import expect
from straw_jax.factors import Entry, FactorTree, as_updates
from straw_jax.kinds import Update
from straw_jax.lowrank import Indexed, PerVector, factor_shape, form


def stack_adapters(adapters: Sequence[FactorTree]) -> dict[str, Entry]:
    """Return several adapters as one bank, for `modulate(apply)(params, bank, x, index=ids)`.

    Ranks may differ: smaller ones are filled up with zeros. A leaf that only some adapters have is
    left alone in the others.

    Args:
        adapters: trees of factors, each of one adapter, without a sample axis.

    Returns:
        A tree of factors whose arrays have an axis of adapters in front. What all adapters have in
        common, such as the bases of `SharedLowRank`, must be the same array in each, and is there
        once.

    Raises:
        ValueError: if there are none, or the updates of a leaf are of different kinds, or do not
            fit each other but for their ranks.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, modulate, stack_adapters
        >>> ones = {"W": Factors(jnp.ones((3, 1)), jnp.ones((1, 2)))}
        >>> twos = {"W": Factors(jnp.ones((3, 2)), jnp.ones((2, 2)))}
        >>> bank = stack_adapters([ones, twos])
        >>> bank["W"].B.shape
        (2, 3, 2)
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> ids = jnp.array([1, 0, -1])  # the third sample has no adapter
        >>> layer({"W": jnp.zeros((3, 2))}, bank, jnp.ones((3, 3)), index=ids).tolist()
        [[6.0, 6.0], [3.0, 3.0], [0.0, 0.0]]
    """
    if isinstance(adapters, Mapping) or not adapters:
        raise ValueError(
            "stack_adapters: expected a list of trees of factors, one of each adapter, got"
            f" {expect.describe(adapters)}. One adapter is a list, too: [factors]."
        )
    for adapter in adapters:
        expect.factors("stack_adapters", adapter)
    trees = [{path: as_updates(entry) for path, entry in each.items()} for each in adapters]
    paths = dict.fromkeys(path for tree in trees for path in tree)
    return {path: _stacked(path, [tree.get(path) for tree in trees]) for path in paths}


def _stacked(path: str, adapters: list[tuple[Update, ...] | None]) -> Entry:
    """Return the updates of one leaf, of all adapters; None for those that leave it alone."""
    given = {i: updates for i, updates in enumerate(adapters) if updates is not None}
    kinds = {i: [_kind(update) for update in updates] for i, updates in given.items()}
    first = next(iter(kinds))
    for i, kind in kinds.items():
        if kind != kinds[first]:
            raise ValueError(
                f"stack_adapters: expected {path} to have updates of the same kinds in all adapters"
                f", got {kinds[first]} in adapter {first} and {kind} in {i}. Stack adapters of one"
                " kind; a gain is one of ones, a low-rank update one of zeros."
            )
    joined = tuple(
        _joined(path, [None if updates is None else updates[place] for updates in adapters])
        for place in range(len(given[first]))
    )
    return tuple(_entry(each) for each in joined) if len(joined) > 1 else _entry(joined[0])


def _entry(update: Any) -> Any:
    return getattr(update, "whole", update)


def _kind(update: Update) -> str:
    """Return an update's type, arrays and settings, for comparisons and errors."""
    arrays = _arrays(update)
    settings = [f"{name}={value!r}" for name, value in vars(update).items()
                if name not in arrays and value]  # fmt: skip
    return f"{type(update).__name__}({', '.join([*arrays, *settings])})"


def _arrays(update: Any) -> list[str]:
    """Return the names of an update's arrays."""
    names = (field.name for field in fields(update) if not field.metadata.get("static"))
    return [name for name in names if getattr(update, name) is not None]


def _joined(path: str, updates: list[Update | None]) -> Update:
    """Return the updates of several adapters as one; None leaves a leaf alone."""
    one: Any = next(update for update in updates if update is not None)
    stacked = {}
    for name in _arrays(one):
        arrays = [None if update is None else form(getattr(update, name)) for update in updates]
        if name in one.common and _all_equal(arrays):
            stacked[name] = next(array for array in arrays if array is not None)
        else:
            rank = dict(zip(one.factors, (-1, -2), strict=False))
            stacked[name] = _stack(f"{name} of {path}", arrays, one.neutral.get(name),
                                   rank.get(name))  # fmt: skip
    return replace(one, **stacked)


def _all_equal(arrays: list[Array | None]) -> bool:
    first, *others = (array for array in arrays if array is not None)
    traced = any(isinstance(array, jax.core.Tracer) for array in (first, *others))
    return all(
        other is first or (not traced and np.array_equal(np.asarray(first), np.asarray(other)))
        for other in others
    )


def _stack(name: str, arrays: list[Array | None], neutral: Any, rank: int | None) -> Array:
    """Stack the arrays of adapters, with zeros up to the largest rank along an axis."""
    given = [array for array in arrays if array is not None]
    size = max(array.shape[rank] for array in given) if rank is not None else 0

    def padded(array: Array) -> Array:
        if rank is None:
            return array
        widths = [(0, 0)] * array.ndim
        widths[rank] = (0, size - array.shape[rank])
        return jnp.pad(array, widths)

    filled = [padded(array) for array in given]
    shapes = {array.shape for array in filled}
    if len(shapes) > 1:
        raise ValueError(
            f"stack_adapters: expected {name} to be of one shape, but for the rank, in all"
            f" adapters, got {sorted(array.shape for array in given)}. Are they adapters of one"
            " model, each without a sample axis?"
        )
    if neutral is None and len(given) < len(arrays):
        raise ValueError(
            f"stack_adapters: expected {name} in all adapters, got it in {len(given)} of"
            f" {len(arrays)}: there is no such update that changes nothing. Leave it out, or give"
            " it to each."
        )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*filled)
    shape, rest = shapes.pop(), iter(filled)
    return jnp.stack(
        [
            jnp.broadcast_to(jnp.asarray(neutral, dtype), shape)
            if array is None
            else next(rest).astype(dtype)
            for array in arrays
        ]
    )


def of_samples(
    leaves: Mapping[str, Any],
    updates: Mapping[str, tuple[Update, ...]],
    axes: Mapping[str, Any],
    index: Any,
    shape: tuple[Any, ...],
) -> tuple[dict[str, tuple[Update, ...]], dict[str, Any]]:
    """Return the updates of samples that choose among those of a bank.

    Args:
        leaves: of the parameters, by path.
        updates: of all adapters, by path.
        axes: of updates, as `in_axes` of `jax.vmap`: which arrays have the axis of adapters.
        index: `[samples]` whole numbers, or one for each vector `[samples, *vectors]`, or a pair of
            numbers and weights `[samples, terms]`.
        shape: of what the model reads, `[samples, *vectors, ...]`.

    Returns:
        Updates with factors that are `Indexed` and other arrays gathered, and their axes.

    Raises:
        ValueError: if the bank is none, or numbers or weights do not fit it.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors
        >>> from straw_jax.bank import of_samples
        >>> bank = {"W": (Factors(jnp.ones((4, 3, 2)), jnp.ones((4, 2, 5))),)}
        >>> ids, axes = jnp.array([3, 3, 0]), {"W": (Factors(0, 0),)}
        >>> updates, axes = of_samples({"W": jnp.ones((3, 5))}, bank, axes, ids, (3, 5))
        >>> updates["W"][0].B.bank.shape, updates["W"][0].B.index.shape
        ((4, 3, 2), (3,))
    """
    choice = _choose(index, shape, _count_of(axes, updates))
    made = {
        path: [
            one
            for update, own in zip(each, axes[path], strict=True)
            for one in _indexed(
                path, update, own, choice, not isinstance(leaves[path], jax.ShapeDtypeStruct)
            )
        ]
        for path, each in updates.items()
    }
    return (
        {path: tuple(update for update, _ in each) for path, each in made.items()},
        {path: tuple(own for _, own in each) for path, each in made.items()},
    )


@dataclass(frozen=True)
class _Choice:
    """Which adapter of a bank each sample has.

    Attributes:
        ids: whole numbers `[samples, terms]`, or `[samples, vectors]`.
        weights: of the terms, `[samples, terms]`; None for one term of weight 1.
        count: of adapters.
        known: whether all are known to be those of adapters.
        has_none: whether -1 is known to be among them.
        per_vector: whether each vector of a sample has a number.
    """

    ids: Array
    weights: Array | None
    count: int
    known: bool
    has_none: bool
    per_vector: bool


def _choose(index: Any, shape: tuple[Any, ...], count: int) -> _Choice:
    """Return what the argument `index` says; raise a ValueError unless it fits."""
    ids, weights = index if isinstance(index, tuple) and len(index) == 2 else (index, None)
    whole = expect.is_array(ids) and jnp.issubdtype(ids.dtype, jnp.integer)
    axes = max(len(ids.shape), 1) if whole and weights is None else 2
    fits = whole and len(ids.shape) == axes <= len(shape)
    if not fits or ids.shape[0] != shape[0] or (weights is None and ids.shape != shape[:axes]):
        samples, vectors = shape[0], list(shape[:-1]) if len(shape) > 2 else list(shape)
        raise ValueError(
            f"modulate: expected index as whole numbers [{samples}] of adapters, one a sample of x,"
            f" or one for each vector of a sample, {vectors} for x {list(shape)}, or (numbers,"
            f" weights), both [{samples}, adapters], got {expect.describe(index)}. Convert lists"
            " with jnp.asarray."
        )
    per_vector = weights is None and axes > 1
    floating = weights is None or (
        expect.is_array(weights) and jnp.issubdtype(weights.dtype, jnp.floating)
    )
    if not floating or (weights is not None and weights.shape != ids.shape):
        raise ValueError(
            f"modulate: expected the weights of a mixture as floating numbers {list(ids.shape)},"
            f" one for each number of an adapter, got {expect.describe(weights)}. Cast them."
        )
    known, has_none = False, False
    if not isinstance(ids, jax.core.Tracer):
        numbers = np.asarray(ids)
        wrong = numbers[(numbers < -1) | (numbers >= count)]
        if wrong.size:
            raise ValueError(
                f"modulate: expected index to be numbers from 0 to {count - 1}, as the bank has"
                f" {count} adapters, or -1 for none, got {wrong[0]}. Add it to the bank."
            )
        has_none = bool((numbers < 0).any())
        known = not has_none
    ids = jnp.asarray(ids)
    if per_vector:
        ids = ids.reshape(ids.shape[0], math.prod(ids.shape[1:]))
    ids = ids if ids.ndim == 2 else ids[:, None]
    return _Choice(ids, weights, count, known, has_none, per_vector)


def _count_of(axes: Any, updates: Mapping[str, tuple[Update, ...]]) -> int:
    """Return the number of adapters; raise a ValueError unless each update has as many."""
    counts: dict[str, int] = {}
    for path, each in updates.items():
        for update, own in zip(each, axes[path], strict=True):
            with_axis = _with_axis(update, own)
            if not with_axis:
                raise ValueError(
                    f"modulate: expected arrays of {path} with an axis of adapters in front, as"
                    f" index chooses among them, got {expect.describe(update)}. Make the bank with"
                    " stack_adapters."
                )
            for name in with_axis:
                counts[f"{name} of {path}"] = factor_shape(getattr(update, name))[0]
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"modulate: expected arrays with one number of adapters in front, got {counts}. Make"
            " the bank with stack_adapters."
        )
    return next(iter(counts.values()))


def _with_axis(update: Update, axes: Any) -> list[str]:
    """Return the names of an update's arrays with an axis in front."""
    return [name for name in _arrays(update) if jax.tree.leaves(getattr(axes, name))]


def _indexed(
    path: str, update: Update, axes: Any, choice: _Choice, has_base: bool
) -> list[tuple[Update, Any]]:
    """Return an update of a bank as that of samples, with its axes; of a mixture, one a term."""
    names = _with_axis(update, axes)
    factors = set(names) & set(update.factors)
    _check(path, update, names, choice, has_base)
    if choice.per_vector:
        return [_of_vectors(update, axes, names, choice, has_base)]
    if not factors and (update.mixing == "fields" or len(names) == 1):
        return [_of_samples(update, axes, names, choice, has_base)]
    weights = choice.weights
    terms = (
        replace(
            choice,
            ids=choice.ids[:, term : term + 1],
            weights=None if weights is None else weights[:, term : term + 1],
        )
        for term in range(choice.ids.shape[1])
    )
    return [_of_samples(update, axes, names, term, has_base) for term in terms]


def _check(path: str, update: Update, names: list[str], choice: _Choice, has_base: bool) -> None:
    kind = type(update).__name__
    if choice.per_vector and not update.per_vector:
        raise ValueError(
            f"modulate: expected low-rank updates, gains and whole biases where index has a number"
            f" for each vector, got {kind} for {path}. Give index one number a sample."
        )
    if choice.weights is not None and not update.mixing:
        raise ValueError(
            f"modulate: expected updates that add up for a mixture of adapters, got {kind} for"
            f" {path}, of which there is no weighted sum. Give index without weights."
        )
    if choice.has_none and not (has_base and set(names) <= set(update.neutral)):
        lacking = f"{kind}, which always changes it" if has_base else "no weights of its own"
        raise ValueError(
            f"modulate: expected an adapter for each sample, got index -1, and {path} with"
            f" {lacking}. Give these samples an adapter, or run them through the model itself."
        )


def _of_vectors(
    update: Any, axes: Any, names: list[str], choice: _Choice, has_base: bool
) -> tuple[Update, Any]:
    """Return an update of which each vector has its own, with its axes."""
    shared, sample_axis = cast("tuple[Any, Any]", (None, 0))
    ids = _marked(choice, has_base)
    made, own = {}, {}
    for name in names:
        array, neutral = jnp.asarray(form(getattr(update, name))), update.neutral.get(name, jnp.nan)
        made[name] = PerVector(array, ids, None, choice.known, neutral)
        own[name] = PerVector(shared, sample_axis, None, choice.known, neutral)
    return replace(update, **made), replace(axes, **own)


def _marked(choice: _Choice, has_base: bool) -> Array:
    """Return numbers of adapters; of leaves that are nothing else, -1 is out of range: NaN."""
    if has_base or choice.known:
        return choice.ids
    return jnp.where(choice.ids == -1, choice.count, choice.ids)


def _of_samples(
    update: Any, axes: Any, names: list[str], choice: _Choice, has_base: bool
) -> tuple[Update, Any]:
    ids, weights = _marked(choice, has_base), choice.weights
    shared, sample_axis = cast("tuple[Any, Any]", (None, 0))
    made: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name in names:
        array = jnp.asarray(form(getattr(update, name)))
        if name in update.factors:
            weight = None if weights is None else weights[:, 0]
            made[name] = Indexed(array, ids[:, 0], weight, choice.known)
            of_weight: Any = None if weight is None else 0
            own[name] = Indexed(shared, sample_axis, of_weight, choice.known)
        else:
            neutral = update.neutral.get(name, jnp.nan)
            made[name] = _gathered(array, ids, weights, neutral, choice)
            own[name] = 0
        if update.mixing == "terms":
            weights = None  # of a product, one factor has it
    return replace(update, **made), replace(axes, **own)


def _gathered(
    array: Array, ids: Array, weights: Array | None, neutral: Any, choice: _Choice
) -> Array:
    """Return the arrays of samples, or their weighted sums, taken from a neutral value."""
    count = choice.count
    found = array.at[jnp.clip(ids, 0, count - 1)].get(mode="promise_in_bounds")
    none = jnp.asarray(neutral, array.dtype)
    none = jnp.broadcast_to(none, array.shape[1:])[None, None]
    spread = [*ids.shape, *[1] * (array.ndim - 1)]
    if not choice.known:
        at = ids.reshape(spread)
        found = jnp.where((at < -1) | (at >= count), jnp.nan, found)
        found = jnp.where(at == -1, none, found)
    if weights is None:
        return found[:, 0]
    change = (found - none) * weights.reshape(spread).astype(array.dtype)
    return none[0] + change.sum(1)
