"""A reader that learns from a context as training would, in one step: from gradients."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_experiments.documents.networks import (
    Context,
    Model,
    Params,
    Sizes,
    measured_array,
    normed,
    of_straw,
    parts_of,
    rms,
    straw_of,
    writes_states,
)
from straw_experiments.smollm.model import activations, logits_of
from straw_jax import Factors, FactorSpec

_USUAL = 96.0  # tokens, by which lengths are counted
_LARGEST = 2.0  # a gradient of this many usual ones counts as one of so many
_FLOOR = 0.3  # of a layer's mean variance, is added to each input's, as some are hardly ever used
_RATE = 0.005  # of the first step: from 0.002 to 0.015 it helps without any training


def read(sizes: Sizes, weights: Params, tokens: Array, mask: Array) -> Context:
    """Let the frozen model read texts, and find how each layer should have written otherwise.

    Args:
        sizes: Of the models.
        weights: Those of the language model.
        tokens: `[n, length]`.
        mask: Where there is text, bool `[n, length]`, from the start.

    Returns:
        What was read, with errors: gradients of the sum of nats of all tokens but the first two,
        which nothing could tell.
    """
    llama = sizes.llama
    wanted = mask[:, 2:]

    def nats_of(added: Array) -> tuple[Array, Any]:
        found = activations(llama, weights, tokens, sizes.kernels, added=added)
        logits = logits_of(llama, weights, found.states[:, -1, 1:-1])
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 2:])
        return jnp.sum(nats, where=wanted), found

    nothing = jnp.zeros((llama.layers, *tokens.shape, llama.width), weights["embedding"].dtype)
    errors, found = jax.grad(nats_of, has_aux=True)(nothing)
    return Context(found.states, found.inputs, mask, jnp.moveaxis(errors, 0, 1))


class Gradients(nn.Module):
    """See, for each layer and position of a context, what a step of training would be made of.

    These are the inputs of the adapted kernels, whitened, and the gradient of what the layer
    writes, with its sign turned. Beside them is a vector that says where and what this is: the
    gradient, the state, the token that follows, and how far the end is.

    Attributes:
        width: Of these vectors.
        dtype: Of the computation.

    References:
        Mitchell et al., "Fast Model Editing at Scale" (2022), for updates made of gradients' two
        factors.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, context: Context) -> Array:
        """Return `[n, layers * positions, width + inputs of all kernels + width of the model]`."""
        states, inputs, mask, errors = context
        assert errors is not None
        n, layers = errors.shape[:2]
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        # The first token's activations are far from all others; the last one is followed by none.
        where = (mask[:, 1:] & (jnp.arange(mask.shape[1] - 1) > 0)[None])[:, None, :, None]
        where = where.astype(self.dtype)
        usual = measured_array(self, "size_errors", ones, (layers, 1, 1), self.dtype)
        errors = -errors[:, :, :-1].astype(self.dtype) / usual[None]
        large = jnp.sqrt(jnp.mean(jnp.square(errors), axis=-1, keepdims=True)) / _LARGEST
        errors = errors / jnp.maximum(large, 1.0)
        mean = measured_array(self, "mean", zeros, states.shape[-1:], self.dtype)
        token = normed(states[:, :1, 1:].astype(self.dtype) - mean[None, None, None])
        state = normed(states[:, 1:, :-1].astype(self.dtype))  # [n, layers, t, model]
        x = dense(self.width, name="error")(normed(errors)) + dense(self.width, name="state")(state)
        x = x + dense(self.width, name="token")(token)
        count = jnp.sum(mask, axis=1, dtype=jnp.float32)
        left = jnp.maximum(count[:, None] - 2 - jnp.arange(mask.shape[1] - 1.0)[None], 0)
        x = x + dense(self.width, name="place")(_distance(left).astype(self.dtype))[:, None]
        layer = self.param("layers", nn.initializers.normal(0.3), (layers, 1, self.width))
        x = nn.gelu(x + layer.astype(self.dtype)[None])
        x = nn.RMSNorm(dtype=self.dtype, name="norm")(x)
        power = self.param("power", nn.initializers.constant(-0.5), (1,))
        size = jnp.exp(power * jnp.log(jnp.maximum(count, 1) / _USUAL)).astype(self.dtype)
        size = size[:, None, None, None]
        keys = []
        for name in sorted(inputs):
            own = inputs[name][:, :, :-1].astype(self.dtype)
            shape = layers, 1, own.shape[-1]
            middle = measured_array(self, f"mean_{name}", zeros, shape, self.dtype)
            spread = measured_array(self, f"deviation_{name}", ones, shape, self.dtype)
            keys.append(normed((own - middle[None]) / spread[None]) * where * size)
        seen = jnp.concatenate([x, *keys, errors], axis=-1)
        return seen.reshape(n, -1, seen.shape[-1])


