"""Signals that stop a process: they raise, but not amid what must not be left half done.

Only the standard library is imported. As Python's own signal handlers, it is for the main thread.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """A signal that stops as Ctrl-C does.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


_holding = 0  # blocks of `held` that are open
_waiting: list[int] = []  # signals that came meanwhile
_raised: list[int] = []  # signals that raised


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP raise Stopped, if they are not ignored, as under nohup."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    usual = (signal.SIG_DFL, signal.default_int_handler)
    caught = {number: old for number, old in before.items() if old in usual}
    _raised.clear()
    for number in caught:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, old in caught.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, old)


def raised() -> int | None:
    """Return the signal that has raised since `raising` began, whatever became of its exception.

    Code of C++ makes an error of its own of it, such as an ImportError.
    """
    return _raised[0] if _raised else None


def leave_if_raised() -> None:
    """Let this process, if a signal raises, end before Python takes down what threads still use.

    XLA may be compiling in other threads, and crashes there. To be called before other modules are
    imported: what they do at the end of a process is then done before.
    """
    atexit.register(_leave)


def _leave() -> None:
    if _raised:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + _raised[0])


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the block has ended, for code that an exception would break.

    Orbax is such code: it works in threads and event loops, which would be left behind. A second
    Ctrl-C waits no longer.
    """
    global _holding
    _holding += 1
    try:
        yield
    finally:
        _holding -= 1
        if _waiting and not _holding:
            _raise(_waiting[0])


def send_again(stop: Stopped) -> None:
    """Send a signal once more, which raised where no exception can: Python ignores it there."""
    signal.signal(stop.number, _stop)
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, [main, stop.number]).start()  # when this has ended


def _stop(number: int, _: object) -> None:
    again = number == signal.SIGINT and number in _waiting
    if _holding and not again:
        _waiting.append(number)
    else:
        _raise(number)


def _raise(number: int) -> None:
    _waiting.clear()
    _raised.append(number)
    # One is enough; but a second Ctrl-C ends what does not come to its end.
    then = signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN
    signal.signal(number, then)
    raise Stopped(number)
