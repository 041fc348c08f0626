"""Style vector to factors."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_jax.factors import FactorSpec
from straw_jax.layers import bias_init, dense, kernel_init
from straw_jax.lowrank import Generated


class Generator(nn.Module):
    """Write a tree of factors from each style vector: dense, ReLU, one linear head a factor.

    The heads together are the one wide dense layer of the article (as many parameters, the same
    distribution of initial values), cut at the factors' borders, so that no flat vector has to be
    joined or cut.

    Attributes:
        spec: what to generate.
        hidden: length of the hidden vector.
        start_at_base: start with `A = 0` and whole updates of zero, so that an untrained generator
            leaves the executor as it is; else with all heads as PyTorch starts a dense layer. Poses
            always start as the one that changes nothing.

    References:
        The STRAW article, "Weight Generation", and its released code.
    """

    spec: FactorSpec
    hidden: int = 128
    start_at_base: bool = False

    @nn.compact
    def __call__(self, z: Array) -> dict[str, Any]:
        """Return factors by path, with a sample axis, of style vectors `[batch, style]`.

        Factors of kernels are `Generated`: carried as what generates them.
        """
        hidden = nn.relu(dense(self.hidden, z.shape[-1], "hidden")(z))
        return {
            leaf.path: leaf.assemble(
                {
                    part: self._head(f"{leaf.path}/{part}", part, shape, hidden)
                    for part, shape in leaf.parts.items()
                }
            )
            for leaf in self.spec
        }

    def _head(self, path: str, part: str, shape: tuple[int, ...], hidden: Array) -> Any:
        zero = self.start_at_base and part != "B"
        name = path.replace("/", ".")
        if part in ("B", "A"):
            return _FactorHead(shape, zero, name=name)(hidden)
        zero |= part == "pose"
        whole = nn.Dense(
            math.prod(shape),
            kernel_init=nn.initializers.zeros if zero else kernel_init,
            bias_init=nn.initializers.zeros if zero else bias_init(self.hidden),
            name=name,
        )(hidden)
        if part == "pose":
            whole = whole + jnp.eye(2, 3, dtype=whole.dtype).reshape(1, -1)
        return whole.reshape(*hidden.shape[:-1], *shape)


class _FactorHead(nn.Module):
    """One dense layer from the hidden vector to a factor `[m, n]`, not applied yet."""

    shape: tuple[int, ...]
    zero: bool

    @nn.compact
    def __call__(self, hidden: Array) -> Generated:
        m, n = self.shape
        h = hidden.shape[-1]
        uniform = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=2, out_axis=1, batch_axis=0
        )
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros if self.zero else uniform, (m, n, h))
        bias = self.param("bias", zeros if self.zero else bias_init(h), (m, n))
        return Generated(hidden, kernel, bias)
