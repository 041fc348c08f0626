"""Low-rank updates: `W0 + scale * B @ A`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from straw_jax import expect
from straw_jax.kinds.base import Kind, Start, Update, Written
from straw_jax.lowrank import Factor, each_number, factor_shape
from straw_jax.operators import Contraction, Kernel
from straw_jax.parts import Part
from straw_jax.readings import all_axes, matrix_axes, matrix_shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors(Update):
    """The low-rank update `B @ A` of one kernel.

    Attributes:
        B: `[in, r]`, or `[batch, in, r]` with one update per sample.
        A: `[r, out]`, or `[batch, r, out]`.
        axes: how the kernel is read as a matrix, as in `factor_spec`; if empty, the first reading
            that fits the factors' sizes.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, materialize
        >>> update = Factors(B=jnp.ones((3, 2)), A=jnp.ones((2, 4)))
        >>> materialize({"W": jnp.zeros((3, 4))}, {"W": update})["W"][0].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """

    B: Factor
    A: Factor
    axes: str = field(default="", metadata={"static": True})

    neutral: ClassVar[Mapping[str, Any]] = {"B": 0.0, "A": 0.0}
    mixing: ClassVar[str] = "terms"
    factors: ClassVar[tuple[str, ...]] = ("B", "A")
    per_vector: ClassVar[bool] = True

    def __iter__(self) -> Iterator[Factor]:
        return iter((self.B, self.A))

    def reading(self, shape: tuple[int, ...]) -> str:
        """Return how a kernel of a shape is read as a matrix."""
        readings = all_axes(len(shape))
        if self.axes or not readings:
            return self.axes
        sizes = factor_shape(self.B)[-2], factor_shape(self.A)[-1]
        fitting = (axes for axes in readings if matrix_shape(shape, axes) == sizes)
        return next(fitting, readings[0])

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rank = factor_shape(self.A)[-2]
        rows, columns = matrix_shape(shape, self.reading(shape))
        return {"B": (rows, rank), "A": (rank, columns)}

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        return kernel.plus(lowrank_term(kernel, self.B, self.A, self.reading(kernel.shape), scale))


def lowrank_term(
    kernel: Kernel, B: Factor, A: Factor, axes: str, scale: ArrayLike = 1.0
) -> Contraction:
    """Return the term `scale * B @ A` of a kernel that is read as a matrix."""
    rows, columns = matrix_axes(axes)
    rank = factor_shape(A)[-2]
    B, A = each_number(lambda array: array.astype(kernel.dtype), (B, A))
    sizes = [tuple(kernel.shape[axis] for axis in each) for each in (rows, columns)]
    term = Contraction(
        (Part(B, (*rows, -1), (*sizes[0], rank)), Part(A, (-1, *columns), (rank, *sizes[1])))
    )
    if isinstance(scale, (int, float)):
        return term.scaled(scale)
    return term.scaled(jnp.asarray(scale, kernel.dtype))


@dataclass(frozen=True)
class LowRank(Kind):
    """Factors `B` and `A` of one rank, both generated.

    Attributes:
        rank: of the update.

    References:
        The STRAW article; Hu et al., "LoRA" (2021), equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import LowRank
        >>> print(factor_spec({"W": jnp.zeros((64, 32))}, {"W": LowRank(4)}))
        leaf   shape  rank  dense  generated  ratio
        W      64x32     4  2,048        384  0.188
        total               2,048        384  0.188
    """

    rank: int

    @property
    def label(self) -> str:
        """The rank."""
        return str(self.rank)

    def check(self, leaf: Any) -> None:
        check_lowrank(self.rank, leaf)

    def written(self, leaf: Any) -> dict[str, Written]:
        return written_factors(leaf, self.rank)

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        return started_factors(leaf, self.rank, plain)

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Factors:
        return Factors(parts["B"], parts["A"], leaf.reading)


def written_factors(leaf: Any, rank: int) -> dict[str, Written]:
    """Return what is written for factors `B` and `A`."""
    return {
        "B": Written((leaf.rows, rank), zero=False, factor=True, rank_axis=1, stack_axis=0),
        "A": Written((rank, leaf.columns), factor=True, rank_axis=0, stack_axis=1),
    }


def started_factors(leaf: Any, rank: int, plain: tuple[float, float] | None) -> dict[str, Start]:
    """Return factors' sizes: those of `x @ B` and `B @ A` are then the same for all ranks."""
    deviation = 0.0 if plain is None else plain[1] * leaf.summed**0.5
    return {
        "B": Start(leaf.summed**-0.5),
        "A": Start((deviation or 1.0) * rank**-0.5, zero=not deviation),
    }


def check_lowrank(rank: Any, leaf: Any) -> None:
    """Raise a ValueError unless a rank is one, and the leaf is read as a matrix, as axes say."""
    if not expect.is_whole(rank) or rank < 1:
        raise ValueError(
            f"factor_spec: expected the rank of {leaf.path} to be a whole number of at least "
            f"1, or 'whole', or 'pose', got {rank!r}."
        )
    if len(leaf.shape) < 2:
        raise ValueError(
            f"factor_spec: expected a low-rank leaf to have at least two axes, got {leaf.path} "
            f"of shape {leaf.shape}. Generate it whole."
        )
    if leaf.axes and leaf.axes not in (readings := all_axes(len(leaf.shape))):
        raise ValueError(
            f"factor_spec: expected the axes of {leaf.path}, of shape {leaf.shape}, to be one of "
            f"{readings}, got {leaf.axes!r}."
        )
