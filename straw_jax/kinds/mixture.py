"""Mixtures: a weighted sum of templates that all samples share, `W0 + sum_k p_k T_k`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jax import Array
from jax.typing import ArrayLike

from straw_jax import expect
from straw_jax.kinds.base import Kind, Shared, Start, Update, Written
from straw_jax.operators import Contraction, Kernel
from straw_jax.parts import Part


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixed(Update):
    """A weighted sum of templates.

    Products with each template come before the sum, so that no kernel is formed; but where a sample
    has many inputs (positions of a convolution) and this costs more multiply-adds and no less
    memory than forming the sample's kernel, it is formed.

    Attributes:
        weights: `[k]`, or `[batch, k]`.
        templates: `[k, *shape]`, shared by all samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import modulate
        >>> from straw_jax.kinds import Mixed
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> mixed = Mixed(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.stack([jnp.eye(2)] * 2))
        >>> layer({"W": jnp.zeros((2, 2))}, {"W": mixed}, jnp.ones((2, 2))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    weights: Array
    templates: Array

    neutral: ClassVar[Mapping[str, Any]] = {"weights": 0.0, "templates": 0.0}
    common: ClassVar[tuple[str, ...]] = ("templates",)
    mixing: ClassVar[str] = "terms"

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        count = self.weights.shape[-1:]
        return {"weights": count, "templates": (*count, *shape)}

    def change(self, kernel: Kernel, scale: ArrayLike) -> Kernel:
        weights, templates = (
            array.astype(kernel.dtype) for array in (self.weights, self.templates)
        )
        parts = (
            Part(weights, (-1,), weights.shape),
            Part(templates, (-1, *range(kernel.ndim)), templates.shape),
        )
        return kernel.plus(Contraction(parts, may_form=True))


@dataclass(frozen=True)
class Mixture(Kind):
    """Weights of templates; the templates are parameters of the generator.

    Attributes:
        templates: how many.
        softmax: whether weights are positive and sum to 1, or free.

    References:
        Yang et al., "CondConv" (2019), equation 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.kinds import Mixture
        >>> spec = factor_spec({"W": jnp.zeros((64, 32))}, {"W": Mixture(3)})
        >>> spec.size, spec.shared_size
        (3, 6144)
    """

    templates: int
    softmax: bool = False

    @property
    def label(self) -> str:
        """The number of templates."""
        return f"mixture {self.templates}"

    def check(self, leaf: Any) -> None:
        if not expect.is_whole(self.templates) or self.templates < 1:
            raise ValueError(
                f"factor_spec: expected a mixture of one template or more for {leaf.path}, got"
                f" {self.templates!r}."
            )

    def written(self, leaf: Any) -> dict[str, Written]:
        return {"weights": Written((self.templates,), zero=not self.softmax)}

    def shared(self, leaf: Any) -> dict[str, Shared]:
        shape = (self.templates, *leaf.shape)
        fan_in = math.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else self.templates
        return {"templates": Shared(shape, fan_in=fan_in, zero=self.softmax)}

    def start(self, leaf: Any, plain: tuple[float, float] | None) -> dict[str, Start]:
        fan_in = self.shared(leaf)["templates"].fan_in
        mean, deviation = (0.0, fan_in**-0.5) if plain is None else plain
        if self.softmax:  # weights of about 1 / k each: their squares sum to about that, too
            scale, zero = deviation * self.templates**0.5, plain is None
            return {
                "weights": Start(0.5),
                "templates": Start(scale or 1.0, 0.0 if zero else mean, zero=zero or not scale),
            }
        return {
            "weights": Start(self.templates**-0.5, zero=plain is None or not deviation),
            "templates": Start(deviation or fan_in**-0.5),
        }

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Mixed:
        weights = parts["weights"]
        if self.softmax and not isinstance(weights, (tuple, jax.ShapeDtypeStruct)):
            weights = jax.nn.softmax(weights, axis=-1)
        return Mixed(weights, parts["templates"])
