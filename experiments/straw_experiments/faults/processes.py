"""Processes that are killed, meet each other, or find the disk full or their folder gone."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments.faults import studies
from straw_experiments.faults.outcomes import Kind, Outcome, Trial

_STUDIES = ("weights", "text")  # whose processes take seconds; "stored" damages all studies

_SIGNALS = {
    signal.SIGKILL: -signal.SIGKILL,
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
}
"""The exit code that a process should end with, by the signal that it gets."""


class _Place:
    """A folder with small studies: what each publishes, and the seconds that it takes."""

    def __init__(self, place: Path, jobs: int):
        self.folder, self.jobs = place, jobs  # which decide the threads, and so the rounding
        place.mkdir()
        studies.write_inputs(place)
        self.expected: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.out = place / "trial"
        for name in _STUDIES:
            out = place / name
            for _ in range(2):  # the second time with compiled programs at hand
                shutil.rmtree(out, ignore_errors=True)
                self.seconds[name] = studies.seconds_of(self.words(name, out), place)
            self.expected[name] = studies.published(out)

    def words(self, name: str, out: Path | None = None, *, resume: bool = False) -> list[str]:
        """Return the command line of a study."""
        given = studies.words(name, out or self.out, inputs=self.folder, resume=resume)
        return [*given, "--jobs", str(self.jobs)]

    def start(
        self, name: str, *, resume: bool = False, file_bytes: int | None = None
    ) -> studies.Process:
        """Start a study in the trial's folder."""
        words = self.words(name, resume=resume)
        return studies.start(words, self.folder, file_bytes=file_bytes)

    def drawn(self, rng: np.random.Generator) -> str:
        """Choose a study, and empty the trial's folder."""
        shutil.rmtree(self.out, ignore_errors=True)
        return str(rng.choice(_STUDIES))

    def moment(self, name: str, rng: np.random.Generator) -> float:
        """Choose a moment of a study, in seconds after its start; its first second loads Python."""
        return float(rng.uniform(0.3, self.seconds[name]))

    def go_on(self, name: str, fault: str, answer: studies.Answer, codes: tuple[int, ...]) -> Trial:
        """Judge how a study ended, by its exit codes that are right; then finish it."""
        return _wrong(fault, answer, codes) or self.finish(name, fault, answer.last_line)

    def finish(self, name: str, fault: str, noticed: str) -> Trial:
        """Go on with a study to its end, and judge what it publishes."""
        started = (self.out / "config.json").exists()
        answer = studies.finished(self.start(name, resume=started))
        outcome, said = studies.judge(answer, self.expected[name], self.out)
        if outcome in (Outcome.IDENTICAL, Outcome.REMADE):
            return Trial(fault, outcome, noticed)
        return Trial(fault, outcome, f"{said} (after: {noticed})")


def _wrong(fault: str, answer: studies.Answer, codes: tuple[int, ...]) -> Trial | None:
    """Return the trial of a process that ended otherwise than it should, or None."""
    if answer.trace:
        return Trial(fault, Outcome.TRACEBACK, answer.raised)
    if answer.code not in codes:
        return Trial(fault, Outcome.SILENT, f"exit code {answer.code}: {answer.last_line}")
    return None


@functools.cache
def _placed(folder: Path, jobs: int = 1) -> _Place:
    """Prepare the studies once for all kinds of faults of a campaign."""
    return _Place(folder / f"{jobs} jobs", jobs)


def prepare_kills(place: Path) -> Kind:
    """Prepare studies that are stopped by signals, once to three times, and gone on with."""
    alone, in_processes = _placed(place.parent), _placed(place.parent, jobs=2)

    def trial(rng: np.random.Generator, number: int) -> Trial:
        studied = in_processes if number % 3 == 2 else alone
        name, done, noticed = studied.drawn(rng), [], ""
        for _ in range(rng.integers(1, 4)):
            sent = list(_SIGNALS)[rng.integers(len(_SIGNALS))]
            wait = studied.moment(name, rng)
            resume = (studied.out / "config.json").exists()
            answer = _stopped(studied.start(name, resume=resume), sent, wait)
            done.append(f"{sent.name} after {wait:.2f} s")
            fault = f"{name}, {studied.jobs} at once: {', '.join(done)}"
            if answer.code == 0:  # it was faster
                break
            # Python may still be loading what would catch the signal, or already be ending.
            uncaught = wait < 1.5 or (studied.out / "summary.json").exists()
            codes = (_SIGNALS[sent], *([-sent] if uncaught else []))
            if wrong := _wrong(fault, answer, codes):
                return wrong
            noticed = answer.last_line
        return studied.finish(name, fault, noticed)

    return trial


