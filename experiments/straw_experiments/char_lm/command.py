"""The command `char_lm.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from straw_experiments.char_lm.config import Config, check_step, check_text, parse
from straw_experiments.runner.command import run_study

if TYPE_CHECKING:
    from straw_experiments.char_lm.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the models that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(argv, parse=parse, load=_load, report="straw_experiments.char_lm.report")


def _load(config: Config) -> "Study":
    """Load the text; the quickest checks come first, so that no mistake waits for JAX."""
    check_text(config.text)

    from straw_experiments.char_lm.study import Study, load_text
    from straw_experiments.runner import limits, processes

    processes.jobs_for(1, config.jobs)  # refuses what the device cannot do
    study = Study(config, load_text(config))
    for features in study.features.values():
        check_step(config, features)
    limits.check_weights((name, study.trainer(name).parameters()) for name in study.names)
    return study
