"""The settings of `weight_prediction.py`: flags, defaults, and all checks.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.precision import BYTES
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting
from straw_experiments.weight_prediction.models import MODELS, Part, predictors_of

Optimizer: TypeAlias = Literal["muon", "adam"]

_NAMED = (
    *("networks", "pairs", "predictors", "steps", "batch_size", "learning_rate"),
    *("embedding", "optimizer", "seed", "seeds", "precision"),
)
"""Settings by which results are named, where they are not the usual ones."""

# What is usual where outputs are predicted, and not as in `Config`.
_USUAL_OF_OUTPUTS: dict[str, Any] = {
    "networks": ["2-5-1"],
    "pairs": [],
    "predictors": predictors_of("outputs"),
    "steps": 10_000,
    "batch_size": 1_024,
}


_LAYERS = 100  # of a network, with its inputs
_HIDDEN = 128  # numbers in the hidden vectors of every predictor


def _is_size(text: str) -> bool:
    return re.fullmatch("0*[1-9][0-9]{0,11}", text) is not None


def _sizes(text: str) -> str:
    parts = text.split("-")
    if not 2 <= len(parts) <= _LAYERS or not all(map(_is_size, parts)):
        raise argparse.ArgumentTypeError(
            f"expected sizes of layers, such as 2-5-1 (2 inputs, 5 hidden units, 1 output), got"
            f" {text!r}"
        )
    return "-".join(str(int(part)) for part in parts)


_WHAT, _HOW = "what to train", "how to train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `weight_prediction.py`."""

    predict: Part = setting(
        "weights",
        "weights from pairs, or outputs from weights and an input",
        group=_WHAT,
        choices=("weights", "outputs"),
    )
    networks: list[str] = setting(
        ["2-5-1", "4-10-1"],
        "whose weights: inputs, hidden units, outputs; without hidden units linear",
        group=_WHAT,
        read=_sizes,
        nargs="+",
        metavar="SIZES",
        shown="2-5-1 4-10-1; of outputs 2-5-1",
    )
    pairs: list[float] = setting(
        [1.33, 2.0, 3.0],
        "pairs shown for each unknown weight",
        group=_WHAT,
        read=positive,
        nargs="+",
        metavar="RATIO",
    )
    predictors: list[str] = setting(
        ["mean"],
        "predictors to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="NAME",
        shown="mean; of outputs all",
    )
    embedding: int = setting(
        128,
        "length of the vector in which a set of pairs is embedded",
        group=_WHAT,
        read=whole(1, SIZE),
        metavar="N",
    )
    steps: int = setting(
        5_000,
        "training steps",
        group=_HOW,
        read=whole(1, 10**9),
        metavar="N",
        shown="5000; of outputs 10000",
    )
    batch_size: int = setting(
        128,
        "new networks a step",
        group=_HOW,
        read=whole(1, SIZE),
        metavar="N",
        shown="128; of outputs 1024",
    )
    learning_rate: float = setting(
        0.01,
        "after a linear warm-up over a tenth of the steps, before a cosine decay to 0",
        group=_HOW,
        read=positive,
        metavar="RATE",
    )
    optimizer: Optimizer = setting("muon", group=_HOW, choices=("muon", "adam"))


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("weight-prediction"),
        description="Train networks that predict the weights of other, random networks from pairs"
        " of input and output, test what the predicted weights compute, and write table, report"
        " and figures.",
        epilog="Without flags: the six cells of the weight prediction post, with mean pooling; a"
        " matter of minutes on a CPU with 2 cores.",
        models=MODELS,
    )
    return settings.parse(parser, Config, configure, argv)


def configure(given: Mapping[str, Any]) -> Config:
    """Complete settings by defaults, and check them.

    Args:
        given: Settings by name, as in `Config`; the rest is completed.

    Raises:
        ValueError: They contradict each other, or name what is not there.
    """
    usual = settings.defaults(Config)
    if given.get("predict") == "outputs":
        _check_outputs(given)
        usual |= _USUAL_OF_OUTPUTS
    chosen = usual | dict(given)
    known = predictors_of(chosen["predict"])
    MODELS.check("argument --predictors", chosen["predictors"], known)
    for name in ("networks", "predictors", "pairs"):
        settings.check_once(name, chosen[name])
    _check_memory(chosen)
    _check_pairs(chosen["networks"], chosen["pairs"])
    config = Config(**settings.with_out(chosen, f"{chosen['predict']}-prediction", usual, _NAMED))
    cells = [network for network in config.networks for _ in (config.pairs or [0])]
    settings.check_jobs(config, cells * len(config.predictors))
    settings.check_out(config)
    return config


def _check_outputs(given: Mapping[str, Any]) -> None:
    for name in ("pairs", "embedding"):
        if name in given:
            raise ValueError(
                f"argument --{name}: is of weights that are predicted; leave it out with --predict"
                " outputs"
            )


def _check_memory(chosen: Mapping[str, Any]) -> None:
    """Check that there is memory for the least that these sizes need."""
    for network in chosen["networks"]:
        # Outputs are predicted from all weights, which a first layer reads; weights are written
        # by a last one: either has as many for each unit of a hidden vector.
        needs = _unknowns(network) * _HIDDEN * limits.TRAINED
        limits.check(f"argument --networks: {network}", needs, "trained weights")
    if chosen["predict"] == "weights":
        needs = chosen["embedding"] * _HIDDEN * limits.TRAINED
        limits.check(f"argument --embedding: {chosen['embedding']}", needs, "trained weights")
    least = min(map(_unknowns, chosen["networks"]))
    number = BYTES[chosen["precision"]]
    batch = chosen["batch_size"] * number * (_HIDDEN + least)  # bytes
    limits.check(f"argument --batch-size: {chosen['batch_size']}", batch, "a step's networks")
    for ratio in chosen["pairs"]:
        needs = ratio * least * chosen["batch_size"] * number * _HIDDEN
        limits.check(f"argument --pairs: {ratio:g}", needs, "a step's pairs")


def _unknowns(network: str) -> int:
    return sum(math.prod(shape) for shape in itertools.pairwise(map(int, network.split("-"))))


def _check_pairs(networks: Sequence[str], ratios: Sequence[float]) -> None:
    """Check that every ratio is a number of pairs of its own, counted as in the study's `cells`."""
    for network in networks:
        unknowns = _unknowns(network)
        known: dict[int, float] = {}
        for ratio in ratios:
            if not (pairs := math.floor(ratio * unknowns + 0.5)):
                raise ValueError(
                    f"argument --pairs: expected at least half a pair, got {ratio:g} for each of"
                    f" the {unknowns} weights of {network}; give 1 or more"
                )
            if pairs in known:
                raise ValueError(
                    f"argument --pairs: {known[pairs]:g} and {ratio:g} for each of the {unknowns}"
                    f" weights of {network} are both {pairs} pairs; leave one of them out"
                )
            known[pairs] = ratio
