"""The networks behind `models`: they predict weights from pairs, or outputs from weights."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_experiments.weight_prediction.targets import Pairs, Weights, target
from straw_jax.encoders import Pooling, SetEncoder
from straw_jax.layers import dense
from straw_jax.straw import Straw, make_straw

OutputKind: TypeAlias = Literal["plain", "concat", "residual"]


def weight_predictor(
    sizes: Sequence[int], *, pooling: Pooling = "mean", embedding: int = 128
) -> Straw:
    """Return a STRAW whose executor is the target network and whose context is a set of pairs.

    Its generator writes all weights whole; nothing is trained but the modulator.

    Args:
        sizes: of the target networks, as in `target`.
        pooling: of the set encoder.
        embedding: length of the vector in which the pooled pairs end.

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
        encoder=SetEncoder((128, 256, embedding), (256,), pooling),
        context=jax.ShapeDtypeStruct((1, 1, sizes[0] + sizes[-1]), jnp.float32),
        hidden=128,
    )


def predict(straw: Straw, params: Any, context: Pairs) -> Weights:
    """Return the weights by layer, `[tasks, in, out]`, that a predictor reads from pairs.

    Args:
        straw: from `weight_predictor`.
        params: its parameters.
        context: any number of pairs a task.
    """
    weights = straw.factors(params, jnp.concatenate([context.x, context.y], axis=-1))
    return cast(Weights, weights)  # all whole, and their paths the layers' names


def output_predictor(sizes: Sequence[int], *, kind: OutputKind) -> "OutputPredictor":
    """Return a predictor of the outputs of target networks.

    Args:
        sizes: of the target networks, as in `target`.
        kind: as in `OutputPredictor`.
    """
    return OutputPredictor(kind, sizes[-1])


class OutputPredictor(nn.Module):
    """Predict a network's output from its weights and an input, joined in one vector.

    Attributes:
        kind: "plain": dense layers with ReLU between. "concat": each but the first also sees the
            predictor's input. "residual": each hidden layer but the first adds a block of two
            layers to a linear image of what came, and ReLU follows.
        outputs: of the target network.
        width: of hidden layers.
        depth: hidden layers, or blocks after the first of them.

    Raises:
        ValueError: if the kind is unknown.

    References:
        The weight prediction post, its first part: `XLinear` is "concat", `ResLinear` "residual".
    """

    kind: OutputKind
    outputs: int = 1
    width: int = 128
    depth: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return outputs `[batch, outputs]` of vectors `[batch, weights + in]`."""
        if self.kind not in get_args(OutputKind):
            raise ValueError(
                f"OutputPredictor: expected a kind of {get_args(OutputKind)}, got {self.kind!r}."
            )
        start, h = x, nn.relu(dense(self.width, x.shape[-1], "input")(x))
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
