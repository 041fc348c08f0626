"""Arrays with named axes, of which terms of kernels are products.

An array may be one that is formed where it is used only: a factor that a generator has not written
yet (`Generated`), one of a bank (`Indexed`), or integers with scales (`Quantised`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
from jax import Array

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
        fits = isinstance(value, Quantised) and value.shape == self.shape
        return value if isinstance(value, Quantised) and fits else None

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

    def layers(self) -> Any:
        """Return the arrays of a part, each with the part's first axis in front."""
        if isinstance(self.value, Indexed):
            return self.value.bank.reshape(-1, *self.shape).swapaxes(0, 1)
        value = None if self.quantised is None else self.quantised.along(lambda array: array)
        return self.array if value is None else value

    def of_layer(self, arrays: Any) -> "Part":
        """Return the part of one layer, given what `layers` returned of it, without its axis."""
        value = replace(self.value, bank=arrays) if isinstance(self.value, Indexed) else arrays
        return Part(value, self.axes[1:], self.shape[1:])


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
