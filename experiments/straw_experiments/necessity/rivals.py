"""Methods beside those that a generator writes: static, fast weights, attention and others."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from straw_experiments.necessity.models import Method
from straw_experiments.necessity.networks import (
    Mlp,
    Trunk,
    encoder,
    executed,
    items,
    with_kernels,
)
from straw_experiments.necessity.sizes import Sizes
from straw_experiments.necessity.tasks import Episodes, Task
from straw_jax import Gain, LowRank, Whole, delta_rule, factor_spec, linen, materialize
from straw_jax.layers import attention

_CHUNK = 32  # items that the delta rule solves together
_NEAREST = 3  # values whose mean is the answer of the nearest neighbours in a regression
_RATE, _RATE_OF_VALUES = 0.1, 0.001  # of inner gradient steps at first; errors of values are large


def static(task: Task, sizes: Sizes) -> Method:
    """Return the executor alone."""
    network = linen(Mlp(sizes.hidden, task.outputs))
    return Method(
        lambda key, episodes: network.init(key, episodes.x),
        lambda params, episodes: network.apply(params, episodes.x),
    )


class _Pooled(nn.Module):
    sizes: Sizes
    outputs: int

    @nn.compact
    def __call__(self, episodes: Episodes) -> Array:
        style = encoder(self.sizes)(items(episodes))
        shape = (*episodes.x.shape[:-1], style.shape[-1])
        style = jnp.broadcast_to(style[:, None], shape)
        return Mlp(self.sizes.hidden, self.outputs)(jnp.concatenate([episodes.x, style], -1))


def pooled(task: Task, sizes: Sizes) -> Method:
    """Return a static network whose inputs are a query and a style vector of its context."""
    return _of_episodes(_Pooled(sizes, task.outputs))


def _of_episodes(module: nn.Module) -> Method:
    network = linen(module)
    return Method(network.init, network.apply)


def _read(width: int, outputs: int, features: Array, y: Array, **last: Any) -> Array:
    """Return what two layers of a module make of items: `[tasks, m, outputs]`.

    Args:
        width: of the first one.
        outputs: of the last one, which reads labels, too.
        features: of the items.
        y: their labels, or zeros.
        **last: as for `nn.Dense`.
    """
    sets = features.shape[:-1]
    # In one axis, else XLA copies every gradient on CPU.
    features, y = (each.reshape(math.prod(sets), each.shape[-1]) for each in (features, y))
    hidden = nn.relu(nn.Dense(width, name="hidden")(jnp.concatenate([features, y], -1)))
    written = nn.Dense(outputs, name="written", **last)(jnp.concatenate([hidden, y], -1))
    return written.reshape(*sets, outputs)


class _Writer(nn.Module):
    """What the delta rule writes for an item: its value, and how strongly."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, features: Array, y: Array) -> tuple[Array, Array]:
        written = _read(
            self.width, self.outputs + 1, features, y, kernel_init=nn.initializers.zeros
        )
        return written[..., :-1], nn.sigmoid(written[..., -1])


