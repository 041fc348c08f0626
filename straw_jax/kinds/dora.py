"""Weight-decomposed low-rank updates: directions and norms of a kernel's columns."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from straw_jax.kinds.base import Kind, Start, Update, Written, stack_axis
from straw_jax.kinds.lowrank import Factors, check_lowrank, written_factors
from straw_jax.lowrank import Factor, accumulator_dtype
from straw_jax.operations import combine
from straw_jax.operators import Kernel
from straw_jax.readings import matrix_axes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decomposed(Update):
    """The update `gains * |W| * (W + B @ A) / |W + B @ A|`, norms of columns.

    Norms are computed from the factors; `W + B @ A` is never formed. Without a base, `|W|` is 1.

    Attributes:
        B: `[in, r]`, or `[batch, in, r]`.
        A: `[r, out]`, or `[batch, r, out]`.
        gains: of the sizes of the columns, or with a sample axis in front.
        axes: how the kernel is read as a matrix, as in `factor_spec`.

    Example:
        Column norms of 5 stay, whatever the factors add:

        >>> import jax.numpy as jnp
        >>> from straw_jax import materialize
        >>> from straw_jax.kinds import Decomposed
        >>> update = Decomposed(B=jnp.ones((2, 1)), A=jnp.ones((1, 1)), gains=jnp.ones(1))
        >>> W = materialize({"W": jnp.array([[3.0], [4.0]])}, {"W": update})["W"]
        >>> jnp.linalg.norm(W).round(4).item()
        5.0
    """

    B: Factor
    A: Factor
    gains: Array
    axes: str = field(default="", metadata={"static": True})

    neutral: ClassVar[Mapping[str, Any]] = {"B": 0.0, "A": 0.0, "gains": 1.0}
    factors: ClassVar[tuple[str, ...]] = ("B", "A")

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        factors = Factors(self.B, self.A, self.axes)
        return {**factors.shapes(shape), "gains": _columns(shape, factors.reading(shape))}

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        factors = Factors(self.B, self.A, self.axes)
        _, columns = matrix_axes(factors.reading(kernel.shape))
        changed = factors.change(kernel, scale)
        ratio = self.gains.astype(jnp.float32)
        if kernel.terms:
            ratio = ratio * jnp.sqrt(_squares(kernel, columns))
        ratio = ratio * lax.rsqrt(_squares(changed, columns))
        gained = changed.times(ratio.astype(kernel.dtype), columns)
        if gained is None:
            raise _no_norms(kernel)
        return gained


def _columns(shape: tuple[int, ...], reading: str) -> tuple[int, ...]:
    """Return the sizes of a kernel's columns."""
    _, columns = matrix_axes(reading)
    return tuple(shape[axis] for axis in columns)


def _squares(kernel: Kernel, columns: tuple[int, ...]) -> Array:
    """Return the squared norms of columns, from products of parts."""
    names = {axis: place for place, axis in enumerate(columns)}
    axes = tuple(names.get(axis, -1 - axis) for axis in range(kernel.ndim))
    wide = kernel.astype(accumulator_dtype(kernel.dtype))
    shape = tuple(kernel.shape[axis] for axis in columns)
    out = jax.ShapeDtypeStruct(shape, wide.dtype)
    squares = combine(wide, axes, wide, axes, tuple(range(len(columns))), out)
    if squares is None:
        raise _no_norms(kernel)
    # Rounding may leave less than nothing of a column that is almost zero.
    tiny = jnp.finfo(wide.dtype).tiny
    return jnp.maximum(replace(squares, shape=shape).materialise(), tiny)


def _no_norms(kernel: Kernel) -> ValueError:
    return ValueError(
        f"{kernel.path}: expected DoRA on a kernel whose columns have norms, got one after a pose."
        " Put DoRA first."
    )


@dataclass(frozen=True)
class DoRA(Kind):
    """Low-rank changes of a kernel's directions, and a gain of the norms of its columns.

    Attributes:
        rank: of the change.

    References:
        Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024), equation 5; the gain is
        relative to the base's norms, and the norm is differentiated.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import DoRA
        >>> print(factor_spec({"W": jnp.zeros((64, 32))}, {"W": DoRA(4)}))
        leaf   shape    rank  dense  generated  ratio
        W      64x32  DoRA 4  2,048        416  0.203
        total                 2,048        416  0.203
    """

    rank: int

    @property
    def label(self) -> str:
        """The rank."""
        return f"DoRA {self.rank}"

    def check(self, leaf: Any) -> None:
        check_lowrank(self.rank, leaf)

    def written(self, leaf: Any) -> dict[str, Written]:
        return {
            **written_factors(leaf, self.rank),
            "gains": Written(
                _columns(leaf.shape, leaf.reading), offset=1.0, stack_axis=stack_axis(leaf)
            ),
        }

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        # Without a base, gains are the norms of columns themselves.
        norm = 1.0 if plain is None else plain[1] * leaf.summed**0.5
        return {
            "B": Start(leaf.summed**-0.5),
            "A": Start(self.rank**-0.5, zero=plain is None),
            "gains": Start(1.0, mean=norm - 1.0, zero=True),
        }

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Decomposed:
        return Decomposed(parts["B"], parts["A"], parts["gains"], leaf.reading)
