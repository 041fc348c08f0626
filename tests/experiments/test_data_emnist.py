import contextlib
import gzip
import hashlib
import http.server
import os
import shutil
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from straw_experiments import data
from straw_experiments.data import emnist, emnist_archive, glyphs

COUNTS = {"train": 94, "test": 47}


def _idx(values: np.ndarray) -> bytes:
    return (
        struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )


def _members(seed: int = 0) -> dict[str, bytes]:
    """The four files of a tiny archive: random images, each label as often as any other."""
    generator = np.random.default_rng(seed)
    members = {}
    for split, count in COUNTS.items():
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = generator.permutation(np.arange(count) % 47).astype(np.uint8)
        members[f"gzip/emnist-balanced-{split}-images-idx3-ubyte.gz"] = _idx(images)
        members[f"gzip/emnist-balanced-{split}-labels-idx1-ubyte.gz"] = _idx(labels)
    return members


def _write(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, gzip.compress(content, mtime=0))
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _expected(members: dict[str, bytes], split: str) -> tuple[np.ndarray, np.ndarray]:
    images = members[f"gzip/emnist-balanced-{split}-images-idx3-ubyte.gz"][16:]
    labels = members[f"gzip/emnist-balanced-{split}-labels-idx1-ubyte.gz"][8:]
    raw = np.frombuffer(images, np.uint8).reshape(-1, 28, 28)
    return raw.transpose(0, 2, 1)[..., None], np.frombuffer(labels, np.uint8)


