import itertools
import math
import string
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import ndimage

from straw_experiments import data
from straw_experiments.data.text import Text
from straw_experiments.necessity import draws, sources
from straw_experiments.necessity.tasks import PARTS, TASKS

CLASSES = 47
SHOWN, TESTED = 100, 12  # images of a class, of training and of the test
IMAGES = [name for name, task in TASKS.items() if task.side]
WORDS = " ".join("".join(each) for each in itertools.permutations("stream", 6))
MANY, LENGTH = 3, 23  # tasks, items


def dataset(classes=CLASSES, side=28):
    rng = np.random.default_rng(0)

    def drawn(count):
        images = rng.integers(0, 256, (count * classes, side, side, 1), np.uint8)
        return images, np.arange(count * classes, dtype=np.int32) % classes

    names = tuple(map(str, range(classes)))
    return data.Dataset("noise", *drawn(SHOWN), *drawn(TESTED), names)


def text(letters=WORDS):
    characters = "".join(sorted(set(letters)))
    numbers = np.array([characters.index(letter) for letter in letters], np.uint8)
    return Text("words", characters, numbers, numbers[::-1], numbers[1:])


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_LEAST_IMAGES", 10)
        patch.setattr(data, "load", lambda *_, **__: dataset())
        patch.setattr(sources.texts, "load", lambda *_: text())
        return sources.load(TASKS)


@pytest.fixture(scope="module")
def episodes(loaded):
    """Some tasks of each kind as NumPy arrays, and the data that they are of."""
    found = {}
    for name, task in TASKS.items():
        part = loaded.parts[name]["train"]
        drawn = jax.jit(lambda part, key, task=task: task.draw(part, key, MANY, LENGTH))
        found[name] = part, jax.tree.map(np.asarray, drawn(part, jax.random.key(1)))
        other = jax.tree.map(np.asarray, drawn(part, jax.random.key(2)))
        jax.tree.map(np.testing.assert_array_equal, found[name][1], drawn(part, jax.random.key(1)))
        assert np.any(other.x != found[name][1].x)
        assert drawn._cache_size() == 1
    return found


def identified(part, images):
    """Return positions in `part.pixels` of images drawn as they are."""
    pixels = np.asarray(part.pixels)
    known = {image.tobytes(): position for position, image in enumerate(pixels)}
    side = pixels.shape[-1]
    images = np.rint(255 * images).astype(np.uint8).reshape(*images.shape[:-1], side, side)
    return np.array([[known[image.tobytes()] for image in of_task] for of_task in images])


@pytest.mark.parametrize("name", TASKS)
def test_episodes_are_of_the_sizes_that_the_task_says(name, episodes):
    task, (_, found) = TASKS[name], episodes[name]
    assert found.context_x.shape == (MANY, LENGTH, task.inputs)
    assert found.context_y.shape == (MANY, LENGTH, task.outputs)
    assert found.x.shape == (MANY, task.queries, task.inputs)
    assert found.y.shape == (MANY, task.queries, *[1] * task.regression)
    assert found.y.dtype == (np.float32 if task.regression else np.int32)
    assert {array.dtype.name for array in found[:3]} == {"float32"}
    if not task.labelled:
        assert not found.context_y.any()
    elif not task.regression:
        np.testing.assert_array_equal(found.context_y.sum(-1), 1)
    assert task.side is None or task.inputs == task.side**2


def reference(part, key, task, classes, hidden):
    """Draw images by plain loops: positions [tasks, m + q], places, orders and what is hidden."""
    m, q, of_all = LENGTH, task.queries, len(part.counts)
    rounds = math.ceil(m / classes), math.ceil(q / classes)
    most = sum(rounds)
    sizes = (of_all, most * classes, classes * most, hidden)
    numbers = np.asarray(jax.random.uniform(key, (MANY, sum(sizes))))
    for row in numbers:
        of_order, of_turns, of_images, secret = np.split(row, np.cumsum(sizes)[:-1])
        order = np.argsort(of_order)[:classes]
        chosen = {}
        for each, of_class in zip(order, of_images.reshape(classes, most), strict=True):
            free = part.counts[each] - most + 1
            starts = [int(number * np.float32(free)) for number in of_class]
            by_size = sorted(range(most), key=lambda i, starts=starts: starts[i])
            chosen[each] = {i: starts[i] + rank for rank, i in enumerate(by_size)}
        positions, classes_of = [], []
        turns = [np.argsort(turn) for turn in of_turns.reshape(most, classes)]
        for first, count in ((0, m), (rounds[0], q)):
            for i in range(count):
                turn, within = divmod(i, classes)
                each = order[turns[first + turn][within]]
                positions.append(part.members[each, chosen[each][first + turn]])
                classes_of.append(each)
        yield np.array(positions), np.array(classes_of), order, secret


