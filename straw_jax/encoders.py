"""Encoders: from a context, an image or a set, to a style vector."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.layers import AttentionBlock, conv, dense, kernel_init
from straw_jax.lowrank import accumulator_dtype

Pooling: TypeAlias = Literal["mean", "attention"]


class ConvEncoder(nn.Module):
    """Encode an image as a style vector, by two convolutions and a dense layer.

    The article calls this encoder the "eye".

    Attributes:
        style: length of the style vector.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        The STRAW article, "Context Encoding", and its released code.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import ConvEncoder
        >>> init = jax.jit(ConvEncoder(style=16).init_with_output)
        >>> styles, _ = init(jax.random.key(0), jnp.ones((2, 28, 28, 1)))
        >>> styles.shape
        (2, 16)
    """

    style: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        expect.positive("ConvEncoder", style=self.style)
        expect.compute_dtype("ConvEncoder", self.dtype)
        expect.images("ConvEncoder", x)
        for i, features in enumerate((16, 32), start=1):
            convolution = conv(
                features, x.shape[-1], f"conv{i}", strides=2, padding=1, dtype=self.dtype
            )
            x = nn.relu(convolution(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.tanh(dense(self.style, x.shape[-1], "style", self.dtype)(x))


class NormEncoder(nn.Module):
    """Encode an image as a style vector, with GroupNorm between the convolutions.

    3x3 convolutions of stride 2, each followed by GroupNorm and ReLU, then a dense layer over all
    positions. (After GroupNorm, means over positions are almost the same for every image.)

    Attributes:
        style: length of the style vector.
        features: output channels of the convolutions; multiples of 8.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        Wu and He, "Group Normalization" (2018).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import NormEncoder
        >>> init = jax.jit(NormEncoder(style=16).init_with_output)
        >>> styles, _ = init(jax.random.key(0), jnp.ones((2, 28, 28, 1)))
        >>> styles.shape
        (2, 16)
    """

    style: int = 32
    features: Sequence[int] = (16, 32, 32)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        expect.positive("NormEncoder", style=self.style)
        expect.compute_dtype("NormEncoder", self.dtype)
        expect.widths("NormEncoder", features=self.features)
        expect.multiples_of_8("NormEncoder", "features", self.features)
        expect.images("NormEncoder", x)
        for i, features in enumerate(self.features, start=1):
            x = nn.Conv(
                features,
                (3, 3),
                strides=2,
                padding=1,
                use_bias=False,  # GroupNorm has one
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            x = nn.relu(nn.GroupNorm(num_groups=8, dtype=self.dtype, name=f"norm{i}")(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.tanh(nn.Dense(self.style, dtype=self.dtype, name="style")(x))


class RecursiveEncoder(nn.Module):
    """Encode an image as a style vector, by one small transformer block, applied repeatedly.

    The encoder "TRM". Two convolutions of stride 2 make tokens. A state, one vector per token, goes
    through the block twice per step, the first time with the tokens added. Only the last step has a
    gradient, so that the backward pass costs that of two blocks, whatever the number of steps. (So
    the initial state is trained only if there is one step.)

    Attributes:
        style: length of the style vector.
        width: length of a token's vector; a multiple of twice `heads`.
        heads: number of attention heads.
        steps: of the recursion, 1 or more.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    Raises:
        ValueError: (when called) if the width is not a multiple of twice `heads`, or `steps` is
            below 1.

    References:
        The released code of the STRAW article, its second modulator.
        Jolicoeur-Martineau, "Less is More: Recursive Reasoning with Tiny Networks" (2025).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import RecursiveEncoder
        >>> init = jax.jit(RecursiveEncoder(style=16, width=8, heads=2, steps=2).init_with_output)
        >>> styles, _ = init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> styles.shape
        (2, 16)
    """

    style: int = 64
    width: int = 64
    heads: int = 4
    steps: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return style vectors `[batch, style]` in (-1, 1) of images `[batch, h, w, c]`."""
        sizes = {"style": self.style, "width": self.width, "heads": self.heads}
        expect.positive("RecursiveEncoder", **sizes)
        expect.compute_dtype("RecursiveEncoder", self.dtype)
        expect.images("RecursiveEncoder", x)
        if self.width % (2 * self.heads) or not expect.is_whole(self.steps) or self.steps < 1:
            raise ValueError(
                "RecursiveEncoder: expected a width that is a multiple of twice the heads, at least"
                f" 1 step, got width {self.width}, {self.heads} heads, {self.steps} steps."
            )
        for i in (1, 2):
            convolution = conv(
                self.width, x.shape[-1], f"conv{i}", strides=2, padding=1, dtype=self.dtype
            )
            x = nn.relu(convolution(x))
        tokens = x.reshape(x.shape[0], math.prod(x.shape[1:3]), self.width)
        state = self.param("state", nn.initializers.normal(0.02), tokens.shape[1:])
        block = _RotaryBlock(self.heads, self.dtype, name="block")
        z = jnp.broadcast_to(state.astype(tokens.dtype), tokens.shape)
        for step in range(self.steps):
            if step == self.steps - 1 > 0:
                z = jax.lax.stop_gradient(z)
            z = block(block(z + tokens))
        return nn.tanh(dense(self.style, self.width, "style", self.dtype)(z.mean(axis=1)))