@pytest.fixture
def archive(tmp_path):
    return _write(tmp_path / "given.zip", _members())


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A tiny archive that passes for the official one, on a site that refuses connections."""
    path = _write(tmp_path / "official.zip", _members())
    monkeypatch.setattr(emnist, "SIZE", path.stat().st_size)
    monkeypatch.setattr(emnist, "SHA256", _digest(path))
    monkeypatch.setattr(emnist, "URL", "http://127.0.0.1:9/gzip.zip")
    return path


@pytest.mark.parametrize("name", ["emnist", "auto"])
def test_a_given_archive_keeps_its_order_upright_and_is_called_unofficial(name, archive, tmp_path):
    true_name = f"EMNIST (unofficial archive, sha256 {_digest(archive)[:12]})"
    with pytest.warns(UserWarning, match="not the official EMNIST archive"):
        dataset = data.load(name, archive=archive, data_dir=tmp_path / "data")
    assert dataset.name == true_name
    assert dataset.class_names == tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
    for split in COUNTS:
        images, labels = _expected(_members(), split)
        np.testing.assert_array_equal(getattr(dataset, f"{split}_images"), images)
        np.testing.assert_array_equal(getattr(dataset, f"{split}_labels"), labels)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32


def test_a_fraction_is_a_stride_of_the_training_files_only(archive, tmp_path):
    with pytest.warns(UserWarning, match="unofficial"):
        dataset = data.load("emnist", fraction=0.1, archive=archive, data_dir=tmp_path)
    images, labels = _expected(_members(), "train")
    np.testing.assert_array_equal(dataset.train_images, images[::10])
    np.testing.assert_array_equal(dataset.train_labels, labels[::10])
    assert len(dataset.test_images) == COUNTS["test"]


def _stored(data_dir: Path) -> Path:
    (stored,) = (data_dir / "straw_jax").iterdir()
    return stored


def _prepared(data_dir: Path) -> Path:
    (prepared,) = (data_dir / "emnist_balanced").iterdir()
    return prepared


def test_an_archive_replaced_after_hashing_is_read_as_it_was_hashed(archive, tmp_path, monkeypatch):
    hashed = emnist_archive.sha256

    def then_replaced(file):
        digest = hashed(file)
        os.replace(_write(tmp_path / "other.zip", _members(seed=1)), archive)
        return digest

    name = f"EMNIST (unofficial archive, sha256 {_digest(archive)[:12]})"
    monkeypatch.setattr(emnist, "sha256", then_replaced)
    with pytest.warns(UserWarning, match="unofficial"):
        dataset = data.load("emnist", archive=archive, data_dir=tmp_path / "data")
    assert dataset.name == name
    np.testing.assert_array_equal(dataset.train_images, _expected(_members(), "train")[0])


def test_an_archive_written_while_it_is_read_is_refused_and_not_kept(
    archive, tmp_path, monkeypatch
):
    hashed = emnist_archive.sha256

    def then_written(file):
        digest = hashed(file)
        _write(archive, _members(seed=1))
        return digest

    monkeypatch.setattr(emnist, "sha256", then_written)
    with (
        pytest.warns(UserWarning, match="unofficial"),
        pytest.raises(ValueError, match=r"given\.zip.*written meanwhile.*--archive PATH"),
    ):
        data.load("emnist", archive=archive, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "straw_jax").exists()


def test_what_is_kept_of_two_archives_may_not_change_places(archive, tmp_path):
    other = _write(tmp_path / "other.zip", _members(seed=1))
    for path in (archive, other):
        with pytest.warns(UserWarning, match="unofficial"):
            data.load("emnist", archive=path, data_dir=tmp_path / path.stem)
    shutil.copy(_stored(tmp_path / "other"), _stored(tmp_path / "given"))
    prepared = _prepared(tmp_path / "given")
    shutil.rmtree(prepared)
    shutil.copytree(_prepared(tmp_path / "other"), prepared)
    with (
        pytest.warns(UserWarning, match="unofficial"),
        pytest.warns(UserWarning, match=r"straw_jax/emnist-.* made anew"),
        pytest.warns(UserWarning, match=r"emnist_balanced/.* made anew"),
    ):
        dataset = data.load("emnist", archive=archive, data_dir=tmp_path / "given")
    np.testing.assert_array_equal(dataset.train_images, _expected(_members(), "train")[0])


def test_what_an_earlier_version_kept_is_made_anew(archive, tmp_path):
    with pytest.warns(UserWarning, match="unofficial"):
        first = data.load("emnist", archive=archive, data_dir=tmp_path / "data")
    with _stored(tmp_path / "data").open("wb") as file:  # No check sum, and another's data.
        np.savez(file, **{name: np.zeros_like(getattr(first, name)) for name in first._fields[1:5]})
    (metadata,) = _prepared(tmp_path / "data").rglob("metadata.json")
    metadata.unlink()
    with (
        pytest.warns(UserWarning, match="unofficial"),
        pytest.warns(UserWarning, match=r"straw_jax/emnist-.* made anew"),
        pytest.warns(UserWarning, match=r"emnist_balanced/.* made anew"),
    ):
        dataset = data.load("emnist", archive=archive, data_dir=tmp_path / "data")
    np.testing.assert_array_equal(dataset.train_images, first.train_images)


def test_damage_without_the_archive_is_named(official, tmp_path):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copy(official, data_dir / "gzip.zip")
    data.load("emnist", data_dir=data_dir)
    (data_dir / "gzip.zip").unlink()
    _stored(data_dir).unlink()
    for info in _prepared(data_dir).rglob("dataset_info.json"):
        info.write_text("{")
    with (
        pytest.warns(UserWarning, match=r"emnist_balanced/.* cannot be used and is made anew: "),
        pytest.raises(ValueError, match=r"cannot be reached.*--archive PATH"),
    ):
        data.load("emnist", data_dir=data_dir)
    shutil.copy(official, data_dir / "gzip.zip")
    with pytest.warns(UserWarning, match="made anew"):
        dataset = data.load("emnist", data_dir=data_dir)
    np.testing.assert_array_equal(dataset.train_images, _expected(_members(), "train")[0])


def test_two_archives_never_mix(archive, tmp_path):
    other = _write(tmp_path / "other.zip", _members(seed=1))
    for path, members in [(archive, _members()), (other, _members(1)), (archive, _members())]:
        with pytest.warns(UserWarning, match="unofficial"):
            dataset = data.load("emnist", archive=path, data_dir=tmp_path / "data")
        np.testing.assert_array_equal(dataset.train_images, _expected(members, "train")[0])


def test_the_second_start_reads_stored_arrays_and_a_damaged_file_is_made_anew(official, tmp_path):
    first = data.load("emnist", archive=official, data_dir=tmp_path)
    shutil.rmtree(tmp_path / "emnist_balanced")  # What TFDS prepared: no longer needed.
    second = data.load("emnist", data_dir=tmp_path)  # Nor is the archive.
    assert first.name == second.name == "EMNIST balanced"
    np.testing.assert_array_equal(second.train_images, first.train_images)

    (stored,) = (tmp_path / "straw_jax").iterdir()
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    with pytest.warns(UserWarning, match="made anew"):
        third = data.load("emnist", archive=official, data_dir=tmp_path)
    np.testing.assert_array_equal(third.train_images, first.train_images)


@pytest.mark.parametrize("place", ["gzip.zip", "downloads/manual/gzip.zip"])
def test_the_official_archive_is_found_in_the_data_folder(place, official, tmp_path):
    found = tmp_path / "data" / place
    found.parent.mkdir(parents=True)
    shutil.copy(official, found)
    dataset = data.load("auto", data_dir=tmp_path / "data")
    assert dataset.name == "EMNIST balanced"
    np.testing.assert_array_equal(dataset.test_images, _expected(_members(), "test")[0])


def test_another_archive_in_the_data_folder_is_refused_unless_named(official, tmp_path):
    other = _write(tmp_path / "gzip.zip", _members(seed=1))
    with pytest.raises(ValueError, match=r"expected the official file.*--archive"):
        data.load("emnist", data_dir=tmp_path)
    other.write_bytes(official.read_bytes()[:-1] + b"\1")  # Same size: a zip comment's length.
    with pytest.raises(ValueError, match=r"--archive"):
        data.load("emnist", data_dir=tmp_path)


def test_without_network_the_error_names_the_ways_out(official, tmp_path):
    for function in (data.check, data.load):
        with pytest.raises(
            ValueError, match=r"127\.0\.0\.1.* cannot be reached.*--archive PATH.*gly"
        ):
            function("emnist", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [official]


def test_auto_falls_back_on_glyphs_loudly(official, tmp_path, monkeypatch):
    monkeypatch.setitem(glyphs.COUNTS, "test", 47)
    data.check("auto", data_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"GLYPHS INSTEAD OF EMNIST.*--archive PATH"):
        dataset = data.load("auto", fraction=0.001, data_dir=tmp_path)
    assert dataset.name == "glyphs"


@contextlib.contextmanager
def _site(content: bytes):
    """Serve `content` at any address of a local site; yields the address of the archive."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # Probing does not read to the end.
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/gzip.zip"
        server.shutdown()


