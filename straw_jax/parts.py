"""Arrays with named axes, of which terms of kernels are products.

An array may be one that is formed where it is used only: a factor that a generator has not written
yet (`Generated`), one of a bank (`Indexed`), or integers with scales (`Quantised`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from straw_jax.lowrank import Factor, Generated, Indexed, form
from straw_jax.quantised import Quantised

# Axes are named by numbers: those of a kernel 0, 1, ...; those that a term sums over -1, -2, ....
Axes: TypeAlias = tuple[int, ...]

_static: Any = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Part:
    """One array of a term.

    Attributes:
        value: of `shape`, or with neighbouring axes joined, such as a factor `[in, r]` of a kernel
            `[*window, in, out]`; an array, or one that is formed where it is used.
        axes: the names of its axes.
        shape: their sizes.
    """

    value: Factor
    axes: Axes = field(metadata=_static)
    shape: Axes = field(metadata=_static)

    @property
    def array(self) -> Array:
        """The array, formed, `shape`."""
        return form(self.value).reshape(self.shape)

    @property
    def quantised(self) -> Quantised | None:
        """The value, if it is quantised and has these axes."""
        value = self.value
        return value if isinstance(value, Quantised) and value.shape == self.shape else None

    def size(self, axis: int) -> int:
        """Return the size of an axis, 1 if it has none of this name."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def renamed(self, names: Mapping[int, int]) -> "Part":
        """Return the same array with other names of axes."""
        return replace(self, axes=tuple(names.get(axis, axis) for axis in self.axes))

    def ordered(self, order: Callable[[int], Any]) -> "Part":
        """Return the part with its axes sorted by a key."""
        axes = tuple(sorted(self.axes, key=order))
        if axes == self.axes:
            return self
        places = [self.axes.index(axis) for axis in axes]
        return self._with(lambda array: array.transpose(places), axes)

    def without(self, axes: Iterable[int]) -> "Part":
        """Return the part without some axes, of size one."""
        removed = set(axes)
        kept = [place for place, axis in enumerate(self.axes) if axis not in removed]
        return replace(
            self,
            axes=tuple(self.axes[place] for place in kept),
            shape=tuple(self.shape[place] for place in kept),
        )

    def changed(self, function: Callable[[Array, Axes], Array], axes: Iterable[int]) -> "Part":
        """Return the part after a function `(array, axes) -> array`, if it has any of some axes."""
        touched = set(axes) & set(self.axes)
        if not touched:
            return self
        places = [self.axes.index(axis) for axis in touched]
        if (value := self.quantised) is not None:
            small = value.along(lambda array: function(array, self.axes), places)
            if small is not None:
                return Part(small, self.axes, small.shape)
        return self._with(lambda array: function(array, self.axes), self.axes)

    def _with(self, function: Callable[[Array], Array], axes: Axes) -> "Part":
        """Return the part after a function of its array; of a bank, of each array in it."""
        if not isinstance(self.value, Indexed):
            array = function(self.array)
            return Part(array, axes, array.shape)
        value = self.value.rearranged(lambda array: function(array.reshape(self.shape)))
        return Part(value, axes, value.bank.shape[1:])

    def for_layers(self) -> "Part":
        """Return the part with the axis of layers, 0, in front; one of a bank as it is."""
        return self if isinstance(self.value, Indexed) else self.ordered(lambda axis: axis != 0)

    def layers(self) -> Any:
        """Return the arrays of a part, as of `for_layers`, each with layers in front.

        Of a bank also the numbers of layers, see `_layer_of_bank`.
        """
        if isinstance(self.value, Indexed):
            place = self.axes.index(0) + 1
            bank = self._bank()
            return jnp.moveaxis(bank, place, 0), jnp.arange(bank.shape[place])
        value = None if self.quantised is None else self.quantised.along(lambda array: array)
        return self.array if value is None else value

    def of_layer(self, arrays: Any) -> "Part":
        """Return the part of one layer, given what `layers` returned of it."""
        place = self.axes.index(0)
        axes, shape = (each[:place] + each[place + 1 :] for each in (self.axes, self.shape))
        if not isinstance(self.value, Indexed):
            return Part(arrays, axes, shape)
        bank = _layer_of_bank(self._bank(), place + 1, *arrays)
        return Part(replace(self.value, bank=bank), axes, shape)

    def _bank(self) -> Array:
        assert isinstance(self.value, Indexed)
        return self.value.bank.reshape(-1, *self.shape)


def _layer_of_bank(bank: Array, axis: int, of_layer: Array, number: Array) -> Array:
    """Return one layer of a bank, as a slice of it; a gradient goes to `of_layer`, equal to it.

    A loop takes layers from an array with layers in front. For that the whole bank would be copied,
    for each token where texts are written. A slice of the bank as it is needs no copy, but its
    gradient would be as large as the bank, in each layer.
    """

    @jax.custom_jvp
    def sliced(of_layer: Array, bank: Array, number: Array) -> Array:
        return lax.dynamic_index_in_dim(bank, number, axis, keepdims=False)

    @sliced.defjvp
    def of_sliced(primals: Any, tangents: Any) -> tuple[Array, Array]:
        return sliced(*primals), tangents[0]

    return sliced(of_layer, lax.stop_gradient(bank), number)


def as_matrix(part: Part, rows: int) -> Factor:
    """Return a part's array as a matrix of so many rows."""
    value = part.value
    if isinstance(value, Indexed):
        return value.rearranged(lambda array: array.reshape(rows, -1))
    return value if isinstance(value, Generated) else form(value).reshape(rows, -1)


def scales_of(array: Quantised) -> Part | None:
    """Return scales as a part, if they have no blocks, are no minima's, and not along all axes."""
    if array.scales is None or array.minima is not None:
        return None
    sizes = list(zip(array.shape, array.scales.shape, strict=True))
    axes = tuple(axis for axis, (size, count) in enumerate(sizes) if size == count)
    if len(axes) == array.ndim or any(count not in (1, size) for size, count in sizes):
        return None
    return Part(array.scales, tuple(range(array.ndim)), array.scales.shape).without(
        axis for axis in range(array.ndim) if axis not in axes
    )
