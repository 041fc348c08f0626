"""Predict the weights of networks from pairs: `python experiments/weight_prediction.py --help`."""

from collections.abc import Sequence
from typing import Any

from straw_experiments.runner.command import (
    fail,
    interruptible,
    prepare,
    told_if_finished,
)
from straw_experiments.weight_prediction.config import parse


def main(argv: Sequence[str]) -> int:
    """Run the study that the command line describes.

    Returns:
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    settings = vars(parse(argv))
    return interruptible(lambda command: _run(settings, command), resumes=settings["resume"])


def _run(settings: dict[str, Any], command: str) -> int:
    prepare()
    if told_if_finished(settings["out"], "straw_experiments.weight_prediction.report"):
        return 0
    from straw_experiments.image_classification import loop
    from straw_experiments.runner import checkpoints
    from straw_experiments.runner import processes as parallel
    from straw_experiments.weight_prediction import study

    config = study.Config(**settings)
    try:
        parallel.jobs_for(1, config.jobs)  # refuses what the device cannot do
    except ValueError as error:
        return fail(error, 2)
    try:
        study.run(config, command)
    except (loop.NonFiniteError, checkpoints.CheckpointError, parallel.ProcessError) as error:
        return fail(error, 1)
    return 0