@pytest.mark.parametrize(("name", "classes"), [("few_shot", 5), ("labels", 10)])
def test_labels_are_a_permutation_of_each_task(name, classes, episodes):
    part, found = episodes[name]
    expected = reference(part, jax.random.key(1), TASKS[name], classes, classes)
    names = set()
    for i, (positions, classes_of, order, secret) in enumerate(expected):
        images = np.asarray(part.pixels)[positions].reshape(len(positions), -1) / 255
        x = np.concatenate([found.context_x[i], found.x[i]])
        np.testing.assert_allclose(x, images, atol=1e-6)
        y = np.concatenate([found.context_y[i].argmax(-1), found.y[i]])
        name_of = dict(zip(order.tolist(), np.argsort(secret).tolist(), strict=True))
        assert y.tolist() == [name_of[each] for each in classes_of]
        assert sorted(name_of.values()) == list(range(classes))
        names.add(tuple(np.argsort(secret)))
        counts = np.bincount(y[:LENGTH], minlength=classes)
        assert counts.max() - counts.min() <= 1
    assert len(names) == MANY


def test_a_task_is_rotated_by_one_angle(episodes):
    part, found = episodes["rotation"]
    down, right = np.mgrid[:14, :14] - 6.5
    angles = []
    for i, (positions, classes_of, _, secret) in enumerate(
        reference(part, jax.random.key(1), TASKS["rotation"], 10, 1)
    ):
        angle = np.deg2rad(360 * secret[0] - 180)
        angles.append(angle)
        # Counter-clockwise: a point of the result comes from where it is rotated back to.
        source = [
            np.cos(angle) * down + np.sin(angle) * right + 6.5,
            np.cos(angle) * right - np.sin(angle) * down + 6.5,
        ]
        x = np.concatenate([found.context_x[i], found.x[i]])
        for position, image in zip(positions, x, strict=True):
            original = np.asarray(part.pixels)[position] / 255
            rotated = ndimage.map_coordinates(original, source, order=1, mode="nearest")
            np.testing.assert_allclose(image.reshape(14, 14), rotated, atol=1e-4)
        assert found.y[i].tolist() == classes_of[LENGTH:].tolist()
    assert len(set(angles)) == MANY


