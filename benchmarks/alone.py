"""Let the experiments' modules be imported with jax, flax, optax and orbax alone.

To be imported first. Their packages ask for the whole extra "experiments", most of which reads data
sets and draws figures. Models, training steps and loops need none of that.
"""

import sys
import types
from typing import Any

import straw_experiments


class _NoBar:
    """What `tqdm` is where it is not installed: a bar that nobody sees."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, *_: Any) -> None:
        pass

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        pass


straw_experiments.require_extra = lambda: None
try:
    import tqdm  # noqa: F401
except ImportError:
    sys.modules["tqdm"] = types.ModuleType("tqdm")
    sys.modules["tqdm"].tqdm = _NoBar  # type: ignore[attr-defined]
