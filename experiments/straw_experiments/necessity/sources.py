"""The data that tasks are drawn from, in three parts, and what can be said of them in advance."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from straw_experiments import data
from straw_experiments.data import text as texts
from straw_experiments.necessity.draws import LETTERS, READ, Images
from straw_experiments.necessity.tasks import PARTS, TASKS

CLASSES, UNSEEN = 47, 15
"""Of the images, and those among them that few-shot training never sees."""

_SIZE = 28  # of the images, down and across
_DIGITS = 10  # the first classes
_SPLIT = 0  # seed
_VALIDATION = 10  # every so manieth of the training images
_LEAST_IMAGES, _LEAST_LETTERS = 50, 1_000


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

    Images that occur twice are taken once. Of the training images of each class, every tenth is for
    validation. New classes are drawn from 32 classes in training and validation, and from
    `unseen()` in the test; all other tasks of images from the ten digits. Of a text, letters are
    made lower-case, and all that is between two letters is one blank.

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
    parts: dict[str, Mapping[str, Any]] = {}
    found: dict[str, str] = {}
    if pictured := [task.name for task in chosen if task.side]:
        images = data.load(dataset, data_dir=data_dir, archive=archive)
        found["images"] = images.name
        parts |= _images(images, pictured)
    if any(task.name == "cipher" for task in chosen):
        read = texts.load(text, data_dir)
        found["text"] = read.name
        parts["cipher"] = _letters(read)
    # A sine needs no data.
    return Sources(
        {task.name: parts.get(task.name, dict.fromkeys(PARTS, ())) for task in chosen}, found
    )


def unseen() -> list[int]:
    """Return the classes that few-shot training never sees: chosen by chance, once for all."""
    order = np.random.default_rng(_SPLIT).permutation(CLASSES)
    return sorted(order[:UNSEEN].tolist())


def _images(dataset: data.Dataset, names: Iterable[str]) -> dict[str, dict[str, Images]]:
    shape, count = dataset.train_images.shape[1:], len(dataset.class_names)
    if shape != (_SIZE, _SIZE, 1) or count != CLASSES:
        raise ValueError(
            f"argument --dataset: expected {CLASSES} classes of grey images, {_SIZE} x {_SIZE}, as"
            f" in emnist and glyphs, got {count} classes of {' x '.join(map(str, shape))} in"
            f" {dataset.name}"
        )
    training, tested = (
        (jnp.asarray(images[..., 0]), _by_class(images, labels))
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        )
    )
    mean = jnp.float32(dataset.train_images.mean() / 255)
    held_out = [of[::_VALIDATION] for of in training[1]]
    kept = [np.delete(of, np.s_[::_VALIDATION]) for of in training[1]]
    sets = zip(
        PARTS,
        ((training[0], kept), (training[0], held_out), (tested[0], tested[1])),
        strict=True,
    )
    found: dict[str, dict[str, Images]] = {name: {} for name in names}
    new = unseen()
    for part, (pixels, members) in sets:
        digits = _of(pixels, members[:_DIGITS], mean)
        for name in found:
            seen = [i for i in range(CLASSES) if (i in new) == (part == "test")]
            found[name][part] = (
                _of(pixels, [members[i] for i in seen], mean) if name == "few_shot" else digits
            )
    return found


def _by_class(images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each class's images, each image once."""
    once = {image.tobytes(): position for position, image in enumerate(images)}
    positions = np.sort(np.fromiter(once.values(), np.int64, len(once)))
    return [positions[labels[positions] == i] for i in range(CLASSES)]


def _of(pixels: Any, members: list[np.ndarray], mean: Any) -> Images:
    counts = np.array([len(of) for of in members], np.int32)
    if counts.min() < _LEAST_IMAGES:
        raise ValueError(
            f"argument --dataset: expected at least {_LEAST_IMAGES} different images of a class in"
            f" each part, got {counts.min()}. Use more data"
        )
    padded = np.zeros((len(counts), counts.max()), np.int32)
    for row, of in zip(padded, members, strict=True):
        row[: len(of)] = of
    return Images(pixels, jnp.asarray(padded), jnp.asarray(counts), mean)


def _letters(text: texts.Text) -> dict[str, Any]:
    found = {}
    for part in PARTS:
        letters = plain(text.decode(getattr(text, part)))
        if len(letters) < _LEAST_LETTERS:
            raise ValueError(
                f"argument --text: expected at least {_LEAST_LETTERS:,} letters for {part}, got"
                f" {len(letters):,} in {text.name}. Use a longer text"
            )
        numbers = np.frombuffer(letters.encode("ascii"), np.uint8)
        position = np.zeros(128, np.uint8)
        position[np.frombuffer(LETTERS.encode("ascii"), np.uint8)] = np.arange(len(LETTERS))
        found[part] = jnp.asarray(position[numbers])
    return found


def plain(text: str) -> str:
    """Return a text in the letters a to z, one blank where others are between them."""
    return re.sub("[^a-z]+", " ", text.lower())
