"""Executors and baselines: ordinary Flax modules."""

import math
from collections.abc import Sequence
from functools import partial

import jax
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.layers import conv, dense, max_pool, pooled_conv


class CNN(nn.Module):
    """The article's executor, also its "standalone" baseline: 1,204,655 parameters for 47 classes.

    Attributes:
        classes: number of outputs.
        channels: of the two convolutions.
        hidden: width of the dense layer after them.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        The released code of the STRAW article.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import CNN
        >>> init = jax.jit(CNN(classes=10, channels=(4, 8), hidden=16).init_with_output)
        >>> logits, _ = init(jax.random.key(0), jnp.ones((2, 28, 28, 1)))
        >>> logits.shape
        (2, 10)
    """

    classes: int = 47
    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, 28, 28, 1]`.

        Args:
            x: normalised images.
            train: apply dropout, with the random key named "dropout".
        """
        expect.compute_dtype("CNN", self.dtype)
        expect.images("CNN", x, least=6)  # two windows of 3, then a max-pool
        convolution = partial(conv, padding="VALID", dtype=self.dtype)
        first, second = self.channels
        x = nn.relu(convolution(first, x.shape[-1], "conv1")(x))
        # Bias and ReLU come after the pool, where they have a quarter of the numbers.
        x = convolution(second, first, "conv2", conv_general_dilated=pooled_conv)(x)
        x = nn.relu(x)
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense(self.hidden, x.shape[-1], "fc1", self.dtype)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return dense(self.classes, x.shape[-1], "fc2", self.dtype)(x)


class CompactCNN(nn.Module):
    """A small executor that learns from few images in few epochs: 147,087 parameters.

    3x3 convolutions, each followed by GroupNorm and ReLU, and a 2x2 max-pool after each stage. The
    last feature map is small, and so are the last layer and its generated factors.

    Attributes:
        classes: number of outputs.
        stages: output channels of the convolutions, stage by stage; multiples of 8.
        dropout: share of the last layer's inputs that is dropped in training.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        He et al., "Delving Deep into Rectifiers" (2015), for the initial kernels.
        Wu and He, "Group Normalization" (2018), which has no state between samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import CompactCNN
        >>> init = jax.jit(CompactCNN(classes=10, stages=((8,), (16,))).init_with_output)
        >>> logits, _ = init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> logits.shape
        (2, 10)
    """

    classes: int = 47
    stages: Sequence[Sequence[int]] = ((32,), (64,), (128,))
    dropout: float = 0.3
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, h, w, c]`.

        Args:
            x: normalised images.
            train: apply dropout, with the random key named "dropout".
        """
        expect.compute_dtype("CompactCNN", self.dtype)
        expect.images("CompactCNN", x, least=2 ** len(self.stages))
        count = 0
        for stage in self.stages:
            for features in stage:
                count += 1
                x = nn.Conv(
                    features,
                    (3, 3),
                    use_bias=False,  # GroupNorm has one
                    kernel_init=nn.initializers.he_normal(),
                    dtype=self.dtype,
                    name=f"conv{count}",
                )(x)
                norm = nn.GroupNorm(num_groups=8, dtype=self.dtype, name=f"norm{count}")
                x = nn.relu(norm(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes, dtype=self.dtype, name="fc")(x)


class ViT(nn.Module):
    """A small vision transformer: two convolutions, blocks of attention and MLP, mean pooling.

    Convolutions of stride 2 make the tokens, one for 4 x 4 pixels: with few training images,
    non-overlapping patches perform far worse. Normalisation comes first in each block. 225,071
    parameters for images of 28 x 28 x 1.

    Attributes:
        classes: number of outputs.
        width: length of a token's vector; a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: share of each branch's outputs that is dropped in training.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021).
        Xiao et al., "Early Convolutions Help Transformers See Better" (2021).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import ViT
        >>> init = jax.jit(ViT(classes=10, width=16, depth=1).init_with_output)
        >>> logits, _ = init(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> logits.shape
        (2, 10)
    """

    classes: int = 47
    width: int = 64
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, h, w, c]`.

        Args:
            x: normalised images.
            train: apply dropout, with the random key named "dropout".
        """
        expect.positive("ViT", width=self.width, heads=self.heads)
        expect.compute_dtype("ViT", self.dtype)
        expect.images("ViT", x)
        expect.divides("ViT", heads=self.heads, width=self.width)
        convolution = partial(nn.Conv, kernel_size=(3, 3), strides=2, padding=1, dtype=self.dtype)
        x = nn.relu(convolution(self.width // 2, name="conv1")(x))
        x = convolution(self.width, name="conv2")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        positions = self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        x = x + (positions if self.dtype is None else positions.astype(self.dtype))[None]
        for i in range(1, self.depth + 1):
            x = _Block(self.heads, self.dropout, self.dtype, name=f"block{i}")(x, train=train)
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(x).mean(axis=1)
        return nn.Dense(self.classes, dtype=self.dtype, name="fc")(x)


class _Block(nn.Module):
    """Attention, then an MLP of four times the width: pre-norm residual branches."""

    heads: int
    dropout: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense, norm = partial(nn.Dense, dtype=self.dtype), partial(nn.LayerNorm, dtype=self.dtype)
        y = norm(name="norm1")(x)
        query, key, value = (
            dense(width, name=name)(y).reshape(*y.shape[:-1], self.heads, width // self.heads)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(query, key, value)  # [batch, tokens, heads, head's width]
        x = x + drop(dense(width, name="out")(y.reshape(x.shape)))
        y = nn.gelu(dense(4 * width, name="mlp1")(norm(name="norm2")(x)))
        return x + drop(dense(width, name="mlp2")(y))


class ResNet34(nn.Module):
    """ResNet-34 for small images: a 3x3 stem of stride 1, no max-pool after it.

    21,299,951 parameters for one input channel and 47 classes.

    Attributes:
        classes: number of outputs.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        He et al., "Deep Residual Learning for Image Recognition" (2015), table 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import ResNet34
        >>> image = jnp.ones((1, 28, 28, 1))
        >>> variables = jax.eval_shape(ResNet34().init, jax.random.key(0), image)
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        21299951
    """

    classes: int = 47
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, h, w, c]`.

        Args:
            x: normalised images.
            train: normalise by the batch's statistics, and update the running statistics (the
                collection "batch_stats", which must then be mutable).
        """
        expect.compute_dtype("ResNet34", self.dtype)
        expect.images("ResNet34", x)
        convolution = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            dtype=self.dtype,
        )
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(norm(name="stem_norm")(convolution(64, (3, 3), padding=1, name="stem")(x)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            features = 64 * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = x
                x = nn.relu(norm()(convolution(features, (3, 3), strides=stride, padding=1)(x)))
                x = norm()(convolution(features, (3, 3), padding=1)(x))
                if shortcut.shape != x.shape:
                    shortcut = norm()(convolution(features, (1, 1), strides=stride)(shortcut))
                x = nn.relu(x + shortcut)
        x = x.mean(axis=(1, 2))
        return dense(self.classes, x.shape[-1], "fc", self.dtype)(x)


class Conv7(nn.Module):
    """Two 7x7 convolutions, each with a 2x2 max-pool, and a dense layer.

    Attributes:
        classes: number of outputs.
        channels: of the two convolutions.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    References:
        Ha et al., "HyperNetworks" (2016), section 4.1: the network for MNIST.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.models import Conv7
        >>> logits, _ = jax.jit(Conv7().init_with_output)(jax.random.key(0), jnp.ones((2, 8, 8, 1)))
        >>> logits.shape
        (2, 10)
    """

    classes: int = 10
    channels: tuple[int, int] = (16, 16)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, h, w, c]`.

        Args:
            x: normalised images.
            train: ignored; training and prediction do not differ.
        """
        del train
        expect.compute_dtype("Conv7", self.dtype)
        expect.images("Conv7", x, least=4)
        for i, features in enumerate(self.channels, start=1):
            convolution = nn.Conv(
                features,
                (7, 7),
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                conv_general_dilated=pooled_conv,
                name=f"conv{i}",
            )
            x = nn.relu(convolution(x))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        return nn.Dense(self.classes, dtype=self.dtype, name="fc")(x)


class WideResNet(nn.Module):
    """A wide residual network for small images, with GroupNorm, which has no state.

    Normalisation and ReLU come first in each block of two 3x3 convolutions. The second and the
    third group of blocks start with stride 2, and have twice the channels of the group before.

    Attributes:
        classes: number of outputs.
        depth: `6 n + 4` for n blocks per group.
        width: the widening factor, k.
        channels: of the first convolution; the first group has `channels * width`.
        dtype: of computation and result, as in Flax: parameters stay float32; see `make_straw`.

    Raises:
        ValueError: (when called) if the depth is not `6 n + 4`.

    References:
        Zagoruyko and Komodakis, "Wide Residual Networks" (2016), table 1; they use BatchNorm.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.models import WideResNet
        >>> init = jax.jit(WideResNet(depth=10, channels=8).init_with_output)
        >>> logits, _ = init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> logits.shape
        (2, 10)
    """

    classes: int = 10
    depth: int = 16
    width: int = 1
    channels: int = 16
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Return logits `[batch, classes]` of images `[batch, h, w, c]`.

        Args:
            x: normalised images.
            train: ignored; training and prediction do not differ.
        """
        del train
        expect.compute_dtype("WideResNet", self.dtype)
        expect.images("WideResNet", x)
        blocks, rest = divmod(self.depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"WideResNet: expected a depth of 6 n + 4, such as 16 or 40, got {self.depth}."
            )
        init = nn.initializers.he_normal()
        convolution = partial(nn.Conv, use_bias=False, kernel_init=init, dtype=self.dtype)
        norm = partial(nn.GroupNorm, num_groups=math.gcd(8, self.channels), dtype=self.dtype)
        x = convolution(self.channels, (3, 3), name="stem")(x)
        for group in range(3):
            features = self.channels * 2**group * self.width
            for block in range(blocks):
                name = f"group{group + 1}_block{block + 1}_"
                stride = 2 if group and not block else 1
                y = nn.relu(norm(name=f"{name}norm1")(x))
                if x.shape[-1] != features:
                    x = convolution(features, (1, 1), strides=stride, name=f"{name}shortcut")(y)
                y = convolution(features, (3, 3), strides=stride, padding=1, name=f"{name}conv1")(y)
                y = nn.relu(norm(name=f"{name}norm2")(y))
                x = x + convolution(features, (3, 3), name=f"{name}conv2")(y)
        x = nn.relu(norm(name="norm")(x)).mean(axis=(1, 2))
        return nn.Dense(self.classes, dtype=self.dtype, name="fc")(x)
