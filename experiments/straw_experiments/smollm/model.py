"""A Llama as one plain function of a dict of parameters, and as a Flax module.

Parameters are `embedding [vocabulary, width]`, `norm [width]`, and in `layers` those of all layers,
stacked: kernels `q`, `k`, `v`, `o`, `gate`, `up`, `down`, each `[layers, in, out]`, and the gains
`attention_norm` and `mlp_norm`, each `[layers, width]`. The output has the embedding's weights.

The model computes in the embedding's dtype; norms, angles, attention's weights and logits are
float32.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama; by default those of SmolLM2-135M.

    Attributes:
        vocabulary: Number of tokens.
        width: Length of the hidden states.
        layers: Their number.
        heads: Of queries.
        kv_heads: Of keys and values; each serves `heads / kv_heads` heads of queries.
        head: Length of a head, even.
        mlp: Hidden width of the gated MLPs.
        context: The most tokens of a text that the model was trained for.
        rotary_base: Of the wavelengths of rotary positions.
        epsilon: Added to mean squares in norms.

    Raises:
        ValueError: Sizes are no positive integers, or do not fit each other.
    """

    vocabulary: int = 49_152
    width: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    head: int = 64
    mlp: int = 1536
    context: int = 8192
    rotary_base: float = 100_000.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name not in _REAL}
        wrong = {name: size for name, size in sizes.items() if type(size) is not int or size < 1}
        if wrong:
            raise ValueError(f"LlamaConfig: expected sizes of at least 1, got {wrong}.")
        if self.heads % self.kv_heads or self.head % 2:
            raise ValueError(
                "LlamaConfig: expected heads as a multiple of kv_heads, and an even head, got"
                f" {self.heads}, {self.kv_heads} and {self.head}."
            )


_REAL = ("rotary_base", "epsilon")
_READERS = ("attention", "mixed", "mlp", "hidden")  # what kernels read, in a layer's order
KERNELS = {
    **dict.fromkeys(("q", "k", "v"), "attention"),
    "o": "mixed",
    **dict.fromkeys(("gate", "up"), "mlp"),
    "down": "hidden",
}
"""The kernels of a layer, and which of its arrays each one reads."""


class Cache(NamedTuple):
    """Keys and values of the tokens that were read, for texts side by side.

    Attributes:
        keys: `[batch, layers, capacity, kv_heads, head]`, of the tokens at positions 0, 1, ...
        values: Likewise.
        length: How many tokens of each text were read, integers `[batch]`. What is stored beyond
            is not looked at.
    """

    keys: Array
    values: Array
    length: Array


