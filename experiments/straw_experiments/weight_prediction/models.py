"""The predictors that `weight_prediction.py` trains: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a predictor is built.
"""

import dataclasses
from functools import partial
from typing import Any, Literal, TypeAlias

from straw_experiments.runner.registry import Entry, Registry, lazily

Part: TypeAlias = Literal["weights", "outputs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor(Entry):
    """A predictor of weights or of outputs.

    Attributes:
        build: Of weights: `(sizes of the target network, embedding, dtype) -> Straw`. Of outputs:
            `(sizes, dtype) -> Flax module`, from weights and input to output.
        predicts: "weights" from pairs, or "outputs" from weights and inputs.
    """

    predicts: Part


def _network(function: str, **options: Any) -> Any:
    return partial(lazily("straw_experiments.weight_prediction.networks", function), **options)


MODELS: Registry[Predictor] = Registry(
    [
        Predictor(
            name="mean",
            build=_network("weight_predictor", pooling="mean"),
            colour="#0077BB",
            help="of weights, a set of pairs is pooled by its mean",
            predicts="weights",
        ),
        Predictor(
            name="attention",
            build=_network("weight_predictor", pooling="attention"),
            colour="#EE7733",
            help="of weights, pooled by attention",
            predicts="weights",
        ),
        Predictor(
            name="plain",
            build=_network("output_predictor", kind="plain"),
            colour="#0077BB",
            help="of outputs, a stack of dense layers",
            predicts="outputs",
        ),
        Predictor(
            name="concat",
            build=_network("output_predictor", kind="concat"),
            colour="#EE7733",
            help="of outputs, each layer also sees the input",
            predicts="outputs",
        ),
        Predictor(
            name="residual",
            build=_network("output_predictor", kind="residual"),
            colour="#009988",
            help="of outputs, residual blocks",
            predicts="outputs",
        ),
    ]
)


def predictors_of(part: Part) -> list[str]:
    """Name the predictors of weights, or of outputs."""
    return [name for name, model in MODELS.items() if model.predicts == part]
