"""Readers of contexts and what they write: adapters of a frozen language model."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_experiments.smollm.model import (
    Llama,
    LlamaConfig,
    Params,
    activations,
    llama,
    shapes,
)
from straw_jax import (
    Factors,
    FactorSpec,
    Network,
    PerceiverEncoder,
    Straw,
    TokenHeads,
    make_straw,
    modulate,
)
from straw_jax.factors import FactorTree

_AXES = {"layers/*": "src"}  # stacked layers, each with factors of its own


class Context(NamedTuple):
    """What a reader sees of texts.

    Attributes:
        states: `[n, layers + 1, length, width]`, see `Activations`.
        inputs: By kernel, `[n, layers, length, in]`.
        mask: Where there is text, bool `[n, length]`, from the start.
        errors: Where a reader looks at them, gradients with respect to what layers write,
            `[n, layers, length, width]`.
    """

    states: Array
    inputs: dict[str, Array]
    mask: Array
    errors: Array | None = None


class Sizes(NamedTuple):
    """What all models of a study share.

    Attributes:
        llama: Sizes of the language model.
        kernels: Which kernels are adapted, in all layers.
        rank: Of each adapter.
        width: Of the reader's vectors.
        dtype: Of its computation; parameters are float32.
    """

    llama: LlamaConfig
    kernels: tuple[str, ...]
    rank: int
    width: int
    dtype: DTypeLike = jnp.float32

    def inputs(self, kernel: str) -> int:
        """Return the length of what a kernel reads."""
        return int(shapes(self.llama)["layers"][kernel][1])

    def outputs(self, kernel: str) -> int:
        """Return the length of what a kernel writes."""
        return int(shapes(self.llama)["layers"][kernel][2])


def sizes_of(llama: LlamaConfig, settings: Mapping[str, Any]) -> Sizes:
    """Return the sizes that settings of a study say, see `config.Config`."""
    kernels = tuple(sorted(settings["kernels"]))
    dtype = jnp.dtype(settings["precision"])
    return Sizes(llama, kernels, settings["rank"], settings["width"], dtype)


def read(sizes: Sizes, weights: Params, tokens: Array, mask: Array) -> Context:
    """Let the frozen model read texts.

    Args:
        sizes: Of the models.
        weights: Those of the language model.
        tokens: `[n, length]`.
        mask: Where there is text, bool `[n, length]`, from the start.
    """
    found = activations(sizes.llama, weights, tokens, sizes.kernels)
    return Context(found.states, found.inputs, mask)


class Model(NamedTuple):
    """What is trained: parameters, adapters from contexts, and the adapted language model.

    Attributes:
        init: `(key) -> params`.
        write: `(params, context) -> adapters`, a tree of `Factors`, with a first axis of contexts,
            or of 1 where the context is not looked at.
        apply: `(weights, adapters, tokens, index) -> logits`; each text has the adapter of its
            number.
        measured: `(params, weights, texts) -> params`: with what has to be known of ordinary
            texts, tokens `[n, length]`, before training.
        read: What the frozen model has to compute of texts for it, as `read` does.
    """

    init: Callable[[Array], Params]
    write: Callable[[Params, Context], FactorTree]
    apply: Callable[[Params, FactorTree, Array, Array], Array]
    measured: Callable[[Params, Params, Array], Params]
    read: Callable[[Sizes, Params, Array, Array], Context] = read


class Associations(nn.Module):
    """Find in a context, for each row of an adapter, what is to be recalled, and where.

    A position of the context associates what the model computes there, the inputs of the adapted
    kernels, with the token that follows. Each layer and row has a learned query; it picks
    positions by the layer's output there and the next token's embedding, and takes the mean of
    their associations.

    Attributes:
        rank: Rows.
        width: Of queries.
        dtype: Of the computation.

    References:
        Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers" (2021), for
        weights as associations; Jaegle et al., "Perceiver" (2021), for learned queries.
    """

    rank: int
    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, context: Context) -> Array:
        """Return `[n, layers * rank, width + inputs of all kernels + width of the model]`."""
        states, inputs, mask, _ = context
        n, layers, rank = states.shape[0], states.shape[1] - 1, self.rank
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        mean = measured_array(self, "mean", nn.initializers.zeros, states.shape[-1:], self.dtype)
        token = normed(
            states[:, :1, 1:].astype(self.dtype) - mean[None, None, None]
        )  # [n, 1, t, model]
        state = normed(states[:, 1:, :-1].astype(self.dtype))  # [n, layers, t, model]
        place = self.param("layers", nn.initializers.normal(0.1), (layers, 1, self.width))
        x = dense(self.width, name="state")(state) + dense(self.width, name="token")(token)
        x = nn.RMSNorm(dtype=self.dtype, name="norm")(nn.gelu(x + place.astype(self.dtype)[None]))
        query = self.param("queries", nn.initializers.normal(1.0), (layers, rank, self.width))
        query = query.astype(self.dtype)
        scores = jnp.einsum("lrd,nltd->nlrt", query, x) / self.width**0.5
        # The first token's activations are far from all others, whatever it is.
        where = (mask[:, 1:] & (jnp.arange(mask.shape[1] - 1) > 0)[None])[:, None, None]
        scores = jnp.where(where, scores.astype(jnp.float32), -1e30)
        weights = jnp.where(where, jax.nn.softmax(scores), 0.0).astype(self.dtype)
        taken = [jnp.einsum("nlrt,nltd->nlrd", weights, x) + query[None]]
        for name in sorted(inputs):
            own = inputs[name].astype(self.dtype)[:, :, :-1]
            shape = layers, 1, own.shape[-1]
            middle = measured_array(self, f"mean_{name}", nn.initializers.zeros, shape, self.dtype)
            spread = measured_array(
                self, f"deviation_{name}", nn.initializers.ones, shape, self.dtype
            )
            found = jnp.einsum("nlrt,nltd->nlrd", weights, (own - middle[None]) / spread[None])
            taken.append(normed(found))
        taken.append(normed(jnp.einsum("nlrt,ntd->nlrd", weights, token[:, 0])))
        return jnp.concatenate(taken, axis=-1).reshape(n, layers * rank, -1)


class AssociationHeads(nn.Module):
    """Write rows of adapters from what `Associations` found: keys are `B`, tokens are `A`.

    At the start `B` is what was found, so that an input recalls what is associated with like ones,
    or, in each second row, the mean of all inputs; `A` is the embedding of the token that followed,
    times a learned number that begins with 0. An MLP of what was found changes both.

    Attributes:
        spec: What is to be written.
        sizes: Of all models.
    """

    spec: FactorSpec
    sizes: Sizes

    @nn.compact
    def __call__(self, z: Array) -> dict[str, Factors]:
        """Return factors of `z`, `[n, layers * rank, ...]`."""
        sizes, n = self.sizes, z.shape[0]
        layers, rank, width = sizes.llama.layers, sizes.rank, sizes.width
        latent, keys, token = parts_of(z, sizes)
        dense = partial(nn.Dense, dtype=sizes.dtype)
        norm = partial(nn.RMSNorm, dtype=sizes.dtype)
        latent = norm(name="norm1")(latent)
        hidden = nn.gelu(dense(2 * width, name="mlp1")(latent))
        latent = norm(name="norm2")(latent + dense(width, name="mlp2")(hidden))
        entries = {}
        # Each second row is recalled everywhere, as far as inputs have a mean; the others where the
        # input is like the one that was found.
        everywhere = np.arange(rank)[None, :, None] % 2 * np.ones((layers, 1, 1), np.float32)

        def start(value: Any) -> Any:
            return lambda *_: jnp.asarray(value, jnp.float32)

        for name, key in keys.items():
            rows, columns = sizes.inputs(name), sizes.outputs(name)
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            shape = layers, 1, rows
            spread = measured_array(self, f"deviation_{name}", ones, shape, sizes.dtype)
            mean = measured_array(self, f"mean_{name}", zeros, shape, sizes.dtype)
            size = measured_array(self, f"size_{name}", ones, (layers, 1, 1), sizes.dtype)
            given, usual, gate = (
                self.param(f"{name}_{each}", init, (layers, rank, 1)).astype(sizes.dtype)[None]
                for each, init in (
                    ("found", start(1 - everywhere)), ("usual", start(everywhere)), ("gate", zeros)
                )
            )  # fmt: skip
            own = dense(rows, name=f"{name}_B")(latent)
            b = (given * key + usual * normed(mean / spread)[None] + own) / spread[None] / rows
            from_token = dense(
                columns,
                use_bias=False,
                kernel_init=_identity if writes_states(name) else nn.linear.default_kernel_init,
                name=f"{name}_token",
            )(token)
            own = dense(columns, use_bias=False, name=f"{name}_A")(latent)
            a = gate * size[None] * (from_token + own)
            entries[f"layers/{name}"] = Factors(
                jnp.swapaxes(b, 2, 3).reshape(n, layers * rows, rank),
                jnp.swapaxes(a, 1, 2).reshape(n, rank, layers * columns),
                "src",
            )
        return entries


def associations(sizes: Sizes) -> Model:
    """Build the model that writes associations of its context; see `Associations`."""

    def generator(spec: FactorSpec, **_: Any) -> nn.Module:
        return AssociationHeads(spec, sizes)

    encoder = Associations(sizes.rank, sizes.width, sizes.dtype)
    model = of_straw(straw_of(sizes, encoder, generator), sizes)

    def measured(params: Params, weights: Params, texts: Array) -> Params:
        found = activations(sizes.llama, weights, texts, sizes.kernels)
        encoder = {**params["encoder"], "mean": jnp.mean(found.states[:, 0], axis=(0, 1))}
        generator = dict(params["generator"])
        for name, x in found.inputs.items():
            x = x.astype(jnp.float32)
            mean = jnp.mean(x[:, :, 1:], axis=(0, 2))[:, None]  # the first token's is far from it
            spread = jnp.std(x, axis=(0, 2))[:, None] + 1e-4
            written = jnp.einsum("nlti,lio->nlto", x[:, :, 1:], weights["layers"][name])
            generator[f"size_{name}"] = rms(written)
            of_both = {f"mean_{name}": mean, f"deviation_{name}": spread}
            encoder |= of_both
            generator |= of_both
        return {"encoder": encoder, "generator": generator}

    return model._replace(measured=measured)


def tokens(sizes: Sizes) -> Model:
    """Build a model of the library's own parts: `PerceiverEncoder` and `TokenHeads`."""
    perceiver = PerceiverEncoder(queries=16, width=sizes.width, dtype=sizes.dtype)
    at = 2 * sizes.llama.layers // 3

    def seen(context: Context) -> tuple[Array, Array]:
        return normed(context.states[:, at].astype(sizes.dtype)), context.mask

    encoder = Network(
        lambda key, context: perceiver.init(key, seen(context))["params"],
        lambda params, context: perceiver.apply({"params": params}, seen(context)),
    )
    return of_straw(straw_of(sizes, encoder, partial(TokenHeads, width=sizes.width)), sizes)


