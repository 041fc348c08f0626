"""The data that tasks are drawn from, in three parts, and what is known of tasks in advance."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments import data
from straw_experiments.data import text as texts
from straw_experiments.necessity.draws import AMPLITUDES, LETTERS, REACH, READ, Images
from straw_experiments.necessity.tasks import PARTS, TASKS

_CLASSES, _UNSEEN, _DIGITS = 47, 15, 10  # classes; the digits are the first ones
_SIZE = 28  # of the images as they are read, down and across
_SPLIT = 0  # seed
_STRIDE = 10  # one in as many images of training is for validation
_LEAST_IMAGES, _LEAST_LETTERS = 50, 1_000  # of a class, and of a text, in each part
_NUMBERS = {ord(letter): number for number, letter in enumerate(LETTERS)}


class Sources(NamedTuple):
    """What tasks are drawn from.

    Attributes:
        parts: By task and part, what `Task.draw` takes: arrays on the device.
        names: What is truly drawn from, "images" and "text", where tasks need them.
    """

    parts: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str]


def load(
    names: Iterable[str],
    *,
    dataset: str = "auto",
    data_dir: str | None = None,
    archive: str | None = None,
    text: str | None = None,
) -> Sources:
    """Read what some tasks need.

    Images are pooled to half their size; those that occur twice are taken once. Every tenth of a
    class's training images is for validation. New classes are drawn from the 32 seen ones in
    training and validation, and from `unseen()` in the test; the other tasks of images are of
    digits. Texts are made `plain`.

    Args:
        names: Of tasks.
        dataset: As for `data.load`; of EMNIST's 47 classes.
        data_dir: As for `data.load`, and for `data.text.load`.
        archive: As for `data.load`.
        text: A text file, or None for Penn Treebank.

    Raises:
        ValueError: Data are missing, damaged, or others than the tasks need.
    """
    chosen = [TASKS[name] for name in names]
    # A sine needs no data.
    parts: dict[str, Mapping[str, Any]] = {task.name: dict.fromkeys(PARTS, ()) for task in chosen}
    found = {}
    if any(task.side for task in chosen):
        images = data.load(dataset, data_dir=data_dir, archive=archive)
        found["images"] = images.name
        new, digits = _images(images)
        parts |= {
            task.name: new if task.name == "few_shot" else digits for task in chosen if task.side
        }
    if "cipher" in parts:
        read = texts.load(text, data_dir)
        found["text"] = read.name if text is None else f"{read.name}, sha256 {read.sha256()[:12]}"
        parts["cipher"] = _letters(read)
    return Sources(parts, found)


def unseen() -> list[int]:
    """Return the classes that few-shot training never sees: drawn by lot, once for all."""
    order = np.random.default_rng(_SPLIT).permutation(_CLASSES)
    return sorted(order[:_UNSEEN].tolist())


def plain(text: str) -> str:
    """Return a text in the letters a to z, one blank in place of all between them."""
    return re.sub("[^a-z]+", " ", text.lower())


def without_context(name: str, data: Any) -> dict[str, float]:
    """Return what no prediction can surpass, on average, that does not depend on the context.

    Args:
        name: Of a task.
        data: The part of its data that is asked of.

    Returns:
        "accuracy", from 0 to 1, or "loss", a mean squared error; nothing where it is not known.
    """
    if name in ("few_shot", "labels"):  # All labels are as likely.
        return {"accuracy": 1 / TASKS[name].outputs}
    if name == "sine":
        return {"loss": _sine_without_context()}
    if name == "cipher":
        return {"accuracy": _cipher_without_context(np.asarray(data))}
    return {}


def _sine_without_context() -> float:
    """Return the mean variance of the answer, given the point."""
    low, high = AMPLITUDES
    mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
    # Over phases, sin(x - phase) has the mean -2 / pi cos(x), and its square the mean 1 / 2.
    cos_square = (1 + math.sin(2 * REACH) / (2 * REACH)) / 2
    return square / 2 - (mean * 2 / math.pi) ** 2 * cos_square


def _cipher_without_context(text: np.ndarray) -> float:
    """Return the accuracy of the best guess by which of the letters before are the same.

    That is all that they show: one of them, or any other letter, comes next.
    """
    counts: dict[tuple[int, ...], Counter[int]] = {}
    windows = np.lib.stride_tricks.sliding_window_view(text, READ + 1)
    for window, number in Counter(map(bytes, windows)).items():
        different = list(dict.fromkeys(window[:READ]))
        pattern = tuple(map(different.index, window[:READ]))
        # The position of the letter asked for among those before, -1 if it is another.
        answer = different.index(window[READ]) if window[READ] in different else -1
        counts.setdefault(pattern, Counter())[answer] += number
    best = 0.0
    for pattern, answers in counts.items():
        others = answers.pop(-1, 0) / (len(LETTERS) - len(set(pattern)))
        best += max([others, *answers.values()])
    return best / len(windows)


def _images(dataset: data.Dataset) -> tuple[dict[str, Images], dict[str, Images]]:
    """Return, by part, images for tasks of new classes, and of digits."""
    shape, count = dataset.train_images.shape[1:], len(dataset.class_names)
    if shape != (_SIZE, _SIZE, 1) or count != _CLASSES:
        raise ValueError(
            f"argument --dataset: expected {_CLASSES} classes of grey images, {_SIZE} x {_SIZE}, as"
            f" in emnist and glyphs, got {count} classes of {' x '.join(map(str, shape))} in"
            f" {dataset.name}"
        )
    training, tested = pooled(dataset.train_images), pooled(dataset.test_images)
    shown, mean = jnp.asarray(training), jnp.float32(training.mean() / 255)
    members = _by_class(training, dataset.train_labels)
    sets = (
        (shown, [np.delete(of, np.s_[::_STRIDE]) for of in members]),
        (shown, [of[::_STRIDE] for of in members]),
        (jnp.asarray(tested), _by_class(tested, dataset.test_labels)),
    )
    new, digits, left_out = {}, {}, unseen()
    for part, (pixels, of_part) in zip(PARTS, sets, strict=True):
        taken = [i for i in range(_CLASSES) if (i in left_out) == (part == "test")]
        new[part] = _of_classes(pixels, [of_part[i] for i in taken], mean)
        digits[part] = _of_classes(pixels, of_part[:_DIGITS], mean)
    return new, digits


def pooled(images: np.ndarray) -> np.ndarray:
    """Return the means of 2 x 2 pixels.

    Args:
        images: uint8 `[n, h, w, 1]`, of even height and width.

    Returns:
        uint8 `[n, h / 2, w / 2]`, rounded.
    """
    rows = images[:, ::2, :, 0].astype(np.uint16) + images[:, 1::2, :, 0]
    return ((rows[..., ::2] + rows[..., 1::2] + 2) // 4).astype(np.uint8)


def _by_class(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each class's images, those that occur twice once."""
    last = {image.tobytes(): position for position, image in enumerate(images)}
    positions = np.sort(np.fromiter(last.values(), np.int32, len(last)))
    return [positions[labels[positions] == i] for i in range(_CLASSES)]


def _of_classes(pixels: Array, members: Sequence[np.ndarray], mean: Array) -> Images:
    counts = np.array([len(of) for of in members], np.int32)
    if counts.min() < _LEAST_IMAGES:
        raise ValueError(
            f"argument --dataset: expected at least {_LEAST_IMAGES} different images of each class"
            f" for training, validation and test each, got {counts.min()}; give more images"
        )
    padded = np.stack([np.pad(of, (0, counts.max() - len(of))) for of in members])
    return Images(pixels, jnp.asarray(padded), jnp.asarray(counts), mean)


def _letters(text: texts.Text) -> dict[str, Array]:
    """Return, by part, the positions of a text's letters in `LETTERS`."""
    found = {}
    for part in PARTS:
        letters = plain(text.decode(getattr(text, part)))
        if len(letters) < _LEAST_LETTERS:
            raise ValueError(
                f"argument --text: expected at least {_LEAST_LETTERS:,} letters for {part}, got"
                f" {len(letters):,} in {text.name}; give a longer text"
            )
        numbers = letters.translate(_NUMBERS).encode("latin-1")
        found[part] = jnp.asarray(np.frombuffer(numbers, np.uint8))
    return found