class _RotaryBlock(nn.Module):
    """Attention with rotary positions, then an MLP of four times the width; RMSNorm before each."""

    heads: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        linear = partial(nn.Dense, width, use_bias=False, kernel_init=kernel_init, dtype=self.dtype)
        norm = partial(nn.RMSNorm, epsilon=1e-5, dtype=self.dtype)
        y = norm(name="norm1")(x)
        query, key, value = (
            linear(name=name)(y).reshape(*y.shape[:-1], self.heads, width // self.heads)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(rotary(query), rotary(key), value)
        x = x + linear(name="out")(y.reshape(x.shape))
        y = dense(4 * width, width, "mlp1", self.dtype)(norm(name="norm2")(x))
        return x + dense(width, 4 * width, "mlp2", self.dtype)(nn.gelu(y, approximate=False))


def rotary(x: Array) -> Array:
    """Rotate queries or keys by their positions: products depend on differences of positions.

    Each number `i` of a vector's first half is rotated with number `i` of its second half, by
    `position / 10000 ** (2 * i / size)` radians.

    Args:
        x: `[batch, positions, heads, size]`, `size` even.

    Returns:
        Of the shape and dtype of `x`.

    References:
        Su et al., "RoFormer" (2021), equation 34, with pairs from the two halves.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.encoders import rotary
        >>> rotary(jnp.ones((2, 5, 4, 8))).shape
        (2, 5, 4, 8)
    """
    if not expect.is_array(x) or len(x.shape) != 4 or x.shape[-1] % 2:
        raise ValueError(
            "rotary: expected queries or keys [batch, positions, heads, size] of an even size, got"
            f" {expect.describe(x)}. Choose a width that is a multiple of twice the heads."
        )
    _, positions, _, size = x.shape
    angle = np.arange(positions)[None, :, None, None] / 10_000.0 ** (np.arange(0, size, 2) / size)
    cos, sin = jnp.asarray(np.cos(angle), x.dtype), jnp.asarray(np.sin(angle), x.dtype)
    one, two = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


class SetEncoder(nn.Module):
    """Encode a set of vectors, of any size and in any order, as one style vector.

    An MLP encodes each element, the set is pooled, and an MLP decodes the result. The last layer on
    the elements is linear, so it is applied after pooling, to one vector in place of each element.
    Attention has one learned query per head: its scores are a linear function of the elements, and
    its values are projected after pooling.

    Attributes:
        element: widths of the MLP on each element: ReLU between its layers, none after the last.
        decoder: widths of the MLP on the pooled vector, ReLU after each layer; may be empty.
        pooling: "mean", or "attention".
        heads: number of attention heads.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    Raises:
        ValueError: (when called) if the pooling is unknown, a width is below 1, or the elements or
            the mask are not of the form below.

    References:
        Zaheer et al., "Deep Sets" (2017). Lee et al., "Set Transformer" (2019), section 3.2, for
        pooling by attention.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import SetEncoder
        >>> pairs, mask = jnp.ones((2, 5, 3)), jnp.arange(5)[None] < jnp.array([[5], [2]])
        >>> init = jax.jit(SetEncoder(element=(16, 8), decoder=(4,)).init_with_output)
        >>> styles, _ = init(jax.random.key(0), (pairs, mask))
        >>> styles.shape
        (2, 4)
    """

    element: Sequence[int] = (128, 256, 128)
    decoder: Sequence[int] = (256, 128)
    pooling: Pooling = "mean"
    heads: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array | tuple[Array, Array]) -> Array:
        """Return style vectors `[batch, style]` of sets.

        Args:
            x: elements `[batch, n, d]`; or, for sets of different sizes, a tuple of these and a
                boolean mask `[batch, n]`, true where there is an element. No set may be empty.
        """
        x, mask = x if isinstance(x, tuple) else (x, None)
        self._check(x, mask)
        *hidden, last = self.element
        sets = x.shape[:-1]
        x = x if self.dtype is None else x.astype(self.dtype)
        x = x.reshape(math.prod(sets), x.shape[-1])  # else XLA copies every gradient on CPU
        for i, features in enumerate(hidden, start=1):
            x = nn.relu(dense(features, x.shape[-1], f"element{i}", self.dtype)(x))
        x = x.reshape(*sets, x.shape[-1])
        x = self._pool(x, None if mask is None else mask[..., None])
        x = dense(last, x.shape[-1], f"element{len(self.element)}", self.dtype)(x)
        for i, features in enumerate(self.decoder, start=1):
            x = nn.relu(dense(features, x.shape[-1], f"decoder{i}", self.dtype)(x))
        return x

    def _check(self, x: Any, mask: Any) -> None:
        expect.positive("SetEncoder", heads=self.heads)
        expect.compute_dtype("SetEncoder", self.dtype)
        expect.widths("SetEncoder", element=self.element, decoder=self.decoder)
        if not self.element:
            raise ValueError("SetEncoder: expected widths of one layer or more as element, got ().")
        expect.set_and_mask("SetEncoder", "sets of elements [batch, n, d]", x, mask)

    def _pool(self, x: Array, where: Array | None) -> Array:
        if self.pooling == "mean":
            return x.mean(axis=1, where=where)
        if self.pooling == "attention":
            scores = dense(self.heads, x.shape[-1], "scores", self.dtype)(x)
            summed = scores.astype(accumulator_dtype(scores.dtype))
            weights = nn.softmax(summed, axis=1, where=where).astype(scores.dtype)
            pooled = jnp.einsum("bnh,bnd->bhd", weights, x)
            return pooled.reshape(x.shape[0], math.prod(pooled.shape[1:]))
        raise ValueError(
            f"SetEncoder: expected a pooling of {get_args(Pooling)}, got {self.pooling!r}."
        )


class PerceiverEncoder(nn.Module):
    """Encode a context of any length as a few vectors, which its learned queries read from it.

    Each layer lets the queries see the context, and then each other. They do not know the order of
    the context's vectors: add positions to these where order counts, as the hidden states of a
    language model have them.

    Attributes:
        style: length of one style vector, the mean over the queries in (-1, 1); or None for a
            vector of each query, as `TokenHeads` reads them.
        queries: how many.
        width: of a query's vector; a multiple of `heads`.
        heads: number of attention heads.
        layers: how often the queries see the context.
        dropout: rate; with `deterministic=False` and a key, see `make_straw`.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    Raises:
        ValueError: (when called) if the width is not a multiple of `heads`, or context or mask are
            not of the form below.

    References:
        Jaegle et al., "Perceiver" (2021).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import PerceiverEncoder
        >>> texts, mask = jnp.ones((2, 5, 3)), jnp.arange(5)[None] < jnp.array([[5], [2]])
        >>> encoder = PerceiverEncoder(queries=4, width=8, heads=2, layers=1)
        >>> init = jax.jit(encoder.init_with_output)
        >>> tokens, _ = init(jax.random.key(0), (texts, mask))
        >>> tokens.shape
        (2, 4, 8)
    """

    style: int | None = None
    queries: int = 16
    width: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array | tuple[Array, Array], *, deterministic: bool = True) -> Array:
        """Return style vectors `[batch, style]`, or `[batch, queries, width]`, of contexts.

        Args:
            x: vectors `[batch, length, d]`; or, for contexts of different lengths, a tuple of these
                and a boolean mask `[batch, length]`. What is masked has no influence, and a context
                may be empty.
            deterministic: whether nothing is dropped.
        """
        x, mask = x if isinstance(x, tuple) else (x, None)
        self._check(x, mask)
        x = x if self.dtype is None else x.astype(self.dtype)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)  # padding may hold anything, NaN too
        start = self.param("queries", nn.initializers.normal(1.0), (self.queries, self.width))
        y = jnp.broadcast_to(start.astype(x.dtype), (x.shape[0], *start.shape))
        for i in range(1, self.layers + 1):
            cross, own = (
                AttentionBlock(self.heads, self.dropout, self.dtype, name=f"{name}{i}")
                for name in ("cross", "self")
            )
            y = own(cross(y, x, mask, deterministic), None, None, deterministic)
        y = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(y)
        if self.style is None:
            return y
        return nn.tanh(dense(self.style, self.width, "style", self.dtype)(y.mean(axis=1)))

    def _check(self, x: Any, mask: Any) -> None:
        sizes = {name: getattr(self, name) for name in ("queries", "width", "heads", "layers")}
        expect.positive("PerceiverEncoder", **sizes, style=1 if self.style is None else self.style)
        expect.compute_dtype("PerceiverEncoder", self.dtype)
        expect.divides("PerceiverEncoder", heads=self.heads, width=self.width)
        expect.set_and_mask("PerceiverEncoder", "contexts [batch, length, d]", x, mask)
