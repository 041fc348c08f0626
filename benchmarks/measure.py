"""Timing side by side, a process for each case, and what follows from the seconds."""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, Protocol

from cells import GIB, Case

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 900.0  # seconds until a worker that does not answer is ended

# For every worker: threads sleep while another worker is timed; every first call compiles; no
# framework takes a whole accelerator for itself.
SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}

Result = dict[str, Any]


class WorkerError(Exception):
    """A worker cannot go on; the message says why."""


class Asked(Protocol):
    """What `side_by_side` needs of a worker."""

    def ask(self, message: str | None) -> Any:
        """Send a message, if any, and return the answer, or raise a `WorkerError`."""

    def close(self) -> None:
        """End it."""


class Worker:
    """A process that builds one case; see `worker.py` for what it answers."""

    def __init__(self, case: Case) -> None:
        self.connection, theirs = Pipe()
        described = json.dumps({"module": case.module, "arguments": case.arguments})
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), str(theirs.fileno()), described],
            pass_fds=[theirs.fileno()],
            env=os.environ | SETTINGS,
        )
        theirs.close()

    def ask(self, message: str | None) -> Any:
        """Send a message, if any, and return the answer."""
        try:
            if message is not None:
                self.connection.send(message)
            if not self.connection.poll(PATIENCE):
                raise WorkerError(f"no answer in {PATIENCE:.0f} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            died = f"killed by signal {-code} (out of memory?)" if code < 0 else f"exit code {code}"
            raise WorkerError(died) from None
        if isinstance(answer, dict) and "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


def side_by_side(
    cases: Sequence[Case],
    repeats: int,
    seconds: float,
    free: int,
    start: Callable[[Case], Asked] = Worker,
) -> dict[str, Result]:
    """Time cases in turn, so that what disturbs the machine disturbs them alike.

    Workers are started one after the other, so that no first call is disturbed by another; then
    each takes one step in every round, while the others sleep.

    Args:
        cases: What to time; each is called twice before, untimed but for the first call.
        repeats: Timed steps of each case.
        seconds: Time for the steps of each case: where it is spent before all repeats are done, the
            case leaves the rounds, after `case.least` steps at the earliest.
        free: Bytes of memory for all cases together; a case that is not estimated to fit beside
            those before it is skipped.
        start: Starts a worker.

    Returns:
        By name: "seconds" of every timed step, "first_call" in seconds, "memory" in bytes; or the
        "reason" for which there are none.
    """
    results: dict[str, Result] = {case.name: {} for case in cases}
    workers: dict[str, Asked] = {}

    def attempt(case: Case, message: str | None) -> Any:
        try:
            return workers[case.name].ask(message)
        except WorkerError as error:
            results[case.name] = {"reason": str(error)}
            workers.pop(case.name).close()
            return None

    def goes_on(case: Case) -> bool:
        times = results[case.name].get("seconds", [])
        due = len(times) < repeats and (len(times) < case.least or sum(times) < seconds)
        return case.name in workers and due

    try:
        for case in cases:
            if reason := case.skip or _too_large(case, free):
                results[case.name] = {"reason": reason}
                continue
            workers[case.name] = start(case)
            if (ready := attempt(case, None)) is not None:
                results[case.name] = {**ready, "seconds": []}
                free -= case.needs
        while going := [case for case in cases if goes_on(case)]:
            for case in going:
                if (time := attempt(case, "step")) is not None:
                    results[case.name]["seconds"].append(time)
        for case in cases:
            if case.name in workers and (memory := attempt(case, "stop")) is not None:
                results[case.name]["memory"] = memory
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _too_large(case: Case, free: int) -> str:
    if case.needs <= free:
        return ""
    return f"needs about {case.needs / GIB:.0f} GiB, {max(free, 0) / GIB:.0f} are free"


def free_memory() -> int:
    """Return bytes of memory that processes can still have, less a reserve."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        free = int(kibibytes) * 1024
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free - GIB


def summary(results: Mapping[str, Result], reference: str) -> dict[str, dict[str, float]]:
    """Summarise timings.

    Args:
        results: By name, from `side_by_side`.
        reference: The case to which the others are compared, if it has been timed.

    Returns:
        For every case that was timed: minimum and median in seconds, how many steps, and how many
        times the reference's they are.
    """
    rows: dict[str, dict[str, float]] = {
        name: {"min": min(times), "median": statistics.median(times), "steps": len(times)}
        for name, result in results.items()
        if (times := result.get("seconds"))
    }
    if base := rows.get(reference):
        base = dict(base)
        for row in rows.values():
            row["min_ratio"] = row["min"] / base["min"]
            row["median_ratio"] = row["median"] / base["median"]
    return rows


def exponent(seconds: Mapping[int, float], low: int, high: int) -> tuple[float, int, int] | None:
    """Fit `seconds ~ width ** exponent` by least squares of the logarithms.

    Args:
        seconds: By width.
        low: The least width to use.
        high: The greatest width to use.

    Returns:
        The exponent, and the least and the greatest width that were there; None with fewer than two
        widths.
    """
    widths = sorted(width for width in seconds if low <= width <= high)
    if len(widths) < 2:
        return None
    logarithms = [math.log(seconds[width]) for width in widths]
    slope = statistics.linear_regression([math.log(width) for width in widths], logarithms).slope
    return slope, widths[0], widths[-1]