def without_context(sizes: Sizes) -> Model:
    """Build `associations` that see no context: what its biases alone can do."""
    model = associations(sizes)

    def write(params: Params, context: Context) -> FactorTree:
        nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), context)
        return model.write(params, nothing)

    return model._replace(write=write)


def straw_of(sizes: Sizes, encoder: nn.Module | Network, generator: Any) -> Straw:
    """Return the language model with adapters that an encoder and a generator write."""
    llama, length = sizes.llama, 3  # any will do
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shape = 1, llama.layers, length
    context = Context(
        jnp.zeros((1, llama.layers + 1, length, llama.width), sizes.dtype),
        {name: jnp.zeros((*shape, sizes.inputs(name)), sizes.dtype) for name in sizes.kernels},
        jnp.ones((1, length), bool),
        jnp.zeros((*shape, llama.width), sizes.dtype),
    )
    return make_straw(
        Llama(llama, sizes.dtype),
        tokens,
        rank={f"layers/{name}": sizes.rank for name in sizes.kernels},
        axes=_AXES,
        base="frozen",
        encoder=encoder,
        context=context,
        generator=generator,
        dtype=sizes.dtype,
    )


def of_straw(straw: Straw, sizes: Sizes) -> Model:
    """Return the model that writes with a STRAW, and has nothing measured."""

    def write(params: Params, context: Context) -> FactorTree:
        return straw.factors(params, context)

    return Model(straw.init, write, adapted_llama(sizes.llama), unchanged)


