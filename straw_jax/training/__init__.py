"""Training and evaluation of the contenders; needs the extra "experiments"."""

from straw_jax.training.evaluate import Score, evaluate, make_forward, predict
from straw_jax.training.loop import Epoch, NonFiniteError, train
from straw_jax.training.step import Metrics, Model, State, init_state, make_train_step

__all__ = [
    "Epoch",
    "Metrics",
    "Model",
    "NonFiniteError",
    "Score",
    "State",
    "evaluate",
    "init_state",
    "make_forward",
    "make_train_step",
    "predict",
    "train",
]
