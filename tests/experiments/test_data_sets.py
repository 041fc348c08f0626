import gzip
import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from straw_experiments import data
from straw_experiments.data import glyphs, strided

KEYS = {
    "train-images-idx3-ubyte": "train_images",
    "train-labels-idx1-ubyte": "train_labels",
    "t10k-images-idx3-ubyte": "test_images",
    "t10k-labels-idx1-ubyte": "test_labels",
}


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _contents(side: int = 28) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    contents = {}
    for split, count in (("train", 20), ("t10k", 10)):
        images = generator.integers(0, 256, (count, side, side), np.uint8)
        contents[f"{split}-images-idx3-ubyte"] = images
        contents[f"{split}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    return contents


def _write_set(folder: Path, ending: str = ".gz", side: int = 28) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in _contents(side).items():
        _write_idx(folder / f"{name}{ending}", values)


@pytest.mark.parametrize("place", ["fashion_mnist", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read(place, ending, tmp_path):
    _write_set(tmp_path / place, ending)
    data.check("fashion_mnist", data_dir=tmp_path)
    dataset = data.load("fashion_mnist", fraction=0.5, data_dir=str(tmp_path))
    assert dataset.name == "fashion_mnist"
    assert dataset.class_names == tuple("0123456789")
    for name, values in _contents().items():
        loaded = getattr(dataset, KEYS[name])
        expected = values[::2] if name.startswith("train") else values
        if "images" in name:
            expected = expected[..., None]
        np.testing.assert_array_equal(loaded, expected)
        assert loaded.dtype == (np.uint8 if "images" in name else np.int32)


def test_tfds_s_transposed_emnist_sets_come_upright(tmp_path):
    _write_set(tmp_path / "emnist" / "digits")
    dataset = data.load("emnist/digits", data_dir=tmp_path)
    expected = _contents()["t10k-images-idx3-ubyte"].transpose(0, 2, 1)[..., None]
    np.testing.assert_array_equal(dataset.test_images, expected)


def _prepare(
    folder: Path,
    *,
    side: int = 28,
    channels: int = 1,
    splits: tuple[str, ...] = ("train", "test"),
) -> None:
    """Prepare a small set of digits as TFDS does, PNG images included."""
    import tensorflow_datasets as tfds

    class SmallDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(side, side, channels)),
                "label": tfds.features.ClassLabel(names=["zero", "one", "two"]),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for index in range(12 if split == "train" else 6):
                png = io.BytesIO()  # From an array, TFDS would encode with TensorFlow.
                grey = Image.new("L", (side, side), 10 * (index % 3) + index)
                grey.convert({1: "L", 3: "RGB"}[channels]).save(png, "png")
                png.seek(0)
                yield index, {"image": png, "label": index % 3}

    builder = SmallDigits(data_dir=folder, file_format="array_record")
    downloads = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=downloads)


def test_a_prepared_set_is_read_and_stored(tmp_path):
    _prepare(tmp_path)
    data.check("small_digits", data_dir=tmp_path)
    assert not (tmp_path / "straw_jax").exists()
    for _ in range(2):  # The second time from the stored arrays.
        dataset = data.load("small_digits", data_dir=tmp_path)
        assert dataset.class_names == ("zero", "one", "two")
        assert dataset.train_images.shape == (12, 28, 28, 1)
        assert dataset.train_images.dtype == np.uint8
        assert dataset.test_labels.dtype == np.int32
        # TFDS shuffles: each image says which example it is.
        values = dataset.train_images[:, 0, 0, 0]
        expected = {10 * (index % 3) + index: index % 3 for index in range(12)}
        assert dict(zip(values.tolist(), dataset.train_labels.tolist(), strict=True)) == expected
    stored = sorted(path.name for path in (tmp_path / "straw_jax").iterdir())
    assert stored == ["small_digits-3.0.1.npz", "small_digits-3.0.1.sha256"]


def _damaged_description(folder: Path) -> None:
    (info,) = folder.rglob("dataset_info.json")
    info.write_text(info.read_text()[:-20])


def _damaged_features(folder: Path) -> None:
    (features,) = folder.rglob("features.json")
    features.write_text("[]")


def _damaged_records(folder: Path) -> None:
    (records,) = folder.rglob("*train.array_record*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)


@pytest.mark.parametrize("damage", [_damaged_description, _damaged_features, _damaged_records])
def test_a_damaged_prepared_set_is_refused(damage, tmp_path):
    _prepare(tmp_path)
    damage(tmp_path)
    folder = tmp_path / "small_digits" / "3.0.1"
    with pytest.raises(ValueError, match=rf"in {folder}: .*Delete the folder, and prep") as caught:
        data.load("small_digits", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_prepared_set_whose_classes_are_renamed_is_refused(tmp_path):
    _prepare(tmp_path)
    whole = data.load("small_digits", data_dir=tmp_path)
    (names,) = tmp_path.rglob("label.labels.txt")
    names.write_text(names.read_text().replace("two", "twi"))
    with pytest.raises(ValueError, match=r"3\.0\.1: expected the data that were read first"):
        data.load("small_digits", data_dir=tmp_path)
    names.write_text(names.read_text().replace("twi", "two"))
    assert data.load("small_digits", data_dir=tmp_path).class_names == whole.class_names


def test_another_folder_beside_the_versions_is_left_out(tmp_path):
    _prepare(tmp_path)
    version = tmp_path / "small_digits" / "3.0.1"
    shutil.copytree(version, version.with_name("3.0.2-beta"))
    data.check("small_digits", data_dir=tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_that_changed_since_they_were_read_first_are_refused(ending, tmp_path):
    _write_set(tmp_path, ending)
    whole = data.load("mnist", data_dir=tmp_path)
    path = tmp_path / f"t10k-images-idx3-ubyte{ending}"
    values = _contents()["t10k-images-idx3-ubyte"]
    changed = values.copy()
    changed[3, 4, 5] ^= 1
    _write_idx(path, changed)
    kept = tmp_path / "straw_jax" / "mnist-idx.sha256"
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*read first.*or delete {kept}"):
        data.load("mnist", data_dir=tmp_path)
    _write_idx(path, values)
    np.testing.assert_array_equal(
        data.load("mnist", data_dir=tmp_path).test_images, whole.test_images
    )
    _write_idx(path, changed)
    kept.unlink()
    assert data.load("mnist", data_dir=tmp_path).test_images[3, 4, 5] == changed[3, 4, 5]


def test_a_prepared_set_in_colour_is_read(tmp_path):
    _prepare(tmp_path, side=32, channels=3)
    dataset = data.load("small_digits", data_dir=tmp_path)
    assert dataset.train_images.shape == (12, 32, 32, 3)
    assert dataset.test_images.shape == (6, 32, 32, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"side": 30}, r"image \[28, 28, 1\]"), ({"splits": ("train",)}, "splits train and test")],
)
def test_prepared_sets_of_another_kind_are_refused(changes, message, tmp_path):
    _prepare(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"small_digits.*{message}.*got"):
        data.check("small_digits", data_dir=tmp_path)


def test_a_set_that_needs_tensorflow_is_refused(tmp_path):
    _prepare(tmp_path)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="array_record format, got tfrecord"):
        data.check("small_digits", data_dir=tmp_path)


