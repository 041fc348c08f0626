"""One layer with low-rank weights for each sample, computed in three ways.

`B` and `A` are given as arrays; the layer has no other weights.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from cells import LAYER_BATCH, LAYER_RANK
from jax import Array, lax

from straw_jax import hyperlora, hyperlora_conv

SPATIAL, WINDOW = (8, 8), (3, 3)


def build(method: str, layer: str, work: str, width: int) -> Callable[[], object]:
    """Return the step to time; it returns when its work is done.

    Args:
        method: A name of `cells.METHODS`.
        layer: A name of `cells.LAYERS`.
        work: "forward", or "gradient": forward, and gradient by `x`, `B` and `A`.
        width: Features that come in, and that go out.
    """
    arguments = make_arguments(layer, width, LAYER_BATCH[layer], LAYER_RANK)
    function = forward(method, layer)
    if work == "gradient":
        cotangent = jnp.ones(arguments[0].shape)

        def both(cotangent: Array, *arguments: Array) -> object:
            y, pull_back = jax.vjp(function, *arguments)
            return y, pull_back(cotangent)

        compiled = jax.jit(both)
        return lambda: jax.block_until_ready(compiled(cotangent, *arguments))
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def make_arguments(layer: str, width: int, batch: int, rank: int) -> tuple[Array, Array, Array]:
    """Return noise: `x [batch, ..., width]`, `B [batch, in, rank]`, `A [batch, rank, width]`."""
    vectors = {"dense": (), "dense_16": (16,), "conv": SPATIAL}[layer]
    rows = 9 * width if layer == "conv" else width
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, *vectors, width), (batch, rows, rank), (batch, rank, width))
    x, B, A = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return x, B / rows**0.5, A / rank**0.5


def forward(method: str, layer: str) -> Callable[[Array, Array, Array], Array]:
    """Return `(x, B, A) -> y`."""
    if layer == "conv":
        return {"straw": _ours_conv, "kernels": _kernels_conv, "einsum": _einsum_conv}[method]
    return {"straw": hyperlora, "kernels": _kernels_dense, "einsum": _einsum_dense}[method]


def _ours_conv(x: Array, B: Array, A: Array) -> Array:
    return hyperlora_conv(x, B, A, window=WINDOW)


def _kernels_dense(x: Array, B: Array, A: Array) -> Array:
    return jnp.matmul(_vectors(x), B @ A).reshape(*x.shape[:-1], A.shape[-1])


def _kernels_conv(x: Array, B: Array, A: Array) -> Array:
    def one_sample(x: Array, kernel: Array) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
        return y[0]

    kernels = (B @ A).reshape(x.shape[0], *WINDOW, x.shape[-1], A.shape[-1])
    return jax.vmap(one_sample)(x, kernels)


def _einsum_dense(x: Array, B: Array, A: Array) -> Array:
    y = jnp.einsum("bpi,bir,bro->bpo", _vectors(x), B, A)
    return y.reshape(*x.shape[:-1], A.shape[-1])


def _einsum_conv(x: Array, B: Array, A: Array) -> Array:
    height, width = SPATIAL
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    y = _einsum_dense(_vectors(jnp.concatenate(shifted, axis=-1)), B, A)
    return y.reshape(*x.shape[:-1], A.shape[-1])


def _vectors(x: Array) -> Array:
    """Return `[batch, ..., in]` as `[batch, p, in]`."""
    return x.reshape(x.shape[0], -1, x.shape[-1])
