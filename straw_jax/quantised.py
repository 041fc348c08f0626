"""Quantised weights: integers of 8 or 4 bits, and a scale for each channel or block.

A `Quantised` stands for an array in a tree of parameters. Products read the integers; of two halves
of 4 bits, or of one chunk of rows at a time, floating numbers are made where they are multiplied.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from straw_jax import expect
from straw_jax.lowrank import Lazy, accumulator_dtype
from straw_jax.readings import all_axes, read_as

_static: Any = {"static": True}
_CHUNK = 2**17  # numbers, which a core's cache holds as float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised(Lazy):
    """An array as small integers: `values * scales + minima`.

    Make one with `quantise`, or of integers that are there with `Quantised.of`. `modulate`,
    `materialize` and `make_straw(base="frozen")` take it in place of a leaf of the parameters.

    Attributes:
        values: integers; those of 4 bits are packed two a byte, int8: of the last axis, the first
            half in the low bits and the second half in the high ones.
        scales: as many axes as the array, each of size 1, of the array's, or of a number of blocks
            that divides it; None for 1.
        minima: added, of such a shape, too; None for 0.
        columns: size of the array's last axis.
        packed: whether the values are of 4 bits, two a byte.
        dtype: of the array.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import modulate, quantise
        >>> W = quantise(jnp.ones((64, 32)), bits=4, block=32)
        >>> W.shape, W.dtype, W.values.shape, W.scales.shape, W.nbytes
        ((64, 32), dtype('float32'), (64, 16), (2, 32), 1280)
        >>> modulate(lambda params, x: x @ params["W"])({"W": W}, {}, jnp.ones((5, 64))).shape
        (5, 32)
    """

    values: Array
    scales: Array | None
    minima: Array | None = None
    columns: int = field(default=0, metadata=_static)
    packed: bool = field(default=False, metadata=_static)
    dtype: Any = field(default=jnp.dtype("float32"), metadata=_static)

    @staticmethod
    def of(
        values: ArrayLike,
        scales: ArrayLike,
        minima: ArrayLike | None = None,
        *,
        bits: int = 8,
        dtype: DTypeLike = jnp.float32,
    ) -> "Quantised":
        """Return the array `values * scales + minima` of integers that are there, as in a file.

        Args:
            values: of the array's shape: -128 to 127, or with 4 bits -8 to 7; or with minima from 0
                to 255 or 15, as GGUF's Q4_1 has them, of an unsigned dtype.
            scales: floating, as many axes, each of size 1, of the array's, or of a number of blocks
                that divides it.
            minima: of such a shape, too; None for 0.
            bits: 8 or 4.
            dtype: of the array.

        Returns:
            The array; 4 bits are packed.

        Raises:
            ValueError: if values are not integers, shapes do not fit, or unsigned values have no
                minima.

        Example:
            >>> import jax.numpy as jnp
            >>> from straw_jax import Quantised, dequantise
            >>> values = jnp.array([[0, 15], [5, 10]], jnp.uint8)
            >>> W = Quantised.of(values, jnp.array([[0.5, 1.0]]), jnp.zeros((1, 2)), bits=4)
            >>> dequantise(W).tolist()
            [[0.0, 15.0], [2.5, 10.0]]
        """
        where = "Quantised.of"
        library: Any = jnp if isinstance(values, jax.core.Tracer) else np
        integers: Any = library.asarray(values)
        steps = jnp.asarray(scales)
        lowest = None if minima is None else jnp.asarray(minima)
        _check_bits(where, bits)
        _check_dtype(where, "dtype", jnp.dtype(dtype))
        signed = jnp.issubdtype(integers.dtype, jnp.signedinteger)
        if not (signed or jnp.issubdtype(integers.dtype, jnp.unsignedinteger)) or not integers.ndim:
            raise ValueError(
                f"{where}: expected values to be an array of integers, got"
                f" {expect.describe(integers)}. Of floating numbers, quantise(kernel) makes them."
            )
        for name, each in (("scales", steps), ("minima", lowest)):
            _check_component(where, name, each, integers.shape)
        if not signed:
            if lowest is None:
                raise ValueError(
                    f"{where}: expected minima for values of {integers.dtype}, got none: they would"
                    " all be positive. Give minima, or signed values."
                )
            middle = 2 ** (bits - 1)  # stored with a sign
            integers = integers.astype(np.int16) - np.int16(middle)
            lowest = _added(lowest, steps, middle)
        if bits == 4 and integers.size and isinstance(integers, np.ndarray):
            least, most = int(integers.min()), int(integers.max())
            if least < -8 or most > 7:
                ends, shift = ("-8 to 7", 0) if signed else ("0 to 15", 8)
                raise ValueError(
                    f"{where}: expected values of 4 bits from {ends}, got {least + shift} to"
                    f" {most + shift}. Use bits=8."
                )
        return _stored(integers.astype(np.int8), steps, lowest, bits, jnp.dtype(dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return (*self.values.shape[:-1], self.columns)

    @property
    def ndim(self) -> int:
        """Number of the array's axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of the array's entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the integers, scales and minima."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def array(self) -> Array:
        """The array, formed."""
        pieces = [piece.formed() for _, piece in self.pieces()]
        return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)

    def astype(self, dtype: DTypeLike) -> "Quantised":
        """Return the array in another floating dtype; integers and scales stay."""
        return replace(self, dtype=jnp.dtype(dtype))

    def each_array(self, function: Callable[[Array], Array]) -> "Quantised":
        """Return the array after a function that is linear and keeps shapes, such as a cast."""
        dtype = jax.eval_shape(function, jax.ShapeDtypeStruct(self.shape, self.dtype)).dtype
        scales, minima = jax.tree.map(function, (self.scales, self.minima))
        return replace(self, scales=scales, minima=minima, dtype=jnp.dtype(dtype))

    def pieces(self) -> Iterator[tuple[int, "Quantised"]]:
        """Yield pieces along the last axis that are not packed, each with its first index."""
        if not self.packed:
            yield 0, self
            return
        half = self.values.shape[-1]
        for start, values in ((0, (self.values << 4) >> 4), (half, self.values >> 4)):
            stop = min(start + half, self.columns)
            if start < stop:
                values = values[..., : stop - start]
                scales, minima = (
                    _cut_last(each, self.columns, start, stop)
                    for each in (self.scales, self.minima)
                )
                yield start, replace(
                    self, values=values, scales=scales, minima=minima, columns=stop - start,
                    packed=False,
                )  # fmt: skip

    def formed(self) -> Array:
        """Return the array, of values that are not packed."""
        if self.scales is None:
            return self.values.astype(self.dtype)
        array = self.values.astype(accumulator_dtype(self.dtype))
        for component, join in ((self.scales, jnp.multiply), (self.minima, jnp.add)):
            if component is not None:
                shape, sizes = _blocks(self.shape, component.shape)
                other = component.astype(array.dtype).reshape(sizes)
                array = join(array.reshape(shape), other).reshape(self.shape)
        return array.astype(self.dtype)

    def along(
        self, function: Callable[[Array], Array], axes: Collection[int] = (0,)
    ) -> "Quantised | None":
        """Return the array after a function that treats each entry along some axes as it is.

        The integers stay so. Scales are repeated along the axes where they are few.

        Args:
            function: of arrays with these axes in these places, such as a slice or a look-up.
            axes: numbers of axes.

        Returns:
            The array; None where the last axis is concerned, or scales would grow too large.
        """
        if self.ndim - 1 in axes:
            return None
        components = [
            None if each is None else _repeated(each, self.shape, axes)
            for each in (self.scales, self.minima)
        ]
        if any(each is not None and each.size * 8 > self.size for each in components):
            return None
        values, scales, minima = jax.tree.map(function, (self.values, *components))
        return replace(self, values=values, scales=scales, minima=minima)

    def chunks(self) -> "Quantised | None":
        """Return the array with its first axis cut into chunks `[chunks, rows, ...]`.

        A scan over the chunks, of which each fits a core's cache, needs memory for one at a time.

        Returns:
            The array; None where it is small, or its first axis has no fitting divisor. Scales
            without the first axis stay as they are, `[1, ...]`.
        """
        rows, others = self.shape[0], max(math.prod(self.shape[1:]), 1)
        given = [each.shape[0] for each in (self.scales, self.minima) if each is not None]
        least = math.lcm(*(rows // blocks for blocks in given if blocks > 1))
        most = max(_CHUNK, min(least * others, 4 * _CHUNK))
        fitting = [
            size
            for size in range(least, rows, least)
            if rows % size == 0 and _CHUNK // 8 <= size * others <= most
        ]
        if self.ndim < 2 or not fitting:
            return None
        count = rows // fitting[-1]

        def cut(array: Any) -> Any:
            if array is None or array.shape[0] == 1:
                return array
            return array.reshape(count, array.shape[0] // count, *array.shape[1:])

        return replace(
            self, values=cut(self.values), scales=cut(self.scales), minima=cut(self.minima)
        )


def quantise(
    kernel: ArrayLike,
    *,
    bits: int = 8,
    block: int | None = None,
    axes: str = "",
    symmetric: bool = True,
) -> Quantised:
    """Quantise a kernel: integers of 8 or 4 bits, with a scale for each output channel or block.

    An entry changes by half a step at most, and a step is the largest magnitude of its channel or
    block over 127 or 7; or, if not symmetric, the range of its entries over 255 or 15.

    Args:
        kernel: floating, of two axes or more, such as `[in, out]` or `[*window, in, out]`.
        bits: 8 or 4.
        block: number of neighbours along the input axis that share a scale, such as 32; a
            convolution's input axis is its channels, and all positions of its window share a scale.
            None: all inputs of a channel share one.
        axes: how the kernel is read as a matrix, as in `factor_spec`: rows are inputs, and columns
            and stacked layers have scales of their own.
        symmetric: whether zero is the middle of the range; otherwise there are minima, too.

    Returns:
        The quantised kernel, with scales of float32 or wider.

    Raises:
        ValueError: if the kernel is not floating or has fewer than two axes, bits are others, the
            block does not divide the input axis, or axes are not of this form.

    References:
        Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2022), for blocks.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import dequantise, quantise
        >>> W = jnp.array([[1.0, -20.0], [-12.7, 254.0]])
        >>> quantise(W).values.tolist()
        [[10, -10], [-127, 127]]
        >>> dequantise(quantise(W))[1].round(1).tolist()
        [-12.699999809265137, 254.0]
    """
    where = "quantise"
    _check_bits(where, bits)
    if not expect.is_array(kernel) or not jnp.issubdtype(jnp.result_type(kernel), jnp.floating):
        raise ValueError(
            f"{where}: expected a kernel of floating numbers, got {expect.describe(kernel)}. Of"
            " integers that are there, Quantised.of makes an array."
        )
    # Arrays that are there are quantised on the host, where nothing is compiled for their shapes.
    library: Any = jnp if isinstance(kernel, jax.core.Tracer) else np
    array: Any = library.asarray(kernel)
    shape = array.shape
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"{where}: expected a kernel of two axes or more, got {expect.describe(kernel)}. Leave"
            " biases and norms as they are: they are small."
        )
    if axes and axes not in (readings := all_axes(array.ndim)):
        raise ValueError(f"{where}: expected axes to be one of {readings}, got {axes!r}.")
    reading = read_as(axes, array.ndim)
    inputs = reading.rindex("r")
    groups = [1 if letter == "r" else size for letter, size in zip(reading, shape, strict=True)]
    if block is not None:
        if not expect.is_whole(block) or block < 1 or shape[inputs] % block:
            raise ValueError(
                f"{where}: expected a block that divides the input axis, of size {shape[inputs]} in"
                f" {expect.describe(kernel)}, got {block!r}. Choose a divisor, or None for a scale"
                " for each channel."
            )
        groups[inputs] = shape[inputs] // block
    blocks, ones = _blocks(shape, groups)
    pairs = enumerate(zip(blocks, ones, strict=True))
    within = tuple(place for place, (size, one) in pairs if size != one)
    wide = array.astype(accumulator_dtype(array.dtype)).reshape(blocks)
    half = 2 ** (bits - 1)
    if symmetric:
        spread, steps = library.abs(wide).max(axis=within, keepdims=True), half - 1
        middle = library.zeros_like(spread)
    else:
        lowest = wide.min(axis=within, keepdims=True)
        spread, steps = wide.max(axis=within, keepdims=True) - lowest, 2 * half - 1
    if library is np and not np.isfinite(spread).all():
        raise ValueError(
            f"{where}: expected a finite kernel, got infinite numbers or NaN. Look for them before."
        )
    scales = library.where(spread > 0, spread, 1).astype(wide.dtype) / steps
    if not symmetric:
        middle = lowest + scales * half
    values = library.clip(library.round((wide - middle) / scales), -half, half - 1)
    values = values.reshape(shape).astype(np.int8)
    minima = None if symmetric else jnp.asarray(middle.reshape(groups))
    return _stored(values, jnp.asarray(scales.reshape(groups)), minima, bits, array.dtype)


def dequantise(tree: Any) -> Any:
    """Return ordinary arrays in place of quantised ones.

    Args:
        tree: of arrays and quantised arrays, `Quantised` or those of `qwix`.

    Returns:
        The same tree of arrays.

    Raises:
        ValueError: if an array of `qwix` is not of integers or 8-bit floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import dequantise, quantise
        >>> dequantise({"W": quantise(jnp.ones((3, 2))), "b": jnp.zeros(2)})["W"].tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    return jax.tree.map(
        lambda leaf: as_quantised(leaf).array if is_quantised(leaf) else leaf,
        tree,
        is_leaf=is_quantised,
    )


def is_quantised(leaf: Any) -> bool:
    """Return whether a node of a tree is a quantised array, `Quantised` or one of `qwix`.

    Args:
        leaf: anything.

    Returns:
        Whether it is.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import quantise
        >>> from straw_jax.quantised import is_quantised
        >>> is_quantised(quantise(jnp.ones((3, 2)))), is_quantised(jnp.ones((3, 2)))
        (True, False)
    """
    # By its attributes: the library does not need `qwix`.
    return isinstance(leaf, Quantised) or (hasattr(leaf, "qvalue") and hasattr(leaf, "scale"))


def as_quantised(leaf: Any) -> Quantised:
    """Return a quantised array of `qwix` as `Quantised`; the integers are not copied.

    Args:
        leaf: a `QArray`, or a `Quantised`, which is returned as it is.

    Returns:
        The same array: `(qvalue - zero_point) * scale`.

    Raises:
        ValueError: if its values are codes, as those of nf4, or shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from types import SimpleNamespace
        >>> from straw_jax.quantised import as_quantised
        >>> q = SimpleNamespace(
        ...     qvalue=jnp.ones((4, 2), jnp.int8), scale=jnp.full((2, 2), 0.5), zero_point=None
        ... )
        >>> as_quantised(q).array[0].tolist()
        [0.5, 0.5]
    """
    if isinstance(leaf, Quantised):
        return leaf
    where, values = "Quantised", leaf.qvalue
    kind, zero = getattr(leaf, "qtype", None), getattr(leaf, "zero_point", None)
    coded = kind is not None and str(kind) != str(values.dtype) and not expect.is_array(
        _struct(values, kind)
    )  # fmt: skip
    if coded or not expect.is_array(values):
        raise ValueError(
            f"{where}: expected an array of qwix with integers or 8-bit floats, got qtype {kind!r}"
            f" stored as {getattr(values, 'dtype', type(values).__name__)}. Quantise it as int8 or"
            " int4."
        )
    for name, each in (("scale", leaf.scale), ("zero_point", zero)):
        _check_component(where, name, each, values.shape, floating=name == "scale")
    minima = None
    if zero is not None:
        shift = -zero.astype(leaf.scale.dtype)
        axes = tuple(range(values.ndim))
        sizes = jnp.broadcast_shapes(shift.shape, leaf.scale.shape)
        minima = _repeated(shift, sizes, axes) * _repeated(leaf.scale, sizes, axes)
    dtype = jnp.dtype(leaf.scale.dtype)
    return Quantised(values, leaf.scale, minima, values.shape[-1], False, dtype)


def _struct(values: Any, kind: Any) -> Any:
    try:
        return jax.ShapeDtypeStruct(values.shape, kind)
    except TypeError:  # a name of qwix's own
        return None


def _stored(values: Any, scales: Array, minima: Array | None, bits: int, dtype: Any) -> Quantised:
    """Return an array of int8 values, which are packed if they are of 4 bits."""
    columns = values.shape[-1]
    if bits == 4:
        library: Any = jnp if isinstance(values, jax.core.Tracer) else np
        if columns % 2:
            values = library.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
        low, high = library.split(values, 2, axis=-1)
        values = (low & 15) | (high << 4)
    values = jnp.asarray(values)
    return Quantised(values, scales, minima, columns, bits == 4, jnp.dtype(dtype))


def _added(minima: Array, scales: Array, steps: int) -> Array:
    """Return minima plus a number of steps, of which each may be of fewer blocks."""
    axes = range(minima.ndim)
    sizes = [max(pair) for pair in zip(minima.shape, scales.shape, strict=True)]
    dtype = jnp.promote_types(minima.dtype, scales.dtype)
    minima, scales = (_repeated(each.astype(dtype), sizes, axes) for each in (minima, scales))
    return minima + scales * jnp.asarray(steps, dtype)


def _repeated(array: Array, shape: Any, axes: Collection[int]) -> Array:
    """Return scales with as many entries as an array has along some axes."""
    for axis in axes:
        if (repeats := shape[axis] // array.shape[axis]) > 1:
            array = jnp.repeat(array, repeats, axis=axis)
    return array


def _cut_last(array: Array | None, size: int, start: int, stop: int) -> Array | None:
    if array is None or array.shape[-1] == 1:
        return array
    repeats = size // array.shape[-1]
    if repeats > 1:
        array = jnp.repeat(array, repeats, axis=-1)
    return array[..., start:stop]


def _blocks(shape: Any, groups: Any) -> tuple[list[int], list[int]]:
    """Return a shape with axes cut into blocks, and that of scales with ones beside them."""
    blocks: list[int] = []
    ones: list[int] = []
    for size, count in zip(shape, groups, strict=True):
        cut = count not in (1, size)
        blocks += [count, size // count] if cut else [size]
        ones += [count, 1] if cut else [count]
    return blocks, ones


def _check_bits(where: str, bits: Any) -> None:
    if bits not in (4, 8):
        raise ValueError(f"{where}: expected bits to be 8 or 4, got {bits!r}.")


def _check_dtype(where: str, name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{where}: expected {name} to be floating, of 16 bits or more, got {dtype}."
        )


def _check_component(
    where: str, name: str, array: Any, shape: tuple[int, ...], *, floating: bool = True
) -> None:
    """Raise unless scales or minima have an entry for each block of an array."""
    if array is None:
        return
    if floating:
        _check_dtype(where, name, array.dtype)
    fits = len(array.shape) == len(shape) and all(
        count > 0 and size % count == 0 for size, count in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{where}: expected {name} of as many axes as the values {shape}, each of size 1 or a"
            f" number of blocks that divides it, got {tuple(array.shape)}."
        )
