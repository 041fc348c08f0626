"""Layers with PyTorch's initial values, which the published results depend on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from straw_jax.lowrank import accumulator_dtype

#: Uniform in +-1 / sqrt(fan in), for kernels `[*window, in, out]`.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

#: Uniform, with results of the size of the input; PyTorch's have 0.58 of it.
sized_init = nn.initializers.variance_scaling(1, "fan_in", "uniform")


def bias_init(fan_in: int) -> Initializer:
    """Return an initialiser, uniform in +-1 / sqrt(fan_in), for biases."""

    def init(key, shape, dtype=float, out_sharding=None):  # type: ignore[no-untyped-def]
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def dense(
    features: int,
    fan_in: int,
    name: str,
    dtype: DTypeLike | None = None,
    init: Initializer = kernel_init,
) -> nn.Dense:
    """Return a dense layer from vectors of length `fan_in`, which computes in `dtype`."""
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=bias_init(fan_in), name=name)


def conv(features: int, channels: int, name: str, **options: Any) -> nn.Conv:
    """Return a 3x3 convolution of images with `channels` channels; options as for `nn.Conv`."""
    return nn.Conv(
        features,
        (3, 3),
        kernel_init=kernel_init,
        bias_init=bias_init(9 * channels),
        name=name,
        **options,
    )


def attention(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Return values weighted by softmax over positions; 0 where a mask leaves no position.

    Args:
        query: `[batch, queries, heads, size]`.
        key: `[batch, positions, heads, size]`.
        value: of the same shape.
        mask: boolean `[batch, positions]`, false for positions without influence; or None.

    Returns:
        `[batch, queries, heads, size]`.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    scores = scores.astype(accumulator_dtype(scores.dtype))
    where = jnp.ones((), bool) if mask is None else mask[:, None, None]
    least = jnp.finfo(scores.dtype).min
    largest = jnp.max(jnp.where(where, scores, least), axis=-1, keepdims=True)
    weights = jnp.where(where, jnp.exp(jnp.where(where, scores, least) - largest), 0)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(scores.dtype).tiny)
    return jnp.einsum("bhqk,bkhd->bqhd", (weights / total).astype(value.dtype), value)


class AttentionBlock(nn.Module):
    """Attention, then an MLP of twice the width, each with RMSNorm before and a sum after it.

    `value_init` is of the kernels that read what is attended to, and write what is added of it.
    """

    heads: int
    dropout: float
    dtype: DTypeLike | None
    value_init: Initializer = kernel_init

    @nn.compact
    def __call__(
        self, x: Array, context: Array | None, mask: Array | None, deterministic: bool
    ) -> Array:
        """Let `[batch, queries, width]` see a context `[batch, positions, d]`, or themselves."""
        width = x.shape[-1]

        def norm(name: str) -> nn.RMSNorm:
            return nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name=name)

        def dropped(y: Array) -> Array:
            return nn.Dropout(self.dropout)(y, deterministic=deterministic)

        y = norm("norm1")(x)
        seen = y if context is None else norm("norm_context")(context)
        query, key, value = (
            dense(width, each.shape[-1], name, self.dtype, init)(each).reshape(
                *each.shape[:2], self.heads, width // self.heads
            )
            for name, each, init in (
                ("query", y, kernel_init),
                ("key", seen, kernel_init),
                ("value", seen, self.value_init),
            )
        )
        y = attention(query, key, value, mask).reshape(x.shape)
        x = x + dropped(dense(width, width, "out", self.dtype, self.value_init)(y))
        y = nn.gelu(dense(2 * width, width, "mlp1", self.dtype)(norm("norm2")(x)))
        return x + dropped(dense(width, 2 * width, "mlp2", self.dtype)(y))


def max_pool(x: Array) -> Array:
    """Return maxima of 2x2 windows; an odd last row or column is dropped.

    The gradient of `nn.max_pool` is slow on CPU.
    """
    x = jnp.maximum(x[:, :-1:2], x[:, 1::2])
    return jnp.maximum(x[:, :, :-1:2], x[:, :, 1::2])


def pooled_conv(*operands: Any, **options: Any) -> Array:
    """Convolve, then `max_pool`: give it to `nn.Conv` as `conv_general_dilated`.

    The layer adds its bias to what this returns. max(x) + b = max(x + b), also once rounded, but
    the bias and its gradient, a sum over positions, then have a quarter of the positions.
    """
    return max_pool(lax.conv_general_dilated(*operands, **options))
