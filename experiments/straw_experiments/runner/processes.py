"""Several runs at once, each in a process with its share of the cores.

On CPU a small model does not fill several cores: two training steps of the article's executor, each
on a core of its own, take 0.22 s together, and 0.32 s one after the other on both. Training seeds
together by `vmap` took 0.79 s: per-seed kernels become grouped convolutions.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import jax
from tqdm import tqdm

_MOST_JOBS = 8  # unless asked for: each needs memory of its own


class ProcessError(RuntimeError):
    """A process came to an end before its work did."""


def jobs_for(tasks: int, wanted: int | None) -> int:
    """Decide how many runs train at once.

    Args:
        tasks: How many runs there are.
        wanted: What the user asked for, or None.

    Returns:
        No more than there are tasks; without a wish one a core, and at most 8; 1 where the device
        is no CPU, which processes could not share, or where cores cannot be dealt out.

    Raises:
        ValueError: More than one is wanted where that cannot be.
    """
    possible = jax.default_backend() == "cpu" and hasattr(os, "sched_setaffinity")
    if not possible:
        if wanted is not None and wanted > 1:
            raise ValueError(
                f"--jobs: several runs at once need CPU cores to share, on Linux; got {wanted} jobs"
                f" on {jax.default_backend()}. Leave --jobs out"
            )
        return 1
    cores = len(os.sched_getaffinity(0))
    return min(tasks, wanted or min(cores, _MOST_JOBS))


def in_processes(
    start: Callable[..., Callable[[Any], None]],
    shared: tuple[Any, ...],
    tasks: Sequence[Any],
    jobs: int,
    *,
    title: Callable[[Any], str] = str,
) -> None:
    """Do tasks in processes of their own, several at once.

    Args:
        start: Called as `start(*shared)` once in each process; returns what does a task. A function
            of a module, so that another process can import it.
        shared: What every process needs; pickled.
        tasks: What is to be done, the longest first; pickled.
        jobs: Into how many shares the cores are dealt; there are no more processes than tasks.
        title: Names a task in messages.

    Raises:
        ProcessError: A process was ended from outside; says which, and what it did.
        Exception: What a task raised; the others are then ended, too.
    """
    processes = min(jobs, len(tasks))
    if not processes:
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs  # as many for every job: the number of threads decides rounding
    others = set(multiprocessing.active_children())
    threads = set(threading.enumerate())
    doing: dict[int | None, Any] = {}
    with _shielded():  # Starts a process of multiprocessing's, and lets Ctrl-C through again:
        shares, begun = context.SimpleQueue(), context.SimpleQueue()
    with _shielded():  # so once more.
        for job in range(jobs):
            shares.put(cores[job * each : (job + 1) * each] or cores)
        pool = ProcessPoolExecutor(processes, context, _begin, (shares, begun, start, shared))
        up = [pool.submit(_nothing) for _ in range(processes)]
        workers = set(multiprocessing.active_children()) - others
    try:
        # A pool may overlook the end of a process that it started after it began to watch (CPython
        # 3.11): let all be up first.
        wait(up)
        for future in as_completed([pool.submit(_do, task) for task in tasks]):
            _note(begun, doing)
            future.result()
        pool.shutdown()
    except BrokenProcessPool:
        pool.shutdown()  # Waits until the pool has ended the others.
        _note(begun, doing)
        titles = {process: title(task) for process, task in doing.items()}
        raise ProcessError(
            f"{_deaths(workers, titles)}, perhaps for want of memory. Go on with --resume, and a"
            " lower --jobs if memory is short"
        ) from None
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in workers:
            child.terminate()
        _join(set(threading.enumerate()) - threads)
        raise


def _join(threads: Iterable[threading.Thread]) -> None:
    """Wait for a pool's threads, which else may close a pipe while Python's end writes to it."""
    end = time.monotonic() + 5
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Start processes that Ctrl-C and the end of a terminal do not reach: the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note(begun: Any, doing: dict[int | None, Any]) -> None:
    while not begun.empty():
        process, task = begun.get()
        doing[process] = task


def _deaths(workers: Iterable[BaseProcess], titles: Mapping[int | None, str]) -> str:
    """Say which processes came to an end, and how; without those that the pool then ended."""
    by_itself = [each for each in workers if each.exitcode not in (0, -signal.SIGTERM)]
    told = [
        f"process {each.pid}, which trained {titles.get(each.pid, 'nothing yet')}, was ended"
        f" from outside by {_ending(each.exitcode or 0)}"
        for each in by_itself or workers
    ]
    return "; ".join(told)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


_do_task: Callable[[Any], None]
_begun: Any


def _begin(
    shares: Any, begun: Any, start: Callable[..., Callable[[Any], None]], shared: Any
) -> None:
    global _do_task, _begun
    _begun = begun
    os.sched_setaffinity(0, shares.get())  # before JAX makes its threads
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _do_task = start(*shared)
    except Exception as error:  # To be raised by a task: here the pool would hide it.
        _do_task = partial(_raise, error)


def _raise(error: Exception, _: Any) -> None:
    raise error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _nothing() -> None:
    pass


def _do(task: Any) -> None:
    _begun.put((os.getpid(), task))
    _do_task(task)
