"""The command `fields.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from straw_experiments.fields.config import Config, parse
from straw_experiments.runner.command import run_study

if TYPE_CHECKING:
    from straw_experiments.fields.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the writers that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(argv, parse=parse, load=_load, report="straw_experiments.fields.report")


def _load(config: Config) -> "Study":
    """Load the data; the quickest checks come first, so that no mistake waits for JAX."""
    from straw_experiments import data

    for name in (config.dataset, config.held_out):
        if name not in ("auto", "none"):
            archive = config.archive if name == "emnist" else None
            data.check(name, data_dir=config.data_dir, archive=archive)

    from straw_experiments.fields.study import Study, load_images
    from straw_experiments.runner import limits, processes

    processes.jobs_for(1, config.jobs)  # refuses what the device cannot do
    study = Study(config, load_images(config))
    limits.check_weights((name, study.trainer(name).parameters()) for name in study.names)
    return study
