import contextlib
import shutil

import numpy as np
import pytest

from straw_experiments.data import cache, idx
from straw_experiments.data.cache import cached, check_unchanged

ARRAYS = {"images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "labels": np.array([0, 1])}


def _never() -> dict[str, np.ndarray]:
    raise AssertionError("stored arrays are made again")


def _same(arrays: dict[str, np.ndarray]) -> None:
    assert list(arrays) == list(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], values, strict=True)


def test_arrays_are_made_once(tmp_path):
    path = tmp_path / "kept" / "set.npz"
    _same(cached(path, lambda: ARRAYS))
    _same(cached(path, _never))
    assert [each.name for each in path.parent.iterdir()] == ["set.npz"]


def _other_array(path):
    cached(path.with_name("other.npz"), lambda: ARRAYS | {"labels": np.array([1, 0])})
    path.with_name("other.npz").replace(path)


def _same_under_another_name(path):
    cached(path.with_name("other.npz"), lambda: ARRAYS)
    path.with_name("other.npz").replace(path)


def _by_an_earlier_version(path):
    np.savez(path, **ARRAYS)


def _empty(path):
    path.write_bytes(b"")


def _longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _other_array,
        _same_under_another_name,
        _by_an_earlier_version,
        _empty,
        _longer,
        _flipped,
    ],
)
def test_what_was_not_stored_here_is_made_anew(damage, tmp_path):
    path = tmp_path / "set.npz"
    cached(path, lambda: ARRAYS)
    damage(path)
    with pytest.warns(
        UserWarning, match=rf"^{path} cannot be used and is made anew: its check sum"
    ):
        _same(cached(path, lambda: ARRAYS))
    _same(cached(path, _never))


def test_a_folder_in_place_of_a_file_is_said(tmp_path):
    path = tmp_path / "set.npz"
    path.mkdir()
    with (
        pytest.warns(UserWarning, match=r"made anew: it is a folder"),
        pytest.warns(UserWarning, match=r"could not be stored: .* choose a writable folder"),
    ):
        _same(cached(path, lambda: ARRAYS))


@pytest.mark.filterwarnings("ignore:.*could not be stored")
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_could_not_be_written_leaves_nothing(error, tmp_path, monkeypatch):
    def fails(file, **_):
        file.write(b"half")
        raise error

    monkeypatch.setattr(cache.np, "savez", fails)
    with contextlib.suppress(KeyboardInterrupt):
        _same(cached(tmp_path / "set.npz", lambda: ARRAYS))
    assert not list(tmp_path.iterdir())


def test_data_that_changed_are_refused_until_their_sha256_is_deleted(tmp_path):
    path = tmp_path / "kept" / "set.sha256"
    for _ in range(2):
        check_unchanged(path, "a" * 64, tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*read first.*{path}.*or delete {path}"):
        check_unchanged(path, "b" * 64, tmp_path)
    shutil.rmtree(path.parent)
    check_unchanged(path, "b" * 64, tmp_path)


@pytest.mark.parametrize("content", [b"", b"a" * 63, b"\xff" * 64])
def test_a_damaged_sha256_is_named(content, tmp_path):
    path = tmp_path / "set.sha256"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"delete {path} if they are as they should be"):
        check_unchanged(path, "a" * 64, tmp_path)


class _Endless:
    """A file that goes on for ever, such as a small compressed one; counts what is read."""

    def __init__(self, header: bytes):
        self.header, self.taken = header, 0

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        if self.header:
            header, self.header = self.header[:size], self.header[size:]
            return header
        self.taken += size
        return bytes(size)


def test_no_more_of_an_idx_file_is_read_than_its_header_promises():
    file = _Endless(bytes.fromhex("00000803 0000000a 00000003 00000002"))
    with pytest.raises(ValueError, match=r"x\.gz: expected 60 bytes .*\[10, 3, 2\], got more"):
        idx.read(file, idx.IMAGES, "x.gz")
    assert file.taken == 61


def test_an_idx_file_that_promises_more_than_the_memory_is_not_read():
    file = _Endless(bytes.fromhex("00000803 ffffffff ffffffff 00000002"))
    with pytest.raises(
        ValueError, match=r"x\.gz: expected data that take at most half of .*memory"
    ):
        idx.read(file, idx.IMAGES, "x.gz")
    assert file.taken == 0
