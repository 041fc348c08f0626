"""Static hypernetworks: one generator writes many kernels, each from learned embeddings."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.factors import FactorSpec, factor_spec, named_leaves
from straw_jax.lift import materialize
from straw_jax.network import Network, Params, as_network, zeros_like


class ChunkGenerator(nn.Module):
    """Generate kernels in chunks, each from its own embedding, all by the same two layers.

    A kernel `[*window, in, out]` is a grid of chunks `[*window, chunk_in, chunk_out]`. The first
    layer makes from a chunk's embedding one vector per input channel; the second layer, shared by
    all input channels, makes the channel's weights. Its output has variance 1 at the start, and is
    scaled so that a kernel starts with variance `2 / fan_in`, on average over embeddings.

    Attributes:
        spec: the kernels.
        chunk: input and output channels of a chunk.
        embedding: length of a chunk's embedding.
        hidden: length of an input channel's vector.
        dtype: of computation and kernels, as in Flax: parameters stay float32.

    References:
        Ha et al., "HyperNetworks" (2016), section 3.1: equation 2, and for chunks equation 3. The
        scale is ours.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> from straw_jax.hypernetwork import ChunkGenerator
        >>> spec = factor_spec({"conv": jnp.zeros((3, 3, 4, 8))}, {"conv": "whole"})
        >>> kernels, _ = jax.jit(ChunkGenerator(spec, (4, 4)).init_with_output)(jax.random.key(0))
        >>> kernels["conv"].shape
        (3, 3, 4, 8)
    """

    spec: FactorSpec
    chunk: tuple[int, int]
    embedding: int = 4
    hidden: int = 4
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Return the kernels `[*window, in, out]` by path."""
        expect.compute_dtype("ChunkGenerator", self.dtype)
        rows, columns = self.chunk
        grids = {leaf.path: _grid(leaf.shape, self.chunk) for leaf in self.spec}
        chunks = sum(map(math.prod, grids.values()))
        window = next(iter(self.spec)).shape[:-2]
        unit = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        z = self.param("embeddings", nn.initializers.normal(1.0), (chunks, self.embedding))
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=unit)
        vectors = dense(rows * self.hidden, name="vectors")(z)
        vectors = vectors.reshape(chunks * rows, self.hidden)
        size = math.prod(window) * columns
        written = dense(size, name="weights")(vectors)
        written = written.reshape(chunks, rows, *window, columns)
        kernels, done = {}, 0
        for leaf in self.spec:
            grid = grids[leaf.path]
            part = written[done : (done := done + math.prod(grid))]
            fan_in = math.prod(leaf.shape[:-1])
            kernels[leaf.path] = math.sqrt(2 / fan_in) * _joined(part, grid)
        return kernels


