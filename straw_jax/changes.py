"""What updates change of a leaf, `W_s - W_0`, as structured kernels: what `analysis` measures."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core
from jax.typing import ArrayLike

from straw_jax import expect
from straw_jax.factors import Entry, FactorTree, as_updates, named_leaves
from straw_jax.kinds import Factors, InBasis, Mixed, Posed, Update
from straw_jax.kinds.whole import WholeLeaf
from straw_jax.lowrank import formed
from straw_jax.operations import combine
from straw_jax.operators import Contraction, Kernel, Term
from straw_jax.parts import Axes, Part
from straw_jax.quantised import dequantise
from straw_jax.readings import matrix_axes, read_as

_static: Any = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Difference(Update):
    """The update `U - V` of one leaf, for the functions of `straw_jax.analysis`.

    Attributes:
        left: the updates that make `U`, in their order.
        right: those that make `V`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import analysis
        >>> from straw_jax.kinds import Gains
        >>> left, right = ({"W": Gains(outputs=gain * jnp.ones((1, 4)))} for gain in (2.0, 5.0))
        >>> difference = analysis.differences(left, right)
        >>> analysis.squared_norms(difference, params={"W": jnp.ones((3, 4))})["W"].tolist()
        [108.0]
    """

    left: tuple[Update, ...]
    right: tuple[Update, ...]

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Raise: weights are not made of differences."""
        raise ValueError(
            "Difference: expected a function of straw_jax.analysis, got one that makes weights."
            " Give it an update."
        )

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        """Return a kernel with the difference of what both make of it."""
        left, right = (_applied(kernel, each, scale) for each in (self.left, self.right))
        return kernel.plus(*_minus(left, right).terms)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Leaf:
    """The updates of one leaf.

    Attributes:
        updates: in their order; of formed arrays, float32 or wider.
        base: the leaf's own weights, or None.
        axes: of each array of the updates, 0 or, if all samples share it, None.
        shape: of the leaf.
        reading: how it is read as a matrix.
        path: its name.
    """

    updates: tuple[Update, ...]
    base: Array | None
    axes: tuple[int | None, ...] = field(metadata=_static)
    shape: tuple[int, ...] = field(metadata=_static)
    reading: str = field(metadata=_static)
    path: str = field(metadata=_static)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the updates."""
        return tuple(jax.tree.leaves(self.updates))

    @property
    def samples(self) -> int:
        """The number of samples."""
        pairs = zip(self.arrays, self.axes, strict=True)
        return next(array.shape[0] for array, axis in pairs if axis == 0)

    @property
    def structure(self) -> Kernel:
        """The change of one sample, of shapes only."""
        return jax.eval_shape(self.change, self._of_one_sample())

    @property
    def is_structured(self) -> bool:
        """Whether the change is a sum of products, which need not be formed."""
        return all(isinstance(term, Contraction) for term in self.structure.terms)

    def changes(self) -> Kernel:
        """Return the changes of all samples, `[*shape, n]`, if they are structured."""
        jaxpr, like = jax.make_jaxpr(self.change, return_shape=True)(self._of_one_sample())
        own = [axis == 0 for axis in self.axes]
        out_axes = [0 if each else None for each in _dependent(jaxpr.jaxpr, own)]

        def values(*arrays: Array) -> list[Array]:
            return jax.tree.leaves(self.change(arrays))

        results = jax.vmap(values, in_axes=self.axes, out_axes=out_axes)(*self.arrays)
        each_result = zip(results, out_axes, strict=True)
        shape = *self.shape, self.samples

        def stacked(part: Part) -> Part:
            value, axis = next(each_result)
            if axis is None:
                return replace(part, value=value)
            return Part(value, (len(self.shape), *part.axes), (shape[-1], *part.shape))

        changes: Kernel = like.each_part(stacked, shape)
        return changes

    def _of_one_sample(self) -> list[jax.ShapeDtypeStruct]:
        return [
            jax.ShapeDtypeStruct(array.shape if axis is None else array.shape[1:], array.dtype)
            for array, axis in zip(self.arrays, self.axes, strict=True)
        ]

    def change(self, arrays: Sequence[Array]) -> Kernel:
        """Return `W_s - W_0` of the sample whose updates have these arrays."""
        updates = jax.tree.unflatten(jax.tree.structure(self.updates), arrays)
        dtype = widest(arrays if self.base is None else [*arrays, self.base])
        start = Kernel((), self.shape, dtype, self.path)
        # A second part keeps the base apart from whole updates, which would be added to it.
        mark = Part(jnp.ones((), dtype), (), ())
        if self.base is not None:
            term = Contraction.of(self.base.astype(dtype))
            start = replace(start, terms=(replace(term, parts=(*term.parts, mark)),))
        change = _minus(_applied(start, updates, 1.0), start)

        def unmarked(term: Term) -> Term:
            if not isinstance(term, Contraction):
                return term
            return replace(term, parts=tuple(part for part in term.parts if part is not mark))

        return replace(change, terms=()).plus(*map(unmarked, change.terms))

    def formed(self, arrays: Sequence[Array]) -> Array:
        """Return the same change as an array."""
        return self.change(arrays).materialise()


def over_samples(function: Callable[..., Any], leaf: Leaf) -> Any:
    """Apply a function to each sample's change: results have a sample axis in front."""

    def of_sample(*arrays: Array) -> Any:
        return function(leaf.change(arrays))

    return jax.vmap(of_sample, in_axes=leaf.axes)(*leaf.arrays)


