"""The executor that all methods share, and the kinds of weights that a generator writes for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_experiments.necessity.models import Method
from straw_experiments.necessity.sizes import Sizes
from straw_experiments.necessity.tasks import Episodes, Task
from straw_jax import (
    Gain,
    LowRank,
    Mixture,
    Network,
    Pose,
    Posed,
    SetEncoder,
    SharedLowRank,
    Whole,
    linen,
    materialize,
)
from straw_jax.lift import take
from straw_jax.straw import Straw, make_straw

_FORMED = "low_rank", "shared_low_rank", "mixture"  # kernels that cost more products unformed


class Trunk(nn.Module):
    """Two hidden layers: what the last layer reads."""

    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return features `[..., hidden]` of inputs `[..., inputs]`."""
        sets = x.shape[:-1]
        x = x.reshape(math.prod(sets), x.shape[-1])  # else XLA copies every gradient on CPU
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(self.hidden, name=name)(x))
        return x.reshape(*sets, self.hidden)


class Mlp(nn.Module):
    """The executor."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return predictions `[..., outputs]` of inputs `[..., inputs]`."""
        return nn.Dense(self.outputs, name="last")(Trunk(self.hidden, name="trunk")(x))


@dataclass(frozen=True)
class FlatPose(Pose):
    """A pose of a dense layer whose inputs are flat images.

    Attributes:
        side: of the images.
    """

    side: int

    def check(self, leaf: Any) -> None:
        """Accept any leaf."""

    def update(self, leaf: Any, parts: Mapping[str, Any]) -> Posed:
        """Return the resampling of images."""
        return Posed(parts["pose"], grid=(self.side, self.side))


def items(episodes: Episodes) -> Array:
    """Return a context's items, `[tasks, m, inputs + outputs]`: inputs beside their labels."""
    return jnp.concatenate([episodes.context_x, episodes.context_y], -1)


def encoder(sizes: Sizes) -> SetEncoder:
    """Return the encoder of all methods that read a context as a set."""
    return SetEncoder(element=(sizes.encoder, sizes.encoder, sizes.style), decoder=())


def executed(executor: nn.Module, updates: Mapping[str, Any], task: Task, sizes: Sizes) -> Straw:
    """Return a STRAW whose contexts are sets, and which is its executor before training."""
    return make_straw(
        executor,
        jax.ShapeDtypeStruct((1, task.queries, task.inputs), jnp.float32),
        updates=updates,
        base="trained",
        encoder=encoder(sizes),
        context=jax.ShapeDtypeStruct((1, task.length, task.inputs + task.outputs), jnp.float32),
        hidden=sizes.style,
    )


def with_kernels(executor: Network, weights: Any, factors: Any, x: Array) -> Array:
    """Return predictions with kernels that are formed once a context, for all of its queries.

    Args:
        executor: pure functions.
        weights: of the executor.
        factors: a tree of factors with an axis of tasks.
        x: `[tasks, q, inputs]`.
    """

    def one(task: Array, x: Array) -> Array:
        return executor.apply(materialize(weights, take(weights, factors, task)), x)

    return jax.vmap(one)(jnp.arange(len(x)), x)


def generated(task: Task, sizes: Sizes, *, kind: str) -> Method:
    """Return a kind of updates of the executor; all kinds write the biases, too.

    Args:
        task: What it is for.
        sizes: Of executor, encoder, generator, and of the kind.
        kind: "bias", "gain", "low_rank", "shared_low_rank", "mixture", "pose" or "whole".
    """
    kernels: dict[str, dict[str, Any]] = {
        "bias": {},
        "gain": {"*/kernel": Gain()},
        "low_rank": {"*/kernel": LowRank(sizes.rank)},
        "shared_low_rank": {"*/kernel": SharedLowRank(sizes.rank)},
        "mixture": {"*/kernel": Mixture(sizes.rank)},
        "pose": {"trunk/first/kernel": FlatPose(task.side or 0)},
        "whole": {"last/kernel": Whole()},
    }
    executor = Mlp(sizes.hidden, task.outputs)
    straw = executed(executor, kernels[kind] | {"*/bias": Whole()}, task, sizes)

    def apply(params: Any, episodes: Episodes) -> Array:
        factors = straw.factors(params, items(episodes))  # once a context
        if kind in _FORMED:
            return with_kernels(linen(executor), params["executor"], factors, episodes.x)
        return straw.apply_factors(params, factors, episodes.x)

    return Method(lambda key, episodes: straw.init(key), apply)