def make_hypernetwork(
    executor: nn.Module | Network,
    sample: Any,
    kernels: Sequence[str],
    *,
    chunk: tuple[int, int],
    embedding: int = 4,
    hidden: int = 4,
    dtype: DTypeLike | None = None,
) -> Network:
    """Compose an executor with a generator of some of its kernels, the same for all samples.

    Kernels are generated once per call, not once per sample. All other leaves are trained directly.

    Args:
        executor: an ordinary model.
        sample: an input of the executor, `[n, ...]`; only shapes and dtypes are used.
        kernels: path patterns, as in `factor_spec`, of kernels that have the same window.
        chunk: input and output channels of a chunk; they must divide those of every kernel.
        embedding: length of a chunk's embedding.
        hidden: length of the vector from which an input channel's weights are generated.
        dtype: in which the generator computes, as in Flax: its parameters stay float32. The
            executor gets weights of its parameters' dtype, and computes in its own.

    Returns:
        Pure functions. Their parameters are a dict of "generator" and "executor"; the latter is a
        dict by path of the leaves that are not generated.

    Raises:
        ValueError: if a pattern matches no leaf, the chunk does not fit a kernel, or the dtype is
            not floating; by the functions, if parameters or inputs do not fit.

    References:
        Ha et al., "HyperNetworks" (2016), section 3.1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.hypernetwork import make_hypernetwork
        >>> from straw_jax.models import Conv7
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> model = make_hypernetwork(Conv7(), images, ["conv2/kernel"], chunk=(4, 8))
        >>> params = jax.jit(model.init)(jax.random.key(0))
        >>> jax.jit(model.apply)(params, images).shape
        (2, 10)
    """
    where = "make_hypernetwork"
    executor = as_network(executor)
    sample = zeros_like(sample, where)
    expect.positive(where, embedding=embedding, hidden=hidden)
    expect.widths(where, chunk=chunk)
    expect.compute_dtype(where, dtype)
    patterns = isinstance(kernels, list | tuple) and all(isinstance(k, str) for k in kernels)
    if not patterns or len(chunk) != 2:
        raise ValueError(
            f"{where}: expected a list of path patterns and a chunk (input, output channels), got"
            f" {kernels!r} and {chunk!r}. One pattern is a list of one."
        )
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    spec = factor_spec(shapes, dict.fromkeys(kernels, "whole"))
    _check(spec, chunk)
    generated = {leaf.path for leaf in spec}
    dtypes = {path: leaf.dtype for path, leaf in named_leaves(shapes).items()}
    module = ChunkGenerator(spec, chunk, embedding, hidden, dtype)

    def init(key: Array, x: Any = sample) -> Params:
        expect.random_key(where, key)
        of_generator, of_executor = jax.random.split(key)
        leaves = named_leaves(executor.init(of_executor, x))
        return {
            "generator": module.init(of_generator)["params"],
            "executor": {path: leaf for path, leaf in leaves.items() if path not in generated},
        }

    def apply(params: Params, x: Any, **kwargs: Any) -> Any:
        expect.parts(where, params, ("generator", "executor"))
        expect.like(where, "x", x, sample)
        return executor.apply(weights(params), x, **kwargs)

    def weights(params: Params) -> Params:
        leaves = [params["executor"].get(path, leaf) for path, leaf in named_leaves(shapes).items()]
        tree = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        with expect.flax_errors("ChunkGenerator", lambda: check_generator(params["generator"])):
            written: Any = module.apply({"params": params["generator"]})
        if dtype is not None:
            written = {path: kernel.astype(dtypes[path]) for path, kernel in written.items()}
        return materialize(tree, written)

    def check_generator(params: Params) -> None:
        own = jax.eval_shape(module.init, jax.random.key(0))["params"]
        hint = "Were they made for another chunk, or with other lengths?"
        expect.fits("ChunkGenerator", named_leaves(own), named_leaves(params), hint)

    return Network(init, apply)


def _check(spec: FactorSpec, chunk: tuple[int, int]) -> None:
    window = next(iter(spec)).shape[:-2]
    for leaf in spec:
        fits = len(leaf.shape) >= 2 and leaf.shape[:-2] == window
        if not fits or leaf.shape[-2] % chunk[0] or leaf.shape[-1] % chunk[1]:
            raise ValueError(
                f"make_hypernetwork: expected kernels of window {window} whose channels are"
                f" multiples of the chunk's {chunk}, got {leaf.path} of shape {leaf.shape}. Leave"
                " it out of the patterns, or choose another chunk."
            )


def _grid(shape: Sequence[int], chunk: tuple[int, int]) -> tuple[int, int]:
    return shape[-2] // chunk[0], shape[-1] // chunk[1]


def _joined(chunks: Array, grid: tuple[int, int]) -> Array:
    """Join chunks `[count, in, *window, out]` to a kernel `[*window, in, out]`."""
    _, rows, *window, columns = chunks.shape
    parts = chunks.reshape(*grid, rows, *window, columns)
    last = parts.ndim - 1
    order = (*range(3, last), 0, 2, 1, last)  # window, grid rows, rows, grid columns, columns
    return parts.transpose(order).reshape(*window, grid[0] * rows, grid[1] * columns)
