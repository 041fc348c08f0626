"""Whole updates: every number of a leaf is generated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jax.typing import ArrayLike

from straw_jax.kinds.base import Kind, Start, Update, Written
from straw_jax.lowrank import Factor, PerVector, each_number, form
from straw_jax.operators import Contraction, Kernel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WholeLeaf(Update):
    """An array of a leaf's shape, added to it. A tree of factors has the array itself.

    Attributes:
        whole: of the leaf's shape, or with a sample axis in front.
    """

    whole: Factor

    labels: ClassVar[Mapping[str, str]] = {"whole": "the whole"}
    neutral: ClassVar[Mapping[str, Any]] = {"whole": 0.0}
    mixing: ClassVar[str] = "terms"
    per_vector: ClassVar[bool] = True

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"whole": shape}

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        whole = self.whole if isinstance(self.whole, PerVector) else form(self.whole)
        whole = each_number(lambda array: array.astype(kernel.dtype), whole)
        return kernel.plus(Contraction.of(whole))


@dataclass(frozen=True)
class Whole(Kind):
    """Every number of a leaf is generated: biases, norms, and small kernels.

    References:
        Ha et al., "HyperNetworks" (2017), for whole kernels.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import Whole
        >>> spec = factor_spec({"norm": {"scale": jnp.ones(8)}}, {"norm/*": Whole()})
        >>> spec.unpack(jnp.zeros((2, spec.size)))["norm/scale"].shape
        (2, 8)
    """

    @property
    def label(self) -> str:
        """The word whole."""
        return "whole"

    def written(self, leaf: Any) -> dict[str, Written]:
        return {"whole": Written(leaf.shape)}

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        mean, deviation = plain or (0.0, 0.0)
        return {"whole": Start(deviation or leaf.summed**-0.5, mean, zero=not deviation)}

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Any:
        return parts["whole"]

    def parts(self, update: Any) -> dict[str, Any]:
        return {"whole": update}
