"""The command line of char_lm.py: flags, defaults, and all checks that need no text.

Only the standard library is imported, so that a mistake is answered at once.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner.arguments import Parser, add_out, add_seeds, check_out, number, whole

MODELS = ("lstm", "ln_lstm", "hyper", "ln_hyper", "lowrank", "ln_lowrank")

# What does not change a result may change between a run and its resumption. (How many runs train at
# once, and with it the number of threads of each, changes rounding alone.)
_INCIDENTAL = ("data_dir", "out", "resume", "jobs")

_USUAL: dict[str, Any] = {
    "models": list(MODELS[:5]),
    "parameters": 1_000_000,
    "embedding": 4,
    "rank": 1,
    "epochs": 2,
    "batch_size": 16,
    "length": 50,
    "learning_rate": 4e-3,
    "dropout": 0.1,
    "sample_length": 400,
    "seed": 0,
    "seeds": 1,
}
_HYPER_FEATURES = 64  # of a million parameters; of others in proportion to the length of the state


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.

    Returns:
        One attribute for each field of `straw_experiments.char_lm.study.Config`.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _check_models(arguments.models)
        arguments.learning_rate = _rates(arguments.learning_rate, arguments.models)
        usual = _usual_hyper_features(arguments.parameters)
        arguments.hyper_features = arguments.hyper_features or usual
        arguments.out = arguments.out or str(Path("results", _readable_name(arguments)))
        check_out(arguments, _INCIDENTAL)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="char_lm.py",
        description="Train recurrent models of a text, character by character, all of as many"
        " parameters: LSTMs, and LSTMs whose weights a smaller LSTM writes anew at every"
        " character. Test them, and write table, report, samples and figures.",
        epilog="Without flags: five models of Penn Treebank, of a million parameters each; an"
        " hour on a CPU with 2 cores. A stopped run goes on, with --resume, from the end of its"
        " last whole epoch.",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        default=_USUAL["models"],
        help="any of lstm, hyper (HyperLSTM) and lowrank (a low-rank update of an LSTM), and of"
        " these with layer norm, ln_lstm, ln_hyper, ln_lowrank (default: all but ln_lowrank)",
    )
    _add(what, "parameters", whole(1), "N",
         "that each model has at most; its state is as long as that allows")  # fmt: skip
    what.add_argument(
        "--hyper-features",
        type=whole(1),
        metavar="N",
        help="length of the smaller LSTM's state (default: 64 of a million parameters, of others in"
        " proportion to their root)",
    )
    _add(what, "embedding", whole(1), "N", "length of HyperLSTM's embedding of each gate")
    _add(what, "rank", whole(1), "N", "of the low-rank update")
    how = parser.add_argument_group("how to train")
    _add(how, "epochs", whole(1), "N", "passes over the training text")
    _add(how, "batch-size", whole(1), "N", "pieces of the text that are read side by side")
    _add(how, "length", whole(1), "N", "characters of each that a step reads, and back through"
         " which gradients go; the state is carried on")  # fmt: skip
    _add(
        how,
        "learning-rate",
        number("a number above 0", lambda value: 0 < value < math.inf),
        "RATE",
        "of Adam, reached after a tenth of the steps, then down to 0 along half a cosine; one for"
        " all models, or one for each, in their order",
        nargs="+",
    )
    _add(
        how,
        "dropout",
        number("a number of at least 0, below 1", lambda value: 0 <= value < 1),
        "SHARE",
        "of characters read, of the LSTM's candidates, and of its outputs that are dropped",
    )
    add_seeds(how, "a model")
    where = parser.add_argument_group("text and results")
    where.add_argument(
        "--text",
        metavar="PATH",
        help="a text file in UTF-8: its first 90 %% are for training, the next 5 %% for validation,"
        " the last 5 %% for the test (default: Penn Treebank)",
    )
    where.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where ptb.train.txt, ptb.valid.txt and ptb.test.txt are looked for, or in ptb/ there;"
        " if they are missing, they are downloaded to it (TFDS_DATA_DIR, or else"
        " ~/tensorflow_datasets)",
    )
    _add(where, "sample-length", whole(0), "N", "characters to draw from each trained model")
    add_out(where)
    return parser


def _add(group: Any, flag: str, reader: Any, metavar: str, told: str, **more: Any) -> None:
    """Add a flag with its usual value."""
    usual, told = _USUAL[flag.replace("-", "_")], f"{told} (%(default)s)"
    group.add_argument(f"--{flag}", type=reader, metavar=metavar, default=usual, help=told, **more)


def _rates(given: float | list[float], models: Sequence[str]) -> float | list[float]:
    """Return the one rate of all models, or a list of theirs."""
    rates = given if isinstance(given, list) else [given]
    if len(rates) not in (1, len(models)):
        raise ValueError(
            f"argument --learning-rate: expected one rate, or one for each of {len(models)} models,"
            f" got {len(rates)}"
        )
    return rates if len(set(rates)) > 1 else rates[0]


def _check_models(models: Sequence[str]) -> None:
    if unknown := [name for name in models if name not in MODELS]:
        raise ValueError(
            f"argument --models: expected any of {', '.join(MODELS)}, got {unknown[0]}"
        )
    if len(set(models)) < len(models):
        raise ValueError(f"argument --models: got {' '.join(models)}; name each once")


def _usual_hyper_features(parameters: int) -> int:
    return max(1, round(_HYPER_FEATURES * math.sqrt(parameters / 1e6)))


def _readable_name(arguments: argparse.Namespace) -> str:
    """Name a study by its settings, the usual ones left unsaid: other settings, another name."""
    usual = _USUAL | {"hyper_features": _usual_hyper_features(arguments.parameters)}
    parts = [f"characters-{Path(arguments.text).stem if arguments.text else 'ptb'}"]
    parts += [
        f"{name.replace('_', '-')}-{_listed(getattr(arguments, name))}"
        for name, value in usual.items()
        if getattr(arguments, name) != value
    ]
    return "_".join(parts)


def _listed(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return "+".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)
