"""The command line of weight_prediction.py: flags, defaults, and all checks.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner.arguments import Parser, add_out, add_seeds, check_out, number, whole

PREDICTORS = {"weights": ("mean", "attention"), "outputs": ("plain", "concat", "residual")}

# What does not change a result may change between a run and its resumption. (How many runs train at
# once, and with it the number of threads of each, changes rounding alone.)
_INCIDENTAL = ("out", "resume", "jobs")

_USUAL: dict[str, dict[str, Any]] = {
    "weights": {
        "networks": ["2-5-1", "4-10-1"],
        "pairs": [1.33, 2.0, 3.0],
        "predictors": ["mean"],
        "steps": 5_000,
        "batch_size": 128,
        "learning_rate": 0.01,
    },
    "outputs": {
        "networks": ["2-5-1"],
        "predictors": list(PREDICTORS["outputs"]),
        "steps": 10_000,
        "batch_size": 1_024,
        "learning_rate": 0.01,
    },
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.

    Returns:
        One attribute for each field of `straw_experiments.weight_prediction.study.Config`.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.predict == "outputs":
            _check_outputs(arguments)
        for name, value in _USUAL[arguments.predict].items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        _check_predictors(arguments)
        arguments.pairs = arguments.pairs or []
        _check_pairs(arguments.networks, arguments.pairs)
        arguments.embedding = arguments.embedding or 128
        arguments.out = arguments.out or str(Path("results", _readable_name(arguments)))
        check_out(arguments, _INCIDENTAL)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="weight_prediction.py",
        description="Train networks that predict the weights of other, random networks from pairs"
        " of input and output, test what the predicted weights compute, and write table, report"
        " and figures.",
        epilog="Without flags: the six cells of the weight prediction post, with mean pooling; a"
        " matter of minutes on a CPU with 2 cores.",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--predict",
        choices=tuple(PREDICTORS),
        default="weights",
        help="weights from pairs, or outputs from weights and an input (default: weights)",
    )
    what.add_argument(
        "--networks",
        nargs="+",
        type=_sizes,
        metavar="SIZES",
        help="whose weights: inputs, hidden units, outputs; without hidden units linear (default:"
        " 2-5-1 4-10-1; of outputs 2-5-1)",
    )
    what.add_argument(
        "--pairs",
        nargs="+",
        type=number("a number above 0", lambda value: 0 < value < math.inf),
        metavar="RATIO",
        help="pairs shown for each unknown weight (default: 1.33 2 3)",
    )
    what.add_argument(
        "--predictors",
        nargs="+",
        metavar="NAME",
        help="of weights mean, attention: how a set of pairs is pooled (default: mean); of outputs"
        " plain, concat, residual (default: all)",
    )
    what.add_argument(
        "--embedding",
        type=whole(1),
        metavar="N",
        help="length of the vector that a set of pairs is embedded in (default: 128)",
    )
    how = parser.add_argument_group("how to train")
    how.add_argument(
        "--steps", type=whole(1), metavar="N", help="of training (default: 5000; of outputs 10000)"
    )
    how.add_argument(
        "--batch-size",
        type=whole(1),
        metavar="N",
        help="new networks a step (default: 128; of outputs 1024)",
    )
    how.add_argument(
        "--learning-rate",
        type=number("a number above 0", lambda value: 0 < value < math.inf),
        metavar="RATE",
        help="reached after a tenth of the steps, then down to 0 along half a cosine (default:"
        " 0.01)",
    )
    how.add_argument(
        "--optimizer", choices=("muon", "adam"), default="muon", help="(default: muon)"
    )
    add_seeds(how, "a predictor")
    add_out(parser.add_argument_group("results"))
    return parser


def _sizes(text: str) -> str:
    parts = text.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"expected sizes of layers, such as 2-5-1 (2 inputs, 5 hidden units, 1 output), got"
            f" {text!r}"
        )
    return "-".join(str(int(part)) for part in parts)


def _check_outputs(arguments: argparse.Namespace) -> None:
    for name in ("pairs", "embedding"):
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"argument --{name}: is of weights that are predicted; leave it out with --predict"
                " outputs"
            )


def _check_predictors(arguments: argparse.Namespace) -> None:
    known = PREDICTORS[arguments.predict]
    if unknown := [name for name in arguments.predictors if name not in known]:
        raise ValueError(
            f"argument --predictors: expected any of {', '.join(known)}, got {unknown[0]}"
        )
    for name in ("networks", "predictors", "pairs"):
        values = getattr(arguments, name) or []
        if len(set(values)) < len(values):
            raise ValueError(f"argument --{name}: got {_listed(values)}; name each once")


def _check_pairs(networks: Sequence[str], ratios: Sequence[float]) -> None:
    """Check that every ratio is a number of pairs of its own, counted as in the study's `cells`."""
    for network in networks:
        sizes = map(int, network.split("-"))
        unknowns = sum(math.prod(shape) for shape in itertools.pairwise(sizes))
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


def _readable_name(arguments: argparse.Namespace) -> str:
    """Name a study by its settings, the usual ones left unsaid: other settings, another name."""
    usual = _USUAL[arguments.predict] | {
        "embedding": 128,
        "optimizer": "muon",
        "seed": 0,
        "seeds": 1,
    }
    parts = [f"{arguments.predict}-prediction"]
    parts += [
        f"{name.replace('_', '-')}-{_listed(getattr(arguments, name))}"
        for name, value in usual.items()
        if getattr(arguments, name) != value
    ]
    return "_".join(parts)


def _listed(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return "+".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
