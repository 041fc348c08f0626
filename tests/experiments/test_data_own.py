import gzip
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from straw_experiments import data
from straw_experiments.data import image_folder, npz_file, sources
from straw_experiments.data.sources import held_out
from straw_experiments.runner import limits

SPLITS = ("train", "test")


def _noise(count: int, height: int = 9, width: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, channels), np.uint8)


def _png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


def _write_folder(folder: Path, images: np.ndarray, classes: tuple[str, ...]) -> None:
    """Image i is file i, with its class in turn."""
    for index, pixels in enumerate(images):
        _png(folder / classes[index % len(classes)] / f"{index:03}.png", pixels)


def _by_content(images: np.ndarray, labels: np.ndarray) -> dict[bytes, int]:
    pairs = {pixels.tobytes(): int(label) for pixels, label in zip(images, labels, strict=True)}
    assert len(pairs) == len(images)
    return pairs


def _arrays(channels: int = 3, **changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "train_images": _noise(6, channels=channels),
        "train_labels": np.arange(6) % 3,
        "test_images": _noise(4, channels=channels),
        "test_labels": np.array([2, 1, 0, 2]),
    }
    return arrays | changes


def _refused(path: Path, message: str, *, checked: bool = True) -> None:
    """Both `check`, unless it need not notice, and `load` refuse a path."""
    for function in (data.check, data.load) if checked else (data.load,):
        with pytest.raises(ValueError, match=message) as caught:
            function(path)
        assert "\n" not in str(caught.value)


# --- A folder of class folders ------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_two_splits_is_read_exactly(channels, tmp_path):
    folder = tmp_path / "flowers"
    images = {"train": _noise(13, channels=channels), "test": _noise(5, channels=channels)}
    for split in SPLITS:
        _write_folder(folder / split, images[split], ("rose", "daisy"))
    (folder / "train" / "rose" / ".DS_Store").write_text("left out")
    (folder / "LICENSE.txt").write_text("left out")
    data.check(folder)
    dataset = data.load(folder)
    assert re.fullmatch(r"flowers \(folder, 2 classes, sha256 [0-9a-f]{12}\)", dataset.name)
    assert dataset.class_names == ("daisy", "rose")
    for split in SPLITS:
        loaded, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        expected = 1 - np.arange(len(images[split])) % 2  # "rose", the second, came first.
        assert _by_content(loaded, labels) == _by_content(images[split], expected)
        assert (loaded.dtype, labels.dtype) == (np.uint8, np.int32)


def test_without_splits_the_first_sixth_and_eleventh_of_a_class_are_for_testing(tmp_path):
    images = _noise(26)
    _write_folder(tmp_path / "birds", images, ("owl", "wren"))
    data.check(tmp_path / "birds")
    dataset = data.load(tmp_path / "birds")
    assert dataset.name.startswith(
        "birds (folder, 2 classes, every 5th image of a class for testing, sha256 "
    )
    held = [0, 1, 10, 11, 20, 21]
    expected = _by_content(images[held], np.array(held) % 2)
    assert _by_content(dataset.test_images, dataset.test_labels) == expected
    rest = np.setdiff1d(np.arange(26), held)
    expected = _by_content(images[rest], rest % 2)
    assert _by_content(dataset.train_images, dataset.train_labels) == expected


def test_the_order_of_a_folder_is_fixed_and_mixes_the_classes(tmp_path):
    _write_folder(tmp_path, _noise(40), ("a", "b", "c", "d"))
    assert data.load(tmp_path).train_labels[:4].tolist() == [0, 2, 3, 1]
    for part in (slice(8), slice(None, None, 4)):
        assert len(set(data.load(tmp_path).train_labels[part].tolist())) > 2


