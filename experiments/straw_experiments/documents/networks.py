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
_RESIDUAL = ("o", "down")  # kernels that write what the next layer reads, as embeddings are


class Context(NamedTuple):
    """What a reader sees of texts.

    Attributes:
        states: `[n, layers + 1, length, width]`, see `Activations`.
        inputs: By kernel, `[n, layers, length, in]`.
        mask: Where there is text, bool `[n, length]`, from the start.
    """

    states: Array
    inputs: dict[str, Array]
    mask: Array


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
    """

    init: Callable[[Array], Params]
    write: Callable[[Params, Context], FactorTree]
    apply: Callable[[Params, FactorTree, Array, Array], Array]
    measured: Callable[[Params, Params, Array], Params]


def read(
    config: LlamaConfig, weights: Params, tokens: Array, mask: Array, kernels: Sequence[str]
) -> Context:
    """Let the frozen model read texts.

    Args:
        config: Its sizes.
        weights: Its weights.
        tokens: `[n, length]`.
        mask: Where there is text, bool `[n, length]`, from the start.
        kernels: Whose inputs are wanted.
    """
    found = activations(config, weights, tokens, kernels)
    return Context(found.states, found.inputs, mask)


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
        states, inputs, mask = context
        n, layers, rank = states.shape[0], states.shape[1] - 1, self.rank
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        mean = _measured(self, "mean", nn.initializers.zeros, states.shape[-1:], self.dtype)
        token = _normed(
            states[:, :1, 1:].astype(self.dtype) - mean[None, None, None]
        )  # [n, 1, t, model]
        state = _normed(states[:, 1:, :-1].astype(self.dtype))  # [n, layers, t, model]
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
            middle = _measured(self, f"mean_{name}", nn.initializers.zeros, shape, self.dtype)
            spread = _measured(self, f"deviation_{name}", nn.initializers.ones, shape, self.dtype)
            found = jnp.einsum("nlrt,nltd->nlrd", weights, (own - middle[None]) / spread[None])
            taken.append(_normed(found))
        taken.append(_normed(jnp.einsum("nlrt,ntd->nlrd", weights, token[:, 0])))
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
        names = sorted(sizes.kernels)
        ends = [width]
        for name in names:
            ends.append(ends[-1] + sizes.inputs(name))
        latent, *keys, token = jnp.split(z.reshape(n, layers, rank, -1), ends, axis=-1)
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

        for name, key in zip(names, keys, strict=True):
            rows, columns = sizes.inputs(name), sizes.outputs(name)
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            shape = layers, 1, rows
            spread = _measured(self, f"deviation_{name}", ones, shape, sizes.dtype)
            mean = _measured(self, f"mean_{name}", zeros, shape, sizes.dtype)
            size = _measured(self, f"size_{name}", ones, (layers, 1, 1), sizes.dtype)
            given, usual, gate = (
                self.param(f"{name}_{each}", init, (layers, rank, 1)).astype(sizes.dtype)[None]
                for each, init in (
                    ("found", start(1 - everywhere)), ("usual", start(everywhere)), ("gate", zeros)
                )
            )  # fmt: skip
            own = dense(rows, name=f"{name}_B")(latent)
            b = (given * key + usual * _normed(mean / spread)[None] + own) / spread[None] / rows
            from_token = dense(
                columns,
                use_bias=False,
                kernel_init=_identity if name in _RESIDUAL else nn.linear.default_kernel_init,
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
    model = _of_straw(_straw(sizes, encoder, generator), sizes)

    def measured(params: Params, weights: Params, texts: Array) -> Params:
        found = activations(sizes.llama, weights, texts, sizes.kernels)
        encoder = {**params["encoder"], "mean": jnp.mean(found.states[:, 0], axis=(0, 1))}
        generator = dict(params["generator"])
        for name, x in found.inputs.items():
            x = x.astype(jnp.float32)
            mean = jnp.mean(x[:, :, 1:], axis=(0, 2))[:, None]  # the first token's is far from it
            spread = jnp.std(x, axis=(0, 2))[:, None] + 1e-4
            written = jnp.einsum("nlti,lio->nlto", x[:, :, 1:], weights["layers"][name])
            generator[f"size_{name}"] = jnp.sqrt(jnp.mean(written**2, (0, 2, 3)))[:, None, None]
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
        return _normed(context.states[:, at].astype(sizes.dtype)), context.mask

    encoder = Network(
        lambda key, context: perceiver.init(key, seen(context))["params"],
        lambda params, context: perceiver.apply({"params": params}, seen(context)),
    )
    return _of_straw(_straw(sizes, encoder, partial(TokenHeads, width=sizes.width)), sizes)


def without_context(sizes: Sizes) -> Model:
    """Build `associations` that see no context: what its biases alone can do."""
    model = associations(sizes)

    def write(params: Params, context: Context) -> FactorTree:
        nothing = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), context)
        return model.write(params, nothing)

    return model._replace(write=write)


def static(sizes: Sizes, rank: int | None = None) -> Model:
    """Build one adapter for all texts, LoRA: `B` is drawn, `A` begins with 0."""
    rank = sizes.rank if rank is None else rank
    layers = sizes.llama.layers

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(sizes.kernels))
        return {
            name: {
                "B": jax.random.normal(own, (layers * sizes.inputs(name), rank))
                / sizes.inputs(name) ** 0.5,
                "A": jnp.zeros((rank, layers * sizes.outputs(name))),
            }
            for own, name in zip(keys, sizes.kernels, strict=True)
        }

    def write(params: Params, context: Context) -> FactorTree:
        del context
        cast = partial(jnp.asarray, dtype=sizes.dtype)
        return {
            f"layers/{name}": Factors(cast(each["B"])[None], cast(each["A"])[None], "src")
            for name, each in params.items()
        }

    return Model(init, write, _adapted(sizes.llama), _unchanged)


def _straw(sizes: Sizes, encoder: nn.Module | Network, generator: Any) -> Straw:
    llama, length = sizes.llama, 3  # any will do
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    shape = 1, llama.layers, length
    context = Context(
        jnp.zeros((1, llama.layers + 1, length, llama.width), sizes.dtype),
        {name: jnp.zeros((*shape, sizes.inputs(name)), sizes.dtype) for name in sizes.kernels},
        jnp.ones((1, length), bool),
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


def _of_straw(straw: Straw, sizes: Sizes) -> Model:
    def write(params: Params, context: Context) -> FactorTree:
        return straw.factors(params, context)

    return Model(straw.init, write, _adapted(sizes.llama), _unchanged)


def _adapted(config: LlamaConfig) -> Callable[[Params, FactorTree, Array, Array], Array]:
    apply = modulate(partial(llama, config))

    def adapted(weights: Params, adapters: FactorTree, tokens: Array, index: Array) -> Array:
        logits: Array = apply(weights, adapters, tokens, index=index)
        return logits

    return adapted


def _unchanged(params: Params, weights: Params, texts: Array) -> Params:
    del weights, texts
    return params


def static_large(sizes: Sizes) -> Model:
    """Build a static adapter of at least as many trained parameters as `associations`."""
    shapes = jax.eval_shape(associations(sizes).init, jax.random.key(0))
    each = sizes.llama.layers * sum(sizes.inputs(k) + sizes.outputs(k) for k in sizes.kernels)
    return static(sizes, -(-trained(shapes) // each))


def trained(params: Params) -> int:
    """Count the parameters that are trained, and not measured."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if not _is_measured(path))


_MEASURED = re.compile("(mean|deviation|size)(_.*)?")


def _is_measured(path: Any) -> bool:
    return _MEASURED.fullmatch(path[-1].key) is not None


def _measured(module: nn.Module, name: str, init: Any, shape: Any, dtype: Any) -> Array:
    """Return an array that is measured before training, and not trained."""
    assert _MEASURED.fullmatch(name)
    return jax.lax.stop_gradient(module.param(name, init, shape)).astype(dtype)


def _normed(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _identity(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    del key
    rows, columns = shape
    return jnp.eye(rows, columns, dtype=dtype)
