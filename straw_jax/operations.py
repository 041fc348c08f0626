"""What model code may do with a structured kernel: one rule for each operation, for all kinds.

Operations that are linear in the kernel act on each term, and within a term on each array that has
the axes concerned. A product with data is computed; one with what samples share is kept as a
further array. What is not linear has no rule here.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from straw_jax.lowrank import ConvGeometry, Generated, Indexed, form, looked_up_rows
from straw_jax.operators import Contraction, Kernel, reshaped
from straw_jax.parts import Axes, Part, as_matrix
from straw_jax.quantised import Quantised

Result = Any  # an array, a kernel, a list of them, or None where there is no rule


@dataclass(frozen=True)
class Operation:
    """An operation on at least one kernel.

    Attributes:
        primitive: what is done.
        operands: kernels and arrays.
        params: of the primitive.
        data: which operands are computed from samples.
        spread: of operands that are arrays repeated along axes, the small array.
        out: shapes and dtypes of the results.
    """

    primitive: Any
    operands: Sequence[Any]
    params: Mapping[str, Any]
    data: Sequence[bool]
    spread: Sequence[Part | None]
    out: Sequence[Any]

    def part(self, place: int) -> Part:
        """Return an array operand with its axes named as a kernel's."""
        small, array = self.spread[place], self.operands[place]
        if small is not None:
            return small
        return Part(array, tuple(range(jnp.ndim(array))), jnp.shape(array))

    def kernel(self, place: int) -> Kernel:
        """Return an operand as a kernel, of one term if it is an array."""
        operand = self.operands[place]
        if isinstance(operand, Kernel):
            return operand
        one = next(each for each in self.operands if isinstance(each, Kernel))
        term = Contraction((self.part(place),))
        dtype = jnp.result_type(operand)
        return Kernel((term,), self.shape(place), dtype, one.path, one.allow_materialise)

    def along(self, place: int) -> Part:
        """Return an array operand of an element-wise operation, without axes of size one."""
        part, shape = self.part(place), self.out[0].shape
        return part.without(axis for axis in part.axes if part.size(axis) == 1 and shape[axis] != 1)

    def spread_kernel(self, place: int) -> Kernel | None:
        """Return an operand of an element-wise operation as a kernel of the result's shape."""
        kernel, shape = self.kernel(place), self.out[0].shape
        grown = [axis for axis, size in enumerate(kernel.shape) if size != shape[axis]]
        if not grown:
            return kernel
        return kernel.each_part(lambda part: part.without(grown), shape)

    def multiplier(self, place: int) -> Part | None:
        """Return an operand of an element-wise operation as one array; None if it is more."""
        if not isinstance(self.operands[place], Kernel):
            return self.along(place)
        kernel = self.spread_kernel(place)
        return kernel.part if kernel is not None and kernel.is_array else None

    def shape(self, place: int) -> tuple[int, ...]:
        """Return an operand's shape, that of the result for a scalar."""
        operand = self.operands[place]
        if isinstance(operand, Kernel):
            return operand.shape
        return jnp.shape(operand) or self.out[0].shape


_MOST_TERMS = 64  # of a product of entries: in a polynomial each power has twice as many

RULES: dict[str, Callable[[Operation], Result]] = {}
"""By the name of a primitive."""


def _rule(*names: str) -> Callable[[Callable[[Operation], Result]], Callable[[Operation], Result]]:
    def register(function: Callable[[Operation], Result]) -> Callable[[Operation], Result]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Element by element.


@_rule("neg")
def _negate(operation: Operation) -> Result:
    return operation.operands[0].scaled(-1.0)


@_rule("copy", "copy_p")
def _copy(operation: Operation) -> Result:
    return operation.operands[0]


@_rule("optimization_barrier")
def _barrier(operation: Operation) -> Result:
    return list(lax.optimization_barrier(list(operation.operands)))


@_rule("stop_gradient", "name", "reduce_precision", "pvary", "pcast")
def _each_array(operation: Operation) -> Result:
    primitive, params = operation.primitive, operation.params
    return operation.operands[0].each_array(lambda array: primitive.bind(array, **params))


