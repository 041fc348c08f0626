"""What the scripts here do to their own process: pages, caches, warnings, failures.

With the module only the standard library is imported, as in `arguments`.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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


def prepare() -> None:
    """Show warnings as blocks, and let JAX keep compiled programs; call before JAX is imported."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir()))  # Read on JAX's import.


def data_mistake(settings: Mapping[str, Any]) -> ValueError | None:
    """Return what is wrong with the data that settings name, as far as a quick look tells."""
    from straw_experiments import (
        data,  # needs no JAX: nobody should wait for that to learn of a mistake
    )

    sources = {name: settings[name] for name in ("fraction", "data_dir", "archive")}
    try:
        data.check(settings["dataset"], **sources)
    except ValueError as error:
        return error
    return None


def interruptible(run: Callable[[str], int], *, resumes: bool) -> int:
    """Run what may be stopped by Ctrl-C, and say how to go on.

    Args:
        run: Called with the command line; returns the exit code.
        resumes: Whether the command line has --resume.

    Returns:
        What `run` returns; 130 if it was stopped.
    """
    command = shlex.join(["python", *sys.argv])
    try:
        return run(command)
    except KeyboardInterrupt:
        return fail(f"stopped; to go on: {command}{'' if resumes else ' --resume'}", 130)


def told_if_finished(out: str, report: str) -> bool:
    """Print the table of results that are finished.

    Args:
        out: Their folder.
        report: The module whose `table` lays out what `summary.json` holds.

    Returns:
        Whether they are.
    """
    finished = Path(out, "summary.json")
    if not finished.exists():
        return False
    summary = json.loads(finished.read_text(encoding="utf-8"))
    print(importlib.import_module(report).table(summary))
    print(f"\nAlready finished; report and figures are in {finished.parent}")
    return True


def fail(message: object, code: int) -> int:
    """Print one line on stderr, with the script's name, and return the exit code."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _cache_dir() -> Path:
    """Name the folder in which JAX keeps compiled programs from one start to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "straw_jax", "xla")


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    block = textwrap.fill(str(message), width=88, break_long_words=False, break_on_hyphens=False)
    print(f"\n--- WARNING ---\n{block}\n---------------\n", file=sys.stderr)
