"""What a machine can hold: what cannot be trained is refused before any work.

All estimates are of what is needed at least. Only the standard library is imported.
"""

import math
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec

SIZE = 10**12
"""The most that a size may be whose memory is checked, so that estimates stay plain numbers."""

TRAINED = 12
"""Bytes that each trained weight needs at least: itself, its gradient, and one moment (Muon's)."""

_PROCESS = 200 * 10**6  # bytes of a process that has imported JAX
_ACCELERATORS = 2 * 10**12  # bytes; more than the accelerators of one machine have together
_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")


def check(argument: str, needs: float, for_what: str, *, machines: int = 1) -> None:
    """Refuse what needs more memory than there is.

    Args:
        argument: Flag and value, such as "argument --rank: 64".
        needs: Bytes, at least.
        for_what: What they are for.
        machines: Over how many machines, or devices, they are divided at most.

    Raises:
        ValueError: There are not as many.
    """
    if needs > machines * (found := memory()):
        raise ValueError(
            f"{argument} needs at least {_bytes(needs)} of memory for {for_what}, this machine has"
            f" {_bytes(found)}; give less"
        )


def check_jobs(jobs: int | None, tasks: int) -> None:
    """Refuse more processes at once than there is memory for.

    Args:
        jobs: As asked for, if so.
        tasks: How many runs there are.

    Raises:
        ValueError: There is too little memory.
    """
    processes = min(jobs or 0, tasks)
    check(f"argument --jobs: {jobs}", processes * _PROCESS, f"{processes} processes")


def check_weights(models: Iterable[tuple[str, int]], *, machines: int = 1) -> None:
    """Refuse models with more trained weights than there is memory for.

    Args:
        models: Names, and how many weights are trained.
        machines: As for `check`.

    Raises:
        ValueError: There is too little memory.
    """
    for name, count in models:
        check(f"model {name}", count * TRAINED, f"{count:,} trained weights", machines=machines)


def memory() -> int:
    """Return how many bytes of memory this machine may have, with its accelerators.

    These are known to JAX alone: where JAX may find any, they are taken to have more than any have.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    plugins = any(find_spec(name) for name in ("jax_plugins", "libtpu"))
    return own_memory() + (0 if on_cpu or not plugins else _ACCELERATORS)


def own_memory() -> int:
    """Return this machine's memory in bytes, or a huge number if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def _bytes(count: float) -> str:
    """Write a number of bytes in three digits."""
    power = min(max(int(math.log10(count)) // 3, 1), len(_UNITS))
    return f"{count / 1000**power:.3g} {_UNITS[power - 1]}"
