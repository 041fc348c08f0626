"""Supported operations: how each operation of model code uses a generated kernel.

A model function is traced with ordinary kernels, and the resulting program is evaluated with
`LowRank` and `PosedKernel` values in their place. Each operation on one follows its rule below:
products, convolutions and row look-ups use the factors; transposes, reshapes, slices and
scalings return a generated kernel again; loops, branches and other nested programs are evaluated in
the same way. An operation without a rule needs the whole kernel: an error, unless allowed.

Arrays here have no sample axis; `jax.vmap` adds it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from straw_jax.geometry import composed, resample
from straw_jax.lowrank import (
    ConvGeometry,
    Factor,
    Generated,
    factor_shape,
    form,
    lowrank_conv,
    lowrank_dot,
    multiply,
    patches,
)
from straw_jax.program import Origin, check_program


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """A kernel `base + scale * B @ A`, never formed.

    An axis in both `rows` and `columns` stacks kernels: each has its own part of both factors.

    Attributes:
        base: `shape`, or None.
        B: `[prod(shape[i] for i in rows), r]`.
        A: `[r, prod(shape[i] for i in columns)]`.
        shape: of the kernel.
        rows: the kernel's axes that B has, in B's order.
        columns: the kernel's axes that A has, in A's order.
        scale: of the update.
        path: the leaf's name, for errors.
        allow_materialise: whether an operation without a rule may form the kernel.
    """

    base: Array | None
    B: Factor
    A: Factor
    shape: tuple[int, ...] = field(metadata={"static": True})
    rows: tuple[int, ...] = field(metadata={"static": True})
    columns: tuple[int, ...] = field(metadata={"static": True})
    scale: float = field(metadata={"static": True})
    path: str = field(metadata={"static": True})
    allow_materialise: bool = field(metadata={"static": True})

    @property
    def ndim(self) -> int:
        """Number of the kernel's axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The kernel's dtype in model code."""
        return jnp.result_type(*jax.tree.leaves(self.A))

    @property
    def size(self) -> int:
        """Number of the kernel's entries."""
        return math.prod(self.shape)

    def astype(self, dtype: Any) -> "LowRank":
        """Return the kernel in another floating dtype."""
        return jax.tree.map(lambda part: part.astype(dtype), self)

    def sizes(self, axes: Iterable[int]) -> list[int]:
        """Return the sizes of some of the kernel's axes."""
        return [self.shape[axis] for axis in axes]

    def parts(self) -> tuple[tuple[Array, list[int]], tuple[Array, list[int]]]:
        """Return each factor with one axis for each of the kernel's axes, and the axes' names.

        Names are the kernel's axes, and `ndim` for the axis of the rank.
        """
        B = form(self.B).reshape(*self.sizes(self.rows), -1)
        A = form(self.A).reshape(-1, *self.sizes(self.columns))
        return (B, [*self.rows, self.ndim]), (A, [self.ndim, *self.columns])

    def materialise(self) -> Array:
        """Return the kernel as an ordinary array."""
        (B, B_axes), (A, A_axes) = self.parts()
        update = jnp.einsum(B, B_axes, A, A_axes, list(range(self.ndim)))
        update = update * jnp.asarray(self.scale, update.dtype)
        return update if self.base is None else self.base + update

    def materialise_for(self, operation: str, where: str) -> Array:
        """Return the kernel as an ordinary array for an operation, if that is allowed."""
        if not self.allow_materialise:
            raise ValueError(
                f"{self.path}: expected operations that support low-rank kernels, got {operation} "
                f"(in {where}), which needs the whole kernel {self.shape} of every sample. Use the "
                "kernel in a matrix product, a convolution or a look-up of rows, generate this leaf"
                " whole or not at all, or call modulate(..., allow_materialise=True)."
            )
        return self.materialise()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PosedKernel:
    """A kernel composed with a resampling of its layer's input: `kernel(R x)`, never formed.

    Attributes:
        kernel: an array, or low-rank.
        matrix: `[2, 3]`, of `R`.
        grid: height and width of the image for a dense layer, see `Posed`.
        path: the leaf's name, for errors.
        allow_materialise: whether an operation without a rule may form the kernel.
    """

    kernel: Array | LowRank
    matrix: Array
    grid: tuple[int, int] | None = field(metadata={"static": True})
    path: str = field(metadata={"static": True})
    allow_materialise: bool = field(metadata={"static": True})

    @property
    def ndim(self) -> int:
        """Number of the kernel's axes."""
        return self.kernel.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return self.kernel.shape

    @property
    def dtype(self) -> Any:
        """The kernel's dtype in model code."""
        return self.kernel.dtype

    def materialise(self) -> Array:
        """Return the kernel of a dense layer as an ordinary array."""
        if self.grid is None or self.ndim != 2:
            raise ValueError(
                f"{self.path}: expected a dense layer's kernel whose pose has a grid, got one of "
                f"shape {self.shape}, grid {self.grid}: a convolution composed with a pose has no "
                "kernel of its own. Resample the input instead."
            )
        kernel = self.kernel
        whole = kernel.materialise() if isinstance(kernel, LowRank) else kernel
        return composed(whole, self.matrix, self.grid)

    def materialise_for(self, operation: str, where: str) -> Array:
        """Return the kernel as an ordinary array for an operation, if that is allowed."""
        if not self.allow_materialise:
            raise ValueError(
                f"{self.path}: expected operations that support posed kernels, got {operation} on "
                f"one of shape {self.shape} (in {where}). Use the kernel in a convolution over two "
                "axes, or, with a grid, in a product with a matrix."
            )
        return self.materialise()


