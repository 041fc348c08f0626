"""Sample to style vector."""

import math
from collections.abc import Sequence

from flax import linen as nn
from jax import Array

from straw_jax.initializers import bias_init, kernel_init


class ConvEye(nn.Module):
    """Encode an image as a style vector: the article's "eye".

    Attributes:
        style: length of the style vector.

    References:
        The STRAW article, "Context Encoding", and its released code.
    """

    style: int = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        for i, features in enumerate((16, 32), start=1):
            x = nn.Conv(
                features,
                (3, 3),
                strides=2,
                padding=1,
                kernel_init=kernel_init,
                bias_init=bias_init(9 * x.shape[-1]),
                name=f"conv{i}",
            )(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.Dense(
            self.style, kernel_init=kernel_init, bias_init=bias_init(x.shape[-1]), name="style"
        )(x)
        return nn.tanh(x)


class NormEye(nn.Module):
    """Encode an image as a style vector, with GroupNorm between the convolutions.

    3x3 convolutions of stride 2, each followed by GroupNorm and ReLU, then a dense layer over all
    positions: means over positions would be nearly the same for every image after GroupNorm.

    Attributes:
        style: length of the style vector.
        features: output channels of the convolutions; multiples of 8.

    References:
        Wu and He, "Group Normalization" (2018).
    """

    style: int = 32
    features: Sequence[int] = (16, 32, 32)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        for i, features in enumerate(self.features, start=1):
            x = nn.Conv(
                features,
                (3, 3),
                strides=2,
                padding=1,
                use_bias=False,  # GroupNorm has one
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{i}",
            )(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, name=f"norm{i}")(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.tanh(nn.Dense(self.style, name="style")(x))
