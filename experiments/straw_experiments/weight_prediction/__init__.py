"""Weight prediction: the weights of networks, from pairs of their inputs and outputs.

Names are imported on first use, so that the command line answers without waiting for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from straw_experiments.weight_prediction.fitting import fit, least_squares
    from straw_experiments.weight_prediction.networks import (
        OutputPredictor,
        predict,
        weight_predictor,
    )
    from straw_experiments.weight_prediction.targets import (
        Pairs,
        Tasks,
        compute,
        draw,
        target,
        unknowns,
    )

_MODULES = {
    "fitting": ["fit", "least_squares"],
    "networks": ["OutputPredictor", "predict", "weight_predictor"],
    "targets": ["Pairs", "Tasks", "compute", "draw", "target", "unknowns"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "OutputPredictor",
    "Pairs",
    "Tasks",
    "compute",
    "draw",
    "fit",
    "least_squares",
    "predict",
    "target",
    "unknowns",
    "weight_predictor",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
