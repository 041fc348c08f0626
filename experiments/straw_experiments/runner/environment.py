"""What a run runs on."""

import contextlib
import ctypes
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax

_PACKAGES = ("straw_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def device(mesh: Mapping[str, int] | None = None) -> str:
    """Name the device that JAX computes on, such as "cpu (Intel Xeon, 2 cores)".

    Args:
        mesh: How many devices each axis of a mesh has; None where one device is used.
    """
    devices = jax.devices()
    if mesh:
        kind = devices[0].device_kind
        axes = ", ".join(f"{axis}={size}" for axis, size in mesh.items())
        return f"{devices[0].platform} ({math.prod(mesh.values())} x {kind}: {axes})"
    if devices[0].platform == "cpu":
        usable = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )
        return f"cpu ({_processor()}, {usable} cores)"
    count = f", {len(devices)} present, 1 used" if len(devices) > 1 else ""
    return f"{devices[0].platform} ({devices[0].device_kind}{count})"


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide the figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"  # A checkout on the import path.
    return found


def commit() -> str | None:
    """Name the commit that this package is checked out at, or None where it is not in a clone.

    "-dirty" follows where tracked files differ from it.
    """
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # perhaps installed below somebody else's clone
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def return_freed_memory() -> None:
    """Give back to the system what this process has freed, where the C library is glibc.

    Compiling STRAW's training step leaves more than 200 MB behind, beside which the step's own
    memory would come to lie.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # what others than glibc raise
        ctypes.CDLL(None).malloc_trim(0)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return " ".join(name.replace("(R)", "").replace("(TM)", "").split())