def adapted_llama(config: LlamaConfig) -> Callable[[Params, FactorTree, Array, Array], Array]:
    """Return `Model.apply` of a Llama of these sizes."""
    apply = modulate(partial(llama, config))

    def adapted(weights: Params, adapters: FactorTree, tokens: Array, index: Array) -> Array:
        logits: Array = apply(weights, adapters, tokens, index=index)
        return logits

    return adapted


def unchanged(params: Params, weights: Params, texts: Array) -> Params:
    """Measure nothing, see `Model.measured`."""
    del weights, texts
    return params


def trained(params: Params) -> int:
    """Count the parameters that are trained, and not measured."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if not _is_measured(path))


_MEASURED = re.compile("(mean|deviation|size)(_.*)?")


def _is_measured(path: Any) -> bool:
    return _MEASURED.fullmatch(path[-1].key) is not None


def measured_array(module: nn.Module, name: str, init: Any, shape: Any, dtype: Any) -> Array:
    """Return an array that is measured before training, and not trained."""
    assert _MEASURED.fullmatch(name)
    return jax.lax.stop_gradient(module.param(name, init, shape)).astype(dtype)


def parts_of(z: Array, sizes: Sizes) -> tuple[Array, dict[str, Array], Array]:
    """Take apart what an encoder found, `[n, layers * rows, ...]`.

    Returns:
        `[n, layers, rows, ...]` each: a vector of `sizes.width` numbers; for each kernel, in the
        order of names, something like its input; and the rest, as long as the model is wide.
    """
    names = sorted(sizes.kernels)
    ends = [sizes.width]
    for name in names:
        ends.append(ends[-1] + sizes.inputs(name))
    z = z.reshape(z.shape[0], sizes.llama.layers, -1, z.shape[-1])
    latent, *keys, rest = jnp.split(z, ends, axis=-1)
    return latent, dict(zip(names, keys, strict=True)), rest


def rms(x: Array) -> Array:
    """Return the root mean square of `[n, layers, t, width]` in each layer, `[layers, 1, 1]`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(0, 2, 3)))[:, None, None]


def normed(x: Array) -> Array:
    """Scale vectors to a root mean square of 1."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def writes_states(kernel: str) -> bool:
    """Whether a kernel writes what the next layer reads, as embeddings are."""
    return kernel in ("o", "down")


def _identity(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    del key
    rows, columns = shape
    return jnp.eye(rows, columns, dtype=dtype)