def is_generated(value: Any) -> bool:
    """Return whether a value is a generated kernel, not formed."""
    return isinstance(value, LowRank | PosedKernel)


def apply_generated_kernels(
    function: Callable[..., Any],
    weights: Sequence[LowRank | PosedKernel | Array],
    samples: Any,
    origins: Sequence[Origin],
) -> Any:
    """Call a function of weights and samples with generated kernels in place of arrays.

    Its program is checked first, with the origins of its flat arguments.
    """
    avals = [
        jax.ShapeDtypeStruct(weight.shape, weight.dtype) if is_generated(weight) else weight
        for weight in weights
    ]
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(avals, samples)
    check_program(jaxpr, origins)
    out = [
        value.materialise_for("returning it", "the model's results")
        if is_generated(value)
        else value
        for value in _run(jaxpr, [*weights, *jax.tree.leaves(samples)])
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def _run(jaxpr: Any, arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, closed or open without constants, of arrays and generated kernels."""
    constants = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    around = source_info_util.current()
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        source = equation.source_info
        if not source_info_util.summarize(source):  # within a function of JAX, such as jnp.pad
            source = source.replace(traceback=around.traceback)
        names = source_info_util.current_name_stack() + source.name_stack
        # As when the model was traced: source lines for errors, names, and settings by `with`.
        with (
            source_info_util.user_context(source.traceback, name_stack=names),
            equation.ctx.manager,
        ):
            if any(is_generated(operand) for operand in operands):
                out = _apply_rule(equation, operands, source_info_util.summarize(source))
            else:
                out = _bind(equation.primitive, operands, equation.params)
        several = equation.primitive.multiple_results
        values.update(zip(equation.outvars, out if several else [out], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply_rule(equation: Any, operands: Sequence[Any], where: str) -> Any:
    """Run an operation on factors, or on whole kernels if it has no rule and that is allowed."""
    posed = any(isinstance(operand, PosedKernel) for operand in operands)
    rule = (_POSED_RULES if posed else _RULES).get(equation.primitive)
    out = None if rule is None else rule(*operands, **equation.params)
    if out is not None:
        return out
    operation = f"the operation '{equation.primitive}'"
    arrays = [
        operand.materialise_for(operation, where) if is_generated(operand) else operand
        for operand in operands
    ]
    return _bind(equation.primitive, arrays, equation.params)


def _bind(primitive: Any, operands: Sequence[Any], params: Mapping[str, Any]) -> Any:
    return primitive.bind(*operands, **primitive.get_bind_params(params))


# A rule maps operands and parameters of an operation to its result, or to None if it is not
# supported.

_RULES: dict[Any, Callable[..., Any]] = {}


def _rule(operation: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _RULES[operation] = function
        return function

    return register


# Products.


@_rule(lax.dot_general_p)
def _dot_general(left: Any, right: Any, *, dimension_numbers: Any, **params: Any) -> Array | None:
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return None
    contracted, batch = dimension_numbers
    side = 0 if isinstance(left, LowRank) else 1
    weight, x = (left, right) if side == 0 else (right, left)
    dtype = _common_dtype(weight, x)
    weight, x = weight.astype(dtype), jnp.asarray(x, dtype)
    names = {
        x_axis: axis
        for pair in (contracted, batch)
        for axis, x_axis in zip(pair[side], pair[1 - side], strict=True)
    }
    x_axes = [names.get(axis, weight.ndim + 1 + axis) for axis in range(x.ndim)]
    free = (
        [axis for axis in range(weight.ndim) if axis not in names.values()],
        [axis for axis in x_axes if axis > weight.ndim],
    )
    out_axes = [*batch[side], *free[side], *free[1 - side]]
    return _product(x, x_axes, weight, out_axes, **params)


def _common_dtype(weight: LowRank | PosedKernel, x: Array) -> Any:
    """Return the dtype to which JAX promotes the operands of a product."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(weight.dtype, x.dtype)


def _product(
    x: Array,
    x_axes: list[int],
    weight: LowRank,
    out_axes: list[int],
    *,
    precision: lax.PrecisionLike,
    preferred_element_type: Any,
    **_: Any,
) -> Array:
    """Multiply `x` by a kernel, both with named axes, and sum over axes not in `out_axes`.

    The kernel's axes are named `0 .. ndim - 1`; `ndim` is the rank; larger names are axes of `x`.
    """
    shared = {axis for axis in x_axes if axis < weight.ndim}
    if shared == set(weight.rows) and not shared & {*out_axes, *weight.columns}:
        free = [axis for axis in x_axes if axis not in shared]
        order = [*weight.rows, *weight.columns]
        size = math.prod(weight.sizes(weight.rows))
        base = None if weight.base is None else weight.base.transpose(order).reshape(size, -1)
        x = x.transpose([x_axes.index(axis) for axis in [*free, *weight.rows]])
        y = lowrank_dot(
            x.reshape(*x.shape[: len(free)], size), weight.B, weight.A, base,
            scale=weight.scale, precision=precision,
        )  # fmt: skip
        y = y.reshape(*y.shape[:-1], *weight.sizes(weight.columns))
        y = y.transpose([[*free, *weight.columns].index(axis) for axis in out_axes])
    else:
        y = _update(x, x_axes, weight, out_axes, precision)
        if weight.base is not None:
            axes = list(range(weight.ndim))
            y += _einsum(x, x_axes, weight.base, axes, out_axes, precision)
    return y.astype(preferred_element_type or x.dtype)


def _update(
    x: Array, x_axes: list[int], weight: LowRank, out_axes: list[int], precision: lax.PrecisionLike
) -> Array:
    """Multiply `x` by one factor, then the other; first by the one with more of its entries."""
    parts = sorted(
        weight.parts(),
        key=lambda part: math.prod(weight.sizes(set(part[1]) & set(x_axes))),
        reverse=True,
    )
    (first, first_axes), (second, second_axes) = parts
    between = [
        axis
        for axis in dict.fromkeys([*x_axes, *first_axes])
        if axis in second_axes or axis in out_axes
    ]
    y = _einsum(x, x_axes, first, first_axes, between, precision)
    y = (y * jnp.asarray(weight.scale, y.dtype)).astype(x.dtype)
    return _einsum(y, between, second, second_axes, out_axes, precision)


def _einsum(
    x: Array,
    x_axes: list[int],
    y: Array,
    y_axes: list[int],
    out_axes: list[int],
    precision: lax.PrecisionLike,
) -> Array:
    def product(x: Array, y: Array, **options: Any) -> Array:
        return jnp.einsum(x, x_axes, y, y_axes, out_axes, precision=precision, **options)

    return multiply(product, x, y)


@_rule(lax.conv_general_dilated_p)
def _conv(
    x: Any,
    weight: Any,
    *,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    **params: Any,
) -> Array | None:
    if isinstance(x, LowRank) or batch_group_count > 1:
        return None
    (n, c, *spatial), (out, rows, *window), out_layout = dimension_numbers
    x = jnp.asarray(x).transpose([n, *spatial, c])
    weight = _transpose(weight, permutation=(*window, rows, out))
    *window, rows, out = weight.shape
    geometry = ConvGeometry(tuple(window), window_strides, padding, rhs_dilation, lhs_dilation)
    last = weight.ndim - 1
    if feature_group_count == 1 and (weight.rows, weight.columns) == ((*range(last),), (last,)):
        y = lowrank_conv(
            x, weight.B, weight.A, weight.base, geometry,
            scale=weight.scale, precision=params["precision"],
        )  # fmt: skip
        y = y.astype(params["preferred_element_type"] or x.dtype)
    else:
        by_groups = _conv_by_groups(x, weight, geometry, feature_group_count, params)
        if by_groups is None:
            return None
        y = by_groups
    to_layout = [0] * y.ndim
    for axis, place in enumerate((out_layout[0], *out_layout[2:], out_layout[1])):
        to_layout[place] = axis
    return y.transpose(to_layout)


def _conv_by_groups(
    x: Array, weight: LowRank, geometry: ConvGeometry, groups: int, params: Mapping[str, Any]
) -> Array | None:
    """Multiply each group of channels of each patch by its part of the kernel's columns."""
    *window, rows, out = weight.shape
    split = _reshape(weight, new_sizes=(*window, rows, groups, out // groups))
    if split is None:
        return None
    x = patches(x, geometry)
    positions = x.shape[:-1]
    group, kernel = split.ndim - 2, range(split.ndim - 2)
    free = [split.ndim + 1 + axis for axis in range(len(positions))]
    x = x.reshape(*positions, *window, groups, rows)
    x_axes = [*free, *kernel[:-1], group, kernel[-1]]
    y = _product(x, x_axes, split, [*free, group, group + 1], **params)
    return y.reshape(*positions, out)


@_rule(lax.gather_p)
def _gather(
    table: Any,
    indices: Any,
    *,
    dimension_numbers: Any,
    slice_sizes: tuple[int, ...],
    fill_value: Any,
    **params: Any,
) -> Array | None:
    """Look up rows of both base and B: an embedding."""
    if isinstance(indices, LowRank) or table.rows[0] != 0 or 0 in table.columns:
        return None

    def trailing(ndim: int) -> tuple[int, ...]:
        return tuple(range(indices.ndim - 1, indices.ndim - 2 + ndim))

    of_rows = lax.GatherDimensionNumbers(trailing(table.ndim), (0,), (0,))
    whole_rows = slice_sizes == (1, *table.shape[1:])
    # The fill value of out-of-bounds indices must be the same in B and in the product.
    fills = fill_value is None or fill_value == 0 or math.isnan(fill_value)
    if not whole_rows or dimension_numbers != of_rows or not fills:
        return None

    def look_up(part: Array) -> Array:
        part = part.reshape(table.shape[0], -1, *part.shape[2:])
        return lax.gather(
            part,
            indices,
            of_rows._replace(offset_dims=trailing(part.ndim)),
            (1, *part.shape[1:]),
            fill_value=fill_value,
            **params,
        )

    # Before a generated factor is formed: a sample may use few rows of a large table.
    few = math.prod(indices.shape[:-1]) < table.shape[0]
    B = form(_map_rows(look_up, table.B if few else form(table.B)))
    A = form(table.A).reshape(-1, *table.sizes(table.columns))
    positions = indices.shape[:-1]
    free = [table.ndim + 1 + axis for axis in range(len(positions))]
    y = _einsum(
        B.reshape(*positions, *table.sizes(table.rows[1:]), -1),
        [*free, *table.rows[1:], table.ndim],
        A,
        [table.ndim, *table.columns],
        [*free, *range(1, table.ndim)],
        None,
    )
    y = (y * jnp.asarray(table.scale, y.dtype)).astype(A.dtype)
    return y if table.base is None else y + look_up(table.base).reshape(y.shape)


def _map_rows(function: Callable[[Array], Array], factor: Factor) -> Factor:
    if not isinstance(factor, Generated):
        return function(factor)
    return Generated(factor.hidden, function(factor.kernel), function(factor.bias))


# Rearrangements.


@_rule(lax.convert_element_type_p)
def _convert(weight: LowRank, *, new_dtype: Any, **_: Any) -> LowRank | None:
    return weight.astype(new_dtype) if is_linear_cast(new_dtype) else None


def is_linear_cast(dtype: Any) -> bool:
    """Return whether the cast of a product is the product of casts, up to rounding."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 16


@_rule(lax.transpose_p)
def _transpose(weight: LowRank, *, permutation: Sequence[int], **_: Any) -> LowRank:
    place = {axis: new for new, axis in enumerate(permutation)}
    return replace(
        weight,
        base=None if weight.base is None else weight.base.transpose(permutation),
        shape=tuple(weight.sizes(permutation)),
        rows=tuple(place[axis] for axis in weight.rows),
        columns=tuple(place[axis] for axis in weight.columns),
    )


@_rule(lax.reshape_p)
def _reshape(weight: LowRank, *, new_sizes: tuple[int, ...], **_: Any) -> LowRank | None:
    """Split axes, and join axes of the same factors."""
    weight = _in_order(weight)
    groups = _groups(weight.shape, new_sizes)
    rows, columns = _regrouped(weight.rows, groups), _regrouped(weight.columns, groups)
    if rows is None or columns is None:
        return None
    base = None if weight.base is None else weight.base.reshape(new_sizes)
    return replace(weight, base=base, shape=tuple(new_sizes), rows=rows, columns=columns)


@_rule(lax.squeeze_p)
def _squeeze(weight: LowRank, *, dimensions: tuple[int, ...], **_: Any) -> LowRank | None:
    kept = weight.sizes(axis for axis in range(weight.ndim) if axis not in dimensions)
    return _reshape(weight, new_sizes=tuple(kept))


@_rule(lax.broadcast_in_dim_p)
def _broadcast(weight: LowRank, *_: Any, shape: tuple[int, ...], **__: Any) -> LowRank | None:
    """Add axes of size one."""
    return _reshape(weight, new_sizes=shape) if math.prod(shape) == weight.size else None


def _in_order(weight: LowRank) -> LowRank:
    """Return the same kernel with the axes of both factors in the kernel's order."""
    rows, columns = tuple(sorted(weight.rows)), tuple(sorted(weight.columns))
    if (rows, columns) == (weight.rows, weight.columns):
        return weight
    (B, B_axes), (A, A_axes) = weight.parts()
    B = B.transpose([B_axes.index(axis) for axis in (*rows, weight.ndim)])
    A = A.transpose([A_axes.index(axis) for axis in (weight.ndim, *columns)])
    B, A = B.reshape(-1, B.shape[-1]), A.reshape(A.shape[0], -1)
    return replace(weight, B=B, A=A, rows=rows, columns=columns)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
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
    groups[-1][1].extend(range(j, len(new)))  # of size one
    return groups


def _regrouped(
    axes: Sequence[int], groups: Iterable[tuple[list[int], list[int]]]
) -> tuple[int, ...] | None:
    """Return the new axes of a factor; None if it has a part of a group, or another order."""
    by_first = {olds[0]: (olds, news) for olds, news in groups}
    left, regrouped = list(axes), []
    while left:
        olds, news = by_first.get(left[0], ([], []))
        if not olds or left[: len(olds)] != olds:
            return None
        regrouped += news
        left = left[len(olds) :]
    return tuple(regrouped)


@_rule(lax.slice_p)
def _slice(
    weight: LowRank,
    *,
    start_indices: Sequence[int],
    limit_indices: Sequence[int],
    strides: Sequence[int] | None,
    **_: Any,
) -> LowRank:
    steps = strides or [1] * weight.ndim
    slices = [slice(*each) for each in zip(start_indices, limit_indices, steps, strict=True)] + [
        slice(None)
    ]
    return _along_axes(weight, lambda part, axes: part[tuple(slices[axis] for axis in axes)])


@_rule(lax.split_p)
def _split(weight: LowRank, *, sizes: Sequence[int], axis: int, **_: Any) -> list[LowRank]:
    def piece(end: int, size: int) -> LowRank:
        return _along_axes(
            weight,
            lambda part, axes: (
                lax.slice_in_dim(part, end - size, end, axis=axes.index(axis))
                if axis in axes
                else part
            ),
        )

    return [piece(*each) for each in zip(itertools.accumulate(sizes), sizes, strict=True)]


@_rule(lax.dynamic_slice_p)
def _dynamic_slice(weight: LowRank, *starts: Any, slice_sizes: Sequence[int], **_: Any) -> LowRank:
    starts = (*starts, jnp.zeros_like(starts[0]))
    sizes = [*slice_sizes, factor_shape(weight.A)[-2]]
    return _along_axes(
        weight,
        lambda part, axes: lax.dynamic_slice(
            part, [starts[axis] for axis in axes], [sizes[axis] for axis in axes]
        ),
    )


@_rule(lax.rev_p)
def _reverse(weight: LowRank, *, dimensions: Sequence[int], **_: Any) -> LowRank:
    return _along_axes(
        weight,
        lambda part, axes: lax.rev(part, [axes.index(axis) for axis in dimensions if axis in axes]),
    )


def _along_axes(weight: LowRank, function: Callable[[Array, list[int]], Array]) -> LowRank:
    """Apply a function that treats each axis separately to the base and to both factors."""
    (B, B_axes), (A, A_axes) = weight.parts()
    B, A = function(B, B_axes), function(A, A_axes)
    sizes = dict(zip([*B_axes, *A_axes], [*B.shape, *A.shape], strict=True))
    return replace(
        weight,
        base=None if weight.base is None else function(weight.base, list(range(weight.ndim))),
        B=B.reshape(-1, B.shape[-1]),
        A=A.reshape(A.shape[0], -1),
        shape=tuple(sizes[axis] for axis in range(weight.ndim)),
    )


@_rule(lax.mul_p)
def _multiply(left: Any, right: Any, *, out_dtype: Any = None, **_: Any) -> LowRank | None:
    """Multiply by a scalar."""
    weight, factor = (left, right) if isinstance(left, LowRank) else (right, left)
    if isinstance(factor, LowRank) or jnp.ndim(factor) or out_dtype is not None:
        return None
    base = None if weight.base is None else weight.base * factor
    return replace(weight, base=base, A=form(weight.A) * factor)


@_rule(lax.div_p)
def _divide(weight: Any, divisor: Any, **params: Any) -> LowRank | None:
    return None if isinstance(divisor, LowRank) else _multiply(weight, 1 / divisor, **params)


# Nested programs.


@_rule(primitives.jit_p)
def _jit(*operands: Any, jaxpr: Any, **_: Any) -> list[Any]:
    return _run(jaxpr, operands)


@_rule(primitives.remat_p)
def _remat(*operands: Any, jaxpr: Any, prevent_cse: Any, policy: Any, **_: Any) -> list[Any]:
    def run(*operands: Any) -> list[Any]:
        return _run(jaxpr, operands)

    return jax.checkpoint(run, prevent_cse=prevent_cse, policy=policy)(*operands)


@_rule(lax.cond_p)
def _cond(index: Any, *operands: Any, branches: Sequence[Any], **_: Any) -> list[Any]:
    def branch(jaxpr: Any) -> Callable[..., list[Any]]:
        return lambda *operands: _run(jaxpr, operands)

    return lax.switch(index, [branch(jaxpr) for jaxpr in branches], *operands)


@_rule(lax.while_p)
def _while(
    *operands: Any,
    cond_nconsts: int,
    cond_jaxpr: Any,
    body_nconsts: int,
    body_jaxpr: Any,
    **_: Any,
) -> list[Any]:
    start = cond_nconsts + body_nconsts
    condition, body = operands[:cond_nconsts], operands[cond_nconsts:start]
    return lax.while_loop(
        lambda carry: _run(cond_jaxpr, [*condition, *carry])[0],
        lambda carry: _run(body_jaxpr, [*body, *carry]),
        list(operands[start:]),
    )


@_rule(lax.scan_p)
def _scan(
    *operands: Any, jaxpr: Any, length: int, reverse: bool, unroll: Any, **params: Any
) -> list[Any] | None:
    avals = jaxpr.in_avals
    if any(isinstance(each, PosedKernel) and each.ndim > aval.ndim
           for each, aval in zip(operands, avals, strict=True)):  # fmt: skip
        return None
    layered = [
        (each.ndim if is_generated(each) else jnp.ndim(each)) > aval.ndim
        for each, aval in zip(operands, avals, strict=True)
    ]
    whole = [
        jax.ShapeDtypeStruct((length, *aval.shape) if each else aval.shape, aval.dtype)
        for each, aval in zip(layered, avals, strict=True)
    ]
    # The parameter with the number of carried results differs between versions of JAX; use shapes.
    results = jax.eval_shape(
        lambda *arrays: lax.scan_p.bind(
            *arrays, jaxpr=jaxpr, length=length, reverse=reverse, unroll=unroll, **params
        ),
        *whole,
    )
    carried = sum(
        result.ndim == aval.ndim for result, aval in zip(results, jaxpr.out_avals, strict=True)
    )
    layers = [
        _layers(each) if isinstance(each, LowRank) else each
        for each in operands[len(operands) - sum(layered) :]
    ]
    start = len(operands) - len(layers) - carried

    def step(carry: list[Any], layer: list[Any]) -> tuple[list[Any], list[Any]]:
        out = _run(jaxpr, [*operands[:start], *carry, *layer])
        return out[:carried], out[carried:]

    initial = list(operands[start : start + carried])
    carry, out = lax.scan(step, initial, layers, length, reverse, unroll)
    return [*carry, *out]


def _layers(weight: LowRank) -> LowRank:
    """Return a kernel of many layers as one layer's, with a leading axis in all its parts."""

    def in_front(part: Array, axes: list[int]) -> Array:
        if 0 in axes:
            return jnp.moveaxis(part, axes.index(0), 0)
        return jnp.broadcast_to(part, (weight.shape[0], *part.shape))

    B, A = (in_front(*part) for part in weight.parts())
    return replace(
        weight,
        B=B.reshape(B.shape[0], -1, B.shape[-1]),
        A=A.reshape(*A.shape[:2], -1),
        shape=weight.shape[1:],
        rows=tuple(axis - 1 for axis in weight.rows if axis),
        columns=tuple(axis - 1 for axis in weight.columns if axis),
    )


# Poses: resample the layer's input, then run the operation with the kernel.


def _posed_dot(left: Any, right: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    (contracted, batch), side = dimension_numbers, 0 if isinstance(left, PosedKernel) else 1
    weight, x = (left, right) if side == 0 else (right, left)
    if is_generated(x) or weight.grid is None or weight.ndim != 2:
        return None
    if len(contracted[0]) != 1 or batch[0]:
        return None
    (axis,), x = contracted[1 - side], jnp.asarray(x, _common_dtype(weight, x))
    height, width = weight.grid
    if x.shape[axis] % (height * width):
        raise ValueError(
            f"{weight.path}: expected its layer's input to be flat images of {height} x {width} "
            f"pixels, the pose's grid, got vectors of length {x.shape[axis]}. Change the grid, or "
            "give the pose to the layer whose input is the images."
        )
    seen = jnp.moveaxis(x, axis, -1)
    image = seen.reshape(*seen.shape[:-1], height, width, -1)
    seen = jnp.moveaxis(resample(image, weight.matrix).reshape(seen.shape), -1, axis)
    operands = [weight.kernel, seen] if side == 0 else [seen, weight.kernel]
    return _go_on(lax.dot_general_p, operands, {**params, "dimension_numbers": dimension_numbers})


def _posed_conv(x: Any, weight: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    n, c, *spatial = dimension_numbers.lhs_spec
    if is_generated(x) or len(spatial) != 2:
        return None
    order = [n, *spatial, c]
    seen = resample(jnp.asarray(x).transpose(order), weight.matrix)
    seen = seen.transpose([order.index(axis) for axis in range(len(order))])
    params["dimension_numbers"] = dimension_numbers
    return _go_on(lax.conv_general_dilated_p, [seen, weight.kernel], params)


def _posed_convert(weight: PosedKernel, **params: Any) -> PosedKernel | None:
    if not is_linear_cast(params["new_dtype"]):
        return None
    return replace(weight, kernel=_go_on(lax.convert_element_type_p, [weight.kernel], params))


def _go_on(primitive: Any, operands: Sequence[Any], params: Mapping[str, Any]) -> Any:
    if any(is_generated(operand) for operand in operands):
        return _RULES[primitive](*operands, **params)
    return _bind(primitive, operands, params)


_PROGRAMS = (primitives.jit_p, primitives.remat_p, lax.cond_p, lax.while_p, lax.scan_p)
_POSED_RULES: dict[Any, Callable[..., Any]] = {
    lax.dot_general_p: _posed_dot,
    lax.conv_general_dilated_p: _posed_conv,
    lax.convert_element_type_p: _posed_convert,
    **{program: _RULES[program] for program in _PROGRAMS},
}
