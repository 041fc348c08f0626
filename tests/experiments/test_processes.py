"""Runs in processes of their own: each on its cores, and none outlives a failure."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
import scripts

from straw_experiments.runner.processes import ProcessError, in_processes, jobs_for

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(not CORES, reason="cores cannot be dealt out on this system")


def _noting(folder):
    """Start a process whose tasks write down where they ran."""

    def note(task):
        kind, number = task
        while kind in ("fail", "die") and not Path(folder, "waiting").exists():
            time.sleep(0.01)
        if kind == "fail":
            raise ArithmeticError(f"task {number} is wrong")
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "wait":
            part = Path(folder, "part")
            part.write_text(str(os.getpid()))
            part.rename(Path(folder, "waiting"))
            while True:
                time.sleep(1)
        cores = sorted(os.sched_getaffinity(0))
        Path(folder, str(number)).write_text(f"{os.getpid()} {cores}")

    return note


def test_every_task_is_done_on_a_share_of_the_cores(tmp_path):
    in_processes(_noting, (str(tmp_path),), [("note", n) for n in range(5)], 2)
    notes = [path.read_text().split(" ", 1) for path in tmp_path.iterdir()]
    assert len(notes) == 5
    half = len(CORES) // 2
    shares = {str(CORES[job * half : (job + 1) * half] or CORES) for job in range(2)}
    assert {cores for _, cores in notes} <= shares
    assert str(os.getpid()) not in {process for process, _ in notes}


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("fail", ArithmeticError, "task 0 is wrong"),
        (
            "die",
            ProcessError,
            r"^process \d+, which trained die 0, was ended from outside by SIGKILL,",
        ),
    ],
)
def test_failure_ends_all_processes(tmp_path, kind, error, message):
    with pytest.raises(error, match=message):
        in_processes(
            _noting, (str(tmp_path),), [("wait", 1), (kind, 0)], 2, title="{0[0]} {0[1]}".format
        )
    # It would never have ended.
    process = int((tmp_path / "waiting").read_text())
    deadline = time.monotonic() + 30
    while _is_running(process):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (tmp_path / "1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_what_stops_a_whole_group_is_one_line(tmp_path, number, code):
    program = (
        "import sys; from straw_experiments.runner import command, signals;"
        " signals.leave_if_raised(); from straw_experiments.runner import processes;"
        " from test_processes import _noting; sys.argv[0] = 'run.py';"
        f" started = (_noting, ({str(tmp_path)!r},), [('wait', 1)], 2);"
        " sys.exit(command.interruptible(lambda _: processes.in_processes(*started), True))"
    )
    environment = scripts.environment(scripts.EXPERIMENTS, Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        os.killpg(process.pid, number)
        said = process.stderr.read().decode()
    assert process.returncode == code
    assert said == "run.py: stopped; to go on: python run.py\n"


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _failing(reason):
    raise ArithmeticError(reason)


def test_failure_to_start_is_told():
    with pytest.raises(ArithmeticError, match="no start"):
        in_processes(_failing, ("no start",), [1, 2], 2)


def test_jobs_are_as_many_as_tasks_and_cores_allow(monkeypatch):
    assert jobs_for(1, None) == 1
    assert jobs_for(3, 2) == 2
    assert jobs_for(2, 16) == 2
    assert jobs_for(100, None) == min(len(CORES), 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert jobs_for(100, None) == jobs_for(100, 1) == 1
    with pytest.raises(ValueError, match=r"--jobs: .* got 2 jobs on gpu\. Leave --jobs out"):
        jobs_for(100, 2)