def empty_cache(
    config: LlamaConfig, batch: int, capacity: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Make a cache for texts of which nothing was read.

    Args:
        config: Sizes of the model.
        batch: Number of texts.
        capacity: The most tokens that a text may have.
        dtype: Of keys and values: that of the model's embedding, or a shorter one.

    Raises:
        ValueError: The capacity is beyond the model's context.

    Example:
        >>> from straw_experiments.smollm.model import LlamaConfig, empty_cache
        >>> empty_cache(LlamaConfig(), 2, 100).keys.shape
        (2, 30, 100, 3, 64)
    """
    _check_context("empty_cache", config, capacity)
    shape = batch, config.layers, capacity, config.kv_heads, config.head
    nothing = jnp.zeros(shape, dtype)
    return Cache(nothing, nothing, jnp.zeros(batch, jnp.int32))


def shapes(config: LlamaConfig) -> dict[str, Any]:
    """Return the shapes of all parameters, as a tree like that of the parameters."""
    width, queries, keys = config.width, config.heads * config.head, config.kv_heads * config.head
    layer = {
        "attention_norm": (width,),
        "q": (width, queries),
        "k": (width, keys),
        "v": (width, keys),
        "o": (queries, width),
        "mlp_norm": (width,),
        "gate": (width, config.mlp),
        "up": (width, config.mlp),
        "down": (config.mlp, width),
    }
    return {
        "embedding": (config.vocabulary, width),
        "norm": (width,),
        "layers": {name: (config.layers, *shape) for name, shape in layer.items()},
    }


def llama(
    config: LlamaConfig,
    params: Params,
    tokens: Array,
    *,
    cache: Cache | None = None,
    counts: Array | None = None,
) -> Any:
    """Compute the logits of next tokens.

    Without a cache, of the token after each one of whole texts. With a cache the tokens continue
    the texts in it, and the logits are those of the one token after each text. Texts of different
    lengths are filled up at their ends: what is there changes nothing before it.

    Args:
        config: Sizes.
        params: As the module's docstring says.
        tokens: Integers `[batch, time]`.
        cache: What was read before; there must be room for `time` more tokens.
        counts: With a cache, how many of each row's tokens are read, integers `[batch]` of at least
            1; all of them if omitted.

    Returns:
        Logits, float32 `[batch, time, vocabulary]`; with a cache a pair, logits
        `[batch, vocabulary]` and the cache with what was read.

    Raises:
        ValueError: Tokens are not integers `[batch, time]`, there are more than the model's context
            or the cache has room for, or there are counts without a cache.

    References:
        Touvron et al., "LLaMA" (2023); Su et al., "RoFormer" (2021); Ainslie et al., "GQA" (2023);
        Shazeer, "GLU Variants Improve Transformer" (2020); Zhang and Sennrich, "Root Mean Square
        Layer Normalization" (2019).

    Example:
        >>> import functools, jax, jax.numpy as jnp
        >>> from straw_experiments.smollm.model import Llama, LlamaConfig, empty_cache, llama
        >>> config = LlamaConfig(50, width=8, layers=2, heads=4, kv_heads=2, head=4, mlp=16)
        >>> tokens = jnp.ones((3, 5), int)
        >>> params = jax.jit(Llama(config).init)(jax.random.key(0), tokens)["params"]
        >>> apply = jax.jit(functools.partial(llama, config))
        >>> apply(params, tokens).shape
        (3, 5, 50)
        >>> logits, cache = apply(params, tokens, cache=empty_cache(config, 3, 9))
        >>> logits.shape, cache.length.tolist()
        ((3, 50), [5, 5, 5])
    """
    if cache is None:
        if counts is not None:
            raise ValueError(
                "llama: expected counts with a cache only. Give a cache, or no counts."
            )
        return logits_of(config, params, _whole(config, params, tokens)[0])
    x, keys, values = _continued(config, params, tokens, cache)
    if counts is None:
        counts = jnp.full(len(tokens), tokens.shape[1])
    last = jnp.take_along_axis(x, (counts - 1)[:, None, None], axis=1)[:, 0]
    length = cache.length + counts.astype(cache.length.dtype)
    return logits_of(config, params, last), Cache(keys, values, length)


class Activations(NamedTuple):
    """What a model computes of texts on its way.

    Attributes:
        states: `[batch, layers + 1, time, width]`, what every layer reads, and what the last one
            writes; first the embedded tokens; without the last norm.
        inputs: Of the kernels that were asked for, by name, what they are multiplied with,
            `[batch, layers, time, in]`.
    """

    states: Array
    inputs: dict[str, Array]


def activations(
    config: LlamaConfig,
    params: Params,
    tokens: Array,
    kernels: Iterable[str] = (),
    *,
    added: Array | None = None,
) -> Activations:
    """Compute what layers and kernels read.

    Args:
        config: Sizes.
        params: As for `llama`.
        tokens: Integers `[batch, time]`.
        kernels: Names, such as "down".
        added: What is added to that which layers write, `[layers, batch, time, width]`. Gradients
            with respect to it are those of what the kernels `o` and `down` write.

    Returns:
        States, and the inputs of these kernels.

    Raises:
        ValueError: Tokens are not integers `[batch, time]`, or more than the model's context; or a
            kernel is none of `KERNELS`.
    """
    kernels = tuple(kernels)
    if unknown := sorted(set(kernels) - set(KERNELS)):
        raise ValueError(f"activations: expected kernels of {list(KERNELS)}, got {unknown}.")
    last, (before, inputs) = _whole(config, params, tokens, kernels, added)
    states = jnp.concatenate([jnp.moveaxis(before, 0, 1), last[:, None]], axis=1)
    return Activations(states, {name: jnp.moveaxis(x, 0, 1) for name, x in inputs.items()})


def logits_of(config: LlamaConfig, params: Params, x: Array) -> Array:
    """Compute the logits of next tokens from what the last layer writes, `[..., width]`."""
    normed = _norm(config, x, params["norm"])
    return jnp.matmul(normed, params["embedding"].T, preferred_element_type=jnp.float32)


def hidden_states(config: LlamaConfig, params: Params, tokens: Array) -> Array:
    """Return what every layer reads, and what the last one writes: `activations(...).states`."""
    return activations(config, params, tokens).states


class Llama(nn.Module):
    """`llama` as a Flax module, with its parameters.

    Attributes:
        config: Sizes.
        param_dtype: Of new parameters.
    """

    config: LlamaConfig = LlamaConfig()
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Array, *, cache: Cache | None = None, counts: Array | None = None
    ) -> Any:
        """Compute the logits of next tokens; arguments and results are those of `llama`."""
        own = shapes(self.config)
        layers = _Arrays(own.pop("layers"), self.param_dtype, name="layers")()
        outside = {name: _array(self, name, shape) for name, shape in own.items()}
        params = {**outside, "layers": layers}
        return llama(self.config, params, tokens, cache=cache, counts=counts)


class _Arrays(nn.Module):
    """Parameters in a dict of their own."""

    shapes: Mapping[str, tuple[int, ...]]
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        return {name: _array(self, name, shape) for name, shape in self.shapes.items()}


def _array(module: Any, name: str, shape: tuple[int, ...]) -> Array:
    initializer = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
    if name.endswith("norm"):
        initializer = nn.initializers.ones
    elif name == "embedding":
        initializer = nn.initializers.normal(0.02)
    array: Array = module.param(name, initializer, shape, module.param_dtype)
    return array


def _whole(
    config: LlamaConfig,
    params: Params,
    tokens: Array,
    kernels: Sequence[str] = (),
    added: Array | None = None,
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
    """Read whole texts: return the last layer's output, all layers' inputs, and kernels' inputs."""
    _check_context("llama", config, _length(tokens))
    positions = jnp.arange(tokens.shape[1])[None]
    rotation = _rotation(config, positions)
    seen = _seen(positions, tokens.shape[1])

    def layer(x: Array, of_layer: tuple[Params, Array | None]) -> Any:
        weights, more = of_layer
        normed, queries, keys, values = _read(config, weights, x, rotation)
        y, *inputs = _write(config, weights, x, _attend(queries, keys, values, seen))
        y = y if more is None else y + more
        by_name = dict(zip(_READERS, (normed, *inputs), strict=True))
        return y, (x, {name: by_name[KERNELS[name]] for name in kernels})

    # What is not asked for is not computed: XLA drops the scan's unused results.
    return lax.scan(layer, params["embedding"][tokens], (params["layers"], added))


def _continued(
    config: LlamaConfig, params: Params, tokens: Array, cache: Cache
) -> tuple[Array, Array, Array]:
    """Read more of texts: return the last layer's output, and all keys and values."""
    time, capacity = _length(tokens), cache.keys.shape[2]
    if time > capacity:
        raise ValueError(
            f"llama: expected at most {capacity} tokens, which the cache has room for, got {time}."
            " Make it larger, empty_cache(config, batch, capacity)."
        )
    positions = cache.length[:, None] + jnp.arange(time, dtype=cache.length.dtype)[None]
    rotation = _rotation(config, positions)
    seen = _seen(positions, capacity)

    def layer(carry: tuple[Array, Array, Array], layer: tuple[Array, Params]) -> Any:
        (x, *stored), (i, weights) = carry, layer
        _, queries, *new = _read(config, weights, x, rotation)
        stored = [_store(old, each, i, cache.length) for old, each in zip(stored, new, strict=True)]
        of_layer = [lax.dynamic_index_in_dim(each, i, 1, keepdims=False) for each in stored]
        keys, values = (each.astype(x.dtype) for each in of_layer)
        y, *_ = _write(config, weights, x, _attend(queries, keys, values, seen))
        return (y, *stored), None

    start = params["embedding"][tokens], cache.keys, cache.values
    return lax.scan(layer, start, (jnp.arange(config.layers), params["layers"]))[0]


def _check_context(where: str, config: LlamaConfig, tokens: int) -> None:
    if tokens > config.context:
        raise ValueError(
            f"{where}: expected at most {config.context} tokens, the model's context, got {tokens}."
            " Shorten the text, or cut it into pieces."
        )


def _length(tokens: Array) -> int:
    """Return the number of tokens of each text, of checked ones."""
    shape, dtype = jnp.shape(tokens), jnp.result_type(tokens)
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"llama: expected tokens as integers [batch, time], got {dtype} of shape {shape}."
            " One text is a batch of one, tokens[None]."
        )
    return shape[1]


