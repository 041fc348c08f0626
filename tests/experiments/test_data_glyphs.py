import shutil

import numpy as np
import pytest

from straw_experiments.data import glyphs


@pytest.mark.parametrize(("split", "per_class"), [("train", 2400), ("test", 200)])
def test_every_class_has_its_share(split, per_class):
    counts = np.bincount(glyphs.labels(split))
    np.testing.assert_array_equal(counts, np.full(47, per_class))
    assert glyphs.labels(split).dtype == np.int32


@pytest.mark.parametrize("stride", [2, 5, 10, 20])
def test_strided_subsets_keep_the_classes_balanced(stride):
    counts = np.bincount(glyphs.labels("train")[::stride], minlength=47)
    assert counts.max() - counts.min() <= 1


def test_an_image_depends_on_seed_split_and_its_own_index_only():
    together = glyphs.draw("train", np.arange(0, 1100, 10))
    np.testing.assert_array_equal(glyphs.draw("train", np.array([1050, 30])), together[[105, 3]])
    assert (glyphs.draw("train", np.array([30]), seed=1) != together[[3]]).any()
    assert (glyphs.draw("test", np.array([30])) != together[[3]]).any()


def test_chunks_leave_no_seam(monkeypatch):
    whole = glyphs.draw("test", np.arange(50))
    monkeypatch.setattr(glyphs, "_CHUNK", 7)
    np.testing.assert_array_equal(glyphs.draw("test", np.arange(50)), whole)


def test_images_are_bright_varied_characters_on_black():
    images = glyphs.draw("train", np.arange(470))
    assert images.shape == (470, 28, 28, 1)
    assert images.dtype == np.uint8
    inked = (images > 127).sum(axis=(1, 2, 3))
    assert inked.min() > 15  # None has vanished,
    assert inked.max() < 400  # none is a blot,
    assert np.median(images[:, :2]) == 0  # and characters stay within the frame.
    assert len(np.unique(images, axis=0)) == 470


def test_classes_look_alike_inside_and_differ_outside():
    images = glyphs.draw("train", np.arange(47 * 40)).reshape(40, 47, -1) / 255.0
    means = images[:30].mean(axis=0)
    distances = ((images[30:, :, None] - means) ** 2).sum(-1)
    accuracy = (distances.argmin(-1) == np.arange(47)).mean()
    assert 0.4 < accuracy < 0.97  # The nearest class mean, from 30 images, is a weak classifier.


def test_a_merged_class_holds_small_letters_too():
    characters = {name: {character for _, character in glyphs._glyphs(name)} for name in "Aa0L"}
    assert "L" in characters["L"]
    assert "l" in characters["L"]
    assert "a" not in characters["A"]  # A class of its own.
    assert characters["0"] == {"0"}


def test_stored_images_are_the_drawn_ones(tmp_path):
    indices = np.arange(0, 300, 3)
    first = glyphs.load("test", indices, tmp_path)
    again = glyphs.load("test", indices, tmp_path)
    assert len(list(tmp_path.rglob("*.npz"))) == 1
    for images, labels in (first, again):
        np.testing.assert_array_equal(images, glyphs.draw("test", indices))
        np.testing.assert_array_equal(labels, indices % 47)
    other, _ = glyphs.load("test", indices + 1, tmp_path)
    np.testing.assert_array_equal(other, glyphs.draw("test", indices + 1))


def test_stored_images_that_changed_places_are_drawn_anew(tmp_path):
    indices = np.arange(94)
    for split in ("train", "test"):
        glyphs.load(split, indices, tmp_path)
    train, test = (next(tmp_path.rglob(f"*-{split}-*.npz")) for split in ("train", "test"))
    shutil.copy(test, train)
    with pytest.warns(UserWarning, match=rf"^{train} cannot be used and is made anew"):
        images, _ = glyphs.load("train", indices, tmp_path)
    np.testing.assert_array_equal(images, glyphs.draw("train", indices))


def test_a_font_that_cannot_be_read_is_named(monkeypatch):
    monkeypatch.setattr(glyphs, "_FACES", ("cmr10", "no-such-face"))
    glyphs._shapes.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"font no-such-face\.ttf, got: .* matplotlib again"):
            glyphs.draw("train", np.arange(2))
    finally:
        glyphs._shapes.cache_clear()
