import doctest

import numpy as np
import pytest

from straw_experiments.faults import damage

CONTENT = bytes(range(1, 256)) * 8


@pytest.mark.parametrize("kind", damage.KINDS)
def test_every_kind_changes_the_file_and_a_seed_fixes_how(kind, tmp_path):
    left = set()
    for attempt in range(2):
        path = tmp_path / f"{attempt}"
        path.write_bytes(CONTENT)
        said = kind(np.random.default_rng(3), path)
        left.add((said, path.read_bytes() if path.exists() else None))
    ((_, content),) = left
    assert content != CONTENT


def test_one_bit_is_one_bit(tmp_path):
    path = tmp_path / "a"
    for seed in range(20):
        path.write_bytes(CONTENT)
        damage.flip_bit(np.random.default_rng(seed), path)
        changes = [new ^ old for new, old in zip(path.read_bytes(), CONTENT, strict=True)]
        assert sum(change.bit_count() for change in changes) == 1


def test_files_are_exchanged_and_an_empty_one_is_deleted(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"")
    damage.exchange(one, other)
    assert (one.read_bytes(), other.read_bytes()) == (b"", b"1")
    damage.damage(np.random.default_rng(0), one)
    assert not one.exists()


def test_all_kinds_are_drawn(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    said = set()
    for seed in range(60):
        path.write_bytes(CONTENT)
        other.write_bytes(b"other")
        said.add(damage.damage(np.random.default_rng(seed), path, [other]).split()[0])
    assert said == {"flipped", "cut", "zeroed", "appended", "deleted", "exchanged"}


def test_the_example_works():
    failed, attempted = doctest.testmod(damage)
    assert not failed
    assert attempted
