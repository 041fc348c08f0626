"""The settings of `tables.py`: flags, defaults, and all checks.

Only the standard library is imported, so that a mistake is answered at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting
from straw_experiments.table_classification.models import MODELS

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")
"""Data sets that scikit-learn ships."""

_NAMED = (
    *("models", "units", "width", "rows", "steps", "batch_size", "learning_rate"),
    *("sets", "seed", "seeds"),
)
"""Settings by which results are named, where they are not the usual ones."""

_WHAT, _HOW, _TEST = "what to train", "how to train", "how to test"
_SMALLEST = 16  # rows of the smallest test
_MOST = 4_096  # rows, units or numbers of a vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `tables.py`."""

    models: list[str] = setting(
        list(MODELS),
        "models to train, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="NAME",
        shown="all",
    )
    units: int = setting(128, "of the hidden layer", group=_WHAT, read=whole(1, _MOST), metavar="N")
    width: int = setting(
        64,
        "of the encoder's vectors, 44 or more and a multiple of 4",
        group=_WHAT,
        read=whole(44, _MOST),
        metavar="N",
    )
    rows: int = setting(
        128,
        "of a table that are shown at most, 16 or more",
        group=_WHAT,
        read=whole(_SMALLEST, _MOST),
        metavar="N",
    )
    steps: int = setting(2_400, "training steps", group=_HOW, read=whole(1, 10**9), metavar="N")
    batch_size: int = setting(
        16, "new tables a step", group=_HOW, read=whole(1, limits.SIZE), metavar="N"
    )
    learning_rate: float = setting(
        0.002,
        "after a linear warm-up over a tenth of the steps, before a cosine decay to 0",
        group=_HOW,
        read=positive,
        metavar="RATE",
    )
    sets: list[str] = setting(
        list(SETS),
        'data sets of scikit-learn, or "none", which does without scikit-learn',
        group=_TEST,
        nargs="+",
        choices=(*SETS, "none"),
        shown="all",
    )
    splits: int = setting(
        5,
        "into training and test rows, of each data set and number of rows",
        group=_TEST,
        read=whole(1, 1_000),
        metavar="N",
    )

    @property
    def shown_rows(self) -> list[int]:
        """Numbers of training rows in the test: 16, 32, 64 and so on."""
        counts = [_SMALLEST]
        while 2 * counts[-1] <= min(self.rows, 128):
            counts.append(2 * counts[-1])
        return counts

    @property
    def tested_sets(self) -> list[str]:
        """Data sets of the test, none where it does without scikit-learn."""
        return [] if self.sets == ["none"] else self.sets


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("tables"),
        description="Train networks that write a classifier from a table's labelled rows, on"
        " synthetic tables; test them on scikit-learn's data sets, beside its classifiers, and"
        " write table, report and figures.",
        epilog='The test needs the extra "tables". Without flags: both models, one seed.',
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
    chosen = usual | dict(given)
    MODELS.check("argument --models", chosen["models"])
    for name in ("models", "sets"):
        settings.check_once(name, chosen[name])
    if chosen["width"] % 4:
        raise ValueError(
            f"argument --width: expected a multiple of 4 (heads of attention), got"
            f" {chosen['width']}"
        )
    if chosen["precision"] != "float32":
        raise ValueError(
            f"argument --precision: expected float32, got {chosen['precision']}; the last layer is"
            " solved for, which needs it"
        )
    _check_sets(chosen["sets"])
    batch = 4 * chosen["batch_size"] * chosen["rows"] * (chosen["rows"] + chosen["units"])
    limits.check(f"argument --batch-size: {chosen['batch_size']}", batch, "a step's tables")
    config = Config(**settings.with_out(chosen, "tables", usual, _NAMED))
    settings.check_jobs(config, config.models)
    settings.check_out(config)
    return config


def _check_sets(names: Sequence[str]) -> None:
    if "none" in names and len(names) > 1:
        raise ValueError('argument --sets: got "none" and others; give one or the other')
    if "none" not in names and find_spec("sklearn") is None:
        raise ValueError(
            'argument --sets: needs the extra "tables": pip install "straw_jax[tables]"; or give'
            " --sets none"
        )
