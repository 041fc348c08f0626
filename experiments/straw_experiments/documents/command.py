"""The command `documents.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from straw_experiments.documents.config import Config, parse
from straw_experiments.documents.texts import check_folder
from straw_experiments.runner.command import run_study

if TYPE_CHECKING:
    from straw_experiments.documents.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the models that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(argv, parse=parse, load=_load, report="straw_experiments.documents.report")


def _load(config: Config) -> "Study":
    """Find texts and model; the quickest checks come first, so that no mistake waits for JAX."""
    check_folder(config.texts)

    from straw_experiments.smollm.weights import require_extra

    try:
        require_extra()
    except ImportError as error:
        raise ValueError(str(error)) from None

    from straw_experiments.documents.study import Study
    from straw_experiments.runner import limits, processes

    processes.jobs_for(1, config.jobs)  # refuses what the device cannot do
    study = Study(config)
    limits.check_weights((name, study.trainer(name).parameters()) for name in study.names)
    return study
