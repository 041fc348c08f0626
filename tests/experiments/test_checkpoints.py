import errno
import os
import shutil
import signal
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_models import MODEL, OPTIMIZER, SHAPE, start

from straw_experiments.image_classification.step import state_like
from straw_experiments.runner import checkpoints, signals
from straw_experiments.runner.checkpoints import CheckpointError

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

# Orbax reads in threads, and leaves them behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RNG = np.random.default_rng(0)
TREE = {
    "params": {"kernel": RNG.normal(size=(40, 30)).astype(np.float32), "bias": np.ones(3, "f4")},
    "low": jnp.arange(7, dtype=jnp.bfloat16),
    "step": np.int32(5),
}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


def _other(seed):
    kernel = np.random.default_rng(seed).normal(size=(40, 30)).astype(np.float32)
    return {**TREE, "params": {**TREE["params"], "kernel": kernel}}


def _assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
        lambda leaf: leaf.dtype, expected
    )


def _data_files(step_folder: Path):
    """The files that hold array data, the largest first."""
    files = [path for path in step_folder.rglob("d/*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def _flip(path: Path, at: int):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def _zero(path: Path, at: int):
    raw = bytearray(path.read_bytes())
    raw[at : at + 64] = bytes(64)
    path.write_bytes(raw)


def test_train_state_comes_back_bit_for_bit(tmp_path):
    state = start()
    checkpoints.save(tmp_path, 1, state)
    step, found = checkpoints.restore(tmp_path, state_like(MODEL, OPTIMIZER, SHAPE))
    assert step == 1
    assert jax.tree.structure(found) == jax.tree.structure(state)
    _assert_same(found, state)


def test_no_folder_or_an_empty_one_holds_no_checkpoint(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        assert checkpoints.restore(folder, LIKE) is None
        assert checkpoints.latest(folder) is None
    assert not (tmp_path / "none").exists()


def test_the_two_latest_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, _other(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert checkpoints.latest(tmp_path) == tmp_path / "3"
    step, found = checkpoints.restore(tmp_path, LIKE)
    assert step == 3
    _assert_same(found, _other(3))


def test_relative_folders_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(Path("here"), 1, TREE)
    _assert_same(checkpoints.restore(Path("here"), LIKE)[1], TREE)


@pytest.mark.parametrize("damage", [_flip, _zero])
def test_damage_is_found_and_the_older_checkpoint_taken(tmp_path, damage):
    checkpoints.save(tmp_path, 1, _other(1))
    checkpoints.save(tmp_path, 2, _other(2))
    largest = _data_files(tmp_path / "2")[0]
    damage(largest, largest.stat().st_size // 2)
    with pytest.warns(UserWarning, match="damaged .*step 2.* falling back to step 1"):
        step, found = checkpoints.restore(tmp_path, LIKE)
    assert step == 1
    _assert_same(found, _other(1))


def test_no_flipped_bit_loads_silently(tmp_path):
    whole = tmp_path / "whole"
    checkpoints.save(whole, 1, TREE)
    places = [
        (path.relative_to(whole), int(at))
        for path in sorted(whole.rglob("*"))
        if path.is_file() and path.stat().st_size
        for at in np.random.default_rng(1).integers(path.stat().st_size, size=2)
    ]
    outcomes = set()
    for number, (path, at) in enumerate(places):
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        _flip(copy / path, at)
        try:
            found = checkpoints.restore(copy, LIKE)
        except CheckpointError:
            outcomes.add("refused")
        else:  # The byte did not matter, or the checkpoint no longer counts as one.
            if found is not None:
                _assert_same(found[1], TREE)
            outcomes.add("harmless")
    assert "refused" in outcomes


def test_all_damaged_says_what_to_do(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, TREE)
        for path in _data_files(tmp_path / str(step)):
            path.write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=rf"step 2: .*step 1: .*Delete {tmp_path}, and use --resume"
    ) as caught:
        checkpoints.restore(tmp_path, LIKE)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "kernel",
    [jax.ShapeDtypeStruct((40, 30), jnp.bfloat16), jax.ShapeDtypeStruct((30, 40), jnp.float32)],
)
def test_another_dtype_or_shape_is_refused(tmp_path, kernel):
    checkpoints.save(tmp_path, 1, TREE)
    like = {**LIKE, "params": {**LIKE["params"], "kernel": kernel}}
    with pytest.raises(CheckpointError, match=r"expected \['params'\]\['kernel'\].*float32"):
        checkpoints.restore(tmp_path, like)


def test_missing_and_surplus_leaves_are_refused(tmp_path):
    checkpoints.save(tmp_path, 1, TREE)
    with pytest.raises(CheckpointError, match=r"expected no leaves .*'low'"):
        checkpoints.restore(tmp_path, {k: v for k, v in LIKE.items() if k != "low"})
    with pytest.raises(CheckpointError, match=r"expected \['more'\]"):
        checkpoints.restore(tmp_path, {**LIKE, "more": LIKE["step"]})


def test_values_stored_under_another_dtype_are_found(tmp_path):
    """Orbax would cast float64 data to the float32 asked for; the checksum tells."""
    checkpoints.save(tmp_path, 1, TREE)
    other = tmp_path / "other"
    half = jax.tree.map(np.asarray, TREE)
    half["params"]["kernel"] = half["params"]["kernel"].astype(np.float16)
    checkpoints.save(other, 1, half)
    shutil.rmtree(tmp_path / "1" / "tree")
    shutil.copytree(other / "1" / "tree", tmp_path / "1" / "tree")
    shutil.rmtree(other)
    with pytest.raises(CheckpointError, match=r"\['kernel'\] does not match its checksum"):
        checkpoints.restore(tmp_path, LIKE)


def test_retrained_step_replaces_the_damaged_one(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, _other(step))
    _data_files(tmp_path / "2")[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="falling back"):
        checkpoints.restore(tmp_path, LIKE)
    checkpoints.save(tmp_path, 2, _other(7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, found = checkpoints.restore(tmp_path, LIKE)
    assert step == 2
    _assert_same(found, _other(7))


def test_a_save_that_orbax_declines_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", lambda *_, **__: False)
    with pytest.raises(OSError, match="step 3 was not written"):
        checkpoints.save(tmp_path, 3, TREE)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_waits_until_a_checkpoint_is_whole(tmp_path, monkeypatch):
    save = checkpoints.ocp.CheckpointManager.save

    def interrupted(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments, **named)

    monkeypatch.setattr(signals, "_raised", [])  # the tests' own process goes on
    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", interrupted)
    with pytest.raises(signals.Stopped), signals.raising():
        checkpoints.save(tmp_path, 1, TREE)
    monkeypatch.undo()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a stopped process ignores it
    _assert_same(checkpoints.restore(tmp_path, LIKE)[1], TREE)


@pytest.mark.skipif(resource is None, reason="a limit of POSIX")
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capfd):
    checkpoints.save(tmp_path, 1, TREE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))  # less than the kernel's 4,800 bytes
    try:
        with pytest.raises(OSError, match=rf"File too large: '{tmp_path}'") as caught:
            checkpoints.save(tmp_path, 2, TREE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert "Traceback" not in capfd.readouterr().err
    assert checkpoints.restore(tmp_path, LIKE)[0] == 1


def test_history_is_kept_with_the_latest_checkpoint(tmp_path):
    lines = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 0.5}]
    checkpoints.save(tmp_path, 1, TREE, history=lines[:1])
    checkpoints.save(tmp_path, 2, TREE, history=lines)
    assert checkpoints.history(tmp_path) == lines
    path = tmp_path / "2" / "history" / "metadata"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.7"))
    assert checkpoints.history(tmp_path) is None
    shutil.rmtree(path.parent)  # an earlier version wrote none
    assert checkpoints.history(tmp_path) is None
    assert checkpoints.restore(tmp_path, LIKE)[0] == 2
    assert checkpoints.history(tmp_path / "none") is None


def test_orbax_logs_nothing_even_after_it_has_raised(caplog):
    """As its threads do that still write when a full disk has stopped another."""
    late = "import absl.logging; absl.logging.error('late')"
    for place in ("/packages/orbax/checkpoint/future.py", "/packages/others/future.py"):
        exec(compile(late, place, "exec"), {})
    assert [record.pathname for record in caplog.records] == ["/packages/others/future.py"]
