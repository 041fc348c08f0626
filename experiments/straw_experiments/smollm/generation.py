"""Continues texts by one compiled loop, and answers questions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from straw_experiments.smollm.model import Cache, LlamaConfig, empty_cache, llama
from straw_experiments.smollm.tokenizer import Question
from straw_experiments.smollm.weights import LanguageModel

Apply = Callable[..., tuple[Array, Cache]]


class Generated(NamedTuple):
    """What a model wrote.

    Attributes:
        tokens: Integers `[batch, most]`; behind a text's end there is the token that ends it.
        lengths: Tokens of each text, that of its end not counted, integers `[batch]`.
    """

    tokens: Array
    lengths: Array


def generate(
    apply: Apply,
    params: Any,
    tokens: Array,
    lengths: Array,
    cache: Cache,
    *,
    most: int,
    end: int | None = None,
    key: Array | None = None,
    temperature: ArrayLike | None = None,
    top_k: int | None = None,
    top_p: ArrayLike | None = None,
) -> Generated:
    """Continue texts, token by token, until all have ended.

    The loop is compiled once, under `jax.jit`. A text's continuation does not depend on those
    beside it: each has its own length, and its own random key.

    Args:
        apply: `(params, tokens, *, cache, counts) -> (logits, cache)`, as `llama` with its sizes
            given, a module's `apply`, or a function that changes either's weights.
        params: Its first argument.
        tokens: Of the texts so far, integers `[batch, time]`, filled up at the end with anything.
        lengths: Of each text, integers `[batch]` of at least 1.
        cache: What was read before these tokens, with room for `time + most` more; that of
            `empty_cache` for whole texts.
        most: Tokens to write at most.
        end: The token that ends a text; none if omitted.
        key: Typed, `jax.random.key(0)`, or one for each text, `[batch]`: tokens are drawn. If
            omitted, each is the most likely one.
        temperature: Logits are divided by it before tokens are drawn; positive, 1 if omitted.
        top_k: Draw from the most likely tokens, so many.
        top_p: Draw from the least number of most likely tokens that have this probability
            together, of those that `top_k` leaves.

    Returns:
        The texts' continuations.

    Raises:
        ValueError: Shapes do not fit, the cache has no room, or settings are out of range.

    References:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for `top_p`.

    Example:
        >>> import functools, jax, jax.numpy as jnp
        >>> from straw_experiments.smollm.generation import generate
        >>> from straw_experiments.smollm.model import Llama, LlamaConfig, empty_cache, llama
        >>> config = LlamaConfig(50, width=8, layers=1, heads=2, kv_heads=1, head=4, mlp=8)
        >>> tokens = jnp.ones((3, 5), int)
        >>> params = jax.jit(Llama(config).init)(jax.random.key(0), tokens)["params"]
        >>> apply, cache = functools.partial(llama, config), empty_cache(config, 3, 9)
        >>> write = jax.jit(functools.partial(generate, apply, most=4))
        >>> write(params, tokens, jnp.array([5, 2, 1]), cache).tokens.shape
        (3, 4)
    """
    _check(tokens, lengths, cache, most, key, temperature, top_k, top_p)
    batch = len(tokens)
    keys = None
    if key is not None:
        keys = key if key.ndim else jax.random.split(key, batch)

    def choose(i: ArrayLike, logits: Array) -> Array:
        if keys is None:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        of_step = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
        if temperature is not None:
            logits = logits / jnp.asarray(temperature, logits.dtype)
        return _draw(of_step, logits, top_k, top_p)

    def going_on(state: _State) -> Array:
        return (state.done < most) & ~jnp.all(state.ended)

    def step(state: _State) -> _State:
        last = lax.dynamic_index_in_dim(state.written, state.done - 1, 1)
        logits, cache = apply(params, last, cache=state.cache, counts=jnp.ones_like(state.lengths))
        token = choose(state.done, logits)
        return _added(state, token, cache, end)

    logits, cache = apply(params, tokens, cache=cache, counts=lengths)
    filler = 0 if end is None else end
    nothing = jnp.zeros(batch, jnp.int32)
    state = _State(
        jnp.zeros((), jnp.int32),
        jnp.full((batch, most), filler, jnp.int32),
        nothing,
        jnp.zeros(batch, bool),
        cache,
    )
    state = _added(state, choose(state.done, logits), cache, end)
    state = lax.while_loop(going_on, step, state)
    return Generated(state.written, state.lengths)


class _State(NamedTuple):
    done: Array  # steps
    written: Array
    lengths: Array
    ended: Array
    cache: Cache


def _added(state: _State, token: Array, cache: Cache, end: int | None) -> _State:
    """Add a token to each text that has not ended."""
    done, written, lengths, ended, _ = state
    if end is not None:
        token = jnp.where(ended, end, token)
        ended = token == end
    written = lax.dynamic_update_slice_in_dim(written, token[:, None], done, 1)
    return _State(done + 1, written, lengths + (~ended).astype(lengths.dtype), ended, cache)


def _draw(keys: Array, logits: Array, top_k: int | None, top_p: ArrayLike | None) -> Array:
    """Draw a token of each row's logits."""
    if top_k is None and top_p is None:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    logits, tokens = lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
    if top_p is not None:
        probabilities = jax.nn.softmax(logits, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        logits = jnp.where(before < top_p, logits, -jnp.inf)
    places = jax.vmap(jax.random.categorical)(keys, logits)
    return jnp.take_along_axis(tokens, places[:, None], axis=-1)[:, 0].astype(jnp.int32)


def answer(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    most: int = 128,
    apply: Apply | None = None,
    params: Any = None,
    key: Array | None = None,
    temperature: ArrayLike | None = None,
    top_k: int | None = None,
    top_p: ArrayLike | None = None,
) -> list[str]:
    """Answer questions side by side.

    Questions are filled up to a multiple of 32 tokens, so that few programs are compiled.

    Args:
        model: A pretrained one.
        questions: Texts, or conversations as in `Tokenizer.chat`.
        most: Tokens of an answer at most.
        apply: In place of `llama` of the model's sizes, as in `generate`; always the same object,
            else all is compiled again.
        params: Its first argument, in place of the model's weights.
        key: As in `generate`, like all that follow: without one each token is the most likely.
        temperature: See there.
        top_k: See there; makes drawing cheaper, as the vocabulary is not sorted.
        top_p: See there.

    Raises:
        ValueError: There is no question, one is too long for the model's context, or settings are
            out of range.

    Example:
        >>> from straw_experiments.smollm.generation import answer
        >>> from straw_experiments.smollm.weights import load
        >>> answer(load(), ["What is the capital of France?"])  # doctest: +SKIP
        ['The capital of France is Paris.']
    """
    if isinstance(questions, str) or not questions:
        raise ValueError(
            f"answer: expected a list of questions, got {questions!r}. One is a list of one."
        )
    return continued(
        model,
        [model.tokenizer.chat(each) for each in questions],
        most=most,
        end=model.tokenizer.end_of_turn,
        apply=apply,
        params=params,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


def continued(
    model: LanguageModel,
    texts: Sequence[Sequence[int]],
    *,
    most: int,
    end: int | None = None,
    apply: Apply | None = None,
    params: Any = None,
    key: Array | None = None,
    temperature: ArrayLike | None = None,
    top_k: int | None = None,
    top_p: ArrayLike | None = None,
) -> list[str]:
    """Continue texts side by side; all is compiled once for so many tokens.

    Args:
        model: A pretrained one.
        texts: Tokens of each.
        most: Tokens of a continuation at most.
        end: The token that ends a text; none if omitted.
        apply: As in `answer`, like all that follow.
        params: See there.
        key: See there.
        temperature: See there.
        top_k: See there.
        top_p: See there.

    Returns:
        The continuations alone.

    Raises:
        ValueError: There is no text, one is empty or too long for the model's context, or settings
            are out of range.
    """
    tokens, lengths = side_by_side(texts)
    dtype = model.params["norm"].dtype
    cache = empty_cache(model.config, len(tokens), tokens.shape[1] + most, dtype)
    _check(tokens, lengths, cache, most, key, temperature, top_k, top_p)  # before it is traced
    wrote = _generate(
        apply or _plain(model.config),
        model.params if params is None else params,
        tokens,
        lengths,
        cache,
        most=most,
        end=end,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    found = zip(np.asarray(wrote.tokens), np.asarray(wrote.lengths), strict=True)
    return [model.tokenizer.decode(tokens[:length]) for tokens, length in found]


def side_by_side(texts: Sequence[Sequence[int]], multiple: int = 32) -> tuple[Array, Array]:
    """Fill texts up to one length.

    Args:
        texts: Tokens of each, at least one.
        multiple: Of which the length is one.

    Returns:
        Tokens, integers `[batch, time]`, and the texts' lengths, `[batch]`.

    Raises:
        ValueError: A text is empty, or there is none.

    Example:
        >>> from straw_experiments.smollm.generation import side_by_side
        >>> tokens, lengths = side_by_side([[5, 6, 7], [8]], multiple=4)
        >>> tokens.tolist(), lengths.tolist()
        ([[5, 6, 7, 0], [8, 0, 0, 0]], [3, 1])
    """
    lengths = [len(text) for text in texts]
    if not lengths or not min(lengths):
        raise ValueError(
            f"side_by_side: expected texts of at least a token, got lengths {lengths}."
        )
    tokens = np.zeros((len(texts), -(-max(lengths) // multiple) * multiple), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32)


_generate = jax.jit(generate, static_argnames=("apply", "most", "end", "top_k"))


@functools.cache
def _plain(config: LlamaConfig) -> Apply:
    return functools.partial(llama, config)


def _check(
    tokens: Array,
    lengths: Array,
    cache: Cache,
    most: int,
    key: Array | None,
    temperature: ArrayLike | None,
    top_k: int | None,
    top_p: ArrayLike | None,
) -> None:
    """Raise a ValueError for what `generate` cannot do; traced numbers are not looked at."""
    batch, time = tokens.shape if jnp.ndim(tokens) == 2 else (None, 0)
    if batch is None or jnp.shape(lengths) != (batch,) or cache.length.shape != (batch,):
        raise ValueError(
            "generate: expected tokens [batch, time], and as many lengths and texts in the cache,"
            f" got shapes {jnp.shape(tokens)}, {jnp.shape(lengths)} and {cache.length.shape}."
        )
    if type(most) is not int or most < 1:
        raise ValueError(f"generate: expected most as an integer of at least 1, got {most!r}.")
    if (room := cache.keys.shape[2]) < time + most:
        raise ValueError(
            f"generate: expected a cache with room for {time} + {most} tokens, got one for {room}."
            f" Make it with empty_cache(config, {batch}, {time + most})."
        )
    if not _holds(lengths, lambda each: np.all((each >= 1) & (each <= time))):
        raise ValueError(f"generate: expected lengths of 1 to {time}, got {lengths}.")
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if key is None:
        if given := [name for name, value in drawn.items() if value is not None]:
            raise ValueError(
                f"generate: expected a key with {' and '.join(given)}, got none. Give one to draw"
                " tokens, or neither for the most likely ones."
            )
        return
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise ValueError(
            f"generate: expected a typed random key, or {batch}, got {key.dtype} of shape"
            f" {key.shape}. Use jax.random.key."
        )
    if temperature is not None and not _holds(
        temperature, lambda each: np.isfinite(each) and each > 0
    ):
        raise ValueError(
            f"generate: expected a temperature above 0, got {temperature}. For the most likely"
            " tokens give no key."
        )
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"generate: expected top_k of at least 1, got {top_k!r}.")
    if top_p is not None and not _holds(top_p, lambda each: 0 < each <= 1):
        raise ValueError(f"generate: expected top_p above 0, and at most 1, got {top_p}.")


def _holds(value: ArrayLike, condition: Callable[[np.ndarray], Any]) -> bool:
    """Return whether a number meets a condition, or is traced."""
    return isinstance(value, jax.core.Tracer) or bool(condition(np.asarray(value)))