def test_a_fraction_is_a_stride_of_the_training_images_under_the_same_name(tmp_path):
    _write_folder(tmp_path, _noise(30), ("a", "b"))
    whole, half = data.load(tmp_path), data.load(tmp_path, fraction=0.5)
    np.testing.assert_array_equal(half.train_images, whole.train_images[::2])
    np.testing.assert_array_equal(half.test_images, whole.test_images)
    assert half.name == whole.name


def _mode(name: str) -> Image.Image:
    grey = Image.fromarray(_noise(1)[0, ..., 0])
    return grey.convert("RGB").convert("P") if name == "P" else grey.convert(name)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_bilevel_and_palette_images_are_converted_without_loss(mode, tmp_path):
    for name in "ab":
        for index in range(2):
            _png(tmp_path / name / f"{index}.png", _noise(1)[0])
            _mode(mode).save(tmp_path / name / f"{index}.png")
    expected = np.asarray(_mode(mode).convert({"1": "L", "P": "RGB"}[mode])).reshape(9, 8, -1)
    for image in data.load(tmp_path).train_images:
        np.testing.assert_array_equal(image, expected)


def test_jpeg_images_are_read(tmp_path):
    for name in ("a/x.JPG", "a/y.jpeg", "b/x.jpg", "b/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(tmp_path / name, "jpeg")
    assert (data.load(tmp_path).train_images == 77).all()


def _of_16_bits(file: Path) -> None:
    """A PNG of 16-bit RGB, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(9))
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 9, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _rotated_by_exif(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _mode("L").save(file, exif=exif)


def _transparent(file: Path) -> None:
    _mode("P").save(file, transparency=3)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda file: _mode("RGBA").save(file), "mode RGBA"),
        (lambda file: _mode("LA").save(file), "mode LA"),
        (lambda file: _mode("I;16").save(file), "16 bits"),
        (lambda file: _mode("CMYK").save(file, "jpeg"), "mode CMYK"),
        (_of_16_bits, "16 bits"),
        (_transparent, "transparency"),
        (_rotated_by_exif, "a rotation by its EXIF orientation"),
    ],
)
def test_images_that_would_lose_something_are_refused(damage, got, tmp_path):
    _write_folder(tmp_path, _noise(8), ("a", "b"))
    damage(tmp_path / "b" / "003.png")
    _refused(
        tmp_path,
        rf"b/003\.png: expected a grey or RGB image of 8 bits .* got {got}\. Convert it, ",
        checked=False,
    )


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (_noise(1, 9, 7)[0], r"9 x 7 pixels \(height x width\), grey"),
        (_noise(1, 8, 8)[0], r"8 x 8 pixels \(height x width\), grey"),
        (_noise(1, 9, 8, 3)[0], r"9 x 8 pixels \(height x width\), RGB"),
    ],
)
@pytest.mark.parametrize("place", ["train/a/000.png", "train/b/003.png", "test/b/001.png"])
def test_images_of_different_sizes_or_modes_are_refused(pixels, got, place, tmp_path):
    for split in SPLITS:
        _write_folder(tmp_path / split, _noise(8), ("a", "b"))
    _png(tmp_path / place, pixels)
    message = (
        r"/\d{3}\.png: expected an image like .*\d{3}\.png, "
        rf"(9 x 8 pixels \(height x width\), grey, got {got}|{got}, got 9 x 8 .*, grey)\."
    )
    _refused(tmp_path, message, checked=False)


def test_the_first_images_of_the_classes_are_compared_by_check(tmp_path):
    _write_folder(tmp_path, _noise(4), ("a", "b"))
    for file in (tmp_path / "b").iterdir():
        _png(file, _noise(1, 12, 12)[0])
    _refused(tmp_path, r"/b/.*: expected an image like .*/a/.*, 9 x 8 .*, got 12 x 12 ")


@given(
    position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 999)
)
def test_a_damaged_image_is_named_or_read(position, byte, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    _write_folder(folder, _noise(4), ("a", "b"))
    file = folder / "a" / "002.png"
    content = bytearray(file.read_bytes())
    content[position % len(content)] = byte
    file.write_bytes(content[:cut])
    try:
        assert data.load(folder).train_images.shape == (2, 9, 8, 1)
    except ValueError as error:
        if str(file) not in str(error):
            raise


def _text_for_an_image(folder: Path) -> None:
    (folder / "a" / "000.png").write_text("no image")


def _half_an_image(folder: Path) -> None:
    file = folder / "a" / "000.png"
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize("damage", [_text_for_an_image, _half_an_image])
def test_an_unreadable_image_is_named(damage, tmp_path):
    _write_folder(tmp_path, _noise(4), ("a", "b"))
    damage(tmp_path)
    _refused(tmp_path, r"a/000\.png: expected a whole PNG or JPEG image, got: ", checked=False)


def _one_class(folder: Path) -> None:
    _write_folder(folder, _noise(3), ("a",))


def _images_without_classes(folder: Path) -> None:
    _png(folder / "x.png", _noise(1)[0])


def _train_alone(folder: Path) -> None:
    _write_folder(folder / "train", _noise(4), ("a", "b"))
    (folder / "val").mkdir()


def _class_in_train_alone(folder: Path) -> None:
    _write_folder(folder / "train", _noise(6), ("a", "b", "c"))
    _write_folder(folder / "test", _noise(6), ("a", "b"))


def _no_class_in_test(folder: Path) -> None:
    _write_folder(folder / "train", _noise(6), ("a", "b"))
    (folder / "test").mkdir()


def _empty_class(folder: Path) -> None:
    _write_folder(folder, _noise(4), ("a", "b"))
    (folder / "c").mkdir()


def _gif(folder: Path) -> None:
    _write_folder(folder, _noise(4), ("a", "b"))
    (folder / "a" / "x.gif").write_bytes(b"GIF89a")


def _folder_in_a_class(folder: Path) -> None:
    _write_folder(folder, _noise(4), ("a", "b"))
    (folder / "a" / "more").mkdir()


def _too_few_to_split(folder: Path) -> None:
    _write_folder(folder, _noise(3), ("a", "b"))


def _tiny(folder: Path) -> None:
    _write_folder(folder, _noise(4, 9, 7), ("a", "b"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_one_class, r"two classes or more, got the folder a alone\. "),
        (_images_without_classes, r"a folder of PNG or JPEG images for each of .*, got no folder"),
        (_train_alone, r"expected folders train and test, got train, val\. Add test"),
        (_class_in_train_alone, r"same class folders in train and test, got c in train alone"),
        (_no_class_in_test, r"/test: expected a folder of PNG .* got no folder"),
        (_empty_class, r"/c: expected PNG or JPEG images, got an empty folder"),
        (_gif, r"x\.gif: expected PNG or JPEG images alone .* got a file of another kind"),
        (_folder_in_a_class, r"/more: expected PNG or JPEG images alone .* got a folder"),
        (_too_few_to_split, r"every 5th of a class for testing.* got none of label 1 \(b\)"),
        (_tiny, r"images of at least 8 x 8 pixels, got 9 x 7 pixels"),
    ],
)
def test_other_folders_are_refused(make, message, tmp_path):
    make(tmp_path)
    _refused(tmp_path, rf"^{re.escape(str(tmp_path))}.*{message}")


def test_images_that_fill_the_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    _write_folder(tmp_path, _noise(4), ("a", "b"))
    monkeypatch.setattr(limits, "own_memory", lambda: 2 * 4 * 72 - 2)
    _refused(tmp_path, r"expected data that take at most half of this machine's memory")
    monkeypatch.setattr(limits, "own_memory", lambda: 2 * 4 * 72)
    data.check(tmp_path)


# --- An .npz file -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("keras", [False, True])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_of_two_splits_is_read_exactly(channels, keras, save, tmp_path):
    arrays = _arrays(channels or 1)
    if channels is None:
        arrays |= {f"{split}_images": arrays[f"{split}_images"][..., 0] for split in SPLITS}
    stored = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays.values(), strict=True))
    if keras:
        stored["y_train"] = stored["y_train"][:, None].astype(np.uint8)  # As of keras's CIFAR-10.
    save(tmp_path / "noise.npz", **(stored if keras else arrays))
    data.check(str(tmp_path / "noise.npz"))
    dataset = data.load(str(tmp_path / "noise.npz"))
    assert re.fullmatch(r"noise \(npz file, 3 classes, sha256 [0-9a-f]{12}\)", dataset.name)
    assert dataset.class_names == ("0", "1", "2")
    for name, values in _arrays(channels or 1).items():
        loaded = getattr(dataset, name)
        np.testing.assert_array_equal(loaded, values)
        assert loaded.dtype == (np.uint8 if "images" in name else np.int32)


def test_an_npz_file_of_one_split_keeps_its_order(tmp_path):
    images, labels = _noise(14), np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1])
    names = np.array(["no", "yes"])
    np.savez(tmp_path / "x.npz", images=images, labels=labels, class_names=names)
    dataset = data.load(tmp_path / "x.npz")
    assert "every 5th image of a class for testing" in dataset.name
    held = [0, 2, 8, 11]
    np.testing.assert_array_equal(dataset.test_images, images[held])
    np.testing.assert_array_equal(dataset.test_labels, labels[held])
    np.testing.assert_array_equal(dataset.train_images, np.delete(images, held, 0))
    np.testing.assert_array_equal(dataset.train_labels, np.delete(labels, held))
    assert dataset.class_names == ("no", "yes")


@given(labels=arrays_of.arrays(np.int64, st.integers(1, 60), elements=st.integers(-3, 4)))
def test_of_each_class_every_fifth_image_is_held_out(labels):
    held = held_out(labels)
    for label in np.unique(labels):
        of_class = held[labels == label]
        np.testing.assert_array_equal(np.flatnonzero(of_class), np.arange(len(of_class))[::5])


def _objects(count: int) -> np.ndarray:
    values = np.empty(count, object)
    values[:] = [np.zeros((8, 8), np.uint8)] * count
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": np.zeros((6, 8, 8))},
            r", train_images: expected uint8, .* float64\. .*np\.rint\(255 \* images\)",
        ),
        ({"test_images": np.zeros((4, 8, 8), int)}, r", test_images: expected uint8, .* int64\. "),
        (
            {"train_images": np.zeros((6, 3, 9, 8), np.uint8)},
            r"1 channel or 3, got \[6, 3, 9, 8\]\. .*images\.transpose\(0, 2, 3, 1\)",
        ),
        ({"train_images": np.zeros((6, 72), np.uint8)}, r"\[n, height, width\] .* got \[6, 72\]"),
        ({"train_images": np.uint8(7)}, r"\[n, height, width\] or .* got \[\]"),
        (
            {"test_images": np.zeros((4, 8, 9, 3), np.uint8)},
            r"like the training images, 9 x 8 pixels .*, RGB, got 8 x 9 pixels .*, RGB\. ",
        ),
        (
            {"test_images": np.zeros((4, 9, 8), np.uint8)},
            r"like the training images, 9 x 8 pixels .*, RGB, got 9 x 8 pixels .*, grey\. ",
        ),
        ({"test_images": np.zeros((0, 9, 8, 3), np.uint8)}, r"test_images: .* one image, got none"),
        ({"train_images": _objects(6)}, r", train_images: expected one array, got Python objects"),
        ({"train_labels": _objects(6)}, r", train_labels: expected one array, got Python objects"),
        ({"train_labels": np.arange(6) / 2}, r", train_labels: expected integers, got float64\. "),
        ({"test_labels": np.array([True] * 4)}, r", test_labels: expected integers, got bool\. "),
        ({"train_labels": np.eye(6, dtype=int)}, r"one label for each image, .*argmax"),
        ({"train_labels": np.int64(3)}, r"one label for each image, \[n\], got \[\]"),
        ({"train_labels": np.arange(5)}, r"as many train_images as train_labels, got 6 and 5\. "),
        ({"test_labels": np.arange(3)}, r"as many test_images as test_labels, got 4 and 3\. "),
        ({"train_labels": np.arange(6) - 1}, r"expected labels from 0 up, got -1\. "),
        ({"test_labels": np.array([0, 0, -5, 0])}, r"expected labels from 0 up, got -5\. "),
        ({"train_labels": np.arange(1, 7)}, r"label from 0 to 6, got none of label 0\. "),
        (
            {"train_labels": np.array([0, 1, 3, 3, 4, 2**40])},
            r"0 to 1099511627776, got none of.* 2",
        ),
        ({"test_labels": np.array([0, 1, 2, 3])}, r"label from 0 to 3, got none of label 3\. "),
        (
            {"train_labels": np.zeros(6, int), "test_labels": np.zeros(4, int)},
            r"expected two classes or more, got one\. ",
        ),
        ({"class_names": np.array(["a", "b"])}, r"labels 0 to 1, .* 2 class_names, got 2\. "),
        ({"class_names": np.array(list("abcd"))}, r"got none of label 3 \(d\)\. "),
        ({"class_names": np.arange(3)}, r", class_names: expected texts \[classes\], got int64"),
        ({"class_names": np.array(list("abc"), object)}, r", class_names: .* Python objects"),
    ],
)
def test_other_arrays_are_refused(changes, message, tmp_path):
    np.savez(tmp_path / "x.npz", **_arrays(**changes))
    _refused(tmp_path / "x.npz", rf"^{re.escape(str(tmp_path))}/x\.npz.*{message}")


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    np.savez(tmp_path / "x.npz", images=_noise(5), labels=np.array([0, 0, 1, 2, 2]))
    _refused(tmp_path / "x.npz", r"every 5th of a class for testing.* got none of label 1\. ")


def test_arrays_under_other_names_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", train_images=_noise(4), labels=np.arange(4))
    _refused(
        tmp_path / "x.npz", r"expected the arrays train_images, .*, got train_images, labels\. "
    )


def _text(file: Path) -> None:
    file.write_text("no zip file")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def _strange_member(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes.txt", "no array, but as long as the header of one")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _encrypted(file: Path) -> None:
    _in_headers(file, 6, 1)


def _of_unknown_compression(file: Path) -> None:
    _in_headers(file, 8, 99)


def _in_headers(file: Path, place: int, value: int) -> None:
    """Write into each member's header, and into its copy in the zip file's directory."""
    content = file.read_bytes()
    for begin, at in ((b"PK\3\4", place - 4), (b"PK\1\2", place - 2)):
        first, *rest = content.split(begin)
        rest = [each[:at] + struct.pack("<H", value) + each[at + 2 :] for each in rest]
        content = begin.join([first, *rest])
    file.write_bytes(content)


def _with_member(header: bytes, values: bytes) -> Callable[[Path], None]:
    """Replace the training images by a member of this header, of the .npy format, and values."""

    def damage(file: Path) -> None:
        arrays = _arrays()
        arrays.pop("train_images")
        np.savez(file, **arrays)
        start = b"\x93NUMPY\1\0" + struct.pack("<H", len(header))
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train_images.npy", start + header + values)

    return damage


_HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': %s}"
_fewer_rows_than_stored = _with_member((_HEADER % "(6,8,8,3)").encode(), bytes(6 * 72 * 3))
_bomb = _with_member((_HEADER % "(6,9,8,3)").encode(), bytes(10**7))
_endless = _with_member((_HEADER % f"({10**12},9,8,3)").encode(), bytes(6 * 72 * 3))
_no_python = _with_member(b"{'descr': '|u1', 'shape': ((((((", b"")


@pytest.mark.parametrize(
    "damage",
    [
        *(_text, _cut, _strange_member, _pipe, _encrypted, _of_unknown_compression),
        *(_fewer_rows_than_stored, _bomb, _endless, _no_python),
    ],
)
def test_a_damaged_npz_file_is_refused(damage, tmp_path):
    np.savez(tmp_path / "x.npz", **_arrays())
    damage(tmp_path / "x.npz")
    _refused(tmp_path / "x.npz", r"x\.npz: expected a whole \.npz file of arrays, got: ")


def test_an_npz_file_that_promises_more_than_the_memory_is_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", **_arrays(1))
    size = (6 + 4) * 72 + (6 + 4) * 8  # Images and labels, which have 8 bytes each.
    monkeypatch.setattr(limits, "own_memory", lambda: 2 * size - 2)
    monkeypatch.setattr(npz_file, "_read", None)
    _refused(tmp_path / "x.npz", r"x\.npz: expected data that take at most half of .* memory")


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.array([1, 0, 2, 0, 1, 2])},
        {"train_images": np.zeros((6, 9, 9, 3), np.uint8)},
        {"train_images": np.zeros((5, 9, 8, 3), np.uint8)},
    ],
)
def test_an_npz_file_that_is_replaced_while_it_is_read_is_refused(changes, tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, **_arrays())
    source = npz_file.find(file)
    np.savez(file, **_arrays(**changes))
    with pytest.raises(ValueError, match=rf"^{file}: .*(than just before|while it was read)"):
        sources.load(source)


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_flipped_byte_of_an_npz_file_is_refused_or_harmless(position, byte, tmp_path_factory):
    file = tmp_path_factory.mktemp("arrays") / "x.npz"
    np.savez_compressed(file, **_arrays())
    whole = data.load(file)
    content = bytearray(file.read_bytes())
    content[position % len(content)] = byte
    file.write_bytes(content)
    try:
        assert data.load(file).name == whole.name
    except ValueError as error:
        if str(file) not in str(error):
            raise


# --- idx files ----------------------------------------------------------------------------------


def _write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _write_four(folder: Path, names: tuple[str, str], ending: str = "", **changes) -> None:
    arrays = _arrays(1, **changes)
    for split, name in zip(SPLITS, names, strict=True):
        images = arrays[f"{split}_images"][..., 0]
        _write_idx(folder / f"{name}-images-idx3-ubyte{ending}", images)
        labels = arrays[f"{split}_labels"].astype(np.uint8)
        _write_idx(folder / f"{name}-labels-idx1-ubyte{ending}", labels)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "names",
    [("train", "t10k"), ("train", "test"), ("own-train", "own-test")],
)
def test_idx_files_are_read_exactly(ending, names, tmp_path):
    _write_four(tmp_path / "digits", names, ending)
    data.check(tmp_path / "digits")
    dataset = data.load(tmp_path / "digits")
    assert re.fullmatch(r"digits \(idx files, 3 classes, sha256 [0-9a-f]{12}\)", dataset.name)
    for name, values in _arrays(1).items():
        np.testing.assert_array_equal(getattr(dataset, name), values)


def test_files_of_emnist_come_upright(tmp_path):
    _write_four(tmp_path, ("emnist-mnist-train", "emnist-mnist-test"), ".gz")
    data.check(tmp_path)
    dataset = data.load(tmp_path)
    expected = _arrays(1)["train_images"].swapaxes(1, 2)
    np.testing.assert_array_equal(dataset.train_images, expected)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path):
    _write_four(tmp_path, ("emnist-letters-train", "emnist-letters-test"))
    (tmp_path / "emnist-letters-test-labels-idx1-ubyte").unlink()
    _refused(tmp_path, r"expected test images and test labels .* got no test labels\. Add the file")
    _write_four(tmp_path, ("train", "t10k"))
    _refused(tmp_path, r"of one data set, got those of 'emnist-letters-', ''\. ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.arange(5)}, r"expected train images \[n, .* \[6, 9, 8\] and \[5\]"),
        ({"test_labels": np.array([0, 1, 2, 3])}, r"label from 0 to 3, got none of label 3\. "),
        ({"test_images": _noise(4, 12, 12)}, r"like the training images, 9 x 8 .* got 12 x 12 "),
    ],
)
def test_other_idx_files_are_refused(changes, message, tmp_path):
    _write_four(tmp_path, ("train", "t10k"), **changes)
    _refused(tmp_path, message)


def test_a_truncated_idx_file_is_refused(tmp_path):
    _write_four(tmp_path, ("train", "t10k"), ".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    _refused(tmp_path, r"train-images-idx3-ubyte\.gz: expected a whole idx file", checked=False)


# --- Paths and names ----------------------------------------------------------------------------


def test_the_three_forms_of_the_same_data_have_one_digest(tmp_path):
    arrays = _arrays(1)
    np.savez(tmp_path / "x.npz", **arrays)
    _write_four(tmp_path / "idx", ("train", "t10k"))
    digests = [data.load(path).name[-13:] for path in (tmp_path / "x.npz", tmp_path / "idx")]
    assert digests == ["378a6fea8986)"] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"train_images": 255 - _arrays()["train_images"]},
        {"train_labels": np.array([0, 1, 2, 0, 2, 1])},
        {"test_labels": np.array([2, 1, 0, 1])},
        {"class_names": np.array(["0", "1", "two"])},
        {"train_images": _arrays()["train_images"].reshape(6, 8, 9, 3)}
        | {"test_images": _arrays()["test_images"].reshape(4, 8, 9, 3)},
    ],
)
def test_other_data_have_another_name(change, tmp_path):
    names = set()
    for arrays in (_arrays(), _arrays(**change)):
        np.savez(tmp_path / "x.npz", **arrays)
        names.add(data.load(tmp_path / "x.npz").name)
    assert len(names) == 2


@pytest.mark.parametrize("path", ["gone", "./gone", "gone/", "a/gone", "gone.npz", "~/gone-here"])
def test_a_path_that_is_not_there_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function in (data.check, data.load):
        with pytest.raises(ValueError, match=r"gone.*expected .* got no such (path|data)\. "):
            function(path, data_dir=tmp_path)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    _refused(tmp_path / "x.csv", r"x\.csv: expected a folder of .*, got another file\. ")


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_folder, "_folders", forbidden)  # Root may read any folder.
    _refused(tmp_path, rf"^{tmp_path}: cannot be read: Permission denied\. ")


def test_a_name_is_a_path_where_no_set_of_that_name_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    _write_folder(tmp_path / "mnist", _noise(8), ("a", "b"))
    assert data.load("mnist", data_dir=kept).name.startswith("mnist (folder, 2 classes")
    loose = _noise(6, 28, 28)
    _write_four(kept, ("train", "t10k"), train_images=loose, test_images=_noise(4, 28, 28))
    assert data.load("mnist", data_dir=kept).name.startswith("mnist (folder, 2 classes")
    assert data.load("kept", data_dir=kept).name == "kept"
    (kept / "mnist").mkdir()
    for file in kept.glob("*ubyte"):
        file.rename(kept / "mnist" / file.name)
    assert data.load("mnist", data_dir=kept).name == "mnist"
    assert data.load("./mnist", data_dir=kept).name.startswith("mnist (folder, 2 classes")


def test_bad_data_are_answered_by_the_command_at_once(tmp_path):
    run = Path(__file__).parents[2] / "experiments" / "run.py"
    done = subprocess.run(
        [sys.executable, run, "--dataset", str(tmp_path), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"run.py: {tmp_path}: expected a folder of PNG or JPEG images")
    assert done.stderr.count("\n") == 1
