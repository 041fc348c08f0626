"""The settings of `necessity.py`: flags, defaults, and all checks without data.

Only the standard library is imported, so that a mistake is answered at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from straw_experiments.char_lm.config import check_text
from straw_experiments.image_classification.config import check_archive
from straw_experiments.necessity.models import METHODS
from straw_experiments.necessity.sizes import BUDGETS
from straw_experiments.necessity.tasks import TASKS
from straw_experiments.runner import limits, settings
from straw_experiments.runner.command import program
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting

_NAMED = (
    *("tasks", "methods", "size", "steps", "batch_size", "rates", "dataset"),
    *("seed", "seeds"),
)
"""Settings by which results are named, where they are not the usual ones."""

_WHAT, _HOW, _WHERE = "what to train", "how to train", "data and results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Every setting of `necessity.py`."""

    tasks: list[str] = setting(
        list(TASKS),
        "what hides in the context, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="TASK",
        shown="all",
    )
    methods: list[str] = setting(
        list(METHODS),
        "how the context is used, see the list below",
        group=_WHAT,
        nargs="+",
        metavar="METHOD",
        shown="all",
    )
    size: str = setting(
        "small",
        "budget of parameters and of multiply-adds a query; large is ten times small",
        group=_WHAT,
        choices=tuple(BUDGETS),
    )
    steps: int = setting(
        1_500, "training steps of Adam", group=_HOW, read=whole(1, 10**9), metavar="N"
    )
    batch_size: int = setting(
        16, "new tasks a step", group=_HOW, read=whole(1, limits.SIZE), metavar="N"
    )
    rates: list[float] = setting(
        [0.0003, 0.001, 0.003],
        "learning rates, of which each method gets on each task the one with the least loss on"
        " validation tasks, after a third of the steps; it rises to this in a tenth of the steps,"
        " and falls to 0 along half a cosine",
        group=_HOW,
        nargs="+",
        read=positive,
        metavar="RATE",
    )
    dataset: str = setting(
        "auto",
        "images of the image tasks, as run takes them; their first ten classes are the digits",
        group=_WHERE,
        metavar="NAME",
    )
    text: str | None = setting(
        None,
        "a text file in UTF-8 for the ciphers",
        group=_WHERE,
        metavar="PATH",
        shown="Penn Treebank",
    )
    data_dir: str | None = setting(
        None,
        "where data are looked for and kept",
        group=_WHERE,
        metavar="DIR",
        shown="TFDS_DATA_DIR, or else ~/tensorflow_datasets",
        incidental=True,
    )
    archive: str | None = setting(
        None, "EMNIST's gzip.zip, if you have it", group=_WHERE, metavar="FILE", incidental=True
    )

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Pairs of a task and a method that applies to it, the tasks one after the other."""
        return [
            (task, method)
            for task in self.tasks
            for method in self.methods
            if METHODS[method].applies(TASKS[task])
        ]


def parse(argv: Sequence[str]) -> Config:
    """Read and check the command line.

    A mistake ends the process with one line on stderr and exit code 2; nothing is written.

    Args:
        argv: The words after the program's name.
    """
    parser = Parser(
        prog=program("necessity"),
        description="Train kinds of weights that are written for a context, beside static networks"
        " and other users of a context, all of one size, on tasks that hide different things; test"
        " them with right and wrong contexts, and write table, report and figures.",
        epilog="Without flags: all methods on all tasks, one seed, about an hour on a CPU with 2"
        " cores. A table of what is finished is in progress.md of --out.",
    )
    lists = settings.catalogue("tasks", TASKS) + settings.catalogue("methods", METHODS)
    parser.epilog = "\n".join([parser.epilog or "", *lists])
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
    TASKS.check("argument --tasks", chosen["tasks"])
    METHODS.check("argument --methods", chosen["methods"])
    for name in ("tasks", "methods", "rates"):
        settings.check_once(name, chosen[name])
    if chosen["precision"] != usual["precision"]:
        raise ValueError(
            f"argument --precision: expected {usual['precision']}, got {chosen['precision']}; the"
            " methods are compared in one precision"
        )
    check_archive(chosen["archive"])
    check_text(chosen["text"])
    items = max(TASKS[name].length * TASKS[name].inputs for name in chosen["tasks"])
    batch = 4 * chosen["batch_size"] * items
    limits.check(f"argument --batch-size: {chosen['batch_size']}", batch, "a step's contexts")
    config = Config(**settings.with_out(chosen, "necessity", usual, _NAMED))
    if not config.cells:
        raise ValueError(
            f"argument --methods: none of {', '.join(config.methods)} applies to"
            f" {', '.join(config.tasks)}; give others"
        )
    settings.check_jobs(config, config.cells)
    settings.check_out(config)
    return config
