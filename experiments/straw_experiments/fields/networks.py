"""The networks behind `models`: a coordinate network, and what writes one for each image."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from straw_jax import (
    FactorSpec,
    GeneratedLeaf,
    Heads,
    LowRank,
    Network,
    SharedHeads,
    Straw,
    TokenHeads,
    Whole,
    make_straw,
)

Written: TypeAlias = Literal["last", "top", "biases", "ends", "lowrank", "whole"]

FREQUENCY = 20.0  # SIREN's omega: by it angles of each layer are multiplied
_CYCLES = 12.0  # over an image, of the first layer's sines: MNIST has sharp edges
_WRITTEN = 0.05  # the size of written numbers, if what a linear generator puts out is of size 1
_TOKENS = 8  # style vectors into which a style is cut for TokenHeads
_CENTRE, _SPREAD = 0.13, 0.31  # of MNIST's pixels, in [0, 1]


def siren(sizes: Sequence[int], first: int = 1) -> Network:
    """Return a SIREN from points (y, x) to intensities, all images at the same points.

    Its function is `(params, x, *, points) -> [n, points]`. Points `[points, 2]` are the same for
    all images, so that layers below `first`, which no image changes, are computed once for all.
    `x`, `[n, 1]`, is added to what layer `first` computes before its sine: 0 here. From there on
    activations are an image's own, which `modulate` could not know of points alone.

    Args:
        sizes: of the hidden layers.
        first: number of the first layer of which something is written for each image.

    References:
        Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions"
        (2020), with its initial values; but the first layer's frequencies are spread so far that
        its sines span the images.
    """
    layers = list(itertools.pairwise([2, *sizes, 1]))

    def init(key: Array, x: Array) -> dict[str, Any]:
        del x
        params = {}
        for number, (inputs, outputs) in enumerate(layers, start=1):
            kernel, bias = jax.random.split(jax.random.fold_in(key, number))
            bound = ((6 / inputs) ** 0.5 if number > 1 else _CYCLES * np.pi) / FREQUENCY
            shape = inputs, outputs
            params[f"layer{number}"] = {
                "kernel": jax.random.uniform(kernel, shape, minval=-bound, maxval=bound),
                "bias": jax.random.uniform(bias, (outputs,), minval=-1, maxval=1) * inputs**-0.5,
            }
        return params

    def apply(params: Any, x: Array, *, points: Array) -> Array:
        features = points[None]
        for number in range(1, len(layers) + 1):
            layer = params[f"layer{number}"]
            features = features @ layer["kernel"] + layer["bias"][None, None]
            if number == first:
                shape = len(x), *features.shape[1:]
                features = features + jnp.broadcast_to(x[:, :, None], shape)
            if number < len(layers):
                features = sine(FREQUENCY * features)
        return features[..., 0]

    return Network(init, apply)


def sine(x: Array) -> Array:
    """Return the sine of angles of moderate size, in float32 to 1e-6.

    On CPU it takes a tenth of the time of `jnp.sin`, which was most of a training step.

    Args:
        x: Angles in radians, to some hundreds.
    """
    turns = jnp.round(x * (1 / np.pi))
    rest = x - turns * 3.140625 - turns * 9.67653589793e-4  # pi in two parts
    square = rest**2
    series: Array | float = 1.0
    for power in (10, 8, 6, 4, 2):
        series = 1.0 - square / (power * (power + 1)) * series
    return jnp.where(turns % 2 == 0, 1.0, -1.0) * rest * series


def grid(height: int, width: int) -> np.ndarray:
    """Return the centres of pixels, `[height * width, 2]`, as (y, x) in (-1, 1)."""
    axes = [(np.arange(count) + 0.5) / count * 2 - 1 for count in (height, width)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


class PixelEncoder(nn.Module):
    """Encode an image as a style vector: its pixels, and a hidden layer over them, in one product.

    No pixel is pooled away, and a linear code of the image is at hand from the first step.

    Attributes:
        style: length of the style vector.
        hidden: of the hidden layer.
        tokens: style vectors into which the style is cut; 0 for a single one.
    """

    style: int
    hidden: int
    tokens: int = 0

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Return styles `[n, style]`, or `[n, tokens, style / tokens]`, of images `[n, h, w]`."""
        pixels = (images.reshape(len(images), -1) - _CENTRE) / _SPREAD
        hidden = nn.gelu(nn.Dense(self.hidden, name="hidden")(pixels))
        style = nn.Dense(self.style, name="style")(jnp.concatenate([pixels, hidden], axis=-1))
        return style.reshape(len(images), self.tokens, -1) if self.tokens else style