def test_a_download_is_checked_and_prepared(official, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download.checksums import UrlInfo

    from straw_experiments.data.emnist_builder import EmnistBalanced

    with _site(official.read_bytes()) as url:
        monkeypatch.setattr(emnist, "URL", url)
        expected = UrlInfo(size=emnist.SIZE, checksum="0" * 64, filename="gzip.zip")
        monkeypatch.setattr(EmnistBalanced, "url_infos", {url: expected})
        with pytest.raises(ValueError, match="wrong checksum"):
            data.load("emnist", data_dir=tmp_path / "bad")
        expected.checksum = emnist.SHA256
        dataset = data.load("emnist", data_dir=tmp_path / "good")
    assert dataset.name == "EMNIST balanced"
    np.testing.assert_array_equal(dataset.train_images, _expected(_members(), "train")[0])


def test_two_first_starts_at_once_both_find_their_data(archive, tmp_path, monkeypatch):
    from straw_experiments.data.emnist_builder import EmnistBalanced

    generate, starts = EmnistBalanced._generate_examples, []

    def as_another_starts_and_is_quicker(self, arrays, split):
        starts.append(split)
        if len(starts) == 1:
            load()
        yield from generate(self, arrays, split)

    def load():
        with pytest.warns(UserWarning, match="unofficial"):
            return data.load("emnist", archive=archive, data_dir=tmp_path)

    monkeypatch.setattr(EmnistBalanced, "_generate_examples", as_another_starts_and_is_quicker)
    dataset = load()
    assert len(starts) == 4
    np.testing.assert_array_equal(dataset.train_images, _expected(_members(), "train")[0])


def _missing(path: Path, _members: dict[str, bytes]) -> None:
    path.unlink()


def _folder(path: Path, _members: dict[str, bytes]) -> None:
    path.unlink()
    path.mkdir()


def _truncated(path: Path, _members: dict[str, bytes]) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _flipped(path: Path, _members: dict[str, bytes]) -> None:
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)


def _without_a_member(path: Path, members: dict[str, bytes]) -> None:
    _write(path, dict(list(members.items())[:3]))


