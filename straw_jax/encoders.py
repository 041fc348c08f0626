"""Sample to style vector."""

import math

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
