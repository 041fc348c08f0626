"""Low-rank weights, applied in factored form.

Throughout this package a kernel is `[in, out]`, `B` is `[in, r]`, `A` is `[r, out]`, and the update
of the kernel is `scale * B @ A`. The kernel `[*window, in, out]` of a convolution is read as the
matrix `[prod(window) * in, out]`. The product `B @ A` is never formed: `x @ B` comes first.

The functions here take the factors of one sample and do not check shapes; `jax.vmap` adds a sample
axis. `straw_jax.functional` and `straw_jax.lift` have the versions with checks and sample axes.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike

# Up to so many numbers a vector, ranks of all adapters together, products with all of them are
# quicker than to sort vectors (benchmarks/index.py).
_FEW_COLUMNS = 64


class Generated(NamedTuple):
    """A factor `[m, n]`, stored as the output layer of a generator that is not applied yet.

    Its value is `bias + sum_h hidden[h] * kernel[:, :, h]`. Contracting `x` with `kernel` before
    the sum over `h` needs no per-sample factor in memory. This is cheaper for a layer with a single
    input vector per sample (`apply_factor` chooses).

    Attributes:
        hidden: the generator's hidden vector, `[h]`, or `[batch, h]` for a batch of factors.
        kernel: `[m, n, h]`, shared by all samples; the long axis last, for element-wise updates.
        bias: `[m, n]`, shared by all samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated, form
        >>> factor = Generated(jnp.ones((8, 4)), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> form(factor).shape
        (8, 3, 2)
    """

    hidden: Array
    kernel: Array
    bias: Array


class Lazy(ABC):
    """An array of few numbers that is formed where it is used.

    Example:
        >>> from straw_jax import Quantised
        >>> from straw_jax.lowrank import Indexed, Lazy
        >>> issubclass(Indexed, Lazy), issubclass(Quantised, Lazy)
        (True, True)
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""

    @property
    @abstractmethod
    def array(self) -> Array:
        """The array, formed."""

    @abstractmethod
    def each_array(self, function: Callable[[Array], Array]) -> "Lazy":
        """Return the array after a function that is linear and keeps shapes, such as a cast."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Indexed(Lazy):
    """A factor `[m, n]`, stored as its number in a bank that all samples share.

    `modulate(...)(..., index=ids)` makes it; `jax.vmap` maps over `index` and `weight` alone. A
    product with it sees all samples at once, and gathers factors once for several samples of one
    adapter (`indexed_dot`).

    Attributes:
        bank: `[adapters, m, n]`, shared by all samples.
        index: which of them, a whole number. -1 is a factor of zeros, any other number outside of
            the bank one of NaN.
        weight: a number by which the factor is multiplied, or None.
        known: whether all numbers are known to be those of adapters, so that none is checked.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import form
        >>> from straw_jax.lowrank import Indexed
        >>> bank = jnp.arange(3.0).reshape(3, 1, 1)
        >>> [form(Indexed(bank, jnp.asarray(i))).item() for i in (2, -1, 7)]
        [2.0, 0.0, nan]
    """

    bank: Array
    index: Array
    weight: Array | None = None
    known: bool = field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """`(m, n)`, or `(batch, m, n)`."""
        return (*self.index.shape, *self.bank.shape[1:])

    @property
    def array(self) -> Array:
        """The factor, formed."""
        return _where_present(_looked_up(self.bank, self.index), self)

    def each_array(self, function: Callable[[Array], Array]) -> "Indexed":
        """Return the factor with a linear function of its bank, such as a cast."""
        return replace(self, bank=function(self.bank))

    def rearranged(self, function: Callable[[Array], Array]) -> "Indexed":
        """Return the factor with a function of each factor of its bank, such as a reshape."""
        return replace(self, bank=jax.vmap(function)(self.bank))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerVector(Indexed):
    """An array of a bank for each of a sample's vectors, stored as numbers in the bank.

    There is no one array of it: products and sums with vectors, all of them in their order, use it.

    Attributes:
        bank: `[adapters, *shape]`, shared by all samples.
        index: which of them each vector has, whole numbers `[vectors]`.
        weight: None.
        known: as that of `Indexed`.
        neutral: what -1 has in place of an array's numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import PerVector, apply_factor
        >>> factor = PerVector(jnp.arange(3.0).reshape(3, 1, 1), jnp.array([2, -1]))
        >>> apply_factor(jnp.ones((2, 1)), factor).tolist()
        [[2.0], [0.0]]
    """

    neutral: float = field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array of each vector."""
        return self.bank.shape[1:]

    @property
    def array(self) -> Array:
        """None: an error."""
        raise self.refusal("an operation that needs one array for all of them")

    @property
    def each(self) -> Array:
        """The arrays, `[vectors, *shape]`."""
        return self.chosen(_looked_up(self.bank, self.index))

    def chosen(self, arrays: Array) -> Array:
        """Return what a bank gives, `[vectors, ...]`, where there is an adapter."""
        if self.known:
            return arrays
        index = self.index.reshape(-1, *[1] * (arrays.ndim - 1))
        outside = (index < -1) | (index >= self.bank.shape[0])
        arrays = jnp.where(outside, jnp.asarray(jnp.nan, arrays.dtype), arrays)
        return jnp.where(index == -1, jnp.asarray(self.neutral, arrays.dtype), arrays)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless there are as many vectors, of a shape, as numbers."""
        if math.prod(shape) != self.index.shape[0]:
            raise self.refusal(f"{list(shape)} vectors")

    def refusal(self, got: str) -> ValueError:
        """Return the error for what is not done with each vector's own array."""
        return ValueError(
            "modulate: expected products with all vectors in their order, or sums with biases, as"
            f" index has numbers for each of {self.index.shape[0]} vectors of a sample, got {got}."
            " Leave this leaf out of the bank, or give index one number a sample."
        )


Factor: TypeAlias = Array | Generated | Lazy


def is_lazy(value: Any) -> "TypeGuard[Generated | Lazy]":
    """Return whether a value is formed where it is used, and no array yet.

    Args:
        value: anything.

    Returns:
        Whether it is `Generated` or another `Lazy` one.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import is_lazy
        >>> is_lazy(jnp.ones((3, 2)))
        False
    """
    return isinstance(value, Generated | Lazy)


def each_number(function: Callable[[Array], Array], tree: Any) -> Any:
    """Return a tree with a linear function of each array of numbers, not of what chooses them.

    Args:
        function: such as a cast.
        tree: of arrays and factors.

    Returns:
        The same tree with the function's results.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import Indexed, each_number
        >>> factor = Indexed(jnp.ones((3, 4, 2)), jnp.asarray(1))
        >>> half = each_number(lambda array: array.astype(jnp.bfloat16), {"B": factor})["B"]
        >>> half.bank.dtype, half.index.dtype
        (dtype(bfloat16), dtype('int32'))
    """

    def of_leaf(leaf: Any) -> Any:
        return leaf.each_array(function) if isinstance(leaf, Lazy) else function(leaf)

    return jax.tree.map(of_leaf, tree, is_leaf=lambda leaf: isinstance(leaf, Lazy))


def factor_shape(factor: Factor) -> tuple[int, ...]:
    """Return the shape of a factor once it is formed.

    Args:
        factor: an array, or a `Generated` or `Indexed` factor.

    Returns:
        `(m, n)`, or `(batch, m, n)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import factor_shape
        >>> factor_shape(Generated(jnp.ones((8, 4)), jnp.ones((3, 2, 4)), jnp.zeros((3, 2))))
        (8, 3, 2)
    """
    if not isinstance(factor, Generated):
        return factor.shape
    m, n, _ = factor.kernel.shape
    return (*factor.hidden.shape[:-1], m, n)


def form(factor: Factor) -> Array:
    """Return a factor as an ordinary array.

    Args:
        factor: an array, returned as it is, or a `Generated` or `Indexed` factor, with or without a
            sample axis.

    Returns:
        `[m, n]`, or `[batch, m, n]` where the factor has a sample axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated, form
        >>> form(Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))).tolist()
        [[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]
    """
    if isinstance(factor, Lazy):
        return factor.array
    if not isinstance(factor, Generated):
        return factor
    product = jnp.tensordot(factor.hidden, factor.kernel, axes=(-1, -1))
    dtype = accumulator_dtype(product.dtype)  # in which the bias's gradient sums over samples
    bias = jnp.broadcast_to(factor.bias.astype(dtype), product.shape)
    return (product.astype(dtype) + bias).astype(product.dtype)


def formed(tree: Any) -> Any:
    """Return a tree with `Generated` and `Indexed` factors as ordinary arrays.

    Args:
        tree: of arrays and factors, such as a tree of factors.

    Returns:
        The same tree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import formed
        >>> factor = Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> formed({"B": factor})["B"].shape
        (3, 2)
    """
    return jax.tree.map(form, tree, is_leaf=is_lazy)


class ConvGeometry(NamedTuple):
    """How a convolution's window moves over its input; one entry per spatial axis in each field.

    Attributes:
        window: spatial shape of the kernel.
        strides: of the window.
        pads: zeros before and after the input.
        dilation: of the window (atrous convolution).
        input_dilation: of the input (transposed convolution); None for none.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, patches
        >>> geometry = ConvGeometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
        >>> patches(jnp.ones((2, 8, 8, 5)), geometry).shape
        (2, 4, 4, 45)
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...] | None = None


def apply_factor(x: Array, factor: Factor, precision: lax.PrecisionLike = None) -> Array:
    """Multiply by a factor, in the cheaper order of operations.

    Args:
        x: `[..., m]`, all vectors of one sample.
        factor: `[m, n]`, an array, `Generated` or `Indexed`, of the dtype of `x`.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[..., n]`, summed in float32 or wider and returned so.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.lowrank import apply_factor
        >>> factor = Generated(jnp.ones(4), jnp.ones((3, 2, 4)), jnp.zeros((3, 2)))
        >>> apply_factor(jnp.ones((5, 3)), factor).shape
        (5, 2)
    """
    if isinstance(factor, Indexed):
        return _apply_indexed(x, factor, precision)
    if not isinstance(factor, Generated):
        return dot(x, form(factor), precision)
    m, n, h = factor.kernel.shape
    one_vector = math.prod(x.shape[:-1]) == 1
    if not one_vector or h >= m:
        return dot(x, form(factor), precision)
    # As many operations as forming the factor, but `[n, h]` numbers per sample, not `[m, n]`.
    # As plain vector and matrix: XLA's CPU compiler copies arrays of other shapes.
    vector = x.reshape(m)
    xk = dot(vector, factor.kernel.reshape(m, n * h), precision).reshape(n, h)
    hidden = jnp.broadcast_to(factor.hidden.astype(xk.dtype), xk.shape)
    xf = jnp.sum(xk * hidden, axis=1) + dot(vector, factor.bias, precision)
    return xf.reshape(*x.shape[:-1], n)


def lowrank_dot(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
) -> Array:
    """Compute `x @ kernel + scale * (x @ B) @ A`.

    Args:
        x: `[..., in]`, all vectors of one sample.
        B: `[in, r]`.
        A: `[r, out]`.
        kernel: `[in, out]`, or None for the update alone.
        scale: of the update.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[..., out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import lowrank_dot
        >>> x, B, A = jnp.ones((5, 3)), jnp.ones((3, 2)), jnp.ones((2, 4))
        >>> lowrank_dot(x, B, A, None, scale=1.0, precision=None).shape
        (5, 4)
    """
    xB = apply_factor(x, B, precision)
    update = _update(xB, A, scale, precision, x.dtype)
    return update if kernel is None else dot(x, kernel, precision) + update


def lowrank_conv(
    x: Array,
    B: Factor,
    A: Factor,
    kernel: Array | None,
    geometry: ConvGeometry,
    *,
    scale: ArrayLike,
    precision: lax.PrecisionLike,
) -> Array:
    """Compute `conv(x, kernel + scale * B @ A)`.

    Args:
        x: `[n, *spatial, in]`, all images of one sample.
        B: `[prod(window) * in, r]`.
        A: `[r, out]`.
        kernel: `[*window, in, out]`, or None for the update alone.
        geometry: of the convolution.
        scale: of the update.
        precision: of the products, as in `jax.lax.dot_general`.

    Returns:
        `[n, *spatial_out, out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, lowrank_conv
        >>> x, B, A = jnp.ones((1, 6, 6, 3)), jnp.ones((27, 2)), jnp.ones((2, 4))
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> lowrank_conv(x, B, A, None, geometry, scale=1.0, precision=None).shape
        (1, 4, 4, 4)
    """
    xB = _apply_to_windows(x, B, geometry, precision)
    update = _update(xB, A, scale, precision, x.dtype)
    return update if kernel is None else conv(x, kernel, geometry, precision) + update


def conv(x: Array, kernel: Array, geometry: ConvGeometry, precision: lax.PrecisionLike) -> Array:
    """Compute `conv(x, kernel)`.

    Args:
        x: `[n, *spatial, in]`.
        kernel: `[*window, in, out]`.
        geometry: of the convolution.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[n, *spatial_out, out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, conv
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> conv(jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 4)), geometry, None).shape
        (1, 4, 4, 4)
    """
    if jax.default_backend() == "cpu":  # where the gradient of XLA's convolution is slow
        return _apply_to_windows(x, kernel.reshape(-1, kernel.shape[-1]), geometry, precision)
    spatial = "".join(chr(ord("0") + axis) for axis in range(x.ndim - 2))
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=geometry.strides,
        padding=geometry.pads,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        precision=precision,
    )
    return multiply(convolve, x, kernel)


def _update(
    xB: Array, A: Factor, scale: ArrayLike, precision: lax.PrecisionLike, dtype: DTypeLike
) -> Array:
    # Scaled at rank r, where it is cheapest.
    xB = xB * jnp.asarray(scale, xB.dtype)
    return apply_factor(xB.astype(dtype), A, precision)


def _apply_to_windows(
    x: Array, B: Factor, geometry: ConvGeometry, precision: lax.PrecisionLike
) -> Array:
    """Compute `conv(x, B)`, `B [prod(window) * in, r]` read as a kernel, with fewer copies."""
    size, stride, dilation = geometry.window[0], geometry.strides[0], geometry.dilation[0]
    rest = math.prod(geometry.window[1:]) * x.shape[-1]
    r = factor_shape(B)[-1]
    if size * rest <= stride * (rest + size * r):
        return apply_factor(patches(x, geometry), B, precision)
    # Patches of one row of the window, multiplied by all its rows at once. The products of one
    # window are then some rows apart; shift and add them.
    row = geometry._replace(window=(1, *geometry.window[1:]), strides=(1, *geometry.strides[1:]))

    def joined(B: Array) -> Array:
        return B.reshape(size, rest, r).swapaxes(0, 1).reshape(rest, size * r)

    matrix = B.rearranged(joined) if isinstance(B, Indexed) else joined(form(B))
    products = apply_factor(patches(x, row), matrix, precision)
    span = products.shape[1] - dilation * (size - 1)
    shifted = (
        lax.slice_in_dim(part, i * dilation, i * dilation + span, stride, axis=1)
        for i, part in enumerate(jnp.split(products, size, axis=-1))
    )
    return functools.reduce(jnp.add, shifted)


def patches(x: Array, geometry: ConvGeometry) -> Array:
    """Gather the input of each window position.

    Uses slices: `lax.conv_general_dilated_patches` computes a convolution, which is slow on CPU and
    forms a kernel.

    Args:
        x: `[n, *spatial, c]`.
        geometry: of the convolution.

    Returns:
        `[n, *spatial_out, prod(window) * c]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import ConvGeometry, patches
        >>> geometry = ConvGeometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1))
        >>> patches(jnp.ones((2, 8, 8, 5)), geometry).shape
        (2, 6, 6, 45)
    """
    window, strides, pads, dilation, input_dilation = geometry
    interior = [d - 1 for d in input_dilation or [1] * len(window)]
    config = [(low, high, inner) for (low, high), inner in zip(pads, interior, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    extents = [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]
    sizes = [
        (size - extent) // stride + 1
        for size, extent, stride in zip(x.shape[1:-1], extents, strides, strict=True)
    ]
    views = []
    for offsets in itertools.product(*map(range, window)):
        starts = [o * d for o, d in zip(offsets, dilation, strict=True)]
        limits = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, sizes, strides, strict=True)
        ]
        views.append(
            lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *strides, 1))
        )
    return jnp.concatenate(views, axis=-1)


def dot(x: Array, matrix: Array, precision: lax.PrecisionLike) -> Array:
    """Compute `x @ matrix`.

    Args:
        x: `[..., in]`.
        matrix: `[in, out]`.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[..., out]`, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import dot
        >>> dot(jnp.ones((5, 2, 3)), jnp.ones((3, 4)), None).shape
        (5, 2, 4)
    """
    # As plain matrices: XLA would transpose `x` to join several axes over which a gradient sums.
    rows = x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x
    y = multiply(functools.partial(jnp.matmul, precision=precision), rows, matrix)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def indexed_dot(x: Array, bank: Array, index: Array, precision: lax.PrecisionLike = None) -> Array:
    """Multiply rows by the matrices of a bank, each row by its own.

    `jax.vmap` over `x` and `index` makes more rows of them. A matrix is gathered once for a block
    of rows of the same number, where there are many more rows than matrices; else once a row.

    Args:
        x: `[rows, vectors, in]`.
        bank: `[m, in, out]`.
        index: `[rows]`, whole numbers from 0 to m - 1.
        precision: as in `jax.lax.dot_general`.

    Returns:
        `[rows, vectors, out]`, of dtype `accumulator_dtype(x.dtype)`.

    References:
        Chen et al., "Punica: Multi-Tenant LoRA Serving" (2023), for grouping by adapter.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import indexed_dot
        >>> bank = jnp.stack([jnp.eye(2), 5 * jnp.eye(2)])
        >>> indexed_dot(jnp.ones((3, 1, 2)), bank, jnp.array([1, 0, 1]))[:, 0].tolist()
        [[5.0, 5.0], [1.0, 1.0], [5.0, 5.0]]
    """

    def plain(x: Array, bank: Array, index: Array) -> Array:
        return _rows_dot(x, bank, index, precision)

    over_rows = custom_vmap(plain)

    def batched(size: int, mapped: Any, x: Array, bank: Array, index: Array) -> tuple[Array, bool]:
        if mapped[1]:
            axes = [0 if each else None for each in mapped]
            return jax.vmap(plain, axes)(x, bank, index), True
        x, index = (
            each if own else jnp.broadcast_to(each, (size, *each.shape))
            for each, own in ((x, mapped[0]), (index, mapped[2]))
        )
        y = plain(x.reshape(-1, *x.shape[2:]), bank, index.reshape(-1))
        return y.reshape(*x.shape[:2], *y.shape[1:]), True

    over_rows.def_vmap(batched)
    return over_rows(x, bank, index)


def _apply_indexed(x: Array, factor: Indexed, precision: lax.PrecisionLike) -> Array:
    """Multiply by a factor of a bank."""
    within = jnp.clip(factor.index, 0, factor.bank.shape[0] - 1)
    if isinstance(factor, PerVector):
        factor.check(x.shape[:-1])
        vectors = x.reshape(-1, x.shape[-1])
        if factor.bank.shape[0] * min(factor.shape) <= _FEW_COLUMNS:
            y = _dot_with_all(vectors, factor.bank, within, precision)
        else:
            y = indexed_dot(vectors[:, None], factor.bank, within, precision)[:, 0]
        return factor.chosen(y).reshape(*x.shape[:-1], y.shape[-1])
    y = indexed_dot(x.reshape(1, -1, x.shape[-1]), factor.bank, within[None], precision)
    return _where_present(y.reshape(*x.shape[:-1], y.shape[-1]), factor)


def _dot_with_all(x: Array, bank: Array, index: Array, precision: lax.PrecisionLike) -> Array:
    """Multiply vectors `[vectors, in]` by all matrices of a bank at once, and keep their own."""
    count, rows, columns = bank.shape
    own = (index[:, None] == jnp.arange(count)[None])[..., None]
    if columns <= rows:
        every = dot(x, bank.swapaxes(0, 1).reshape(rows, count * columns), precision)
        return jnp.where(own, every.reshape(-1, count, columns), 0).sum(1)
    spread = jnp.where(own, x[:, None], 0).reshape(-1, count * rows)
    return dot(spread, bank.reshape(count * rows, columns), precision)


def looked_up_rows(factor: Indexed, rows: Array) -> Array:
    """Return rows of a factor of a bank, without the others.

    Args:
        factor: `[m, n]`, with one number.
        rows: of any shape; those outside of the factor are the nearest within.

    Returns:
        `[*rows.shape, n]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import Indexed, looked_up_rows
        >>> factor = Indexed(jnp.arange(12.0).reshape(2, 3, 2), jnp.asarray(1))
        >>> looked_up_rows(factor, jnp.array([2, 0])).tolist()
        [[10.0, 11.0], [6.0, 7.0]]
    """
    if isinstance(factor, PerVector):
        raise factor.refusal("a look-up of rows")
    count, size, _ = factor.bank.shape
    places = jnp.clip(factor.index, 0, count - 1), jnp.clip(rows, 0, size - 1)
    return _where_present(jnp.asarray(factor.bank).at[places].get(mode="promise_in_bounds"), factor)


def _where_present(array: Array, factor: Indexed) -> Array:
    """Return what a bank gives, times a weight: zeros where there is no adapter, or NaN."""
    if factor.weight is not None:
        array = array * factor.weight.astype(array.dtype)
    if factor.known:
        return array
    index = factor.index
    array = jnp.where((index < -1) | (index >= factor.bank.shape[0]), jnp.nan, array)
    return jnp.where(index == -1, jnp.zeros((), array.dtype), array)


def _looked_up(bank: Array, index: Array) -> Array:
    return jnp.asarray(bank).at[jnp.clip(index, 0, bank.shape[0] - 1)].get(mode="promise_in_bounds")


def _rows_dot(x: Array, bank: Array, index: Array, precision: lax.PrecisionLike) -> Array:
    product = functools.partial(jnp.matmul, precision=precision)
    rows, vectors = x.shape[:2]
    count = bank.shape[0]
    block = rows_of_block(rows, vectors, count)
    if block < 2:
        return multiply(product, x, _looked_up(bank, index))
    # Rows are sorted by number, and each number's begin with a new block.
    blocks = min(rows, (rows + count * (block - 1)) // block)  # at most, whatever the numbers
    owned = jnp.bincount(index, length=count)
    needed = -(-owned // block)
    order = jnp.argsort(index)
    of_sorted = index[order]
    first = (jnp.cumsum(needed) - needed) * block - (jnp.cumsum(owned) - owned)
    places = (
        jnp.zeros_like(index)
        .at[order]
        .set((first[of_sorted] + jnp.arange(rows)).astype(index.dtype), unique_indices=True)
    )
    owner = jnp.repeat(jnp.arange(count), needed, total_repeat_length=blocks)
    padded = jnp.zeros((blocks * block, *x.shape[1:]), x.dtype)
    padded = padded.at[places].set(x, unique_indices=True, mode="promise_in_bounds")
    padded = padded.reshape(blocks, block * vectors, -1)
    y = multiply(product, padded, _looked_up(bank, owner))
    y = y.reshape(blocks * block, vectors, -1)
    return y.at[places].get(unique_indices=True, mode="promise_in_bounds")


def rows_of_block(rows: Any, vectors: int, count: int) -> int:
    """Return for how many rows `indexed_dot` gathers a matrix once.

    Args:
        rows: how many, or a symbolic number of an export.
        vectors: of each row.
        count: of matrices.

    Returns:
        Rows of a block; 1 where each row gathers its own: where there are few more rows than
        matrices, or a row's vectors are more numbers than its matrix.

    Example:
        >>> from straw_jax.lowrank import rows_of_block
        >>> [rows_of_block(rows, 1, 8) for rows in (8, 64, 4096)]
        [1, 8, 64]
    """
    if not isinstance(rows, int):
        return 1
    each = rows // count
    return min(each, max(16, each // 4), max(64 // vectors, 1))


def multiply(product: Callable[..., Array], x: Array, y: Array) -> Array:
    """Compute a product that is linear in both factors, summed in float32 or wider.

    Of 16-bit factors, its gradient is made of products of 16-bit numbers, too, each summed in
    float32 and rounded. JAX's own multiplies by the float32 gradient of the result, with twice the
    bytes, and in float32.

    Args:
        product: `(x, y, preferred_element_type=...) -> array`, such as `jnp.matmul`.
        x: of a floating dtype.
        y: of the same.

    Returns:
        The product, of dtype `accumulator_dtype(x.dtype)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import multiply
        >>> x = jnp.ones((2, 3), jnp.bfloat16)
        >>> multiply(jnp.matmul, x, x.T).dtype
        dtype('float32')
    """
    dtype = accumulator_dtype(x.dtype)
    if dtype == x.dtype:
        return product(x, y, preferred_element_type=dtype)

    @jax.custom_jvp
    def widened(x: Array, y: Array) -> Array:
        return product(x, y, preferred_element_type=dtype)

    def tangent(primals: Any, tangents: Any) -> tuple[Array, Any]:
        (x, y), (dx, dy) = primals, tangents
        parts = [
            product(*factors, preferred_element_type=None).astype(dtype)
            for factors, changed in (((dx, y), dx), ((x, dy), dy))
            if not isinstance(changed, SymbolicZero)
        ]
        return widened(x, y), functools.reduce(jnp.add, parts)

    widened.defjvp(tangent, symbolic_zeros=True)
    return widened(x, y)


def accumulator_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which products are summed.

    Args:
        dtype: of the factors, floating.

    Returns:
        float32, or `dtype` where it is wider.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.lowrank import accumulator_dtype
        >>> jnp.dtype(accumulator_dtype(jnp.bfloat16))
        dtype('float32')
    """
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
