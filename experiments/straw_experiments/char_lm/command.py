"""Model text character by character: `python experiments/char_lm.py --help`."""

from collections.abc import Sequence
from typing import Any

from straw_experiments.char_lm.config import parse
from straw_experiments.runner.command import (
    fail,
    interruptible,
    prepare,
    told_if_finished,
)


def main(argv: Sequence[str]) -> int:
    """Run the study that the command line describes.

    Returns:
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    settings = vars(parse(argv))
    return interruptible(lambda command: _run(settings, command), resumes=settings["resume"])


def _run(settings: dict[str, Any], command: str) -> int:
    prepare()
    if told_if_finished(settings["out"], "straw_experiments.char_lm.report"):
        return 0
    from straw_experiments.char_lm import study
    from straw_experiments.image_classification import loop
    from straw_experiments.runner import checkpoints
    from straw_experiments.runner import processes as parallel

    config = study.Config(**settings)
    try:
        parallel.jobs_for(1, config.jobs)  # refuses what the device cannot do
        planned = study.Study(config, study.load_text(config))
    except ValueError as error:
        return fail(error, 2)
    try:
        study.run(planned, command)
    except (loop.NonFiniteError, checkpoints.CheckpointError, parallel.ProcessError) as error:
        return fail(error, 1)
    return 0
