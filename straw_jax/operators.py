"""Structured kernels: sums of products of small arrays, applied without being formed.

A generated kernel is `sum_t W_t`, and each term `W_t` is a product of arrays with named axes,
summed over the axes that the kernel does not have: a base is one array `[in, out]`, a low-rank
update is `B [in, r]` times `A [r, out]`, a gain of outputs is one more array `[out]`. An axis that
no array has is constant. Kinds of updates (`straw_jax.kinds`) make terms; `straw_jax.operations`
says what model code may do with them.

Arrays here have no sample axis; `jax.vmap` adds it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, ClassVar, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from straw_jax.lowrank import (
    ConvGeometry,
    Lazy,
    PerVector,
    conv,
    each_number,
    is_lazy,
    lowrank_conv,
    lowrank_dot,
    patches,
)
from straw_jax.parts import Axes, Part, as_matrix, scales_of
from straw_jax.products import along, along_vectors, dense, times, with_array
from straw_jax.quantised import Quantised

_T = TypeVar("_T")

_static: Any = {"static": True}


class Term:
    """One term of a structured kernel; subclasses say what they can do.

    Methods that return None leave an operation to whoever may form the kernel.
    """

    #: What it is for, in errors.
    way_out: ClassVar[str] = ""

    def each_array(self, function: Callable[[Array], Array]) -> "Term":
        """Return the term after a function that is linear and keeps shapes, such as a cast."""
        return each_number(function, self)

    def scaled(self, factor: ArrayLike) -> "Term | None":
        """Return the term times a scalar."""
        raise NotImplementedError

    def times(self, part: Part) -> "Term | None":
        """Return the term times an array along some of its axes."""
        raise NotImplementedError

    def each_part(self, function: Callable[[Part], Part | None]) -> "Term | None":
        """Return the term with each of its arrays rearranged."""
        raise NotImplementedError

    def product(
        self, x: Array, x_axes: Axes, out_axes: Axes, sizes: Axes, precision: Any
    ) -> Array | None:
        """Multiply `x` by the term; see `Kernel.product`."""
        raise NotImplementedError

    def convolve(
        self, x: Array, sizes: Axes, geometry: ConvGeometry, groups: int, precision: Any
    ) -> Array | None:
        """Convolve `x` with the term; see `Kernel.convolve`."""
        raise NotImplementedError

    def materialise(self, sizes: Axes) -> Array:
        """Return the term as an ordinary array."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Contraction(Term):
    """A product of arrays with named axes, summed over those with negative names.

    Attributes:
        parts: the arrays.
        scale: of the product.
        may_form: whether products may sum the arrays of a mixture first, where this costs fewer
            multiply-adds and no more memory.
    """

    parts: tuple[Part, ...]
    scale: float = field(default=1.0, metadata=_static)
    may_form: bool = field(default=False, metadata=_static)

    @staticmethod
    def of(array: Array | Lazy) -> "Contraction":
        """Return a term that is one array; a quantised one with scales as an array of their own."""
        axes = tuple(range(len(array.shape)))
        if isinstance(array, Quantised) and (scales := scales_of(array)) is not None:
            integers = replace(array, scales=None)
            return Contraction((Part(integers, axes, array.shape), scales))
        return Contraction((Part(array, axes, array.shape),))

    @property
    def is_array(self) -> bool:
        """Whether it is one array, which need not be multiplied to be formed."""
        return (
            len(self.parts) == 1
            and self.scale == 1.0
            and not is_lazy(self.parts[0].value)
            and all(axis >= 0 for axis in self.parts[0].axes)
        )

    def scaled(self, factor: ArrayLike) -> "Contraction":
        if self.is_array:  # which stays one, and is no further operation on activations
            (part,) = self.parts
            return replace(self, parts=(replace(part, value=part.array * factor),))
        if isinstance(factor, (int, float)):
            return replace(self, scale=self.scale * float(factor))
        return self.times(Part(jnp.asarray(factor), (), ()))

    def times(self, part: Part) -> "Contraction":
        same = self.is_array and set(part.axes) == set(self.parts[0].axes)
        if same and not isinstance(part.value, PerVector):
            whole = self.parts[0].array * part.ordered(self.parts[0].axes.index).array
            return Contraction((replace(self.parts[0], value=whole),))
        return replace(self, parts=(*self.parts, part))

    def each_part(self, function: Callable[[Part], Part | None]) -> "Contraction | None":
        parts = every(function(part) for part in self.parts)
        return None if parts is None else replace(self, parts=parts)

    def axes(self) -> set[int]:
        """Return the names of all axes."""
        return {axis for part in self.parts for axis in part.axes}

    @property
    def per_vector(self) -> PerVector | None:
        """An array of which each vector has its own, if there is one."""
        values = (part.value for part in self.parts)
        return next((value for value in values if isinstance(value, PerVector)), None)

    def materialise(self, sizes: Axes) -> Array:
        axes = tuple(axis for axis in range(len(sizes)) if axis in self.axes())
        if (value := self.per_vector) is not None:
            if any(axis < 0 for axis in self.axes()):
                raise value.refusal("an operation that needs the whole kernel")
            free = tuple(axis for axis in range(len(sizes)) if axis not in axes)
            every = dict(enumerate(sizes))
            arrays = (
                along_vectors(part, tuple(every), every, free, value.bank.dtype)
                for part in self.parts
            )
            return reduce(jnp.multiply, arrays) * jnp.asarray(self.scale, value.bank.dtype)
        array = contract(self.parts, axes)
        if self.scale != 1.0:
            array = array * jnp.asarray(self.scale, array.dtype)
        return lax.broadcast_in_dim(array, sizes, axes) if array.shape != sizes else array

    def product(self, x: Array, x_axes: Axes, out_axes: Axes, sizes: Axes, precision: Any) -> Array:
        summed = set(x_axes) - set(out_axes)
        core, before, after = self._gains(summed, set(out_axes))
        every = dict(enumerate(sizes)) | dict(zip(x_axes, x.shape, strict=True))
        free = tuple(axis for axis in x_axes if axis >= len(sizes))
        for part in before:
            x = x * along_vectors(part, x_axes, every, free, x.dtype)
        y = self._core_product(core, x, x_axes, out_axes, sizes, precision)
        for part in after:
            y = y * along_vectors(part, out_axes, every, free, y.dtype)
        return y

    def _gains(
        self, inputs: set[int], outputs: set[int]
    ) -> tuple[tuple[Part, ...], list[Part], list[Part]]:
        """Return the parts but for those that only scale inputs or outputs, and these."""
        core: list[Part] = []
        before: list[Part] = []
        after: list[Part] = []
        shared = {part.axes for part in self.parts}
        for part in self.parts:
            others = shared - {part.axes}
            inside = any(set(part.axes) < set(axes) for axes in others) or not part.axes
            if inside and set(part.axes) <= inputs and part.axes:
                before.append(part)
            elif inside and set(part.axes) <= outputs:
                after.append(part)
            else:
                core.append(part)
        return tuple(core), before, after

    def _core_product(
        self, parts: tuple[Part, ...], x: Array, x_axes: Axes, out_axes: Axes, sizes: Axes,
        precision: Any,
    ) -> Array:  # fmt: skip
        rows = tuple(axis for axis in x_axes if axis < len(sizes) and axis >= 0)
        has = {axis for part in parts for axis in part.axes} | set(x_axes)
        if not set(rows) & set(out_axes) and set(out_axes) <= has:
            if len(parts) == 1 and set(rows) <= set(parts[0].axes) and self.scale == 1.0:
                return dense(x, x_axes, parts[0], out_axes, precision)
            if pair := _factor_pair(parts, rows):
                (B, A), rows, columns = pair
                free = [axis for axis in x_axes if axis not in rows]
                size = math.prod(B.size(axis) for axis in rows)
                x = x.transpose([x_axes.index(axis) for axis in (*free, *rows)])
                y = lowrank_dot(
                    x.reshape(*x.shape[: len(free)], size),
                    as_matrix(B, size),
                    as_matrix(A, A.shape[0]),
                    None,
                    scale=self.scale,
                    precision=precision,
                )
                y = y.reshape(*y.shape[:-1], *A.shape[1:])
                return y.transpose([[*free, *columns].index(axis) for axis in out_axes])
        return self._general(parts, x, x_axes, out_axes, sizes, precision)

    def _general(
        self, parts: tuple[Part, ...], x: Array, x_axes: Axes, out_axes: Axes, sizes: Axes,
        precision: Any,
    ) -> Array:  # fmt: skip
        """Multiply `x` by one part after the other, in the cheapest order."""
        x_part = Part(x, x_axes, x.shape)
        constant = [axis for axis in out_axes if axis not in (*x_axes, *self.axes())]
        wanted = tuple(axis for axis in out_axes if axis not in constant)
        if self.may_form and (formed := _formed_first(parts, x_part, wanted)):
            parts = formed
        order = min(
            itertools.permutations(parts) if len(parts) < 6 else [parts],
            key=lambda parts: _cost(x_part, parts, wanted),
        )
        scaled = self.scale == 1.0
        for i, part in enumerate(order):
            later = {axis for other in order[i + 1 :] for axis in other.axes}
            between = tuple(
                axis
                for axis in dict.fromkeys([*x_axes, *part.axes])
                if axis in later or axis in wanted
            )
            last = i == len(order) - 1
            y = times(x, x_axes, part, wanted if last else between, precision)
            if not scaled:
                y, scaled = y * jnp.asarray(self.scale, y.dtype), True
            x, x_axes = (y if last else y.astype(x.dtype)), between
        if not parts:
            x = jnp.einsum(x, list(x_axes), list(wanted)) * self.scale
        if constant:
            shape = [*x.shape, *(sizes[axis] for axis in constant)]
            x = jnp.broadcast_to(x[(..., *[None] * len(constant))], shape)
            x = x.transpose([[*wanted, *constant].index(axis) for axis in out_axes])
        return x

    def convolve(
        self, x: Array, sizes: Axes, geometry: ConvGeometry, groups: int, precision: Any
    ) -> Array | None:
        if (value := self.per_vector) is not None:
            raise value.refusal("a convolution")
        *window, rows, out = range(len(sizes))
        if groups == 1:
            core, before, after = self._gains({rows}, {out})
            scaled = x
            for part in before:
                scaled = scaled * along(part, (*[-1] * (x.ndim - 1), rows), x.dtype)
            y = self._core_convolution(core, scaled, geometry, precision, (*window, rows), out)
            if y is not None:
                for part in after:
                    y = y * along(part, (*[-1] * (y.ndim - 1), out), y.dtype)
                return y
        return self._by_patches(x, sizes, geometry, groups, precision)

    def _core_convolution(
        self, parts: tuple[Part, ...], x: Array, geometry: ConvGeometry, precision: Any,
        rows: Axes, out: int,
    ) -> Array | None:  # fmt: skip
        if len(parts) == 1 and parts[0].axes == (*rows, out) and self.scale == 1.0:
            return with_array(lambda x, kernel: conv(x, kernel, geometry, precision), x, parts[0])
        pair = _factor_pair(parts, rows)
        if pair is None or pair[1:] != (rows, (out,)):
            return None
        B, A = pair[0]
        size = math.prod(B.size(axis) for axis in rows)
        return lowrank_conv(
            x, as_matrix(B, size), as_matrix(A, A.shape[0]), None, geometry,
            scale=self.scale, precision=precision,
        )  # fmt: skip

    def _by_patches(
        self, x: Array, sizes: Axes, geometry: ConvGeometry, groups: int, precision: Any
    ) -> Array | None:
        """Multiply each group of channels of each patch by its part of the kernel's columns."""
        *window, rows, out = sizes
        split = reshaped(self, sizes, (*window, rows, groups, out // groups))
        if split is None:
            return None
        x = patches(x, geometry)
        positions = x.shape[:-1]
        ndim = len(sizes) + 1
        x = x.reshape(*positions, *window, groups, rows)
        free = tuple(range(ndim + 1, ndim + 1 + len(positions)))
        group, kernel = ndim - 2, tuple(range(ndim - 2))
        x_axes = (*free, *kernel[:-1], group, kernel[-1])
        split_sizes = (*window, rows, groups, out // groups)
        y = split.product(x, x_axes, (*free, group, group + 1), split_sizes, precision)
        return y.reshape(*positions, out)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """A kernel in model code that depends on the sample: a sum of terms, never formed.

    Attributes:
        terms: the sum's; none for zero.
        shape: of the kernel.
        dtype: of the kernel in model code.
        path: the leaf's name, for errors.
        allow_materialise: whether an operation without a rule may form the kernel.
    """

    terms: tuple[Term, ...]
    shape: tuple[int, ...] = field(metadata=_static)
    dtype: Any = field(metadata=_static)
    path: str = field(metadata=_static)
    allow_materialise: bool = field(default=False, metadata=_static)

    @property
    def ndim(self) -> int:
        """Number of the kernel's axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of the kernel's entries."""
        return math.prod(self.shape)

    @property
    def is_array(self) -> bool:
        """Whether it is one array: generated whole, so that forming it costs nothing."""
        return len(self.terms) == 1 and _is_array(self.terms[0])

    @property
    def part(self) -> Part:
        """The array of a kernel that is one."""
        (term,) = self.terms
        assert isinstance(term, Contraction)
        (part,) = term.parts
        return part

    def astype(self, dtype: Any) -> "Kernel":
        """Return the kernel in another floating dtype."""
        cast = self.each_array(lambda array: array.astype(dtype))
        return replace(cast, dtype=jnp.dtype(dtype))

    def each_array(self, function: Callable[[Array], Array]) -> "Kernel":
        """Return the kernel after a linear function of each of its arrays."""
        return replace(self, terms=tuple(term.each_array(function) for term in self.terms))

    def each_term(
        self, function: Callable[[Any], Term | None], shape: Sequence[int] | None = None
    ) -> "Kernel | None":
        """Return the kernel after a linear function of each of its terms; None if one cannot."""
        terms = every(function(term) for term in self.terms)
        if terms is None:
            return None
        return replace(self, terms=terms, shape=self.shape if shape is None else tuple(shape))

    def each_part(
        self, function: Callable[[Part], Part | None], shape: Sequence[int] | None = None
    ) -> "Kernel | None":
        """Return the kernel after a function that rearranges each array."""
        return self.each_term(lambda term: term.each_part(function), shape)

    def times(self, array: Array, axes: Axes) -> "Kernel | None":
        """Return the kernel times an array along some of its axes, or a scalar."""
        if not axes:
            return self.scaled(array)
        part = Part(array, axes, array.shape)
        return self.each_term(lambda term: term.times(part))

    def scaled(self, factor: ArrayLike) -> "Kernel | None":
        """Return the kernel times a scalar."""
        return self.each_term(lambda term: term.scaled(factor))

    def for_vectors(self, shape: tuple[int, ...]) -> "Kernel":
        """Return the kernel, repeated up to a shape if each vector along it has its own."""
        each = (term.per_vector for term in self.terms if isinstance(term, Contraction))
        if shape == self.shape or all(value is None for value in each):
            return self
        grown = [axis for axis, size in enumerate(self.shape) if size != shape[axis]]
        repeated = self.each_part(lambda part: part.without(grown), shape)
        return self if repeated is None else repeated

    def plus(self, *terms: Term) -> "Kernel":
        """Return the kernel with more terms; whole arrays become one."""
        kernel = self
        for term in terms:
            kernel = kernel._plus(term)
        return kernel

    def _plus(self, term: Term) -> "Kernel":
        axes = tuple(range(self.ndim))

        def whole(term: Term) -> Array | None:
            if _is_array(term) and term.parts[0].axes == axes:
                return term.parts[0].array
            return None

        array = whole(term)
        for place, each in enumerate(self.terms):
            if array is not None and (other := whole(each)) is not None:
                total = Contraction.of(other + array)
                return replace(self, terms=(*self.terms[:place], total, *self.terms[place + 1 :]))
        return replace(self, terms=(*self.terms, term))

    def materialise(self) -> Array:
        """Return the kernel as an ordinary array."""
        if not self.terms:
            return jnp.zeros(self.shape, self.dtype)
        return _sum(term.materialise(self.shape) for term in self.terms).astype(self.dtype)

    def product(
        self, x: Array, x_axes: Axes, out_axes: Axes, *, precision: Any, dtype: Any
    ) -> Array | None:
        """Multiply `x` by the kernel, both with named axes, and sum over axes not in `out_axes`.

        Args:
            x: with axes `x_axes`; names from the kernel's `ndim` are of its own axes.
            x_axes: names of its axes.
            out_axes: names of the result's axes.
            precision: as in `jax.lax.dot_general`.
            dtype: of the result.

        Returns:
            The product; None if a term cannot.
        """
        products = every(
            term.product(x, x_axes, out_axes, self.shape, precision) for term in self.terms
        )
        if products == ():
            sizes = {**dict(enumerate(self.shape)), **dict(zip(x_axes, x.shape, strict=True))}
            return jnp.zeros([sizes[axis] for axis in out_axes], dtype)
        return None if products is None else _sum(products).astype(dtype)

    def convolve(
        self, x: Array, geometry: ConvGeometry, groups: int, *, precision: Any, dtype: Any
    ) -> Array | None:
        """Convolve `x [n, *spatial, in]` with the kernel `[*window, in / groups, out]`."""
        products = every(
            term.convolve(x, self.shape, geometry, groups, precision) for term in self.terms
        )
        return _sum(products).astype(dtype) if products else None


def _is_array(term: Term) -> TypeGuard[Contraction]:
    return isinstance(term, Contraction) and term.is_array


def _sum(arrays: Iterable[Array]) -> Array:
    return reduce(lambda left, right: left + right, arrays)


def every(values: Iterable[_T | None]) -> tuple[_T, ...] | None:
    """Return values as a tuple; None if one of them is None."""
    found = []
    for value in values:
        if value is None:
            return None
        found.append(value)
    return tuple(found)


def refusal(kernel: Kernel, operation: str, where: str) -> ValueError:
    """Return the error for an operation that needs the whole kernel."""
    return ValueError(
        f"{kernel.path}: expected operations that are linear in a generated kernel, got {operation}"
        f" (in {where}), which needs the whole kernel {kernel.shape} of every sample. Use the"
        " kernel in a matrix product, a convolution or a look-up of rows, generate this leaf whole"
        " or not at all, or call modulate(..., allow_materialise=True)."
        + "".join(term.way_out for term in kernel.terms)
    )


def contract(parts: Sequence[Part], out_axes: Axes, precision: Any = None) -> Array:
    """Multiply arrays with named axes, and sum over axes not in `out_axes`.

    Two at a time, those first that make the smallest array, so that a kernel is formed last.
    """
    if not parts:
        return jnp.ones(())
    left = list(parts)

    def kept(pair: tuple[Part, Part]) -> tuple[Axes, int, int]:
        """Return the axes of the product of two parts, its size, and its cost."""
        others = {axis for part in left if not any(part is each for each in pair)
                  for axis in part.axes}  # fmt: skip
        sizes = dict(zip(pair[0].axes + pair[1].axes, pair[0].shape + pair[1].shape, strict=True))
        axes = tuple(axis for axis in sizes if axis in others or axis in out_axes)
        return axes, math.prod(sizes[axis] for axis in axes), math.prod(sizes.values())

    while len(left) > 1:
        first, second = min(itertools.combinations(left, 2), key=lambda pair: kept(pair)[1:])
        axes = kept((first, second))[0]
        array = jnp.einsum(
            first.array, list(first.axes), second.array, list(second.axes), list(axes),
            precision=precision,
        )  # fmt: skip
        left = [part for part in left if part is not first and part is not second]
        left.append(Part(array, axes, array.shape))
    (last,) = left
    if last.axes == out_axes:
        return last.array
    return jnp.einsum(last.array, list(last.axes), list(out_axes))


def reshaped(term: Term, old: Sequence[int], new: Sequence[int]) -> Any:
    """Return a term with axes split, or neighbouring axes joined; None if it cannot be."""
    groups = groups_of_axes(old, new)

    def of_part(part: Part) -> Part | None:
        axes: list[int] = []
        shape: list[int] = []
        first = part.axes[:1]  # an axis that is summed over stays where B and A have it
        part = part.ordered(lambda axis: axis if axis >= 0 else -1 if axis in first else len(old))
        place = 0
        while place < len(part.axes):
            axis = part.axes[place]
            olds, news = ([axis], [axis]) if axis < 0 else next(g for g in groups if axis in g[0])
            has = tuple(part.axes[place : place + len(olds)])
            if has != tuple(olds):
                if (grown := _grown(part, olds, old)) is None:
                    return None
                return of_part(grown)
            axes += news
            shape += [new[each] for each in news] if axis >= 0 else [part.shape[place]]
            place += len(olds)
        return Part(part.value, tuple(axes), tuple(shape))

    return term.each_part(of_part)


def _grown(part: Part, olds: Sequence[int], sizes: Sequence[int]) -> Part | None:
    """Return an array along some of the axes that are joined along all of them.

    It is repeated if it stays smaller than a kernel, or is a whole kernel but for these axes.
    """
    missing = [axis for axis in olds if axis not in part.axes]
    repeats = math.prod(sizes[axis] for axis in missing)
    too_large = repeats > 1 and math.prod(part.shape) * repeats >= math.prod(sizes)
    whole = len(part.axes) > 1 and all(axis >= 0 for axis in part.axes)
    if not missing or (too_large and not whole):
        return None
    array = part.array.reshape(*part.shape, *[1] * len(missing))
    shape = (*part.shape, *(sizes[axis] for axis in missing))
    return Part(jnp.broadcast_to(array, shape), (*part.axes, *missing), shape)


def groups_of_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which neighbouring axes of a shape become which axes of another, in groups."""
    groups, i, j = [], 0, 0
    while i < len(old):
        olds, news = [i], []
        size, reached = old[i], 1
        i += 1
        while reached != size:
            if reached < size:
                news.append(j)
                reached *= new[j]
                j += 1
            else:
                olds.append(i)
                size *= old[i]
                i += 1
        groups.append((olds, news))
    if groups:
        groups[-1][1].extend(range(j, len(new)))  # of size one
    return groups


def _factor_pair(parts: Sequence[Part], rows: Axes) -> tuple[tuple[Part, Part], Axes, Axes] | None:
    """Return `B [rows, r]` and `A [r, columns]` with these axes, if the parts are these two."""
    if len(parts) != 2:
        return None
    B, A = parts
    fits = (
        len(B.axes) > 1
        and len(A.axes) > 1
        and B.axes[-1] == A.axes[0] < 0
        and set(B.axes[:-1]) == set(rows)
        and not set(B.axes[:-1]) & set(A.axes)
        and all(axis >= 0 for axis in (*B.axes[:-1], *A.axes[1:]))
    )
    return ((B, A), B.axes[:-1], A.axes[1:]) if fits else None


def _cost(x: Part, parts: Sequence[Part], out_axes: Axes) -> int:
    """Return the multiply-adds of multiplying by some parts, one after the other."""
    sizes = dict(zip(x.axes, x.shape, strict=True))
    current, total = set(x.axes), 0
    for i, part in enumerate(parts):
        sizes |= dict(zip(part.axes, part.shape, strict=True))
        current |= set(part.axes)
        total += math.prod(sizes[axis] for axis in current)
        later = {axis for other in parts[i + 1 :] for axis in other.axes}
        current &= later | set(out_axes)
    return total


def _formed_first(parts: tuple[Part, ...], x: Part, out_axes: Axes) -> tuple[Part, ...] | None:
    """Return a mixture's parts after their sum, if this costs and stores less than products do."""
    (weights, templates), rest = sorted(parts, key=lambda part: len(part.axes))[:2], parts[2:]
    if rest or not set(weights.axes) <= set(templates.axes):
        return None
    axes = tuple(axis for axis in templates.axes if axis not in weights.axes)
    shape = tuple(templates.size(axis) for axis in axes)
    formed = Part(templates.value, axes, shape)  # of this size
    first = math.prod(templates.shape) + _cost(x, [formed], out_axes)
    between = math.prod(x.size(axis) for axis in x.axes if axis in out_axes) * math.prod(
        templates.size(axis) for axis in templates.axes if axis not in x.axes
    )
    lazily = min(_cost(x, order, out_axes) for order in itertools.permutations(parts))
    if first >= lazily or math.prod(shape) > between:
        return None
    array = contract((weights, templates), axes)
    return (Part(array, axes, shape),)