class _Last(nn.Module):
    """A last layer to which the delta rule adds what a context says."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, seen: Array, y: Array, asked: Array) -> Array:
        """Return predictions from features of a context, its labels, and features of queries."""
        values, strengths = _Writer(self.width, self.outputs, name="writer")(seen, y)
        # Features after a ReLU have much in common, which would be corrected again and again.
        norm = nn.LayerNorm(name="norm")
        seen, asked = norm(seen), norm(asked)
        keys = seen * jax.lax.rsqrt(jnp.sum(seen**2, -1, keepdims=True) + 1e-6)
        update = jax.vmap(partial(delta_rule, chunk=_CHUNK))(keys, values, strengths)
        hidden = seen.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (hidden, self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))

        def one(update: Any, asked: Array) -> Array:
            return asked @ materialize({"W": kernel}, {"W": update})["W"]

        return jax.vmap(one)(update, asked) + bias[None, None]


class _Delta(nn.Module):
    sizes: Sizes
    outputs: int

    @nn.compact
    def __call__(self, episodes: Episodes) -> Array:
        trunk = Trunk(self.sizes.hidden)
        seen, asked = trunk(episodes.context_x), trunk(episodes.x)
        return _Last(self.sizes.encoder, self.outputs)(seen, episodes.context_y, asked)


def delta(task: Task, sizes: Sizes) -> Method:
    """Return the executor with a last layer that the delta rule corrects, item by item.

    Keys are the executor's own features of the items; values and strengths are learned functions
    of these and the labels.
    """
    return _of_episodes(_Delta(sizes, task.outputs))


def delta_gain(task: Task, sizes: Sizes) -> Method:
    """Return `delta`, with gains and biases of the hidden layers that a style writes."""
    updates = {"*/kernel": Gain(), "*/bias": Whole()}
    trunk = executed(Trunk(sizes.hidden), updates, task, sizes)
    last: Any = _Last(sizes.encoder, task.outputs)

    def features(params: Any, episodes: Episodes) -> tuple[Array, Array]:
        factors = trunk.factors(params, items(episodes))
        seen, asked = (
            trunk.apply_factors(params, factors, x) for x in (episodes.context_x, episodes.x)
        )
        return seen, asked

    def init(key: Array, episodes: Episodes) -> Any:
        of_trunk, of_last = jax.random.split(key)
        params = trunk.init(of_trunk)
        seen = jnp.zeros((1, 1, sizes.hidden))
        y = jnp.zeros((1, 1, task.outputs))
        return {"trunk": params, "last": last.init(of_last, seen, y, seen)["params"]}

    def apply(params: Any, episodes: Episodes) -> Array:
        seen, asked = features(params["trunk"], episodes)
        return last.apply({"params": params["last"]}, seen, episodes.context_y, asked)

    return Method(init, apply)


class _Items(nn.Module):
    """A vector for each item of a context."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(self.sizes.encoder, name=name)(x))
        return nn.Dense(self.sizes.style, name="style")(x)


def weight_rnn(task: Task, sizes: Sizes) -> Method:
    """Return the executor with updates that are the state of a linear RNN over the items.

    With the packed numbers `w` of all updates, `w_t = a w_{t-1} + (1 - a) C e_t`, where `e_t` is
    an MLP of item `t`, and each array has its own `a`, from 0 to 1. After the last item

        w_m = a^m w_0 + (1 - a) C sum_t a^(m - t) e_t

    so that no state in between is formed.

    References:
        Nzoyem et al., "Weight-Space Linear Recurrent Neural Networks" (2025).
    """
    executor = linen(Mlp(sizes.hidden, task.outputs))
    sample = jnp.zeros((1, 1, task.inputs))
    shapes = jax.eval_shape(executor.init, jax.random.key(0), sample)
    spec = factor_spec(shapes, {"*/kernel": LowRank(sizes.rank), "*/bias": Whole()})
    reader = linen(_Items(sizes))
    arrays = [
        (math.prod(leaf.parts[name]), 0.0 if start.zero else start.scale)
        for leaf in spec
        for name, start in leaf.starts(start_at_base=True).items()
    ]
    ends = np.cumsum([size for size, _ in arrays])[:-1].tolist()

    def init(key: Array, episodes: Episodes) -> Any:
        keys = jax.random.split(key, 3)
        scales = np.concatenate([np.full(size, scale, np.float32) for size, scale in arrays])
        return {
            "executor": executor.init(keys[0], sample),
            "items": reader.init(keys[1], jnp.zeros((1, 1, task.inputs + task.outputs))),
            "first": jax.random.normal(keys[2], (spec.size,)) * scales,
            "written": jnp.zeros((sizes.style, spec.size)),
            # At first, weights remember about as many items as there are.
            "memory": jnp.full(len(arrays), math.log(task.length)),
        }

    def apply(params: Any, episodes: Episodes) -> Array:
        read = reader.apply(params["items"], items(episodes))  # [tasks, m, style]
        kept = nn.log_sigmoid(params["memory"])
        length = read.shape[1]
        ages = jnp.arange(length - 1, -1, -1, dtype=read.dtype)
        shares = jnp.exp(ages[:, None] * kept[None]) * (1 - jnp.exp(kept))[None]  # [m, arrays]
        summed = jnp.einsum("bms,ma->abs", read, shares)
        states = [
            jnp.exp(length * decay) * first[None] + of_array @ written
            for decay, first, of_array, written in zip(
                kept,
                jnp.split(params["first"], ends),
                summed,
                jnp.split(params["written"], ends, axis=1),
                strict=True,
            )
        ]
        factors = spec.unpack(jnp.concatenate(states, -1))
        return with_kernels(executor, params["executor"], factors, episodes.x)

    return Method(init, apply)


