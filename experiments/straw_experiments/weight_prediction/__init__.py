"""Weight prediction: networks from pairs of input and output; needs the extra "experiments"."""

from straw_experiments.weight_prediction.fitting import fit, least_squares
from straw_experiments.weight_prediction.models import OutputPredictor, predict, weight_predictor
from straw_experiments.weight_prediction.targets import (
    Pairs,
    Tasks,
    compute,
    draw,
    target,
    unknowns,
)

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
