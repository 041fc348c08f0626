"""Gains: a kernel's inputs, outputs, or both are scaled, `diag(inputs) W diag(outputs)`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
from jax import Array
from jax.typing import ArrayLike

from straw_jax.kinds.base import Kind, Start, Update, Written, misfit, stack_axis
from straw_jax.lowrank import each_number
from straw_jax.operators import Kernel
from straw_jax.readings import read_as


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gains(Update):
    """Factors of a kernel's inputs and outputs; a convolution's inputs are its channels.

    Attributes:
        inputs: of the sizes of the axis before the columns, or with a sample axis in front; or
            None.
        outputs: of the sizes of the columns, or with a sample axis in front; or None.
        axes: how the kernel is read as a matrix, as in `factor_spec`.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import modulate
        >>> from straw_jax.kinds import Gains
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> gains = Gains(inputs=None, outputs=jnp.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> layer({"W": jnp.ones((3, 2))}, {"W": gains}, jnp.ones((2, 3))).tolist()
        [[3.0, 6.0], [9.0, 12.0]]
    """

    inputs: Array | None = None
    outputs: Array | None = None
    axes: str = field(default="", metadata={"static": True})

    stands_alone: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any]] = {"inputs": 1.0, "outputs": 1.0}
    mixing: ClassVar[str] = "fields"
    per_vector: ClassVar[bool] = True

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        inputs, outputs = gained(shape, self.axes)
        return {
            "inputs": tuple(shape[axis] for axis in inputs),
            "outputs": tuple(shape[axis] for axis in outputs),
        }

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        changed: Kernel | None = kernel
        for array, axes in zip(
            (self.inputs, self.outputs), gained(kernel.shape, self.axes), strict=True
        ):
            if array is not None and changed is not None:
                own = each_number(lambda each: each.astype(kernel.dtype), array)
                changed = changed.times(own, axes)
        if changed is None:
            raise ValueError(
                f"{kernel.path}: expected a gain of the outputs alone after a pose with a grid, got"
                " one of the inputs, which are pixels. Put the gain first."
            )
        return changed


def gained(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of a kernel's inputs and of its outputs, stacked ones among both.

    Of a convolution's rows the last are its channels; a vector's only axis is its outputs.
    """
    if len(shape) < 2:
        return (), tuple(range(len(shape)))
    axes = read_as(axes, len(shape))
    stacked = tuple(i for i, letter in enumerate(axes) if letter == "s")
    rows = [i for i, letter in enumerate(axes) if letter == "r"]
    columns = tuple(i for i, letter in enumerate(axes) if letter == "c")
    return (*stacked, rows[-1]), (*stacked, *columns)


@dataclass(frozen=True)
class Gain(Kind):
    """One factor an output, an input, or both. At most 1 % more multiply-adds than the executor.

    Attributes:
        inputs: whether inputs are scaled.
        outputs: whether outputs are scaled.

    References:
        Perez et al., "FiLM" (2018), without its shift; Liu et al., "(IA)3" (2022).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import Gain, LowRank
        >>> print(factor_spec({"W": jnp.zeros((64, 32))}, {"W": [LowRank(1), Gain(inputs=True)]}))
        leaf   shape      rank  dense  generated  ratio
        W      64x32  1 + gain  2,048        192  0.094
        total                   2,048        192  0.094
    """

    inputs: bool = False
    outputs: bool = True

    stands_alone: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The word gain."""
        return "gain"

    def check(self, leaf: Any) -> None:
        if not (self.inputs or self.outputs):
            raise ValueError(
                f"factor_spec: expected a gain of inputs, outputs or both for {leaf.path}, got"
                " neither. Leave it out."
            )
        if not leaf.shape or (self.inputs and len(leaf.shape) < 2):
            raise misfit(
                "a leaf with a gain", leaf,
                "one of two axes or more, or of one and with a gain of outputs",
                "Use Gain(inputs=False), or Whole().",
            )  # fmt: skip

    def written(self, leaf: Any) -> dict[str, Written]:
        inputs, outputs = gained(leaf.shape, leaf.axes)
        sizes = {
            "inputs": tuple(leaf.shape[axis] for axis in inputs),
            "outputs": tuple(leaf.shape[axis] for axis in outputs),
        }
        return {
            name: Written(sizes[name], offset=1.0, stack_axis=stack_axis(leaf))
            for name in ("inputs", "outputs")
            if getattr(self, name)
        }

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        return dict.fromkeys(self.written(leaf), Start(1.0, zero=True))

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Gains:
        return Gains(parts.get("inputs"), parts.get("outputs"), leaf.axes)