@pytest.mark.parametrize("function", [data.check, data.load])
def test_idx_files_of_another_kind_are_refused(function, tmp_path):
    _write_set(tmp_path, side=32)
    with pytest.raises(
        ValueError, match=r"expected train images \[n, 28, 28\].*got \[20, 32, 32\]"
    ):
        function("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_truncated_idx_file_is_refused(ending, tmp_path):
    _write_set(tmp_path, ending)
    damaged = tmp_path / f"train-images-idx3-ubyte{ending}"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.*expected.*got"):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("function", [data.check, data.load])
def test_bad_arguments_are_refused(function, tmp_path):
    for fraction in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="fraction: expected above 0 and at most 1, got"):
            function("auto", fraction=fraction, data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'emnits'.*expected auto, emnist, glyphs.*--data-dir"):
        function("emnits", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"archive: expected .* emnist, got 'glyphs'"):
        function("glyphs", archive=tmp_path / "gzip.zip", data_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_glyphs_of_a_fraction_are_the_stride_of_the_whole(tmp_path):
    tenth = data.load("glyphs", fraction=0.001, data_dir=tmp_path)
    more = data.load("glyphs", fraction=0.002, data_dir=tmp_path)
    assert tenth.name == "glyphs"
    assert len(tenth.train_images) == 113
    assert len(tenth.test_images) == 9_400
    np.testing.assert_array_equal(tenth.train_images, more.train_images[::2])
    np.testing.assert_array_equal(tenth.train_labels, more.train_labels[::2])


def test_data_that_cannot_be_stored_are_still_used(tmp_path, monkeypatch):
    monkeypatch.setitem(glyphs.COUNTS, "test", 47)
    (tmp_path / "straw_jax").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"could not be stored.*--data-dir"):
        dataset = data.load("glyphs", fraction=0.0001, data_dir=tmp_path)
    assert len(dataset.train_images) == 12


@given(count=st.integers(1, 2000), step=st.integers(1, 300))
def test_one_kth_is_every_kth(count, step):
    np.testing.assert_array_equal(strided(count, 1 / step), np.arange(count)[::step])


@given(count=st.integers(1, 2000), fraction=st.floats(1e-3, 1))
def test_any_fraction_is_spread_evenly(count, fraction):
    chosen = strided(count, fraction)
    assert len(chosen) == max(1, np.ceil(count * fraction - 1e-9))
    assert chosen[0] == 0
    assert chosen[-1] < count
    assert set(np.diff(chosen)) <= {int(1 / fraction), int(1 / fraction) + 1}


def test_normalise():
    images = np.array([[0, 51, 255]], np.uint8)
    scaled = data.normalise(images)
    assert scaled.dtype == np.float32
    expected = [[-0.1307 / 0.3081, (0.2 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081]]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_import_is_light():
    code = "import sys, straw_experiments.data; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"tensorflow", "tensorflow_datasets", "matplotlib", "PIL"}
    assert not heavy & set(output.stdout.split())


@pytest.mark.skipif("STRAW_MNIST_DIR" not in os.environ, reason="STRAW_MNIST_DIR unset")
def test_real_mnist():
    dataset = data.load("mnist", data_dir=os.environ["STRAW_MNIST_DIR"])
    assert dataset.train_images.shape == (60_000, 28, 28, 1)
    assert dataset.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
