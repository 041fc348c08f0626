"""One process, one folder."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import scripts

from straw_experiments.runner import lock
from straw_experiments.weight_prediction.command import main

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no such locks")


def test_the_second_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "out"
    with lock.held(folder):
        with pytest.raises(lock.LockedError, match=f"process {os.getpid()} on .* is writing to"):
            lock.held(folder).__enter__()
        with lock.held(tmp_path / "other"):
            pass
    with lock.held(folder):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from straw_experiments.runner import lock\n"
        "with lock.held(Path(sys.argv[1])): print(flush=True); time.sleep(600)"
    )
    environment = scripts.environment(scripts.EXPERIMENTS)
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(lock.LockedError, match=f"process {process.pid} "):
            lock.held(tmp_path).__enter__()
        process.send_signal(signal.SIGKILL)
    with lock.held(tmp_path):
        pass


def test_folder_that_cannot_be_locked_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=f"{tmp_path} cannot be locked .No locks available.: "):
        lock.held(tmp_path).__enter__()


def test_without_locks_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.held(tmp_path), lock.held(tmp_path):
        pass


def test_script_that_finds_its_folder_taken_ends_with_2(tmp_path, capsys):
    with lock.held(tmp_path / "out"):
        assert main(["--predict", "outputs", "--steps", "1", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"argument --out: process {os.getpid()} on " in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
