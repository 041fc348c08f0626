"""One case in a process of its own: builds it, then takes one step for each message.

Started by `measure.Worker` with the number of an open connection and the case as JSON.
"""

import importlib
import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def serve(connection: Connection, module: str, arguments: dict[str, Any]) -> None:
    """Build a case, call it twice, say so, and time a step for every message until "stop"."""
    build = importlib.import_module(module).build
    imports = peak_memory()
    step = build(**arguments)
    first = timed(step)
    timed(step)
    connection.send({"first_call": first})
    while connection.recv() == "step":
        connection.send(timed(step))
    connection.send({"imports": imports, "peak": peak_memory(), "device_peak": device_peak()})


def timed(step: Callable[[], object]) -> float:
    """Return how many seconds one step takes; it returns when its work is done."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held.

    `ru_maxrss` would be wrong where Linux says it better: it starts from the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peak() -> int | None:
    """Return the most bytes that the framework has held on an accelerator; None without one."""
    if jax := sys.modules.get("jax"):
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection, **json.loads(sys.argv[2]))
    except (EOFError, BrokenPipeError):
        pass  # the parent has ended
    except Exception as error:  # whatever a framework raises is this cell's result
        text = " ".join(str(error).split()) or "no message"
        connection.send({"error": f"{type(error).__name__}: {text[:200]}"})


if __name__ == "__main__":
    main()
