"""The command `necessity.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from straw_experiments.necessity.config import Config, parse
from straw_experiments.runner.command import run_study

if TYPE_CHECKING:
    from straw_experiments.necessity.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the methods that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(argv, parse=parse, load=_load, report="straw_experiments.necessity.report")


def _load(config: Config) -> "Study":
    """Load the data; the quickest checks come first, so that no mistake waits for JAX."""
    from straw_experiments import data

    if config.dataset != "auto":
        archive = config.archive if config.dataset == "emnist" else None
        data.check(config.dataset, data_dir=config.data_dir, archive=archive)

    from straw_experiments.necessity.study import Study, load_sources
    from straw_experiments.runner import processes

    processes.jobs_for(1, config.jobs)  # refuses what the device cannot do
    return Study(config, load_sources(config))
