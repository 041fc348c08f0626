#!/usr/bin/env python
"""Train STRAW beside its baselines and report: `python experiments/run.py --help`."""

import contextlib
import json
import os
import platform
import shlex
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

from arguments import parse


def main() -> int:
    """Run the experiment that the command line describes.

    Returns:
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    arguments = parse(sys.argv[1:])
    command = shlex.join(["python", *sys.argv])
    try:
        return _run(vars(arguments), command)
    except KeyboardInterrupt:
        again = command if arguments.resume else f"{command} --resume"
        return _fail(f"stopped; to go on: {again}", 130)


def _run(settings: dict[str, Any], command: str) -> int:
    warnings.showwarning = _show_warning
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache_dir()))  # Read on JAX's import.
    # Imported step by step, the quickest first: no mistake should wait for what comes after it.
    from straw_jax import data

    finished = Path(settings["out"], "summary.json")
    if finished.exists():
        from straw_jax.training import report

        print(report.table(json.loads(finished.read_text(encoding="utf-8"))))
        print(f"\nAlready finished; report and figures are in {finished.parent}")
        return 0
    sources = {name: settings[name] for name in ("fraction", "data_dir", "archive")}
    try:
        data.check(settings["dataset"], **sources)
    except ValueError as error:
        return _fail(error, 2)

    from straw_jax.training import checkpoints, experiment, loop, parallel

    config = experiment.Config(**settings)
    try:
        parallel.jobs_for(1, config.jobs)  # refuses what this device cannot do
        dataset = experiment.load_dataset(config)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    try:
        experiment.run(config, dataset, command)
    except (loop.NonFiniteError, checkpoints.CheckpointError, parallel.ProcessError) as error:
        return _fail(error, 1)
    return 0


def _use_large_pages() -> None:
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


def _fail(message: object, code: int) -> int:
    print(f"run.py: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    block = textwrap.fill(str(message), width=88, break_long_words=False, break_on_hyphens=False)
    print(f"\n--- WARNING ---\n{block}\n---------------\n", file=sys.stderr)


if __name__ == "__main__":
    _use_large_pages()
    sys.exit(main())
