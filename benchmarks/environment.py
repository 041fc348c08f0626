"""What decides the figures, as JSON: run as a script, since it imports the frameworks."""

import json
import os
from importlib import util
from typing import Any

from straw_experiments.runner.environment import device, versions


def describe() -> dict[str, Any]:
    """Return the frameworks' devices, versions and threads."""
    found = {
        "device": device(),
        "cores": os.cpu_count(),
        "versions": versions(),
        # JAX's pool has a thread for each core that it may use.
        "threads": {"jax": _cores()},
    }
    if util.find_spec("torch"):
        import torch

        found["versions"]["torch"] = torch.__version__
        found["threads"]["torch"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["torch_device"] = torch.cuda.get_device_name()
    return found


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    print(json.dumps(describe()))
