"""The networks behind `models`: they predict weights from pairs, or outputs from weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_experiments.weight_prediction.targets import Pairs, Weights, target
from straw_jax import layers
from straw_jax.encoders import Pooling, SetEncoder
from straw_jax.lowrank import accumulator_dtype
from straw_jax.straw import Straw, make_straw

OutputKind: TypeAlias = Literal["plain", "concat", "residual"]


def weight_predictor(
    sizes: Sequence[int],
    *,
    pooling: Pooling = "mean",
    embedding: int = 128,
    dtype: DTypeLike | None = None,
) -> Straw:
    """Return a STRAW whose executor is the target network and whose context is a set of pairs.

    Its generator writes all weights whole; nothing is trained but the modulator.

    Args:
        sizes: of the target networks, as in `target`.
        pooling: of the set encoder.
        embedding: length of the vector in which the pooled pairs end.
        dtype: in which set encoder and generator compute, as in Flax.

    Returns:
        Pure functions; `predict` uses them.

    References:
        The weight prediction post, its second part: its pair encoder (128, 256, 128) and decoder
        (256, 128), parameter for parameter.
    """
    return make_straw(
        target(sizes),
        jax.ShapeDtypeStruct((1, sizes[0]), jnp.float32),
        rank={"*": "whole"},
        encoder=SetEncoder((128, 256, embedding), (256,), pooling, dtype=dtype),
        context=jax.ShapeDtypeStruct((1, 1, sizes[0] + sizes[-1]), jnp.float32),
        hidden=128,
        start="article",
        dtype=dtype,
    )


def predict(straw: Straw, params: Any, context: Pairs) -> Weights:
    """Return the weights by layer, `[tasks, in, out]`, that a predictor reads from pairs.

    They are float32 or wider whatever the predictor computes in: so are the target networks with
    which they are compared.

    Args:
        straw: from `weight_predictor`.
        params: its parameters.
        context: any number of pairs a task.
    """
    weights = straw.factors(params, jnp.concatenate([context.x, context.y], axis=-1))
    # All are whole, and their paths the layers' names.
    return jax.tree.map(
        lambda leaf: leaf.astype(accumulator_dtype(leaf.dtype)), cast(Weights, weights)
    )


def output_predictor(
    sizes: Sequence[int], *, kind: OutputKind, dtype: DTypeLike | None = None
) -> "OutputPredictor":
    """Return a predictor of the outputs of target networks.

    Args:
        sizes: of the target networks, as in `target`.
        kind: as in `OutputPredictor`.
        dtype: in which it computes.
    """
    return OutputPredictor(kind, sizes[-1], dtype=dtype)


class OutputPredictor(nn.Module):
    """Predict a network's output from its weights and an input, joined in one vector.

    Attributes:
        kind: "plain": dense layers with ReLU between. "concat": each but the first also sees the
            predictor's input. "residual": each hidden layer but the first adds a block of two
            layers to a linear image of what came, and ReLU follows.
        outputs: of the target network.
        width: of hidden layers.
        depth: hidden layers, or blocks after the first of them.
        dtype: of computation and result, as in Flax: parameters stay float32.

    Raises:
        ValueError: if the kind is unknown.

    References:
        The weight prediction post, its first part: `XLinear` is "concat", `ResLinear` "residual".
    """

    kind: OutputKind
    outputs: int = 1
    width: int = 128
    depth: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return outputs `[batch, outputs]` of vectors `[batch, weights + in]`."""
        if self.kind not in get_args(OutputKind):
            raise ValueError(
                f"OutputPredictor: expected a kind of {get_args(OutputKind)}, got {self.kind!r}."
            )
        dense = partial(layers.dense, dtype=self.dtype)
        start = x if self.dtype is None else x.astype(self.dtype)
        h = nn.relu(dense(self.width, x.shape[-1], "input")(start))
        for i in range(1, self.depth + 1):
            if self.kind == "concat":
                h = jnp.concatenate([h, start], axis=-1)
            if self.kind == "residual":
                block = nn.relu(dense(self.width, self.width, f"block{i}a")(h))
                block = dense(self.width, self.width, f"block{i}b")(block)
                h = nn.relu(block + dense(self.width, self.width, f"skip{i}")(h))
            else:
                h = nn.relu(dense(self.width, h.shape[-1], f"hidden{i}")(h))
        if self.kind == "concat":
            h = jnp.concatenate([h, start], axis=-1)
        return dense(self.outputs, h.shape[-1], "output")(h)
