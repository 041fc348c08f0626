"""Signals and failing files: one line that says how to go on, and the exit code."""

import errno
import os
import signal
import sys
import time

import pytest

from straw_experiments.runner import signals
from straw_experiments.runner.command import interruptible, show_warnings

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


STOPPING = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    """The process of a script, whose signals do what they do at first."""
    monkeypatch.setattr(sys, "argv", ["experiments/run.py", "--rank", "4"])
    monkeypatch.setattr(signals, "_raised", [])  # the tests' own process goes on
    before = [signal.signal(number, signal.SIG_DFL) for number in STOPPING]
    yield
    for number, handler in zip(STOPPING, before, strict=True):
        signal.signal(number, handler)


def _stopped_by(number):
    def run(command):
        assert command == "python experiments/run.py --rank 4"
        os.kill(os.getpid(), number)
        time.sleep(60)
        return 0

    return run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_is_one_line_and_its_exit_code(number, code, capsys):
    assert interruptible(_stopped_by(number), resumes=False) == code
    assert capsys.readouterr().err == (
        "run.py: stopped; to go on: python experiments/run.py --rank 4 --resume\n"
    )


def test_one_signal_is_enough(capsys):
    def run(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:  # what takes its time to end may be told again
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert interruptible(run, resumes=True) == 143
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, *STOPPING])
def test_a_signal_waits_for_the_end_of_what_must_not_be_broken(number, capsys):
    done = []

    def run(_):
        with signals.held():
            with signals.held():
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                done.append("inner")
            done.append("outer")
        done.append("what follows")
        return 0

    assert interruptible(run, resumes=True) == 128 + number
    assert done == ["inner", "outer"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_second_interrupt_does_not_wait():
    done = []

    def run(_):
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("after the first")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return 0

    assert interruptible(run, resumes=True) == 130
    assert done == ["after the first"]


def test_a_signal_amid_a_destructor_is_not_lost(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: pytest.fail(str(raised)))
    show_warnings()

    class Last:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def run(_):
        Last()
        time.sleep(60)
        return 0

    assert interruptible(run, resumes=True) == 143
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("made", [ImportError, RuntimeError, SystemExit])
def test_an_error_made_of_a_signal_is_the_signal(made, capsys):
    def run(_):
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(60)
        except BaseException:
            raise made("while initializing the extension") from None
        return 0

    assert interruptible(run, resumes=True) == 129
    assert capsys.readouterr().err.count("\n") == 1


def test_handlers_are_as_before():
    assert interruptible(lambda _: 3, resumes=False) == 3
    assert [signal.getsignal(number) for number in STOPPING] == [signal.SIG_DFL] * 2


def test_nohup_is_heeded():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert interruptible(lambda _: os.kill(os.getpid(), signal.SIGHUP) or 7, resumes=True) == 7


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/config.json"),
            "out/config.json: No",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; to go on: py"),
        (OSError("step 3 was\nnot written"), "step 3 was not written; to go on: python"),
    ],
)
def test_failing_file_is_one_line_and_1(error, message, capsys):
    def run(_):
        raise error

    assert interruptible(run, resumes=True) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"run.py: {message}")
    assert printed.endswith("--rank 4\n")
    assert printed.count("\n") == 1
