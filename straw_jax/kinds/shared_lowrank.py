"""Low-rank updates in bases that all samples share: `W0 + scale * U diag(s) V`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
from jax import Array
from jax.typing import ArrayLike

from straw_jax.kinds.base import Kind, Shared, Start, Update, Written
from straw_jax.kinds.lowrank import check_lowrank, lowrank_term
from straw_jax.operators import Kernel
from straw_jax.parts import Part
from straw_jax.readings import matrix_shape, read_as


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InBasis(Update):
    """The update `U @ diag(core) @ V`, or `U @ core @ V`, of one kernel.

    Attributes:
        core: `[r]` or `[r, r]`, or with a sample axis in front.
        U: `[in, r]`, shared by all samples.
        V: `[r, out]`, shared by all samples.
        axes: how the kernel is read as a matrix, as in `factor_spec`.
        full: whether the core is a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import modulate
        >>> from straw_jax.kinds import InBasis
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> cores = jnp.array([[1.0, 0.0], [1.0, 1.0]])  # one per sample
        >>> update = InBasis(cores, U=jnp.ones((3, 2)), V=jnp.ones((2, 1)))
        >>> layer({"W": jnp.zeros((3, 1))}, {"W": update}, jnp.ones((2, 3))).tolist()
        [[3.0], [6.0]]
    """

    core: Array
    U: Array
    V: Array
    axes: str = field(default="", metadata={"static": True})
    full: bool = field(default=False, metadata={"static": True})

    neutral: ClassVar[Mapping[str, Any]] = {"core": 0.0, "U": 0.0, "V": 0.0}
    common: ClassVar[tuple[str, ...]] = ("U", "V")
    mixing: ClassVar[str] = "terms"

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rank = self.U.shape[-1]
        rows, columns = matrix_shape(shape, read_as(self.axes, len(shape)))
        core = (rank, rank) if self.full else (rank,)
        return {"core": core, "U": (rows, rank), "V": (rank, columns)}

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        axes = read_as(self.axes, kernel.ndim)
        term = lowrank_term(kernel, self.U, self.V, axes, scale)
        U, V, *rest = term.parts
        core = self.core.astype(kernel.dtype)
        if self.full:
            V = V.renamed({-1: -2})
            parts = (U, Part(core, (-1, -2), core.shape), V)
        else:
            parts = (U, Part(core, (-1,), core.shape), V)
        return kernel.plus(type(term)((*parts, *rest), term.scale))


@dataclass(frozen=True)
class SharedLowRank(Kind):
    """Singular values in bases that the generator owns: `r` numbers a sample and leaf.

    Attributes:
        rank: of the update.
        full: whether a matrix `[r, r]` is generated in place of its diagonal.

    References:
        Kopiczko et al., "VeRA" (2024), whose bases are fixed; Zhang et al., "AdaLoRA" (2023),
        equation 3, for the form.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import SharedLowRank
        >>> print(factor_spec({"W": jnp.zeros((64, 32))}, {"W": SharedLowRank(4)}))
        leaf   shape      rank  dense  generated  ratio
        W      64x32  shared 4  2,048          4  0.002
        total                   2,048          4  0.002
    """

    rank: int
    full: bool = False

    @property
    def label(self) -> str:
        """The rank."""
        return f"shared {self.rank}" + ("x" + str(self.rank) if self.full else "")

    def check(self, leaf: Any) -> None:
        check_lowrank(self.rank, leaf)

    def written(self, leaf: Any) -> dict[str, Written]:
        return {"core": Written((self.rank, self.rank) if self.full else (self.rank,))}

    def shared(self, leaf: Any) -> dict[str, Shared]:
        return {
            "U": Shared((leaf.rows, self.rank), fan_in=leaf.summed),
            "V": Shared((self.rank, leaf.columns), fan_in=self.rank),
        }

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        deviation = 0.0 if plain is None else plain[1] * leaf.summed**0.5
        scale = (deviation or 1.0) * (self.rank**-0.5 if self.full else 1.0)
        return {
            "core": Start(scale, zero=not deviation),
            "U": Start(leaf.summed**-0.5),
            "V": Start(self.rank**-0.5),
        }

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> InBasis:
        return InBasis(parts["core"], parts["U"], parts["V"], leaf.reading, self.full)
