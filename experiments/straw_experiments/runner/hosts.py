"""Several processes, each with devices of its own, that train one model together.

Every process runs the same program. The first alone reads and writes results: the others receive
what it read, so that folders need not be shared.
"""

import contextlib
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

PATIENCE = 300  # seconds in which all processes have to come, as JAX has it
_AGAIN = 0.2  # seconds until a process knocks again


def join(address: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Join this process with the others; call before anything else asks JAX for devices.

    Args:
        address: "host:port" of the first process; None where JAX finds out by itself, as on a TPU
            pod or under Slurm. So it is with the next two.
        count: How many processes there are.
        index: Which of them this is; the first is 0.

    Raises:
        RuntimeError: The others cannot be found, or did not come in `PATIENCE` seconds.
    """
    if address is not None and count is not None and index is not None:
        _meet(address, count, index)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    try:
        jax.distributed.initialize(address, count, index)
    except ValueError as error:  # nothing says where the others are
        raise RuntimeError(str(error)) from error


def _meet(address: str, count: int, index: int) -> None:
    """Wait until all processes are there: of one that does not come, JAX would end the others."""
    print(f"waiting for {count} processes at {address}, {PATIENCE} s at most", file=sys.stderr)
    host, _, port = address.rpartition(":")
    until = time.monotonic() + PATIENCE
    try:
        if index == 0:
            _receive(int(port), count, until)
        else:
            _knock(host.strip("[]"), int(port), index, until)
    except OSError as error:
        reason = error.strerror or error
        raise RuntimeError(
            f"--distributed: the {count} processes did not meet at {address}: {reason}. Start all"
            f" of them within {PATIENCE} s, and give each the first one's address"
        ) from None


def _receive(port: int, count: int, until: float) -> None:
    """Let the others in; they go on together, when the last has come."""
    everywhere: dict[str, Any] = {}
    if socket.has_dualstack_ipv6():
        everywhere = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    others: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port), **everywhere))
        while missing := sorted({*range(1, count)} - {*others}):
            try:
                server.settimeout(max(until - time.monotonic(), 0.01))
                other = stack.enter_context(server.accept()[0])
            except TimeoutError:
                shown = ", ".join(map(str, missing[:5])) + ", ..." * (len(missing) > 5)
                raise TimeoutError(f"process {shown} of 0 to {count - 1} did not come") from None
            other.settimeout(1)
            with contextlib.suppress(OSError, ValueError):  # who knocks there may be a stranger
                others[int(other.recv(16))] = other
        for other in others.values():
            other.sendall(b"all are here")


def _knock(host: str, port: int, index: int, until: float) -> None:
    """Find the first process, and wait until it says that all are there."""
    while True:
        left = until - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(left, 0.01)) as first:
                first.sendall(str(index).encode())
                if first.recv(16):
                    return
                raise ConnectionResetError(None, "the first process has ended")
        except OSError:
            if left < _AGAIN:
                raise
        time.sleep(_AGAIN)


def is_first() -> bool:
    """Say whether this process reads and writes results."""
    return jax.process_index() == 0


def from_first(read: Callable[[], Any], like: Any) -> Any:
    """Let the first process read something, and send it to the others, which all have to call this.

    Args:
        read: Returns a tree of numbers or arrays; called in the first process alone.
        like: A tree of such shapes and dtypes, as numbers, arrays, or `jax.ShapeDtypeStruct`.

    Returns:
        What was read; from another process, as NumPy arrays.
    """
    if jax.process_count() == 1:
        return read()
    value = read() if is_first() else jax.tree.map(_nothing, like)
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def first_then_others(load: Callable[[], T]) -> T:
    """Load something in the first process, and then in the others, which find it prepared."""
    if jax.process_count() == 1:
        return load()
    value = load() if is_first() else None
    multihost_utils.sync_global_devices("first_then_others")
    return load() if value is None else value


def _nothing(leaf: Any) -> np.ndarray:
    like = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return np.zeros(like.shape, like.dtype)
