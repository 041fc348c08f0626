"""Wrong command lines and wrong arguments, one after the other."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from straw_experiments import cli
from straw_experiments.faults import arguments, lines
from straw_experiments.faults.outcomes import Kind, Outcome, Trial

_LIMIT = 2.0  # seconds, within which a wrong command line is answered


def prepare_lines(place: Path) -> Kind:
    """Write what wrong command lines name; each is then given to a process of its own."""
    lines.write_files(place)
    before = _times(place)

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del rng
        line = COMMANDS[number]
        fault = " ".join((line.script, *line.words))[:200]
        began = time.monotonic()
        found = subprocess.run(
            [sys.executable, "-m", "straw_experiments", line.script, *line.words],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=600,
        )
        seconds = time.monotonic() - began
        said = found.stderr.strip()
        if "Traceback" in said or len(said.splitlines()) != 1:
            return Trial(fault, Outcome.TRACEBACK, said[-300:])
        if found.returncode != 2 or line.says not in said or _times(place) != before:
            return Trial(fault, Outcome.SILENT, f"exit code {found.returncode}: {said}")
        slow = f" ({seconds:.1f} s)" if seconds > _LIMIT else ""
        return Trial(fault, Outcome.REFUSED, f"{said}{slow}")

    return trial


def prepare_arguments(place: Path) -> Kind:
    """Prepare calls of the library with one wrong argument each."""
    del place

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del rng
        name, call = list(CALLS.items())[number]
        wrong = arguments.answer(call)
        if not wrong:
            return Trial(name, Outcome.REFUSED)
        return Trial(name, Outcome.SILENT if wrong == "accepted" else Outcome.TRACEBACK, wrong)

    return trial


COMMANDS = [line for line in lines.LINES if line.script in cli.SUBCOMMANDS]
CALLS = arguments.cases()


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
