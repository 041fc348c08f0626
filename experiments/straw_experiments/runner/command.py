"""What every command does with its process: memory pages, caches, warnings, exit codes.

Only the standard library is imported, so that a mistake is answered at once.
"""

import contextlib
import importlib
import json
import os
import platform
import shlex
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from straw_experiments.runner.settings import RunConfig
    from straw_experiments.runner.study import Study

C = TypeVar("C", bound="RunConfig")

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
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    config = parse(argv)
    return interruptible(lambda command: _run(config, load, report, command), config.resume)


def _run(config: C, load: Callable[[C], "Study[Any]"], report: str, command: str) -> int:
    prepare()
    if print_finished(Path(config.out), report):
        return 0
    from straw_experiments.runner import metrics

    try:
        if config.tensorboard:
            metrics.check_tensorboard()
        study = load(config)
    except (ValueError, OSError, RuntimeError) as error:
        return fail(error, 2)

    from straw_experiments.runner.checkpoints import CheckpointError
    from straw_experiments.runner.processes import ProcessError
    from straw_experiments.runner.runs import NonFiniteError
    from straw_experiments.runner.study import conduct

    try:
        conduct(study, command)
    except (NonFiniteError, CheckpointError, ProcessError) as error:
        return fail(error, 1)
    return 0


def interruptible(run: Callable[[str], int], resumes: bool) -> int:
    """Run what may be stopped by Ctrl-C, and say how to go on.

    Args:
        run: Called with the command line; returns the exit code.
        resumes: Whether the command line has --resume.

    Returns:
        What `run` returns; 130 if it was stopped.
    """
    command = command_line()
    try:
        return run(command)
    except KeyboardInterrupt:
        return fail(f"stopped; to go on: {command}{'' if resumes else ' --resume'}", 130)


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
    """Show warnings as blocks, and let JAX keep compiled programs; call before JAX is imported."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir()))  # Read on JAX's import.


def print_finished(out: Path, report: str) -> bool:
    """Print the table of results that are finished.

    Args:
        out: Their folder.
        report: The module whose `table` lays out what `summary.json` holds.

    Returns:
        Whether they are.
    """
    finished = out / "summary.json"
    if not finished.exists():
        return False
    summary = json.loads(finished.read_text(encoding="utf-8"))
    print(importlib.import_module(report).table(summary))
    print(f"\nAlready finished; report and figures are in {finished.parent}")
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
