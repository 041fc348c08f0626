"""The command `tables.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from straw_experiments.runner.command import run_study
from straw_experiments.table_classification.config import Config, parse

if TYPE_CHECKING:
    from straw_experiments.table_classification.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the models that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(
        argv, parse=parse, load=_load, report="straw_experiments.table_classification.report"
    )


def _load(config: Config) -> "Study":
    from straw_experiments.runner import limits, processes
    from straw_experiments.table_classification.study import Study

    processes.jobs_for(1, config.jobs)  # refuses what the device cannot do
    study = Study(config)
    limits.check_weights((name, study.trainer(name).parameters()) for name in study.names)
    return study
