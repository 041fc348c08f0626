"""The generator: from a style vector to factors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.factors import FactorSpec
from straw_jax.kinds import Shared, Written
from straw_jax.layers import bias_init, dense, kernel_init
from straw_jax.lowrank import Generated, accumulator_dtype


class Generator(nn.Module):
    """Generate a tree of factors from each style vector: dense, ReLU, one linear head per factor.

    The heads together are the one wide dense layer of the article, cut at the borders of the
    factors: the same number of parameters, the same distribution of initial values, and no flat
    vector to cut.

    Attributes:
        spec: the leaves to generate.
        hidden: length of the hidden vector.
        start_at_base: initialise `A` and whole updates with 0, so that an untrained generator does
            not change the executor; otherwise all heads as PyTorch initialises a dense layer. Poses
            always start as the identity.
        dtype: of the hidden vector, of factors and of whole leaves, as in Flax: parameters stay
            float32. Poses are float32 or wider: coordinates need more than 8 bits. None: the one to
            which style vectors and parameters promote.

    References:
        The STRAW article, "Weight Generation", and its released code.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import Generator, factor_spec, form
        >>> spec = factor_spec({"W": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}, 2)
        >>> init = jax.jit(Generator(spec).init_with_output)
        >>> factors, _ = init(jax.random.key(0), jnp.ones((8, 16)))
        >>> form(factors["W"].B).shape, factors["bias"].shape
        ((8, 6, 2), (8, 5))
    """

    spec: FactorSpec
    hidden: int = 128
    start_at_base: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: Array) -> dict[str, Any]:
        """Generate factors.

        Args:
            z: style vectors `[batch, style]`.

        Returns:
            A tree of factors with a sample axis; the factors of kernels are `Generated`.
        """
        expect.positive("Generator", hidden=self.hidden)
        expect.compute_dtype("Generator", self.dtype)
        expect.batch("Generator", "the style vectors", z)
        hidden = nn.relu(dense(self.hidden, z.shape[-1], "hidden", self.dtype)(z))
        return {
            leaf.path: leaf.assemble(
                {
                    name: self._head(f"{leaf.path}/{name}", part, hidden)
                    for name, part in leaf.written.items()
                }
                | {
                    name: self._shared(f"{leaf.path}/{name}", part)
                    for name, part in leaf.shared.items()
                }
            )
            for leaf in self.spec
        }

    def _head(self, path: str, part: Written, hidden: Array) -> Any:
        zero = part.always_zero or (self.start_at_base and part.zero)
        name, dtype = path.replace("/", "."), self.dtype
        if part.factor:
            return _FactorHead(part.shape, zero, dtype, name=name)(hidden)
        if part.exact and dtype is not None:
            dtype = accumulator_dtype(dtype)
        whole = nn.Dense(
            math.prod(part.shape),
            kernel_init=nn.initializers.zeros if zero else kernel_init,
            bias_init=nn.initializers.zeros if zero else bias_init(self.hidden),
            dtype=dtype,
            name=name,
        )(hidden)
        if np.any(part.offset):
            offset = jnp.broadcast_to(jnp.asarray(part.offset, whole.dtype), part.shape)
            whole = whole + offset.reshape(1, -1)
        return whole.reshape(*hidden.shape[:-1], *part.shape)

    def _shared(self, path: str, part: Shared) -> Array:
        zero = self.start_at_base and part.zero
        bound = part.fan_in**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        init = nn.initializers.zeros if zero else uniform
        array: Array = self.param(path.replace("/", "."), init, part.shape)
        return array if self.dtype is None else array.astype(self.dtype)


class _FactorHead(nn.Module):
    """A dense layer from the hidden vector to a factor `[m, n]`, returned without applying it."""

    shape: tuple[int, ...]
    zero: bool
    dtype: DTypeLike | None

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
        if self.dtype is not None:
            kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        return Generated(hidden, kernel, bias)