def prepare_workers(place: Path) -> Kind:
    """Prepare studies with several processes that train, of which one is killed."""
    studied = _placed(place.parent, jobs=2)

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        name = studied.drawn(rng)
        process = studied.start(name)
        wait = studied.moment(name, rng)
        time.sleep(wait)
        workers = _workers(process.pid)
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[rng.integers(len(workers))], signal.SIGKILL)
        answer = studies.finished(process)
        fault = f"{name}: one of {len(workers)} workers killed after {wait:.2f} s"
        return studied.go_on(name, fault, answer, codes=(0, 1))

    return trial


def prepare_pairs(place: Path) -> Kind:
    """Prepare two processes with one folder: one is to finish, the other to be refused."""
    studied = _placed(place.parent)

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        name = studied.drawn(rng)
        wait = float(rng.uniform(0, studied.seconds[name]))
        first = studied.start(name)
        time.sleep(wait)
        second = studied.start(name, resume=(studied.out / "config.json").exists())
        answers = [studies.finished(first), studies.finished(second)]
        fault = f"{name}: a second process after {wait:.2f} s"
        said = " / ".join(f"{answer.code}: {answer.last_line}" for answer in answers)
        if raised := next((answer.raised for answer in answers if answer.trace), ""):
            return Trial(fault, Outcome.TRACEBACK, raised)
        if sorted(answer.code for answer in answers) not in ([0, 0], [0, 2]):
            return Trial(fault, Outcome.SILENT, said)
        outcome, differs = studies.judge(
            next(answer for answer in answers if not answer.code),
            studied.expected[name],
            studied.out,
        )
        if outcome is not Outcome.IDENTICAL:
            return Trial(fault, outcome, differs)
        refused = any(answer.code for answer in answers)
        return Trial(fault, Outcome.REFUSED if refused else Outcome.IDENTICAL, said)

    return trial


def prepare_disks(place: Path) -> Kind:
    """Prepare studies whose disk is full, or whose folder goes or becomes a file."""
    studied = _placed(place.parent)

    def trial(rng: np.random.Generator, number: int) -> Trial:
        del number
        name = studied.drawn(rng)
        fault, process = _DISKS[rng.integers(len(_DISKS))](studied, name, rng)
        answer = studies.finished(process)
        if studied.out.is_file():
            studied.out.unlink()
        return studied.go_on(name, f"{name}: {fault}", answer, codes=(0, 1, 2))

    return trial


Started = tuple[str, studies.Process]


def _full(studied: _Place, name: str, rng: np.random.Generator) -> Started:
    """Files may have so many bytes and no more, which is answered as a full disk is."""
    limit = int(10 ** rng.uniform(1.5, 5.5))
    return f"files of {limit} bytes at most", studied.start(name, file_bytes=limit)


def _gone(studied: _Place, name: str, rng: np.random.Generator) -> Started:
    process, wait = studied.start(name), studied.moment(name, rng)
    time.sleep(wait)
    shutil.rmtree(studied.out, ignore_errors=True)
    return f"folder deleted after {wait:.2f} s", process


def _replaced(studied: _Place, name: str, rng: np.random.Generator) -> Started:
    process, wait = studied.start(name), studied.moment(name, rng)
    time.sleep(wait)
    shutil.rmtree(studied.out, ignore_errors=True)
    with contextlib.suppress(OSError):
        studied.out.write_text("a file")
    return f"folder replaced by a file after {wait:.2f} s", process


_DISKS = (_full, _gone, _replaced)


def _stopped(process: studies.Process, sent: signal.Signals, wait: float) -> studies.Answer:
    """Send a signal after some seconds, as a terminal does: to all processes of the group."""
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
    return studies.finished(process)


def _workers(pid: int) -> list[int]:
    """Return the processes that a process started and that train (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(word) for word in children.read_text().split()] if children.exists() else []
    return [child for child in found if b"spawn_main" in _command(child)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
