"""Small studies to make faults in: how they are run, what they publish, and how they answer."""

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

from straw_experiments import cli
from straw_experiments.faults.data import write_archive
from straw_experiments.faults.outcomes import Outcome
from straw_experiments.runner import records, runs
from straw_experiments.runner.study import Study

STUDIES: Mapping[str, Sequence[str]] = {
    "images": (
        *("run", "--archive", "tiny.zip", "--data-dir", "data", "--fraction", "1", "--rank", "1"),
        *("--models", "compact", "compact_static", "--epochs", "2", "--batch-size", "16"),
        *("--limit", "32", "--seeds", "2", "--jobs", "1"),
    ),
    "weights": (
        *("weight-prediction", "--predict", "outputs", "--networks", "2-3-1", "--steps", "4"),
        *("--predictors", "plain", "--batch-size", "8", "--seeds", "2", "--jobs", "1"),
    ),
    "text": (
        *("char-lm", "--text", "text.txt", "--models", "lstm", "--parameters", "5000"),
        *("--epochs", "3", "--jobs", "1"),
    ),
}
"""The words of a small study by name; `--out` and `--resume` are added, inputs made whole paths."""

_INPUTS = ("tiny.zip", "data", "text.txt")

# Times, and what decides them.
_RATES = ("images_per_second", "steps_per_second", "characters_per_second")
_MEASURED = ("seconds", "jobs", *_RATES)
_MADE = ("command", "commit", "versions", "device", "config", "files")


Process: TypeAlias = "subprocess.Popen[str]"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command did.

    Attributes:
        code: Its exit code.
        out: Its standard output.
        err: Its standard error.
        trace: The traceback of an exception that it did not catch.
    """

    code: int
    out: str
    err: str
    trace: str = ""

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def raised(self) -> str:
        """The last line of the traceback, which names what was raised."""
        return (self.trace.strip().splitlines() or [""])[-1]

    @property
    def warnings(self) -> list[str]:
        """The warnings shown, but for the one that the archive is a small one."""
        blocks = [block.split("---------------")[0] for block in self.err.split("--- WARNING ---")]
        shown = [" ".join(block.split()) for block in blocks[1:]]
        return [text for text in shown if "unofficial archive" not in text]


def call(words: Sequence[str]) -> Answer:
    """Run a subcommand in this process, see `_quick`."""
    out, err = io.StringIO(), io.StringIO()
    code, trace = 1, ""
    os.environ["STRAW_JAX_RESTARTED"] = "1"  # this process must not start anew for large pages
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        _quick(),
        mock.patch.object(sys, "argv", ["straw-jax", *words]),
    ):
        warnings.simplefilter("always")
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            trace = traceback.format_exc()
    return Answer(code, out.getvalue(), err.getvalue(), trace)


def start(words: Sequence[str], cwd: Path, *, file_bytes: int | None = None) -> Process:
    """Start a subcommand as a process of its own, which leads a group.

    Args:
        words: Of the subcommand.
        cwd: The folder in which it runs.
        file_bytes: How large a file may become; more is answered as a full disk is (not Windows).
    """
    begin = ["-m", "straw_experiments"]
    if file_bytes is not None:
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes}, {file_bytes}))"
        run = "runpy.run_module('straw_experiments', run_name='__main__', alter_sys=True)"
        begin = ["-c", f"import resource, runpy; {limit}; {run}"]
    return subprocess.Popen(
        [sys.executable, *begin, *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: Process) -> Answer:
    """Wait for a process, and return what it did."""
    out, err = process.communicate()
    trace = err[err.index("Traceback (") :] if "Traceback (" in err else ""
    return Answer(process.returncode, out, err, trace)


def words(name: str, out: Path, *, inputs: Path, resume: bool = False) -> list[str]:
    """Return the command line of a small study.

    Args:
        name: As in `STUDIES`.
        out: The folder of its results.
        inputs: A folder in which `write_inputs` was called.
        resume: Whether it goes on.
    """
    given = [str(inputs / word) if word in _INPUTS else word for word in STUDIES[name]]
    return [*given, "--out", str(out), *(["--resume"] if resume else [])]


def write_inputs(folder: Path) -> None:
    """Write what the small studies read: a text, and an archive laid out as EMNIST's."""
    text = "the quick brown fox jumps over the lazy dog. " * 250
    (folder / "text.txt").write_text(text, encoding="utf-8")
    write_archive(folder / "tiny.zip", seed=0)