class GradientHeads(nn.Module):
    """Write adapters as one step of training would: `A` is changed by what `Gradients` sees.

    `B` is learned, and the same for all contexts. Three quarters of the rows of `A` are the sum,
    over positions, of the input's part in the row's direction and the gradient there; an MLP's
    last layer weighs positions and changes gradients. The step's size is learned for each row and
    layer. To this is added, in all rows, what is the same for all contexts; the other rows are
    that alone, so that without a context the writer is a static adapter.

    Attributes:
        spec: What is to be written.
        sizes: Of all models.

    References:
        Mitchell et al., "Fast Model Editing at Scale" (2022); Schlag et al., "Linear Transformers
        Are Secretly Fast Weight Programmers" (2021).
    """

    spec: FactorSpec
    sizes: Sizes

    @nn.compact
    def __call__(self, z: Array) -> dict[str, Factors]:
        """Return factors of `z`, `[n, layers * positions, ...]`."""
        sizes, n = self.sizes, z.shape[0]
        layers, dtype = sizes.llama.layers, sizes.dtype
        latent, keys, errors = parts_of(z, sizes)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        dense = partial(nn.Dense, use_bias=False, dtype=dtype)
        fixed = sizes.rank // 4
        written = sizes.rank - fixed
        entries = {}
        for name, key in keys.items():
            rows, columns = sizes.inputs(name), sizes.outputs(name)
            spread = measured_array(self, f"deviation_{name}", ones, (layers, rows, 1), dtype)
            first = measured_array(self, f"mean_first_{name}", zeros, (layers, rows, 1), dtype)
            size = measured_array(self, f"size_{name}", ones, (layers, 1, 1), dtype)
            drawn = nn.initializers.normal(rows**-0.5)
            directions = self.param(f"{name}_B", drawn, (layers, rows, written)).astype(dtype)
            at_first = nn.initializers.constant(math.log(_RATE / written))
            rate = self.param(f"{name}_rate", at_first, (layers, 1, written)).astype(dtype)
            weight = 2 * nn.sigmoid(dense(written, kernel_init=zeros, name=f"{name}_w")(latent))
            part = jnp.einsum("nlti,lir->nltr", key, directions) * weight * jnp.exp(rate)[None]
            value = errors if writes_states(name) else dense(columns, name=f"{name}_error")(errors)
            value = value + dense(columns, kernel_init=zeros, name=f"{name}_A")(latent)
            own = self.param(f"{name}_own", zeros, (layers, written, columns)).astype(dtype)
            a = size[None] * (jnp.einsum("nltr,nlto->nlro", part, value) + own[None])
            b = _without(directions / spread, first)
            if fixed:
                still = self.param(f"{name}_static_B", drawn, (layers, rows, fixed)).astype(dtype)
                more = self.param(f"{name}_static_A", zeros, (layers, fixed, columns)).astype(dtype)
                b = jnp.concatenate([b, still], axis=2)
                a = jnp.concatenate([a, jnp.broadcast_to(more[None], (n, *more.shape))], axis=2)
            entries[f"layers/{name}"] = Factors(
                jnp.broadcast_to(b.reshape(1, layers * rows, -1), (n, layers * rows, sizes.rank)),
                jnp.swapaxes(a, 1, 2).reshape(n, sizes.rank, layers * columns),
                "src",
            )
        return entries


def gradients(sizes: Sizes) -> Model:
    """Build the model that writes a learned step of training on its context; see `Gradients`."""

    def generator(spec: FactorSpec, **_: Any) -> nn.Module:
        return GradientHeads(spec, sizes)

    model = of_straw(straw_of(sizes, Gradients(sizes.width, sizes.dtype), generator), sizes)

    def measured(params: Params, weights: Params, texts: Array) -> Params:
        found = read(sizes, weights, texts, jnp.ones(texts.shape, bool))
        assert found.errors is not None
        errors = found.errors.astype(jnp.float32)[:, :, 1:]
        encoder = {
            **params["encoder"],
            "mean": jnp.mean(found.states[:, 0].astype(jnp.float32), axis=(0, 1)),
            "size_errors": rms(errors),
        }
        generator = dict(params["generator"])
        for name, x in found.inputs.items():
            x = x.astype(jnp.float32)
            first, x = x[:, :, 0], x[:, :, 1:]
            variance = jnp.var(x, axis=(0, 2))
            spread = jnp.sqrt(variance + _FLOOR * jnp.mean(variance, -1, keepdims=True) + 1e-8)
            encoder[f"mean_{name}"] = jnp.mean(x, axis=(0, 2))[:, None]
            encoder[f"deviation_{name}"] = spread[:, None]
            generator[f"deviation_{name}"] = spread[:, :, None]
            generator[f"mean_first_{name}"] = jnp.mean(first, axis=0)[:, :, None]
            written = jnp.einsum("nlti,lio->nlto", x, weights["layers"][name])
            generator[f"size_{name}"] = rms(written)
        return {"encoder": encoder, "generator": generator}

    return model._replace(measured=measured, read=read)


def _without(b: Array, direction: Array) -> Array:
    """Return `[layers, in, r]` without what lies in one direction `[layers, in, 1]`."""
    squared = jnp.sum(jnp.square(direction), axis=1, keepdims=True)
    share = jnp.sum(b * direction, axis=1, keepdims=True) / jnp.maximum(squared, 1e-12)
    return b - direction * share


def _distance(left: Array) -> Array:
    """Return waves of a distance's logarithm, and its inverse, `[..., 5]`."""
    waves = jnp.asarray([0.7, 1.4, 2.8, 5.6], left.dtype)
    angles = jnp.log1p(left)[..., None] * waves[None, None]
    return jnp.concatenate([jnp.cos(angles), 1 / (1 + left)[..., None]], axis=-1)
