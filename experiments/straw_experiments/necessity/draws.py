"""How the tasks are drawn on the device, from arrays that lie there."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.necessity.tasks import Episodes
from straw_jax.geometry import affine, resample

LETTERS = " abcdefghijklmnopqrstuvwxyz"
"""The alphabet of the ciphers."""

READ = 4  # letters before the one that is asked for
AMPLITUDES, REACH = (0.1, 5.0), 5.0
"""Of the sines: phases are from 0 to pi, and points from -`REACH` to `REACH`."""

_WAYS = 5  # classes of a task of new classes
_GRID = 4  # blocks of an image, down and across


class Images(NamedTuple):
    """Images of some classes.

    Attributes:
        pixels: uint8 `[n, side, side]`, of these classes and of others.
        members: Positions of each class's images, int32 `[classes, most]`, in an order that
            means nothing; padded.
        counts: How many there are of each, int32 `[classes]`.
        mean: Of all pixels of training, from 0 to 1.
    """

    pixels: Array
    members: Array
    counts: Array
    mean: Array


class _Drawn(NamedTuple):
    """The images of some tasks, those of the context first.

    Attributes:
        pixels: float32 `[tasks, m + q, side, side]`, from 0 to 1.
        order: The classes of each task, in random order, int32 `[tasks, classes]`.
        place: Where the class of each image is in `order`, int32 `[tasks, m + q]`.
    """

    pixels: Array
    order: Array
    place: Array


def few_shot(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks of a few classes each, under random labels."""
    return _labelled(data, key, _WAYS, tasks, length, queries)


def labels(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks of all classes, under random labels."""
    return _labelled(data, key, len(data.counts), tasks, length, queries)


def rotation(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks whose images are rotated alike, by up to 180 degrees."""
    which, turn = jax.random.split(key)
    drawn = _draw(data, which, len(data.counts), tasks, length, queries)
    degrees = jax.random.uniform(turn, (tasks,), minval=-180.0, maxval=180.0)
    rotated = jax.vmap(resample)(drawn.pixels[..., None], affine(degrees))[..., 0]
    return _unlabelled(drawn, rotated, length)


def signs(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks whose images have the same blocks negated, after the mean is subtracted."""
    which, sign = jax.random.split(key)
    drawn = _draw(data, which, len(data.counts), tasks, length, queries)
    x = drawn.pixels - data.mean
    side = x.shape[-1]
    block = jnp.arange(side) * _GRID // side
    chosen = jax.random.rademacher(sign, (tasks, 1, _GRID, _GRID), jnp.float32)
    return _unlabelled(drawn, x * chosen[:, :, block][..., block], length)


def sine(data: Any, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks that are sines.

    References:
        Finn et al., "Model-Agnostic Meta-Learning" (2017), section 5.1.
    """
    del data
    keys = jax.random.split(key, 3)
    low, high = AMPLITUDES
    amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), minval=low, maxval=high)
    phase = jax.random.uniform(keys[1], (tasks, 1, 1), maxval=math.pi)
    shape = (tasks, length + queries, 1)
    x = jax.random.uniform(keys[2], shape, minval=-REACH, maxval=REACH)
    y = amplitude * jnp.sin(x - phase)
    return Episodes(x[:, :length], y[:, :length], x[:, length:], y[:, length:])


def cipher(data: Array, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks that are a text in a cipher each.

    Args:
        data: The text, each letter as its position in `LETTERS`, uint8 `[n]`.
        key: A random key.
        tasks: How many.
        length: Letters that are read as an answer, one after the other.
        queries: Letters that are asked for, at places out of reach of the context.
    """
    keys = jax.random.split(key, 3)
    size, shown = len(data), length + READ
    start = jax.random.randint(keys[0], (tasks, 1), 0, size)
    # The text is a ring: queries lie anywhere beyond the context.
    asked = jax.random.randint(keys[1], (tasks, queries), shown, size - READ)
    first = start + jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(length), (tasks, length)), asked], axis=1
    )
    places = (first[..., None] + jnp.arange(READ + 1)) % size  # [tasks, m + q, READ + 1]
    secret = _shuffles(keys[2], tasks, len(LETTERS))
    task = jnp.arange(tasks)[:, None, None]
    letters = secret[task, data[places].astype(jnp.int32)]
    x = jax.nn.one_hot(letters[..., :READ], len(LETTERS)).reshape(tasks, length + queries, -1)
    y = letters[..., READ]
    context_y = jax.nn.one_hot(y[:, :length], len(LETTERS))
    return Episodes(x[:, :length], context_y, x[:, length:], y[:, length:])


def _labelled(
    data: Images, key: Array, classes: int, tasks: int, length: int, queries: int
) -> Episodes:
    """Draw tasks of some classes, numbered at random."""
    which, naming = jax.random.split(key)
    drawn = _draw(data, which, classes, tasks, length, queries)
    x = _flat(drawn.pixels)
    y = jnp.take_along_axis(_shuffles(naming, tasks, classes), drawn.place, axis=1)
    shown = jax.nn.one_hot(y[:, :length], classes)
    return Episodes(x[:, :length], shown, x[:, length:], y[:, length:])


def _unlabelled(drawn: _Drawn, images: Array, length: int) -> Episodes:
    """Return tasks whose contexts are images `[tasks, m, side, side]` alone."""
    x = _flat(images)
    y = jnp.take_along_axis(drawn.order, drawn.place[:, length:], axis=1)
    tasks, classes = drawn.order.shape
    return Episodes(x[:, :length], jnp.zeros((tasks, length, classes)), x[:, length:], y)


def _draw(data: Images, key: Array, classes: int, tasks: int, length: int, queries: int) -> _Drawn:
    """Draw different images: the classes take turns, each time in another order.

    So the first items of a context hold each class as often as a shorter context does.
    """
    keys = jax.random.split(key, 3)
    order = _shuffles(keys[0], tasks, len(data.counts))[:, :classes]
    rounds = [-(-number // classes) for number in (length, queries)]
    turns = _shuffles(keys[1], tasks * sum(rounds), classes).reshape(tasks, -1)
    used = np.r_[np.arange(length), rounds[0] * classes + np.arange(queries)]
    place, turn = turns[:, used], jnp.asarray(used // classes)
    of_class = _different(keys[2], data.counts[order], sum(rounds))  # [tasks, classes, rounds]
    task = jnp.arange(tasks)[:, None]
    images = data.members[order[task, place], of_class[task, place, turn]]
    return _Drawn(data.pixels[images].astype(jnp.float32) / 255, order, place)


def _different(key: Array, counts: Array, drawn: int) -> Array:
    """Draw different whole numbers below each count, int32 `[..., drawn]`.

    Neighbours come together half as often as others do: good enough where order means nothing.
    """
    uniform = jax.random.uniform(key, (*counts.shape, drawn))
    numbers = (uniform * (counts - drawn + 1)[..., None]).astype(jnp.int32)
    one, other = numbers[..., :, None], numbers[..., None, :]
    earlier = jnp.tri(drawn, k=-1, dtype=bool)
    rank = ((other < one) | ((other == one) & earlier)).sum(-1, dtype=jnp.int32)
    return numbers + rank  # the sorted numbers, spread by 1 each, differ


def _shuffles(key: Array, tasks: int, count: int) -> Array:
    """Return a random order of whole numbers for each task, int32 `[tasks, count]`."""
    return jnp.argsort(jax.random.uniform(key, (tasks, count)), axis=-1).astype(jnp.int32)


def _flat(images: Array) -> Array:
    """Return images `[..., h, w]` as vectors."""
    return images.reshape(*images.shape[:-2], -1)
