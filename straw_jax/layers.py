"""Layers with PyTorch's initial values, which the published results depend on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

#: Uniform in +-1 / sqrt(fan in), for kernels `[*window, in, out]`.
kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias_init(fan_in: int) -> Initializer:
    """Return an initialiser, uniform in +-1 / sqrt(fan_in), for biases."""

    def init(key, shape, dtype=float, out_sharding=None):  # type: ignore[no-untyped-def]
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def dense(features: int, fan_in: int, name: str, dtype: DTypeLike | None = None) -> nn.Dense:
    """Return a dense layer from vectors of length `fan_in`, which computes in `dtype`."""
    return nn.Dense(
        features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init(fan_in), name=name
    )


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