def test_a_task_has_one_sign_for_each_block(episodes):
    part, found = episodes["signs"]
    for i, (positions, classes_of, _, secret) in enumerate(
        reference(part, jax.random.key(1), TASKS["signs"], 10, 16)
    ):
        x = np.concatenate([found.context_x[i], found.x[i]]).reshape(-1, 14, 14)
        for row, column in itertools.product(range(14), repeat=2):
            block = 4 * (row * 4 // 14) + column * 4 // 14
            original = np.asarray(part.pixels)[positions, row, column] / 255 - float(part.mean)
            sign = -1 if secret[block] < 0.5 else 1
            np.testing.assert_allclose(x[:, row, column], sign * original, atol=1e-6)
        assert found.y[i].tolist() == classes_of[LENGTH:].tolist()
    # Blocks differ by a row or a column at most.
    assert np.bincount(np.arange(14) * 4 // 14).tolist() == [4, 3, 4, 3]


@pytest.mark.parametrize("name", ["few_shot", "labels"])
def test_no_image_is_asked_for_that_is_shown(name, loaded):
    task = TASKS[name]
    draw = jax.jit(lambda part, key: task.draw(part, key, 64))
    part = loaded.parts[name]["train"]
    found = jax.tree.map(np.asarray, draw(part, jax.random.key(0)))
    used = identified(part, np.concatenate([found.context_x, found.x], axis=1))
    assert all(len(set(of_task)) == task.length + task.queries for of_task in used.tolist())


def test_parts_share_no_image_and_new_classes_are_new(loaded):
    left_out = sources.unseen()
    assert len(set(left_out)) == 15
    for name in IMAGES:
        used = {}
        for part in PARTS:
            of = loaded.parts[name][part]
            rows = zip(np.asarray(of.members), np.asarray(of.counts), strict=True)
            used[part] = [set(row[:count].tolist()) for row, count in rows]
            # Image i of the data set is of the class i modulo 47.
            classes = [{position % CLASSES for position in row} for row in used[part]]
            expected = [i for i in range(CLASSES) if (i in left_out) == (part == "test")]
            assert classes == [{i} for i in (expected if name == "few_shot" else range(10))]
        for seen, held_out in zip(used["train"], used["validation"], strict=True):
            assert len(seen) == 9 * len(held_out)
            assert not seen & held_out


def test_an_image_that_occurs_twice_is_taken_once():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    images[4] = images[1]
    found = sources._by_class(images, np.array([0, 1, 0, 1, 1, 0]))
    assert [of.tolist() for of in found[:2]] == [[0, 2, 5], [3, 4]]


def test_images_are_pooled():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 1), np.uint8)
    found = sources.pooled(images)
    for i, row, column in itertools.product(range(2), range(2), range(3)):
        block = images[i, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert found[i, row, column] == math.floor(block.mean() + 0.5)


def test_points_of_a_task_are_of_one_sine(episodes):
    _, found = episodes["sine"]
    for i in range(MANY):
        x = np.concatenate([found.context_x[i], found.x[i]])[:, 0].astype(np.float64)
        y = np.concatenate([found.context_y[i], found.y[i]])[:, 0]
        terms = np.stack([np.sin(x), -np.cos(x)], axis=1)
        weights = np.linalg.lstsq(terms, y)[0]
        np.testing.assert_allclose(terms @ weights, y, atol=1e-5)
        assert 0.1 <= np.hypot(*weights) <= 5
        assert 0 <= np.arctan2(weights[1], weights[0]) <= math.pi
        assert np.abs(x).max() <= 5
        assert np.ptp(x) > 5


def test_a_cipher_is_the_text_under_one_permutation(episodes):
    letters, found = episodes["cipher"]
    letters = np.asarray(letters)
    numbers = np.asarray(jax.random.uniform(jax.random.key(1), (MANY, 27 + 1 + 32)))
    for i, row in enumerate(numbers):
        secret = np.argsort(row[:27])
        assert sorted(secret) == list(range(27))
        start = int(row[27] * np.float32(len(letters)))
        left = len(letters) - LENGTH - 8
        asked = [start + LENGTH + 4 + int(u * np.float32(left)) for u in row[28:]]
        read = np.concatenate([found.context_x[i], found.x[i]]).reshape(-1, 4, 27)
        assert np.all(read.sum(-1) == 1)
        windows = np.concatenate(
            [
                read.argmax(-1),
                np.concatenate([found.context_y[i].argmax(-1), found.y[i]])[:, None],
            ],
            axis=1,
        )
        ring = np.concatenate([letters, letters])
        firsts = [*range(start, start + LENGTH), *asked]
        for window, first in zip(windows, firsts, strict=True):
            place = first % len(letters)
            assert window.tolist() == secret[ring[place : place + 5]].tolist()
        context = {place % len(letters) for place in range(start, start + LENGTH + 4)}
        touched = {(place + j) % len(letters) for place in asked for j in range(5)}
        assert not context & touched


def test_letters_are_a_to_z_and_blanks():
    assert sources.plain("To be, or\n\nnot: 2B?") == "to be or not b "
    found = sources._letters(text((string.ascii_letters + " ,\n") * 40))
    plain = (2 * string.ascii_lowercase + " ") * 40
    expected = [draws.LETTERS.index(letter) for letter in plain]
    assert np.asarray(found["train"]).tolist() == expected


def test_what_can_be_reached_without_a_context(loaded):
    rng = np.random.default_rng(0)
    x = np.linspace(-5, 5, 201)
    amplitude, phase = rng.uniform(0.1, 5, (40_000, 1)), rng.uniform(0, math.pi, (40_000, 1))
    variance = np.mean([np.var(amplitude * np.sin(each - phase)) for each in x])
    assert sources.without_context("sine", ())["loss"] == pytest.approx(variance, rel=0.02)

    def of(letters):
        numbers = [draws.LETTERS.index(letter) for letter in letters]
        return sources.without_context("cipher", np.array(numbers, np.uint8))["accuracy"]

    assert of("ababababab") == pytest.approx(1)
    assert of(string.ascii_lowercase) == pytest.approx(1 / 23)
    # After "aaaa" comes a letter of 26 others once, and "a" twice.
    assert of("aaaaaab") == pytest.approx(2 / 3)
    assert sources.without_context("labels", loaded.parts["labels"]["test"]) == {"accuracy": 0.1}
    assert sources.without_context("rotation", loaded.parts["rotation"]["test"]) == {}


@pytest.mark.parametrize("other", [{"classes": 10}, {"side": 32}])
def test_images_of_another_kind_are_refused(other, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: dataset(**other))
    with pytest.raises(ValueError, match=r"--dataset: expected 47 classes of grey images, 28 x 28"):
        sources.load(["labels"])


def test_too_little_data_is_refused(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: dataset())
    with pytest.raises(ValueError, match=r"expected at least 50 different images .* got 10; give"):
        sources.load(["rotation"])
    monkeypatch.setattr(sources.texts, "load", lambda *_: text("too short"))
    with pytest.raises(ValueError, match=r"--text: expected at least 1,000 letters for train, got"):
        sources.load(["cipher"])


def test_only_what_is_asked_for_is_read():
    found = sources.load(["sine"])
    assert found.names == {}
    assert found.parts == {"sine": dict.fromkeys(PARTS, ())}


def test_names_and_labels_need_the_standard_library_alone():
    code = (
        "import sys; from straw_experiments.necessity.tasks import TASKS;"
        "assert not {'jax', 'numpy'} & set(sys.modules); print(*TASKS)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*TASKS]
