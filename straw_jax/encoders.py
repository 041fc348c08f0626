"""Context to style vector: of an image, or of a set."""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from straw_jax.layers import conv, dense, kernel_init

Pooling: TypeAlias = Literal["mean", "attention"]


class ConvEncoder(nn.Module):
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
            x = nn.relu(conv(features, x.shape[-1], f"conv{i}", strides=2, padding=1)(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.tanh(dense(self.style, x.shape[-1], "style")(x))


class NormEncoder(nn.Module):
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


class RecursiveEncoder(nn.Module):
    """Encode an image as a style vector by one small transformer block, applied again and again.

    The TRM encoder: two convolutions of stride 2 make tokens; a state, a vector for each token,
    goes through the block twice a step, the first time with the tokens added. All steps but the
    last run without gradient, so that the backward pass costs as much as that of two blocks,
    however many steps there are. (The initial state thus learns only where there is one step.)

    Attributes:
        style: length of the style vector.
        width: of a token's vector; a multiple of twice `heads`.
        heads: of the attention.
        steps: of the recursion, 1 or more.

    Raises:
        ValueError: if the width is not a multiple of twice `heads`, or there is no step.

    References:
        The released code of the STRAW article, its second modulator.
        Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025).
    """

    style: int = 64
    width: int = 64
    heads: int = 4
    steps: int = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        if self.width % (2 * self.heads) or self.steps < 1:
            raise ValueError(
                "RecursiveEncoder: expected a width that is a multiple of twice the heads, at least"
                f" 1 step, got width {self.width}, {self.heads} heads, {self.steps} steps."
            )
        for i in (1, 2):
            x = nn.relu(conv(self.width, x.shape[-1], f"conv{i}", strides=2, padding=1)(x))
        tokens = x.reshape(x.shape[0], -1, self.width)
        state = self.param("state", nn.initializers.normal(0.02), tokens.shape[1:])
        block = _RotaryBlock(self.heads, name="block")
        z = jnp.broadcast_to(state, tokens.shape)
        for step in range(self.steps):
            if step == self.steps - 1 > 0:
                z = jax.lax.stop_gradient(z)
            z = block(block(z + tokens))
        return nn.tanh(dense(self.style, self.width, "style")(z.mean(axis=1)))


class _RotaryBlock(nn.Module):
    """Attention with rotary positions, then an MLP of four times the width; RMSNorm before each."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        y = nn.RMSNorm(epsilon=1e-5, name="norm1")(x)
        query, key, value = (
            nn.Dense(width, use_bias=False, kernel_init=kernel_init, name=name)(y).reshape(
                *y.shape[:-1], self.heads, width // self.heads
            )
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(rotary(query), rotary(key), value)
        out = nn.Dense(width, use_bias=False, kernel_init=kernel_init, name="out")
        x = x + out(y.reshape(x.shape))
        y = dense(4 * width, width, "mlp1")(nn.RMSNorm(epsilon=1e-5, name="norm2")(x))
        return x + dense(width, 4 * width, "mlp2")(nn.gelu(y, approximate=False))


def rotary(x: Array) -> Array:
    """Turn queries or keys by their positions, so that products depend on differences of these.

    Args:
        x: `[batch, positions, heads, size]`, `size` even. Numbers `i` of a vector's first half and
            of its second are turned together by `position / 10000 ** (2 * i / size)` radians.

    Returns:
        As `x`.

    References:
        Su et al., "RoFormer" (2021), equation 34, its pairs taken from the two halves.
    """
    _, positions, _, size = x.shape
    angle = np.arange(positions)[None, :, None, None] / 10_000.0 ** (np.arange(0, size, 2) / size)
    cos, sin = jnp.asarray(np.cos(angle), x.dtype), jnp.asarray(np.sin(angle), x.dtype)
    one, two = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


class SetEncoder(nn.Module):
    """Encode a set of vectors, of any size and in any order, as one style vector.

    An MLP encodes each element by itself, the set is pooled, and an MLP decodes the result. The
    last layer on the elements is linear, and so it comes after the pool: for one vector, not for
    each element. Attention is that of a learned query in each head: its products with the keys are
    a linear function of the elements, and its values are projected after the pool.

    Attributes:
        element: widths of the MLP on each element: ReLU between its layers, none after the last.
        decoder: widths of the MLP on the pooled vector, ReLU after each layer; may be empty.
        pooling: "mean", or "attention".
        heads: of the attention.

    Raises:
        ValueError: if the pooling is unknown.

    References:
        Zaheer et al., "Deep Sets" (2017). Lee et al., "Set Transformer" (2019), section 3.2, for
        pooling by attention.
    """

    element: Sequence[int] = (128, 256, 128)
    decoder: Sequence[int] = (256, 128)
    pooling: Pooling = "mean"
    heads: int = 4

    @nn.compact
    def __call__(self, x: Array | tuple[Array, Array]) -> Array:
        """Return style vectors `[batch, style]` of sets.

        Args:
            x: elements `[batch, n, d]`; or these and a mask `[batch, n]` that is true where there
                is an element, at least once in each set, for sets of different sizes in one batch.
        """
        x, mask = x if isinstance(x, tuple) else (x, None)
        *hidden, last = self.element
        sets = x.shape[:-1]
        x = x.reshape(-1, x.shape[-1])  # else XLA copies every layer's gradient on CPU
        for i, features in enumerate(hidden, start=1):
            x = nn.relu(dense(features, x.shape[-1], f"element{i}")(x))
        x = x.reshape(*sets, x.shape[-1])
        x = self._pool(x, None if mask is None else mask[..., None])
        x = dense(last, x.shape[-1], f"element{len(self.element)}")(x)
        for i, features in enumerate(self.decoder, start=1):
            x = nn.relu(dense(features, x.shape[-1], f"decoder{i}")(x))
        return x

    def _pool(self, x: Array, where: Array | None) -> Array:
        if self.pooling == "mean":
            return x.mean(axis=1, where=where)
        if self.pooling == "attention":
            scores = dense(self.heads, x.shape[-1], "scores")(x)
            weights = nn.softmax(scores, axis=1, where=where)
            return jnp.einsum("bnh,bnd->bhd", weights, x).reshape(len(x), -1)
        raise ValueError(
            f"SetEncoder: expected a pooling of {get_args(Pooling)}, got {self.pooling!r}."
        )