def _changed(path: Path, members: dict[str, bytes], key: str, content: bytes) -> None:
    _write(path, members | {_name(members, key): content})


def _name(members: dict[str, bytes], key: str) -> str:
    (name,) = (name for name in members if key in name)
    return name


def _images_for_labels(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "train-labels", members[next(iter(members))])


def _one_label_short(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "train-labels", _idx(np.zeros(COUNTS["train"] - 1, np.uint8)))


def _other_size(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "test-images", _idx(np.zeros((COUNTS["test"], 32, 32), np.uint8)))


def _empty_member(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "test-images", b"")


def _pipe(path: Path, _members: dict[str, bytes]) -> None:
    path.unlink()
    os.mkfifo(path)


def _encrypted(path: Path, _members: dict[str, bytes]) -> None:
    _in_headers(path, 6, 1)


def _of_unknown_compression(path: Path, _members: dict[str, bytes]) -> None:
    _in_headers(path, 8, 99)


def _of_no_lzma(path: Path, _members: dict[str, bytes]) -> None:
    _in_headers(path, 8, zipfile.ZIP_LZMA)


def _in_headers(path: Path, place: int, value: int) -> None:
    """Write into each member's header, and into its copy in the zip file's directory."""
    content = path.read_bytes()
    for begin, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        first, *rest = content.split(begin)
        at = place + shift - 4
        rest = [each[:at] + struct.pack("<H", value) + each[at + 2 :] for each in rest]
        content = begin.join([first, *rest])
    path.write_bytes(content)


def _bomb(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "test-images", members[_name(members, "test-images")] + bytes(10**7))


def _huge(path: Path, members: dict[str, bytes]) -> None:
    _changed(path, members, "test-images", struct.pack(">4I", 0x803, 2**32 - 1, 28, 28))


@pytest.mark.parametrize(
    "damage",
    [
        _missing,
        _folder,
        _pipe,
        _encrypted,
        _of_unknown_compression,
        _of_no_lzma,
        _bomb,
        _huge,
        _truncated,
        _flipped,
        _without_a_member,
        _images_for_labels,
        _one_label_short,
        _other_size,
        _empty_member,
    ],
)
@pytest.mark.parametrize("function", [data.check, data.load])
def test_a_bad_archive_is_refused_before_anything_is_written(damage, function, archive, tmp_path):
    damage(archive, _members())
    with pytest.raises(ValueError, match=r"given\.zip.*expected.*got.*--archive PATH"):
        function("auto", archive=archive, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_idx(np.full(COUNTS["train"], 47, np.uint8)), "labels 0 to 46"),
        (_idx(np.zeros(COUNTS["train"], np.uint8))[:-5], "bytes after the header"),
    ],
)
def test_bad_contents_are_refused_while_preparing(content, message, archive, tmp_path):
    _changed(archive, _members(), "train-labels", content)
    with (
        pytest.warns(UserWarning, match="unofficial"),
        pytest.raises(ValueError, match=rf"given\.zip[\s\S]*{message}"),
    ):
        data.load("emnist", archive=archive, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "straw_jax").exists()


@pytest.mark.skipif("STRAW_EMNIST_ARCHIVE" not in os.environ, reason="STRAW_EMNIST_ARCHIVE unset")
@pytest.mark.filterwarnings("default:.*not the official EMNIST archive")
def test_the_real_archive(tmp_path):
    archive = Path(os.environ["STRAW_EMNIST_ARCHIVE"])
    dataset = data.load("emnist", fraction=0.1, archive=archive, data_dir=tmp_path)
    assert dataset.test_images.shape == (18_800, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(47, 400))
    with archive.open("rb") as file:
        arrays = emnist_archive.read(file, _digest(archive))
    images, labels = arrays["train_images"], arrays["train_labels"]
    assert images.shape == (112_800, 28, 28, 1)
    np.testing.assert_array_equal(dataset.train_images, images[::10])
    np.testing.assert_array_equal(dataset.train_labels, labels[::10])
    # Upright: L's foot is at the bottom, T's bar at the top.
    mean = {
        name: images[labels == emnist_archive.CLASS_NAMES.index(name)].mean(axis=(0, 2, 3))
        for name in "LT"
    }
    assert mean["L"][18:24].sum() > mean["L"][4:10].sum()
    assert mean["T"][4:10].sum() > mean["T"][18:24].sum()