class _Attentive(nn.Module):
    sizes: Sizes
    outputs: int

    @nn.compact
    def __call__(self, episodes: Episodes) -> Array:
        hidden, size = self.sizes.hidden, self.sizes.rank
        trunk = Trunk(hidden)
        seen, asked = trunk(episodes.context_x), trunk(episodes.x)
        value = _read(self.sizes.encoder, size, seen, episodes.context_y)
        query, key = nn.Dense(size, name="query")(asked), nn.Dense(size, name="key")(seen)
        query, key, value = (each[:, :, None] for each in (query, key, value))  # one head
        found = attention(query, key, value, None)[:, :, 0]
        asked = asked + nn.Dense(hidden, kernel_init=nn.initializers.zeros, name="found")(found)
        return nn.Dense(self.outputs, name="last")(asked)


def attentive(task: Task, sizes: Sizes) -> Method:
    """Return the executor, to whose last features attention over the context's items is added.

    Queries and keys are of the executor's own features; values of these and the labels.
    """
    return _of_episodes(_Attentive(sizes, task.outputs))


def gradient(task: Task, sizes: Sizes) -> Method:
    """Return the executor after gradient steps on a labelled context, with trained rates.

    Each array of weights has a rate of its own for each step. Gradients pass through the steps.

    References:
        Finn et al., "Model-Agnostic Meta-Learning" (2017), equation 1; with rates by layer and
        step: Antoniou et al., "How to train your MAML" (2019), section 4.
    """
    executor = linen(Mlp(sizes.hidden, task.outputs))

    def init(key: Array, episodes: Episodes) -> Any:
        weights = executor.init(key, episodes.x)
        rate = math.log(_RATE_OF_VALUES if task.regression else _RATE)
        rates = jax.tree.map(lambda leaf: jnp.full(sizes.rank, rate), weights)
        return {"executor": weights, "log_rates": rates}

    def loss(weights: Any, x: Array, y: Array) -> Array:
        answers = executor.apply(weights, x)
        if task.regression:
            return jnp.mean((answers - y) ** 2)
        return -jnp.mean(jnp.sum(y * nn.log_softmax(answers), -1))

    def apply(params: Any, episodes: Episodes) -> Array:
        def one(x: Array, y: Array, asked: Array) -> Array:
            weights, rates = params["executor"], jax.tree.map(jnp.exp, params["log_rates"])
            for step in range(sizes.rank):
                slopes = jax.grad(loss)(weights, x, y)
                weights = jax.tree.map(
                    lambda leaf, rate, slope, step=step: leaf - rate[step] * slope,
                    weights, rates, slopes,
                )  # fmt: skip
            return executor.apply(weights, asked)

        return jax.vmap(one)(episodes.context_x, episodes.context_y, episodes.x)

    return Method(init, apply)


def neighbours(task: Task, sizes: Sizes) -> Method:
    """Return what looks up the items of a context that are most like a query.

    Of images and letters the cosine of inputs counts, of values their distance.
    """
    del sizes

    def apply(params: Any, episodes: Episodes) -> Array:
        del params
        x, seen = episodes.x, episodes.context_x
        if task.regression:
            likeness = -jnp.sum((x[:, :, None] - seen[:, None]) ** 2, -1)
            _, nearest = jax.lax.top_k(likeness, min(_NEAREST, seen.shape[1]))  # [tasks, q, ...]
        else:
            x, seen = (
                each * jax.lax.rsqrt(jnp.sum(each**2, -1, keepdims=True) + 1e-6)
                for each in (x, seen)
            )
            likeness = jnp.einsum("bqi,bmi->bqm", x, seen)
            nearest = likeness.argmax(-1, keepdims=True)  # sorting is slow
        return jax.vmap(lambda y, of: y[of].mean(1))(episodes.context_y, nearest)

    return Method(lambda key, episodes: {}, apply)