class Linear(nn.Module):
    """Write weights as linear functions of the style.

    `Heads` takes a style's length away and has a layer of ReLU between. Here neither stands between
    an image's brightness and its field's.

    Attributes:
        spec: the leaves to generate.
        start_at_base: whether an untrained generator does not change the executor.
        start: of another generator; not used.
        dtype: the same.
    """

    spec: FactorSpec
    start_at_base: bool = False
    start: Any = None
    dtype: Any = None

    @nn.compact
    def __call__(self, styles: Array) -> dict[str, Any]:
        """Generate factors from styles `[n, style]`."""
        return {leaf.path: leaf.assemble(self._arrays(leaf, styles)) for leaf in self.spec}

    def _arrays(self, leaf: GeneratedLeaf, styles: Array) -> dict[str, Array]:
        arrays = {}
        for name, start in leaf.starts(self.start_at_base).items():
            shape = leaf.parts[name]
            kernel = nn.initializers.zeros if start.zero else nn.initializers.lecun_normal()
            head = nn.Dense(
                math.prod(shape), kernel_init=kernel, name=f"{leaf.path}.{name}".replace("/", ".")
            )
            scale = _WRITTEN if start.zero else start.scale
            arrays[name] = scale * head(styles).reshape(len(styles), *shape)
        return arrays


_GENERATORS: Mapping[str, Any] = {
    "Linear": Linear,
    "Heads": Heads,
    "SharedHeads": SharedHeads,
    "TokenHeads": partial(TokenHeads, width=128),
}


def writer(
    sizes: Sequence[int],
    *,
    written: Written,
    generator: str = "Linear",
    style: int = 384,
    hidden: int = 128,
    rank: int = 8,
    image: tuple[int, int] = (28, 28),
) -> Straw:
    """Return a STRAW whose executor is a SIREN and whose context is an image.

    Args:
        sizes: of the SIREN's hidden layers.
        written: what is written for each image, see `models`; the rest is trained as it is.
        generator: "Linear", "Heads", "SharedHeads" or "TokenHeads".
        style: length of the style vector; for TokenHeads of all its vectors together.
        hidden: of the hidden layers of the encoder, and of Heads and SharedHeads.
        rank: of low-rank updates.
        image: height and width.
    """
    build = _GENERATORS[generator]
    tokens = _TOKENS if generator == "TokenHeads" else 0
    layers = len(sizes) + 1
    first = {"last": layers, "top": layers - 1}.get(written, 1)
    return make_straw(
        siren(sizes, first),
        jnp.zeros((1, 1)),
        updates=_updates(layers, written, rank),
        base="trained",
        encoder=PixelEncoder(style, hidden, tokens),
        context=jnp.zeros((1, *image)),
        generator=partial(build, hidden=hidden) if build in (Heads, SharedHeads) else build,
        start="plain",
    )


def _updates(layers: int, written: Written, rank: int) -> dict[str, Any]:
    """Return path patterns to kinds of updates."""
    last: dict[str, Any] = {f"layer{layers}/*": Whole()}
    biases = {"*/bias": Whole()}
    if written == "last":
        return last
    if written == "top":
        return last | {f"layer{layers - 1}/bias": Whole()}
    if written == "biases":
        return biases
    if written == "ends":
        return {"layer1/kernel": Whole(), f"layer{layers}/kernel": Whole()} | biases
    if written == "lowrank":
        hidden = {f"layer{number}/kernel": LowRank(rank) for number in range(2, layers)}
        return hidden | {f"layer{layers}/kernel": Whole()} | biases
    return {"*": Whole()}