def _read(
    config: LlamaConfig, weights: Params, x: Array, rotation: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Return what attention reads, and queries, keys and values, `[batch, time, heads, head]`."""
    normed = _norm(config, x, weights["attention_norm"])
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    q, k, v = (
        (normed @ weights[name]).reshape(*x.shape[:2], number, config.head)
        for name, number in heads.items()
    )
    return normed, _rotate(q, rotation), _rotate(k, rotation), v


def _write(
    config: LlamaConfig, weights: Params, x: Array, mixed: Array
) -> tuple[Array, Array, Array, Array]:
    """Return a layer's output, and the inputs of `o`, of `gate` and `up`, and of `down`.

    `mixed` are values as attention mixed them.
    """
    mixed = mixed.reshape(*x.shape[:2], -1)
    x = x + mixed @ weights["o"]
    normed = _norm(config, x, weights["mlp_norm"])
    hidden = jax.nn.silu(normed @ weights["gate"]) * (normed @ weights["up"])
    return x + hidden @ weights["down"], mixed, normed, hidden


def _norm(config: LlamaConfig, x: Array, gain: Array) -> Array:
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    normed = (wide * lax.rsqrt(mean_square + config.epsilon)).astype(x.dtype)
    return normed * jnp.broadcast_to(gain.astype(x.dtype), x.shape)


def _rotation(config: LlamaConfig, positions: Array) -> tuple[Array, Array]:
    """Return cosines and sines of positions `[batch, time]`, `[batch, time, 1, head / 2]`."""
    turns = config.rotary_base ** -(np.arange(0, config.head, 2) / config.head)
    angles = (
        positions[:, :, None, None].astype(jnp.float32) * turns.astype(np.float32)[None, None, None]
    )
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Turn pairs of numbers, one of each half of a head, by the angles of their positions."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = first * cos - second * sin, first * sin + second * cos
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _seen(positions: Array, slots: int) -> Array:
    """Return which slots positions look at, `[batch, 1, time, slots]`: their own, and before."""
    return jnp.arange(slots)[None, None, None] <= positions[:, None, :, None]


def _attend(queries: Array, keys: Array, values: Array, seen: Array) -> Array:
    return jax.nn.dot_product_attention(queries, keys, values, mask=seen)


def _store(stored: Array, new: Array, layer: Array, start: Array) -> Array:
    """Put a layer's new keys or values behind those of each text."""

    def of_text(stored: Array, new: Array, start: Array) -> Array:
        return lax.dynamic_update_slice(stored, new[None], (layer, start, 0, 0))

    return jax.vmap(of_text)(stored, new.astype(stored.dtype), start)
