"""How the tasks are drawn on the device, from arrays that lie there."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

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
        hidden: Uniform numbers from 0 to 1 for what a task hides, `[tasks, hidden]`.
    """

    pixels: Array
    order: Array
    place: Array
    hidden: Array


def few_shot(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks of a few classes each, under random labels."""
    return _labelled(data, key, _WAYS, tasks, length, queries)


def labels(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks of all classes, under random labels."""
    return _labelled(data, key, len(data.counts), tasks, length, queries)


def rotation(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks whose images are rotated alike, by up to 180 degrees."""
    drawn = _draw(data, key, len(data.counts), tasks, length, queries, hidden=1)
    degrees = 360 * drawn.hidden[:, 0] - 180
    rotated = jax.vmap(resample)(drawn.pixels[..., None], affine(degrees))[..., 0]
    return _unlabelled(drawn, rotated, length)


def signs(data: Images, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks whose images have the same blocks negated, after the mean is subtracted."""
    drawn = _draw(data, key, len(data.counts), tasks, length, queries, hidden=_GRID**2)
    side = drawn.pixels.shape[-1]
    block = np.arange(side) * _GRID // side
    sign = jnp.where(drawn.hidden < 0.5, -1.0, 1.0).reshape(tasks, 1, _GRID, _GRID)
    signed = (drawn.pixels - data.mean) * sign[:, :, block][..., block]
    return _unlabelled(drawn, signed, length)


def sine(data: Any, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks that are sines.

    References:
        Finn et al., "Model-Agnostic Meta-Learning" (2017), section 5.1.
    """
    del data
    low, high = AMPLITUDES
    amplitude, phase, point = _uniform(key, tasks, (1, 1), (1, 1), (length + queries, 1))
    x = REACH * (2 * point - 1)
    y = (low + (high - low) * amplitude) * jnp.sin(x - math.pi * phase)
    return Episodes(x[:, :length], y[:, :length], x[:, length:], y[:, length:])


def cipher(data: Array, key: Array, *, tasks: int, length: int, queries: int) -> Episodes:
    """Draw tasks that are a text in a cipher each.

    Args:
        data: The text, each letter as its position in `LETTERS`, uint8 `[n]`.
        key: A random key.
        tasks: How many.
        length: Letters that are shown as an answer, one after the other.
        queries: Letters that are asked for, at places out of reach of the context.
    """
    order, start, asked = _uniform(key, tasks, (len(LETTERS),), (1,), (queries,))
    secret = _order(order)
    # The text is taken as a ring: queries lie anywhere in what the context leaves of it.
    left = len(data) - (length + READ) - READ
    shown = jnp.broadcast_to(jnp.arange(length), (tasks, length))
    beyond = length + READ + _below(left, asked)
    first = _below(len(data), start) + jnp.concatenate([shown, beyond], axis=1)
    windows = data[(first[..., None] + jnp.arange(READ + 1)[None, None]) % len(data)]
    letters = secret[jnp.arange(tasks)[:, None, None], windows.astype(jnp.int32)]
    x = jax.nn.one_hot(letters[..., :READ], len(LETTERS)).reshape(tasks, length + queries, -1)
    y = letters[..., READ]
    shown_y = jax.nn.one_hot(y[:, :length], len(LETTERS))
    return Episodes(x[:, :length], shown_y, x[:, length:], y[:, length:])


def _labelled(
    data: Images, key: Array, classes: int, tasks: int, length: int, queries: int
) -> Episodes:
    """Draw tasks of some classes, numbered at random."""
    drawn = _draw(data, key, classes, tasks, length, queries, hidden=classes)
    x = _flat(drawn.pixels)
    y = jnp.take_along_axis(_order(drawn.hidden), drawn.place, axis=1)
    shown = jax.nn.one_hot(y[:, :length], classes)
    return Episodes(x[:, :length], shown, x[:, length:], y[:, length:])


def _unlabelled(drawn: _Drawn, images: Array, length: int) -> Episodes:
    """Return tasks whose contexts are images `[tasks, m, side, side]` alone."""
    x = _flat(images)
    y = jnp.take_along_axis(drawn.order, drawn.place[:, length:], axis=1)
    tasks, classes = drawn.order.shape
    return Episodes(x[:, :length], jnp.zeros((tasks, length, classes)), x[:, length:], y)


def _draw(
    data: Images, key: Array, classes: int, tasks: int, length: int, queries: int, *, hidden: int
) -> _Drawn:
    """Draw different images: the classes take turns, each time in another order.

    So the first items of a context hold each class as often as a shorter context does.
    """
    rounds = [-(-number // classes) for number in (length, queries)]
    most = sum(rounds)  # of a class
    of_order, of_turns, of_images, of_hidden = _uniform(
        key, tasks, (len(data.counts),), (most, classes), (classes, most), (hidden,)
    )
    order = _order(of_order)[:, :classes]
    used = np.r_[np.arange(length), rounds[0] * classes + np.arange(queries)]
    place, turn = _order(of_turns).reshape(tasks, -1)[:, used], used // classes
    chosen = _different(data.counts[order], of_images)  # [tasks, classes, most]
    task = jnp.arange(tasks)[:, None]
    images = data.members[order[task, place], chosen[task, place, turn]]
    return _Drawn(data.pixels[images].astype(jnp.float32) / 255, order, place, of_hidden)


def _uniform(key: Array, tasks: int, *shapes: tuple[int, ...]) -> list[Array]:
    """Return arrays `[tasks, *shape]` of numbers from 0 to 1, drawn at once: it compiles faster."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = jnp.split(jax.random.uniform(key, (tasks, int(ends[-1]))), ends[:-1], axis=1)
    return [piece.reshape(tasks, *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _order(uniform: Array) -> Array:
    """Return a random order of whole numbers along the last axis, int32."""
    return jnp.argsort(uniform, axis=-1).astype(jnp.int32)


def _below(count: ArrayLike, uniform: Array) -> Array:
    """Return random whole numbers from 0, below a count, int32."""
    return (uniform * jnp.asarray(count, jnp.float32)).astype(jnp.int32)


def _different(counts: Array, uniform: Array) -> Array:
    """Return whole numbers `[..., drawn]` below counts `[...]`; those along the last axis differ.

    Neighbours come together half as often as others do: good enough where order means nothing.
    """
    drawn = uniform.shape[-1]
    numbers = _below((counts - drawn + 1)[..., None], uniform)
    one, other = numbers[..., :, None], numbers[..., None, :]
    rank = ((other < one) | jnp.tril(other == one, k=-1)).sum(-1, dtype=jnp.int32)
    return numbers + rank  # sorted, each is at least 1 more than the one before


def _flat(images: Array) -> Array:
    """Return images `[..., h, w]` as vectors."""
    return images.reshape(*images.shape[:-2], -1)