@_rule("convert_element_type")
def _convert(operation: Operation) -> Result:
    dtype = operation.params["new_dtype"]
    return operation.operands[0].astype(dtype) if is_linear_cast(dtype) else None


def is_linear_cast(dtype: Any) -> bool:
    """Return whether the cast of a product is the product of casts, up to rounding."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 16


@_rule("sharding_constraint")
def _constrain(operation: Operation) -> Result:
    """Constrain each array along the axes that it has."""
    sharding = operation.params["sharding"]
    if not isinstance(sharding, NamedSharding):
        return operation.operands[0]
    names = dict(enumerate(sharding.spec))

    def constrained(part: Part) -> Part:
        if isinstance(part.value, Indexed | Quantised):
            return part  # where the caller put it
        spec = PartitionSpec(*(names.get(axis) for axis in part.axes))
        array = lax.with_sharding_constraint(part.array, NamedSharding(sharding.mesh, spec))
        return Part(array, part.axes, part.shape)

    return operation.operands[0].each_part(constrained)


@_rule("add", "add_any")
def _add(operation: Operation) -> Result:
    left, right = operation.spread_kernel(0), operation.spread_kernel(1)
    return None if left is None or right is None else left.plus(*right.terms)


@_rule("sub")
def _subtract(operation: Operation) -> Result:
    left, right = operation.spread_kernel(0), operation.spread_kernel(1)
    right = None if right is None else right.scaled(-1.0)
    return None if left is None or right is None else left.plus(*right.terms)


@_rule("mul")
def _multiply(operation: Operation) -> Result:
    if operation.params.get("out_dtype") is not None:
        return None
    place = next(i for i in (0, 1) if isinstance(operation.operands[i], Kernel))
    kernel = operation.spread_kernel(place)
    if kernel is None:
        return None
    if isinstance(operation.operands[1 - place], Kernel):
        other = operation.spread_kernel(1 - place)
        return None if other is None else _product_of_entries(kernel, other, operation.out[0])
    part = operation.along(1 - place)
    return kernel.times(part.array, part.axes)


@_rule("div")
def _divide(operation: Operation) -> Result:
    if not isinstance(operation.operands[0], Kernel):
        return None
    kernel, divisor = operation.spread_kernel(0), operation.multiplier(1)
    if kernel is None or divisor is None:
        return None
    return kernel.times(1 / divisor.array, divisor.axes)


@_rule("square", "integer_pow")
def _square(operation: Operation) -> Result:
    (kernel,) = operation.operands
    if operation.params.get("y", 2) != 2:
        return None
    return _product_of_entries(kernel, kernel, operation.out[0])


@_rule("select_n")
def _select(operation: Operation) -> Result:
    """Add up the cases, each where it is chosen."""
    which, dtype = operation.multiplier(0), operation.out[0].dtype
    total: Kernel | None = None
    for i in range(len(operation.operands) - 1):
        kernel = operation.spread_kernel(i + 1)
        if kernel is None or which is None:
            return None
        chosen = which.array == which.array.dtype.type(i)
        case = replace(kernel, dtype=dtype).times(chosen.astype(dtype), which.axes)
        if case is None:
            return None
        total = case if total is None else total.plus(*case.terms)
    return total


# Rearrangements.


@_rule("transpose")
def _transpose(operation: Operation) -> Result:
    return transposed(operation.operands[0], operation.params["permutation"])


def transposed(kernel: Kernel, permutation: Sequence[int]) -> Any:
    """Return a kernel with its axes in another order; None if a term cannot."""
    if tuple(permutation) == tuple(range(kernel.ndim)):
        return kernel
    names = {axis: place for place, axis in enumerate(permutation)}
    shape = [kernel.shape[axis] for axis in permutation]
    return kernel.each_part(lambda part: part.renamed(names), shape)


@_rule("reshape")
def _reshape(operation: Operation) -> Result:
    (kernel,), new = operation.operands, operation.params["new_sizes"]
    return kernel.each_term(lambda term: reshaped(term, kernel.shape, new), new)


@_rule("squeeze")
def _squeeze(operation: Operation) -> Result:
    removed = operation.params["dimensions"]
    (kernel,) = operation.operands
    kept = [axis for axis in range(kernel.ndim) if axis not in removed]
    names = {axis: place for place, axis in enumerate(kept)}
    return kernel.each_part(
        lambda part: part.without(removed).renamed(names), [kernel.shape[axis] for axis in kept]
    )


@_rule("broadcast_in_dim")
def _broadcast(operation: Operation) -> Result:
    """Rename axes: those that no array has are constant."""
    kernel, *sizes = operation.operands
    if sizes:  # symbolic
        return None
    shape, places = operation.params["shape"], operation.params["broadcast_dimensions"]
    grown = [axis for axis, place in enumerate(places) if kernel.shape[axis] != shape[place]]
    names = dict(enumerate(places))
    return kernel.each_part(lambda part: part.without(grown).renamed(names), shape)


@_rule("slice")
def _slice(operation: Operation) -> Result:
    params = operation.params
    (kernel,) = operation.operands
    steps = params["strides"] or [1] * kernel.ndim
    slices = {
        axis: slice(*each)
        for axis, each in enumerate(
            zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        )
    }
    return _along_axes(
        kernel,
        lambda array, axes: array[tuple(slices.get(axis, slice(None)) for axis in axes)],
        [axis for axis in range(kernel.ndim) if kernel.shape[axis] != operation.out[0].shape[axis]],
        operation.out[0].shape,
    )


@_rule("split")
def _split(operation: Operation) -> Result:
    (kernel,), axis = operation.operands, operation.params["axis"]
    sizes = operation.params["sizes"]

    def piece(end: int, size: int, out: Any) -> Result:
        return _along_axes(
            kernel,
            lambda array, axes: lax.slice_in_dim(array, end - size, end, axis=axes.index(axis)),
            [axis],
            out.shape,
        )

    ends = itertools.accumulate(sizes)
    pieces = [piece(*each) for each in zip(ends, sizes, operation.out, strict=True)]
    return None if None in pieces else pieces


@_rule("dynamic_slice")
def _dynamic_slice(operation: Operation) -> Result:
    kernel, *starts = operation.operands
    if any(isinstance(start, Kernel) for start in starts):
        return None
    sizes = operation.params["slice_sizes"]
    cut = [axis for axis in range(kernel.ndim) if kernel.shape[axis] != sizes[axis]]

    def function(array: Array, axes: Axes) -> Array:
        for axis in cut:
            if axis in axes:
                array = lax.dynamic_slice_in_dim(array, starts[axis], sizes[axis], axes.index(axis))
        return array

    return _along_axes(kernel, function, cut, sizes)


@_rule("rev")
def _reverse(operation: Operation) -> Result:
    (kernel,), reversed_axes = operation.operands, operation.params["dimensions"]
    return _along_axes(
        kernel,
        lambda array, axes: lax.rev(
            array, [axes.index(axis) for axis in reversed_axes if axis in axes]
        ),
        reversed_axes,
        kernel.shape,
    )


@_rule("tile")
def _tile(operation: Operation) -> Result:
    (kernel,), repeats = operation.operands, operation.params["reps"]
    spread = [axis for axis, size in enumerate(kernel.shape) if size == 1]  # now constant
    return _along_axes(
        kernel.each_part(lambda part: part.without(spread)),
        lambda array, axes: jnp.tile(array, [repeats[axis] if axis >= 0 else 1 for axis in axes]),
        [axis for axis in range(kernel.ndim) if repeats[axis] > 1],
        operation.out[0].shape,
    )


def _along_axes(
    kernel: Kernel | None,
    function: Callable[[Array, Axes], Array],
    axes: Sequence[int],
    shape: Sequence[int],
) -> Any:
    """Apply a function that treats each axis separately to each array that has one of some axes."""
    if kernel is None:
        return None
    return kernel.each_part(lambda part: part.changed(function, axes), shape)


@_rule("pad")
def _pad(operation: Operation) -> Result:
    kernel, value = operation.operands
    config, shape = operation.params["padding_config"], operation.out[0].shape
    if isinstance(value, Kernel) or not isinstance(kernel, Kernel):
        return None
    padded = _padded(kernel, config, shape)
    is_zero = not isinstance(value, jax.core.Tracer) and float(value) == 0
    if padded is None or is_zero:
        return padded
    inside = lax.pad(jnp.ones(kernel.shape, kernel.dtype), jnp.zeros((), kernel.dtype), config)
    return padded.plus(Contraction.of((1 - inside) * value))


def _padded(kernel: Kernel, config: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> Any:
    """Return a kernel with zeros around it."""
    changed = [axis for axis, each in enumerate(config) if tuple(each) != (0, 0, 0)]

    def of_array(array: Array, axes: Axes) -> Array:
        inner = [config[axis] if axis >= 0 else (0, 0, 0) for axis in axes]
        return lax.pad(array, jnp.zeros((), array.dtype), inner)

    def of_term(term: Any) -> Any:
        if not isinstance(term, Contraction):
            return None
        for axis in changed:
            if axis not in term.axes():  # constant along it
                ones = jnp.ones(kernel.shape[axis], kernel.dtype)
                term = replace(term, parts=(*term.parts, Part(ones, (axis,), ones.shape)))
        return term.each_part(lambda part: part.changed(of_array, changed))

    return kernel.each_term(of_term, shape)


@_rule("concatenate")
def _concatenate(operation: Operation) -> Result:
    count, axis = len(operation.operands), operation.params["dimension"]
    kernels = [operation.kernel(place) for place in range(count)]
    return _joined(kernels, axis, operation.out[0].shape)


@_rule("stack")
def _stack(operation: Operation) -> Result:
    axis, out = operation.params["axis"], operation.out[0].shape
    names = {old: old + (old >= axis) for old in range(len(out) - 1)}
    shape = (*out[:axis], 1, *out[axis + 1 :])
    kernels = [
        operation.kernel(place).each_part(lambda part: part.renamed(names), shape)
        for place in range(len(operation.operands))
    ]
    return _joined(kernels, axis, out)


def _joined(kernels: Sequence[Kernel | None], axis: int, shape: Sequence[int]) -> Any:
    """Add up kernels, each with zeros in place of the others."""
    total: Kernel | None = None
    before = 0
    for kernel in kernels:
        if kernel is None:
            return None
        size = kernel.shape[axis]
        config = [(0, 0, 0)] * len(shape)
        config[axis] = (before, shape[axis] - before - size, 0)
        padded = _padded(kernel, config, shape)
        if padded is None:
            return None
        total = padded if total is None else total.plus(*padded.terms)
        before += size
    return total


@_rule("gather")
def _gather(operation: Operation) -> Result:
    """Look up whole rows or columns: an embedding, or a permutation."""
    table, indices = operation.operands
    params = operation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if isinstance(indices, Kernel) or len(numbers.collapsed_slice_dims) != 1:
        return None
    (axis,) = numbers.collapsed_slice_dims
    whole = (*table.shape[:axis], 1, *table.shape[axis + 1 :])
    fill = params["fill_value"]
    # The fill value of out-of-bounds indices must be the same in each array and in the product.
    fills = fill is None or fill == 0 or math.isnan(fill)
    batching = numbers.operand_batching_dims or numbers.start_indices_batching_dims
    if tuple(sizes) != whole or numbers.start_index_map != (axis,) or not fills or batching:
        return None
    out_ndim = len(operation.out[0].shape)
    kept = [old for old in range(table.ndim) if old != axis]
    names = dict(zip(kept, numbers.offset_dims, strict=True))
    positions = tuple(place for place in range(out_ndim) if place not in numbers.offset_dims)

    def look_up(array: Array) -> Array:  # along the first axis
        own = 0 if jnp.issubdtype(array.dtype, jnp.integer) else fill
        last = tuple(range(indices.ndim - 1, indices.ndim - 2 + array.ndim))
        of_rows = lax.GatherDimensionNumbers(last, (0,), (0,))
        options = {name: params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}
        return lax.gather(array, indices, of_rows, (1, *array.shape[1:]), fill_value=own, **options)

    few = math.prod(indices.shape[:-1]) < table.shape[axis]

    def of_part(part: Part) -> Part:
        if axis not in part.axes:
            return part.renamed(names)
        others = tuple(each for each in part.axes if each != axis)
        shape = tuple(part.size(each) for each in others)
        if isinstance(part.value, Generated) and part.axes[0] == axis and few:
            # Before it is formed: a sample may use few rows of a large table.
            hidden, kernel, bias = part.value
            rows = [each.reshape(table.shape[axis], -1, *each.shape[2:]) for each in (kernel, bias)]
            array = form(Generated(hidden, *map(look_up, rows)))
        elif isinstance(part.value, Indexed) and few:
            # Rows of the bank's tables, so that no table is gathered for a sample.
            matrix = as_matrix(part.ordered(lambda each: each != axis), table.shape[axis])
            assert isinstance(matrix, Indexed)
            array = looked_up_rows(matrix, indices[..., 0])
            if params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
                inside = (indices >= 0) & (indices < table.shape[axis])
                array = jnp.where(inside, array, jnp.nan if fill is None else fill)
        elif part.axes[0] == axis and (value := part.quantised) is not None:
            found = value.along(look_up)
            if found is None:
                array = look_up(part.array)
            else:  # integers have no NaN for rows that are not there
                there = look_up(jnp.ones((table.shape[axis],), value.dtype))
                rows_axes = tuple(range(there.ndim, there.ndim + len(shape)))
                array = found.array * jnp.expand_dims(there, rows_axes)
        else:
            array = look_up(part.ordered(lambda each: each != axis).array)
        array = array.reshape(*indices.shape[:-1], *shape)
        new = Part(array, (*range(-1000, -1000 + len(positions)), *others), array.shape)
        return new.renamed({**names, **dict(zip(range(-1000, 0), positions, strict=False))})

    found = table.each_part(of_part, operation.out[0].shape)
    return found.materialise() if found is not None and operation.data[1] else found


# Sums and products.


@_rule("reduce_sum")
def _sum(operation: Operation) -> Result:
    (kernel,), axes = operation.operands, operation.params["axes"]
    kept = [axis for axis in range(kernel.ndim) if axis not in axes]
    ones = Kernel((Contraction(()),), (), kernel.dtype, kernel.path)
    names = {axis: place for place, axis in enumerate(kept)}
    own = tuple(names.get(axis, -1 - axis) for axis in range(kernel.ndim))
    return small_or_structured(
        combine(kernel, own, ones, (), tuple(range(len(kept))), operation.out[0]), kernel
    )


@_rule("dot_general")
def _dot(operation: Operation) -> Result:
    left, right = operation.operands
    params = operation.params
    contracted, batch = params["dimension_numbers"]
    if any(operation.data) and not (isinstance(left, Kernel) and isinstance(right, Kernel)):
        side = 0 if isinstance(left, Kernel) else 1
        kernel, x = (left, right) if side == 0 else (right, left)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(kernel.dtype, x.dtype)
        names = {
            x_axis: axis
            for pair in (contracted, batch)
            for axis, x_axis in zip(pair[side], pair[1 - side], strict=True)
        }
        x_axes = tuple(names.get(axis, kernel.ndim + 1 + axis) for axis in range(x.ndim))
        free = (
            [axis for axis in range(kernel.ndim) if axis not in names.values()],
            [axis for axis in x_axes if axis > kernel.ndim],
        )
        out_axes = (*batch[side], *free[side], *free[1 - side])
        if not set(contracted[side]) | set(batch[side]) and kernel.ndim > 1:
            return None  # an outer product with the whole kernel
        return kernel.astype(dtype).product(
            jnp.asarray(x, dtype), x_axes, out_axes,
            precision=params["precision"], dtype=operation.out[0].dtype,
        )  # fmt: skip
    # Of what does not depend on data: the product is a kernel itself.
    ndims = [len(operation.shape(place)) for place in (0, 1)]
    left_names: dict[int, int] = {}
    right_names: dict[int, int] = {}
    for place, (a, b) in enumerate(zip(*batch, strict=True)):
        left_names[a] = right_names[b] = place
    for place, (a, b) in enumerate(zip(*contracted, strict=True)):
        left_names[a] = right_names[b] = -1 - place
    out = itertools.count(len(batch[0]))
    for names, ndim in ((left_names, ndims[0]), (right_names, ndims[1])):
        names.update({axis: next(out) for axis in range(ndim) if axis not in names})
    kernel = combine(
        operation.kernel(0), tuple(left_names[axis] for axis in range(ndims[0])),
        operation.kernel(1), tuple(right_names[axis] for axis in range(ndims[1])),
        tuple(range(next(out))), operation.out[0],
    )  # fmt: skip
    sources = [each for each in (left, right) if isinstance(each, Kernel)]
    return small_or_structured(kernel, max(sources, key=lambda each: each.size))


@_rule("conv_general_dilated")
def _convolve(operation: Operation) -> Result:
    x, kernel = operation.operands
    params = operation.params
    if isinstance(x, Kernel) or params["batch_group_count"] > 1:
        return None
    (n, c, *spatial), (out, rows, *window), out_layout = params["dimension_numbers"]
    x = jnp.asarray(x).transpose([n, *spatial, c])
    kernel = transposed(kernel, (*window, rows, out))
    if kernel is None:
        return None
    *window, _, _ = kernel.shape
    geometry = ConvGeometry(
        tuple(window), params["window_strides"], params["padding"], params["rhs_dilation"],
        params["lhs_dilation"],
    )  # fmt: skip
    y = kernel.convolve(
        x, geometry, params["feature_group_count"],
        precision=params["precision"], dtype=operation.out[0].dtype,
    )  # fmt: skip
    if y is None:
        return None
    to_layout = [0] * y.ndim
    for axis, place in enumerate((out_layout[0], *out_layout[2:], out_layout[1])):
        to_layout[place] = axis
    return y.transpose(to_layout)


def small_or_structured(kernel: Kernel | None, source: Kernel) -> Kernel | None:
    """Return a kernel, as one array if that is much smaller than what it was computed from."""
    if kernel is None or (kernel.ndim > 1 and kernel.size * 4 > source.size):
        return kernel
    return replace(kernel, terms=(Contraction.of(kernel.materialise()),))


def _product_of_entries(left: Kernel, right: Kernel, out: Any) -> Kernel | None:
    """Multiply two kernels entry by entry; None where that has too many terms."""
    if len(left.terms) * len(right.terms) > _MOST_TERMS:
        return None
    axes = tuple(range(left.ndim))
    return combine(left, axes, right, axes, axes, out)


def combine(
    left: Kernel, left_axes: Axes, right: Kernel, right_axes: Axes, out_axes: Axes, out: Any
) -> Kernel | None:
    """Return the product of two kernels with named axes, summed over axes not in `out_axes`.

    Args:
        left: a kernel.
        left_axes: new names of its axes; negative ones are summed over.
        right: a kernel.
        right_axes: new names of its axes.
        out_axes: names of the result's axes, 0, 1, ....
        out: shape and dtype of the result.

    Returns:
        The product, of one term for each pair of terms; None if one cannot be multiplied.
    """
    terms = []
    sizes = dict(zip((*left_axes, *right_axes), (*left.shape, *right.shape), strict=True))
    pairs: Any = itertools.product(left.terms, right.terms)
    square = left is right and left_axes == right_axes
    if square:  # each pair of different terms is there twice
        pairs = itertools.combinations_with_replacement(left.terms, 2)
    for a, b in pairs:
        if not isinstance(a, Contraction) or not isinstance(b, Contraction):
            return None
        parts: list[Part] = []
        for place, (term, axes) in enumerate(((a, left_axes), (b, right_axes))):
            # Names of what each term sums over must not meet.
            own = {axis: 1000 * (axis - 1) - place for axis in term.axes() if axis < 0}
            names = own | dict(enumerate(axes))
            parts += [part.renamed(names) for part in term.parts]
        twice = 2 if square and a is not b else 1
        has = {axis for part in parts for axis in part.axes}
        constant = math.prod(sizes[axis] for axis in sizes if axis < 0 and axis not in has)
        numbered = {axis: -1 - i for i, axis in enumerate(sorted(each for each in has if each < 0))}
        parts = [part.renamed(numbered) for part in parts]
        terms.append(Contraction(tuple(parts), a.scale * b.scale * constant * twice))
    return Kernel(tuple(terms), out.shape, out.dtype, left.path, left.allow_materialise)
