"""The test of a model in bits a character, and samples from it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from straw_experiments.char_lm.networks import CharacterModel, Params
from straw_experiments.runner.state import Variables
from straw_jax.recurrent import Carry

_STREAMS = 64  # pieces of a test text at most, read side by side
_STREAM = 1_000  # characters of such a piece at least
_CHUNK = 100  # characters of it at a time


def make_bits(model: CharacterModel) -> Callable[..., float]:
    """Build the test of parameters on a text.

    Args:
        model: As it is tested.

    Returns:
        `(params, numbers [n], seen=None) -> bits`: the mean over all characters but the first. The
        text is read as `in_chunks` cuts it, each piece with its carry from beginning to end: the
        first characters of a piece are predicted without those before them. `seen` stands in the
        place of what the smaller LSTM saw, `[chunks, pieces, 100, hyper_features]`.
    """

    @jax.jit
    def sums_of(
        params: Params, inputs: Array, targets: Array, real: Array, seen: Array | None
    ) -> Array:
        def chunk(carry: Carry, part: tuple[Any, ...]) -> tuple[Carry, Array]:
            inputs, targets, real, seen = part
            variables = {"params": params}
            if seen is not None:
                variables["replaced"] = {"cell": {"seen": seen}}
            losses, carry = cross_entropy(model, variables, inputs, targets, carry)
            return carry, jnp.sum(losses, where=real)

        parts: tuple[Any, ...] = inputs, targets, real, seen
        _, sums = jax.lax.scan(chunk, model.initial_carry(inputs.shape[1]), parts)
        return sums

    def bits(params: Params, numbers: np.ndarray, seen: Array | None = None) -> float:
        sums = sums_of(params, *in_chunks(numbers), seen)
        nats = np.sum(np.asarray(sums, np.float64))
        return float(nats / (len(numbers) - 1) / math.log(2))

    return bits


def in_chunks(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a test text into pieces that are read side by side, and these into chunks.

    Args:
        numbers: Of the text's characters, `[n]`.

    Returns:
        Each character but the last, the one after it, and whether it is one: the last piece, and
        the last chunk of all, are filled up. `[chunks, pieces, 100]` each.
    """
    count = len(numbers) - 1
    pieces = min(_STREAMS, max(count // _STREAM, 1))
    each = -(-count // pieces)
    chunks = -(-each // _CHUNK)

    def cut(values: np.ndarray) -> np.ndarray:
        values = np.pad(values, (0, pieces * each - count)).reshape(pieces, each)
        values = np.pad(values, ((0, 0), (0, chunks * _CHUNK - each)))
        return values.reshape(pieces, chunks, _CHUNK).swapaxes(0, 1)

    return cut(numbers[:-1]), cut(numbers[1:]), cut(np.ones(count, bool))


def make_sample(model: CharacterModel, first: int) -> Callable[[Params, Array, int], np.ndarray]:
    """Build what draws texts.

    Args:
        model: As it is tested.
        first: Number of the character that stands before a text.

    Returns:
        `(params, key, length) -> numbers [length]`, each drawn from the model's distribution after
        those before it.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def sample(params: Params, key: Array, length: int) -> Array:
        def draw(looped: tuple[Carry, Array], key: Array) -> tuple[tuple[Carry, Array], Array]:
            carry, number = looped
            outputs: Any = model.apply({"params": params}, number[None, None], carry)
            carry, logits = outputs
            number = jax.random.categorical(key, logits[0, 0]).astype(jnp.int32)
            return (carry, number), number

        start = model.initial_carry(1), jnp.int32(first)
        return jax.lax.scan(draw, start, jax.random.split(key, length))[1]

    return lambda params, key, length: np.asarray(sample(params, key, length))


def cross_entropy(
    model: CharacterModel,
    variables: Variables,
    inputs: Array,
    targets: Array,
    carry: Carry,
    **kwargs: Any,
) -> tuple[Array, Carry]:
    """Return the loss in nats of each character, `[batch, time]`, and the carry after the last."""
    outputs: Any = model.apply(variables, inputs.astype(jnp.int32), carry, **kwargs)
    carry, logits = outputs
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.astype(jnp.int32))
    return losses, carry
