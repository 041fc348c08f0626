"""The settings of `char_lm.py`: flags, defaults, and all checks that need no text.

Only the standard library is imported, so that a mistake is answered at once.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.char_lm.models import MODELS
from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.precision import BYTES
from straw_experiments.runner.readers import number, positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, flag, setting

_NAMED = (
    *("models", "parameters", "embedding", "rank", "epochs", "batch_size", "length"),
    *("learning_rate", "dropout", "sample_length", "seed", "seeds", "hyper_features", "precision"),
)
"""Settings by which results are named, where they are not the usual ones."""

_HYPER_FEATURES = 64  # of a million parameters; of others in proportion to the length of the state
_WHAT, _HOW, _WHERE = "what to train", "how to train", "data and results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `char_lm.py`."""

    models: list[str] = setting(
        ["lstm", "ln_lstm", "hyper", "ln_hyper", "lowrank"],
        "models to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="NAME",
    )
    parameters: int = setting(
        1_000_000,
        "the most that each model may have; its state is as long as that allows",
        group=_WHAT,
        read=whole(1, SIZE),
        metavar="N",
    )
    hyper_features: int = setting(
        _HYPER_FEATURES,
        "length of the smaller LSTM's state",
        group=_WHAT,
        read=whole(1, SIZE),
        metavar="N",
        shown="64 of a million parameters, of others in proportion to their root",
    )
    embedding: int = setting(
        4,
        "length of HyperLSTM's embedding of each gate",
        group=_WHAT,
        read=whole(1, SIZE),
        metavar="N",
    )
    rank: int = setting(1, "of the low-rank update", group=_WHAT, read=whole(1, SIZE), metavar="N")
    epochs: int = setting(
        2, "passes over the training text", group=_HOW, read=whole(1, 10**6), metavar="N"
    )
    batch_size: int = setting(
        16,
        "pieces of the text that are read side by side",
        group=_HOW,
        read=whole(1, SIZE),
        metavar="N",
    )
    length: int = setting(
        50,
        "characters of each that a step reads, and back through which gradients go; the state is"
        " carried on",
        group=_HOW,
        read=whole(1, SIZE),
        metavar="N",
    )
    learning_rate: float | list[float] = setting(
        4e-3,
        "of Adam, after a linear warm-up over a tenth of the steps, before a cosine decay to 0; one"
        " for all models, or one for each, in their order",
        group=_HOW,
        read=positive,
        nargs="+",
        metavar="RATE",
    )
    dropout: float = setting(
        0.1,
        "share of characters read, of the LSTM's candidates, and of its outputs that are dropped",
        group=_HOW,
        read=number("a number of at least 0, below 1", lambda value: 0 <= value < 1),
        metavar="SHARE",
    )
    text: str | None = setting(
        None,
        "a text file in UTF-8: its first 90 % are for training, the next 5 % for validation, the"
        " last 5 % for the test",
        group=_WHERE,
        metavar="PATH",
        shown="Penn Treebank",
    )
    data_dir: str | None = setting(
        None,
        "where ptb.train.txt, ptb.valid.txt and ptb.test.txt are looked for, or in ptb/ there; if"
        " they are missing, they are downloaded to it",
        group=_WHERE,
        metavar="DIR",
        shown="TFDS_DATA_DIR, or else ~/tensorflow_datasets",
        incidental=True,
    )
    sample_length: int = setting(
        400,
        "characters to draw from each trained model",
        group=_WHERE,
        read=whole(0, 10**6),
        metavar="N",
    )


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("char-lm"),
        description="Train recurrent models of a text, character by character, all of as many"
        " parameters: LSTMs, and LSTMs whose weights a smaller LSTM generates at every character."
        " Test them, and write table, report, samples and figures.",
        epilog="Without flags: five models of Penn Treebank, of a million parameters each; an"
        " hour on a CPU with 2 cores. A stopped run goes on, with --resume, from the end of its"
        " last whole epoch.",
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
    parameters = given.get("parameters", usual["parameters"])
    usual["hyper_features"] = max(1, round(_HYPER_FEATURES * math.sqrt(parameters / 1e6)))
    chosen = usual | dict(given)
    MODELS.check("argument --models", chosen["models"])
    if len(set(chosen["models"])) < len(chosen["models"]):
        raise ValueError(f"argument --models: got {' '.join(chosen['models'])}; name each once")
    chosen["learning_rate"] = _rates(chosen["learning_rate"], chosen["models"])
    text = Path(chosen["text"]).stem if chosen["text"] else "ptb"
    config = Config(**settings.with_out(chosen, f"characters-{text}", usual, _NAMED))
    _check_memory(config)
    settings.check_jobs(config, config.models)
    settings.check_out(config)
    return config


def _check_memory(config: Config) -> None:
    """Check that there is memory for the least that these sizes need; more is known with a text."""
    needs = config.parameters * limits.TRAINED
    limits.check(f"argument --parameters: {config.parameters}", needs, "trained weights")
    if any(MODELS[name].modulated for name in config.models):
        small = config.hyper_features
        for name, least in {
            "hyper_features": 4 * small**2,  # the smaller LSTM's weights for its own state
            "embedding": small * config.embedding,
            "rank": small * config.rank,
        }.items():
            if least > config.parameters:
                raise ValueError(
                    f"{flag(name)}: {getattr(config, name)} takes at least {least:,} parameters,"
                    f" and --parameters allows {config.parameters:,}; give less, or allow more"
                )
    check_step(config, 1)


def check_text(path: str | None) -> None:
    """Check that a text file can be read, as far as a quick look allows; needs no JAX.

    Raises:
        ValueError: It cannot.
    """
    if path is None:
        return
    try:
        Path(path).expanduser().open("rb").close()
    except (OSError, RuntimeError) as error:  # a user's folder that is not there
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"argument --text: expected a text file, cannot read {path}: {reason}"
        ) from None


def check_step(config: Config, features: int) -> None:
    """Check that there is memory for the gates of a step's characters.

    Args:
        config: The settings.
        features: Length of a model's state.

    Raises:
        ValueError: There is not.
    """
    limits.check(
        f"argument --batch-size: {config.batch_size} times --length {config.length}",
        config.batch_size * config.length * 4 * features * BYTES[config.precision],
        "a step's characters",
    )


def _rates(given: float | list[float], models: Sequence[str]) -> float | list[float]:
    """Return the one rate of all models, or a list of theirs."""
    rates = given if isinstance(given, list) else [given]
    if len(rates) not in (1, len(models)):
        raise ValueError(
            f"argument --learning-rate: expected one rate, or one for each of {len(models)} models,"
            f" got {len(rates)}"
        )
    return rates if len(set(rates)) > 1 else rates[0]
