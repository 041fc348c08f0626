"""What every command does with its process: memory pages, caches, warnings, exit codes.

Only the standard library is imported, so that a mistake is answered at once.
"""

import contextlib
import errno
import gc
import importlib
import os
import platform
import shlex
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from straw_experiments.runner import lock, records, settings, signals
from straw_experiments.runner.records import RecordError

if TYPE_CHECKING:
    from straw_experiments.runner.settings import RunConfig
    from straw_experiments.runner.study import Study

C = TypeVar("C", bound="RunConfig")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # no fault of the input
_CONSOLE = "straw-jax"  # the console command, also as `python -m straw_experiments`


def run_study(
    argv: Sequence[str],
    *,
    parse: Callable[[Sequence[str]], C],
    load: Callable[[C], "Study[Any]"],
    report: str,
) -> int:
    """Run the study that a command line describes.

    Args:
        argv: The words after the program's name.
        parse: Reads and checks them.
        load: Makes the study; a ValueError, OSError or RuntimeError says what is wrong with the
            data or the devices.
        report: Name of the module whose `table` lays out what `summary.json` holds.

    Returns:
        The exit code: 0 finished, 1 training or a file failed, 2 bad input, 128 + N stopped by
        signal N: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    show_warnings()
    config = parse(argv)
    return interruptible(lambda command: _run(config, load, report, command), config.resume)


def _run(config: C, load: Callable[[C], "Study[Any]"], report: str, command: str) -> int:
    prepare()
    out = Path(config.out)
    try:
        if print_finished(out, report):
            return 0
    except RecordError as error:
        return fail(error, 1)
    from straw_experiments.runner import metrics

    try:
        if config.tensorboard:
            metrics.check_tensorboard()
        study = load(config)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        return fail(error, 2)

    from straw_experiments.runner.checkpoints import CheckpointError
    from straw_experiments.runner.hosts import is_first
    from straw_experiments.runner.processes import ProcessError
    from straw_experiments.runner.runs import NonFiniteError
    from straw_experiments.runner.study import conduct

    with contextlib.ExitStack() as until_the_end:
        try:
            if is_first():
                until_the_end.enter_context(lock.held(out))
                settings.check_out(config)  # again: another process may have come and gone
        except ValueError as error:
            return fail(error, 2)
        try:
            conduct(study, command)
        except (NonFiniteError, CheckpointError, ProcessError, RecordError) as error:
            return fail(error, 1)
    return 0


def interruptible(run: Callable[[str], int], resumes: bool) -> int:
    """Run what signals may stop, or a file that fails, and say how to go on.

    Args:
        run: Called with the command line; returns the exit code.
        resumes: Whether the command line goes on by itself, or has --resume.

    Returns:
        What `run` returns; 1 if a file could not be read or written; 128 + N if signal N came.
    """
    command = command_line()
    go_on = f"to go on: {command}{'' if resumes else ' --resume'}"
    try:
        with signals.raising():
            return run(command)
    except BaseException as error:
        number = signals.raised() or (isinstance(error, KeyboardInterrupt) and signal.SIGINT)
        if number:
            return fail(f"stopped; {go_on}", 128 + number)
        if isinstance(error, OSError):
            return fail(f"{reason(error)}; {go_on}", 1)
        raise


def reason(error: OSError) -> str:
    """Say in one line why a file could not be read or written."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def command_line() -> str:
    """Write the command line of this process as it can be given again."""
    started = ["python", sys.argv[0]] if _is_script() else [_CONSOLE]
    return shlex.join([*started, *sys.argv[1:]])


def program(subcommand: str) -> str:
    """Name this program in messages: a script's file, or `straw-jax` with its subcommand."""
    return _file(subcommand) if _is_script() else f"{_CONSOLE} {subcommand}"


def sibling(subcommand: str) -> list[str]:
    """Return the words that start another command as this one was started.

    That is a script beside this process's own, or a subcommand of `straw-jax`.
    """
    if _is_script():
        script = Path(sys.argv[0]).with_name(_file(subcommand))
        return [os.path.relpath(script)]  # short in the record of each command
    return ["-m", "straw_experiments", subcommand]


def _is_script() -> bool:
    """Say whether this process is a script of `experiments/`, and not the console command."""
    own = Path(sys.argv[0])
    return own.stem != _CONSOLE and own.parts[-2:] != ("straw_experiments", "__main__.py")


def _file(subcommand: str) -> str:
    return f"{subcommand.replace('-', '_')}.py"


def prepare() -> None:
    """Make a process ready for a study, so that JAX keeps its programs; call before its import."""
    show_warnings()
    collect_rarely()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir()))  # Read on JAX's import.


def collect_rarely() -> None:
    """Let Python look for cycles of dead objects rarely: tracing makes many objects, few cycles."""
    gc.set_threshold(50_000, 20, 50)


def show_warnings() -> None:
    """Show warnings as blocks, and nothing of threads that outlive the failed read of a file."""
    warnings.showwarning = _show_warning
    if sys.unraisablehook is not _show_unraisable:
        _others.append(sys.unraisablehook)
        sys.unraisablehook = _show_unraisable


_others: "list[Callable[[sys.UnraisableHookArgs], Any]]" = []  # hooks, the latest last


def _show_unraisable(raised: "sys.UnraisableHookArgs") -> None:
    if isinstance(raised.exc_value, signals.Stopped):
        signals.send_again(raised.exc_value)
    # Orbax has left them; what was wrong has been raised, too.
    elif str(raised.exc_value) != "Event loop is closed":
        _others[-1](raised)


def print_finished(out: Path, report: str) -> bool:
    """Print the table of results that are finished.

    Args:
        out: Their folder.
        report: The module whose `table` lays out what `summary.json` holds.

    Returns:
        Whether they are, and whole.

    Raises:
        RecordError: They are damaged, and cannot be made again.
    """
    summary = records.read_summary(out)
    if summary is None:
        return False
    print(importlib.import_module(report).table(summary))
    print(f"\nAlready finished; report and figures are in {out}")
    return True


def fail(message: object, code: int) -> int:
    """Print one line on stderr, with the program's name, and return the exit code."""
    name = Path(sys.argv[0]).name if _is_script() else _CONSOLE
    print(f"{name}: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def use_large_pages() -> None:
    """Start this process anew with memory in pages of 2 MB, where glibc and Linux give such.

    A step on CPU needs hundreds of megabytes for a moment, and in pages of 4 KB Linux needs a sixth
    of STRAW's step to hand them out. glibc reads the setting at the start of a process only.
    """
    restarted = "STRAW_JAX_RESTARTED"  # glibc may take its variable away
    if platform.libc_ver()[0] == "glibc" and not {"GLIBC_TUNABLES", restarted} & set(os.environ):
        os.environ |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", restarted: "1"}
        with contextlib.suppress(OSError):  # not allowed: then without
            os.execv(sys.executable, sys.orig_argv)


def _cache_dir() -> Path:
    """Name the folder in which JAX keeps compiled programs from one start to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "straw_jax", "xla")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    block = textwrap.fill(str(message), width=88, break_long_words=False, break_on_hyphens=False)
    print(f"\n--- WARNING ---\n{block}\n---------------\n", file=sys.stderr)