def one_by_one(function: Callable[..., Any], *leaves: Leaf) -> Any:
    """Apply a function to each sample's changes of some leaves, formed one sample after another."""
    return lax.map(
        lambda index: function(*(leaf.formed(arrays_at(leaf, index)) for leaf in leaves)),
        jnp.arange(leaves[0].samples),
    )


def sum_one_by_one(leaf: Leaf) -> Array:
    """Return the sum of a leaf's changes, formed one sample after another."""

    def add(total: Array, index: Array) -> tuple[Array, None]:
        return total + leaf.formed(arrays_at(leaf, index)), None

    zero = jnp.zeros(leaf.shape, leaf.structure.dtype)
    return lax.scan(add, zero, jnp.arange(leaf.samples))[0]


def _dependent(jaxpr: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Return which results of a program depend on some of its inputs."""
    found = {var for var, each in zip(jaxpr.invars, inputs, strict=True) if each}
    for equation in jaxpr.eqns:
        if any(not isinstance(var, core.Literal) and var in found for var in equation.invars):
            found |= set(equation.outvars)
    return [not isinstance(var, core.Literal) and var in found for var in jaxpr.outvars]


def arrays_at(leaf: Leaf, index: Array) -> list[Array]:
    """Return the arrays of one sample's updates, or of some samples'."""
    return [
        array if axis is None else array[index]
        for array, axis in zip(leaf.arrays, leaf.axes, strict=True)
    ]


def widest(arrays: Iterable[Any]) -> Any:
    """Return the widest floating dtype of arrays or kernels."""
    return max((array.dtype for array in arrays), key=lambda dtype: jnp.finfo(dtype).bits)


def not_none(path: str, result: Any) -> Any:
    """Return a result; raise a ValueError if there is none."""
    if result is None:
        raise ValueError(
            f"analysis: expected an update of {path} that has a dense form, got one that has none,"
            " and thus no norm. Leave this leaf out."
        )
    return result


# Measures that several functions need.


def each_leaf(function: Callable[..., Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a function to every leaf of trees by path: one program, not one for each operation."""
    leaves = [tuple(tree[path] for path in trees[0]) for tree in trees]
    return dict(zip(trees[0], _program(function, *leaves), strict=True))


@partial(jax.jit, static_argnums=0, inline=True)
def _program(function: Callable[..., Any], *leaves: tuple[Any, ...]) -> list[Any]:
    # A GPU would round float32 numbers before it multiplies them.
    with jax.default_matmul_precision("highest"):
        return [function(*each) for each in zip(*leaves, strict=True)]


def inner_products(left: Kernel, right: Kernel, axes: tuple[Axes, Axes], out: Axes) -> Array:
    """Return inner products of changes.

    Args:
        left: changes, `[*shape]`, or with a sample axis behind these.
        right: changes of the same leaf.
        axes: names of the sample axes of both, 0, 1, ....
        out: shape of the result, whose axes are 0, 1, ....
    """
    dtype = widest([left, right])
    summed = range(len(axes[0]) - left.ndim, 0)
    like = jax.ShapeDtypeStruct(out, dtype)
    product = combine(
        left.astype(dtype), (*summed, *axes[0]), right.astype(dtype), (*summed, *axes[1]),
        tuple(range(len(out))), like,
    )  # fmt: skip
    result: Array = not_none(left.path, product).materialise()
    return result


def paired_products(left: Kernel, right: Kernel) -> Array:
    """Return the inner products of two leaves' changes `[..., n]`, sample by sample."""
    return inner_products(left, right, ((0,), (0,)), left.shape[-1:])


def squares_of(leaf: Leaf) -> Array:
    """Return the squared norm of each sample's change."""
    if not leaf.is_structured:
        return one_by_one(lambda change: jnp.sum(change**2), leaf)
    changes = leaf.changes()
    terms = [replace(changes, terms=(term,)) for term in changes.terms]
    pairs = itertools.combinations_with_replacement(terms, 2)
    products = [paired_products(one, other) * (1 if one is other else 2) for one, other in pairs]
    # The product of two Gram matrices may round to slightly below zero.
    return jnp.maximum(reduce(jnp.add, products, jnp.zeros(leaf.samples, changes.dtype)), 0)


def effective_rank(values: Array) -> Array:
    """Return the effective ranks of matrices with singular values `[..., k]`, 0 for zeros."""
    total = values.sum(axis=-1, keepdims=True)
    shares = values / jnp.where(total > 0, total, 1)
    entropy = jax.scipy.special.entr(shares).sum(axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


# Differences.


def _applied(kernel: Kernel, updates: Iterable[Update], scale: ArrayLike) -> Kernel:
    for update in updates:
        kernel = update.change(kernel, scale)
    return kernel


def _minus(left: Kernel, right: Kernel) -> Kernel:
    """Return the difference of two kernels.

    Terms of the same arrangement are subtracted array by array, which is accurate where they are
    nearly equal: `a b - c d = (a - c) b + c (b - d)`.
    """
    others = list(right.terms)
    terms: list[Term] = []
    for term in left.terms:
        alike = [other for other in others if _alike(term, other)]
        if not alike:
            terms.append(term)
            continue
        other = max(alike, key=lambda other: _in_common(term, other))
        others = [each for each in others if each is not other]
        terms += _term_differences(term, other)
    terms += [_negative(other, right) for other in others]
    return replace(left, terms=tuple(terms))


def _alike(left: Term, right: Term) -> bool:
    """Whether the parts of a term begin like those of another, and the rest multiplies these."""
    if not isinstance(left, Contraction) or not isinstance(right, Contraction):
        return False
    pairs = zip(left.parts, right.parts, strict=False)
    rest = {axis for part in left.parts[len(right.parts) :] for axis in part.axes if axis < 0}
    return (
        len(left.parts) >= len(right.parts)
        and all((one.axes, one.shape) == (other.axes, other.shape) for one, other in pairs)
        and rest <= right.axes()
    )


def _in_common(left: Any, right: Any) -> int:
    return sum(one is other for one, other in zip(left.parts, right.parts, strict=False))


def _term_differences(left: Any, right: Any) -> list[Contraction]:
    """Return terms whose sum is the difference of two that are alike; a missing part is 1."""
    terms = []
    if left.scale != right.scale:
        terms.append(replace(right, scale=left.scale - right.scale))
    for i, part in enumerate(left.parts):
        other = right.parts[i] if i < len(right.parts) else None
        if part is not other:
            change = part.array - (other.array if other else jnp.ones((), part.array.dtype))
            parts = (*right.parts[:i], replace(part, value=change), *left.parts[i + 1 :])
            terms.append(replace(left, parts=parts))
    return terms


def _negative(term: Term, kernel: Kernel) -> Term:
    """Return a term times -1; of one array as an array, which others are added to."""
    if isinstance(term, Contraction) and term.parts:
        first, *rest = term.parts
        if first.axes == tuple(range(kernel.ndim)) and not any(part.axes for part in rest):
            return Contraction.of(-term.materialise(kernel.shape))
    negative: Term = not_none(kernel.path, term.scaled(-1.0))
    return negative


# Low-rank changes.


def is_lowrank(leaf: Leaf) -> bool:
    """Whether each term of a leaf's change is a product of rows and columns."""
    terms = leaf.structure.terms
    return bool(terms) and all(_halves(term, leaf.reading) for term in terms)


def factors_of(change: Kernel, reading: str) -> tuple[Array, Array]:
    """Return `B [in, r]` and `A [r, out]` of a low-rank change."""
    rows, columns = matrix_axes(reading)
    Bs, As = [], []
    for term in change.terms:
        left, right = _halves(term, reading) or ((), ())
        inner = [{axis for part in half for axis in part.axes if axis < 0}
                 for half in (left, right)]  # fmt: skip
        between = tuple(sorted(inner[0] & inner[1]))
        B = _half(left, (*rows, *between), change)
        A = _half(right, (*between, *columns), change)
        rank = math.prod(B.shape[len(rows) :])
        Bs.append(B.reshape(-1, rank))
        As.append(A.reshape(rank, -1) * jnp.asarray(getattr(term, "scale", 1.0), A.dtype))
    return jnp.concatenate(Bs, axis=1), jnp.concatenate(As, axis=0)


def _halves(term: Term, reading: str) -> tuple[tuple[Part, ...], tuple[Part, ...]] | None:
    """Return the parts with rows of a matrix and the others; None if one has rows and columns."""
    if not isinstance(term, Contraction):
        return None
    rows, columns = map(set, matrix_axes(reading))
    left = tuple(part for part in term.parts if rows & set(part.axes))
    right = tuple(part for part in term.parts if not rows & set(part.axes))
    return None if any(columns & set(part.axes) for part in left) else (left, right)


def _half(parts: tuple[Part, ...], axes: tuple[int, ...], change: Kernel) -> Array:
    """Return the product of some parts with these axes, constant along those that none has."""
    sizes = dict(enumerate(change.shape))
    for part in parts:
        sizes |= dict(zip(part.axes, part.shape, strict=True))
    names = {axis: place for place, axis in enumerate(axes)}
    parts = parts or (Part(jnp.ones((), change.dtype), (), ()),)
    product = Contraction(tuple(part.renamed(names) for part in parts))
    return product.materialise(tuple(sizes[axis] for axis in axes))


# From trees of factors to leaves.


def leaves_of(updates: FactorTree, params: Any) -> dict[str, Leaf]:
    """Return the leaves of a tree of factors.

    Args:
        updates: a tree of factors with a sample axis.
        params: the base weights, or None.

    Returns:
        Leaves by path.

    Raises:
        ValueError: if updates do not fit `params`, have no sample axis, or need `params`.
    """
    bases = None if params is None else named_leaves(dequantise(params))
    return {path: _leaf(path, entry, bases) for path, entry in wide(updates).items()}


def matrices_of(updates: FactorTree, params: Any, allow_materialise: bool) -> dict[str, Leaf]:
    """Return the leaves whose changes are matrices: low-rank ones, or all."""
    leaves = leaves_of(updates, params)
    if stacked := [path for path, leaf in leaves.items() if "s" in leaf.reading]:
        raise ValueError(
            f"analysis: expected matrices, got {stacked}, each of stacked layers. Split their"
            " updates with by_layer."
        )
    return {
        path: leaf
        for path, leaf in leaves.items()
        if len(leaf.shape) > 1 and (allow_materialise or is_lowrank(leaf))
    }


def wide(updates: FactorTree) -> dict[str, Entry]:
    """Return a tree of factors with all arrays formed, and of float32 or wider."""
    expect.factors("analysis", updates)
    for path, factor in updates.items():
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(factor)):
            raise ValueError(
                f"analysis: expected the factors of {path} to be arrays of floating-point numbers,"
                f" got {expect.describe(factor)}. Convert them with jnp.asarray(factor, float)."
            )
    return {path: jax.tree.map(_float, formed(entry)) for path, entry in updates.items()}


def _float(array: Array) -> Array:
    is_wide = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32
    return array if is_wide else array.astype(jnp.float32)


def _leaf(path: str, entry: Entry, bases: Mapping[str, Any] | None) -> Leaf:
    updates = as_updates(entry)
    _check_kinds(path, updates, bases)
    base = None
    if bases is None:
        shape, updates = _own_shape(path, updates)
    else:
        shape = tuple(bases[path].shape)
        base = None if isinstance(bases[path], jax.ShapeDtypeStruct) else _float(bases[path])
    shared = jax.tree.leaves(tuple(_marked(path, update, shape) for update in updates))
    arrays = jax.tree.leaves(updates)
    counts = {array.shape[0] for array, each in zip(arrays, shared, strict=True) if not each}
    if len(counts) != 1:
        raise _misfit(path, updates, shape)
    axes = tuple(None if each else 0 for each in shared)
    return Leaf(updates, base, axes, shape, _reading(updates, shape), path)


_ADDED = Factors, InBasis, Mixed, WholeLeaf
"""Updates that change any base alike, and whose arrays say the leaf's shape, or its matrix's."""


def _check_kinds(path: str, updates: Sequence[Update], bases: Mapping[str, Any] | None) -> None:
    single = list(_single(updates))
    if any(isinstance(update, Posed) and update.grid is None for update in single):
        raise ValueError(
            f"analysis: expected an update that is added to {path}, got a pose, which has no "
            "norm. Leave posed leaves out."
        )
    others = sorted({type(each).__name__ for each in single if type(each) not in _ADDED})
    if bases is None and others:
        raise ValueError(
            f"analysis: expected params=, with the weights of {path} that {', '.join(others)}"
            " changes, got none. Give the base weights, or their shapes where there is no base."
        )
    if bases is None:
        return
    if not expect.is_array(bases.get(path)):
        raise ValueError(
            f"analysis: expected params with weights of {path}, got those of {sorted(bases)}. Of"
            " stacked layers, split them with params_by_layer."
        )
    if isinstance(bases[path], jax.ShapeDtypeStruct) and not any(
        update.stands_alone for update in single
    ):
        raise ValueError(
            f"analysis: expected params with the weights of {path} that {', '.join(others)}"
            " changes, got a shape only. Give the base weights."
        )


def _single(updates: Iterable[Update]) -> Iterator[Update]:
    """Yield updates, and those of which differences are made."""
    for update in updates:
        if isinstance(update, Difference):
            yield from _single((*update.left, *update.right))
        else:
            yield update


def _in_each(function: Callable[[Any], Any], update: Update) -> Any:
    """Apply a function to an update, or to those of which a difference is made."""
    if not isinstance(update, Difference):
        return function(update)
    left, right = (
        tuple(_in_each(function, each) for each in side) for side in (update.left, update.right)
    )
    return Difference(left, right)


def _own_shape(
    path: str, updates: tuple[Update, ...]
) -> tuple[tuple[int, ...], tuple[Update, ...]]:
    """Return a leaf's shape as its updates have it; of low-rank ones alone, as one matrix."""
    single = list(_single(updates))
    for update in single:
        if isinstance(update, WholeLeaf | Mixed):
            whole: Any = update.whole if isinstance(update, WholeLeaf) else update.templates
            return whole.shape[1:], updates
    if any("s" in getattr(update, "axes", "") for update in single):
        raise ValueError(
            f"analysis: expected the updates of {path} layer by layer, got those of stacked layers,"
            " which do not show how many. Split them with by_layer, or give params=."
        )
    first: Any = single[0]
    names = ("B", "A") if isinstance(first, Factors) else ("U", "V")
    B, A = (vars(first)[name] for name in names)
    matrices: Any = [_in_each(lambda each: replace(each, axes="rc"), each) for each in updates]
    return (*B.shape[-2:-1], *A.shape[-1:]), tuple(matrices)


def _marked(path: str, update: Update, shape: tuple[int, ...]) -> Any:
    """Return an update with, in place of each array, whether all samples share it."""

    def marked(update: Any) -> Any:
        shared = {}
        for name, expected in update.given_shapes(shape).items():
            got = vars(update)[name].shape
            extra = len(got) - len(expected)
            if extra not in (0, 1) or got[extra:] != expected:
                raise _misfit(path, (update,), shape)
            shared[name] = not extra
        return replace(update, **shared)

    return _in_each(marked, update)


def _misfit(path: str, updates: Sequence[Update], shape: tuple[int, ...]) -> ValueError:
    expected, got = [], []
    for update in _single(updates):
        for name, each in update.given_shapes(shape).items():
            label = update.labels.get(name, name)
            expected.append(f"{label} ({', '.join(['n', *map(str, each)])})")
            got.append(f"{label} {vars(update)[name].shape}")
    return ValueError(
        f"analysis: expected {path} to have a sample axis, {' and '.join(expected)}, or none where"
        f" all samples share an array, got {' and '.join(got)}. Add an axis to one sample's"
        " factors, factor[None]."
    )


def _reading(updates: Iterable[Update], shape: tuple[int, ...]) -> str:
    """Return how a leaf is read as a matrix, by the first update that says so."""
    readings = (
        update.reading(shape) if isinstance(update, Factors) else getattr(update, "axes", "")
        for update in _single(updates)
    )
    return read_as(next(filter(None, readings), ""), len(shape))
