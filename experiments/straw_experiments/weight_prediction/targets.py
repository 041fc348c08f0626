"""Target networks, drawn at random, and what they compute: pairs of input and output."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax.network import Network

Inputs: TypeAlias = Callable[[Array, tuple[int, ...]], Array]
Weights: TypeAlias = Mapping[str, Array]


class Pairs(NamedTuple):
    """Inputs and what a network makes of them, of several tasks.

    Attributes:
        x: `[tasks, n, in]`.
        y: `[tasks, n, out]`.
    """

    x: Array
    y: Array


class Tasks(NamedTuple):
    """Target networks with pairs to infer them from, and others to test them with.

    Attributes:
        weights: of the target networks, by layer, `[tasks, in, out]`.
        context: the pairs that a predictor is shown.
        fresh: pairs that it is not.
    """

    weights: Weights
    context: Pairs
    fresh: Pairs


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read the sizes of a target network's layers, such as "2-5-1": inputs, hidden units, outputs.

    Raises:
        ValueError: if they are not two or more numbers above 0.
    """
    parts = text.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"expected sizes of layers, such as 2-5-1 (2 inputs, 5 hidden units, 1 output), got"
            f" {text!r}"
        )
    return tuple(map(int, parts))


def unknowns(sizes: Sequence[int]) -> int:
    """Count the weights of a target network."""
    return sum(math.prod(shape) for shape in itertools.pairwise(sizes))


def target(sizes: Sequence[int]) -> Network:
    """Return a ReLU network without biases, of which LeCun's initial weights make a random target.

    Args:
        sizes: inputs, hidden units of each hidden layer, outputs. Without a hidden layer it is
            linear.

    Returns:
        Pure functions: parameters are kernels `[in, out]` by layer, normal with variance `1 / in`.
    """
    shapes = list(itertools.pairwise(sizes))

    def init(key: Array, x: Array | None = None) -> Weights:
        del x
        keys = jax.random.split(key, len(shapes))
        return {
            f"layer{i}": jax.random.normal(each, shape) / math.sqrt(shape[0])
            for i, (each, shape) in enumerate(zip(keys, shapes, strict=True), start=1)
        }

    def apply(params: Weights, x: Array) -> Array:
        for i in range(1, len(shapes)):
            x = jax.nn.relu(x @ params[f"layer{i}"])
        return x @ params[f"layer{len(shapes)}"]

    return Network(init, apply)


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw inputs from a standard normal distribution: those of all training."""
    return jax.random.normal(key, shape)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw inputs of variance 1 from a uniform distribution."""
    return jax.random.uniform(key, shape, minval=-math.sqrt(3), maxval=math.sqrt(3))


def positive(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw inputs from one corner: normal ones without their signs."""
    return jnp.abs(jax.random.normal(key, shape))


def draw(
    sizes: Sequence[int],
    key: Array,
    tasks: int,
    *,
    pairs: int,
    fresh: int,
    context_inputs: Inputs = normal,
    fresh_inputs: Inputs = normal,
) -> Tasks:
    """Draw target networks and pairs; to be traced into a step, so that nothing is stored.

    Args:
        sizes: of the target networks, as in `target`.
        key: decides all of it. Weights, context and fresh pairs have keys of their own: other
            distributions of inputs leave the rest as it is.
        tasks: how many networks.
        pairs: in the context of each.
        fresh: pairs of each to judge by.
        context_inputs: draws the context's inputs.
        fresh_inputs: draws the others.
    """
    network = target(sizes)
    of_weights, of_context, of_fresh = jax.random.split(key, 3)
    weights = jax.vmap(network.init)(jax.random.split(of_weights, tasks))

    def computed(key: Array, inputs: Inputs, count: int) -> Pairs:
        x = inputs(key, (tasks, count, sizes[0]))
        return Pairs(x, compute(sizes, weights, x))

    return Tasks(
        weights,
        computed(of_context, context_inputs, pairs),
        computed(of_fresh, fresh_inputs, fresh),
    )


def compute(sizes: Sequence[int], weights: Weights, x: Array) -> Array:
    """Return what networks of the tasks' own weights make of inputs `[tasks, n, in]`."""
    return jax.vmap(target(sizes).apply)(weights, x)