def published(out: Path) -> dict[str, Any]:
    """Read what a finished study publishes, without times and what says how it was made.

    Args:
        out: The folder of its results.

    Returns:
        Summary and lines of `metrics.jsonl`. All that is published matches its checksum.

    Raises:
        ValueError: Something is damaged.
    """
    summary = records.read_json(out / "summary.json")
    known = summary["files"]
    if damaged := [name for name in known if records.file_checksum(out / name) != known[name]]:
        raise ValueError(f"{damaged}, which summary.json knows otherwise")
    lines = records.read_lines(out / "metrics.jsonl")
    return {"summary": _comparable(summary), "metrics": _comparable(lines)}


def judge(answer: Answer, expected: Mapping[str, Any], out: Path) -> tuple[Outcome, str]:
    """Judge the answer of a study that was to finish.

    Args:
        answer: What it did.
        expected: What it should publish.
        out: The folder of its results.

    Returns:
        The outcome, and what it said or how its results differ.
    """
    if answer.trace:
        return Outcome.TRACEBACK, answer.raised
    if answer.code:
        one_line = answer.last_line.startswith("straw-jax")
        return (Outcome.REFUSED if one_line else Outcome.TRACEBACK), answer.last_line
    try:
        found = published(out)
    except (OSError, ValueError) as error:
        return Outcome.SILENT, f"finished, and left {error}"
    different = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if different:
        return Outcome.SILENT, f"other figures in {', '.join(different)}"
    shown = answer.warnings
    return (Outcome.REMADE, "; ".join(shown)) if shown else (Outcome.IDENTICAL, "")


def snapshots(name: str, folder: Path, inputs: Path) -> tuple[dict[str, Any], list[Path]]:
    """Run a small study, and keep copies of its folder from while it ran.

    Args:
        name: As in `STUDIES`.
        folder: Where the copies go.
        inputs: A folder in which `write_inputs` was called.

    Returns:
        What it publishes, and the copies; the last is of the finished study.
    """
    out = folder / "out"
    copies: list[Path] = []

    def keep(message: str) -> None:
        del message
        copies.append(Path(shutil.copytree(out, folder / f"after{len(copies)}")))

    with mock.patch.object(runs, "say", keep):
        answer = call(words(name, out, inputs=inputs))
    if answer.code or answer.trace:
        raise RuntimeError(f"the study {name} failed: {answer.trace or answer.err}")
    keep("finished")
    return published(out), copies


def seconds_of(words: Sequence[str], cwd: Path) -> float:
    """Run a subcommand as a process, and return how long it takes."""
    began = time.monotonic()
    answer = finished(start(words, cwd))
    if answer.code:
        raise RuntimeError(f"{' '.join(words)} failed: {answer.err}")
    return time.monotonic() - began


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Compile what trains once for all trials, and draw no pictures, which take a second each."""
    with contextlib.ExitStack() as stack:
        for kind in _kinds():
            stack.enter_context(mock.patch.object(kind, "draw", return_value={}))
            stack.enter_context(mock.patch.object(kind, "closing", return_value=()))
            for method in ("make_trainer", "straw"):
                if made := getattr(kind, method, None):
                    stack.enter_context(mock.patch.object(kind, method, _once(made)))
        yield


_made: dict[tuple[Any, ...], Any] = {}


def _once(make: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Make what trains a model, which knows nothing of a results folder, once for all trials."""

    def made(study: Any, name: str) -> Any:
        key = (make, name)
        if key not in _made:
            _made[key] = make(study, name)
        return _made[key]

    return made


def _kinds() -> list[type[Study[Any]]]:
    from straw_experiments.char_lm.study import Study as Text
    from straw_experiments.image_classification.study import Study as Images
    from straw_experiments.weight_prediction.study import Study as Weights

    return [Images, Weights, Text]


def _comparable(record: Any) -> Any:
    if isinstance(record, dict):
        dropped = (*_MEASURED, *_MADE)
        return {key: _comparable(value) for key, value in record.items() if key not in dropped}
    if isinstance(record, list):
        return [_comparable(value) for value in record]
    return record
