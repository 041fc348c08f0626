"""What a run ran on."""

import ctypes
import os
import platform
from importlib import metadata

import jax

_PACKAGES = ("straw_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def device() -> str:
    """Name the device that JAX computes on, such as "cpu (Intel Xeon, 2 cores)"."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"cpu ({_processor()}, {os.cpu_count()} cores)"
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


def keep_freed_memory() -> bool:
    """Let this process reuse the memory that it frees, where the C library is glibc.

    A step on CPU needs hundreds of megabytes for a moment. glibc returns so large a piece to the
    system at once, which then hands it out again page by page, all zeroed: an eighth of the time of
    STRAW's step. The price is a higher peak, since pieces of other sizes stay in between. Call it
    before JAX starts its threads.

    Returns:
        Whether all of it could be set.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    settings = {arena_max: 1, mmap_max: 0, trim_threshold: 2**31 - 1}
    return all(mallopt(name, value) for name, value in settings.items())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return " ".join(name.replace("(R)", "").replace("(TM)", "").split())
