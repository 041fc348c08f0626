"""Train STRAW beside its baselines and report: `python experiments/run.py --help`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from straw_experiments.image_classification.config import parse
from straw_experiments.runner.command import (
    data_mistake,
    fail,
    interruptible,
    prepare,
    told_if_finished,
)


def main(argv: Sequence[str]) -> int:
    """Run the experiment that the command line describes.

    Returns:
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    settings = vars(parse(argv))
    return interruptible(lambda command: _run(settings, command), resumes=settings["resume"])


def _run(settings: dict[str, Any], command: str) -> int:
    prepare()
    # Imported step by step, the quickest first: no mistake should wait for what comes after it.
    if told_if_finished(settings["out"], "straw_experiments.image_classification.report"):
        return 0
    if mistake := data_mistake(settings):
        return fail(mistake, 2)

    from straw_experiments.image_classification import loop
    from straw_experiments.image_classification import study as experiment
    from straw_experiments.runner import checkpoints, hosts
    from straw_experiments.runner import processes as parallel
    from straw_jax.sharding import make_mesh

    distributed = settings.pop("distributed")
    config = experiment.Config(**settings)
    try:
        if distributed is not None:
            hosts.join(*distributed)
        # These two refuse what the devices cannot do.
        parallel.jobs_for(1, config.jobs)
        if config.mesh:
            make_mesh(**config.mesh)
        dataset = hosts.first_then_others(partial(experiment.load_dataset, config))
    except (ValueError, OSError, RuntimeError) as error:
        return fail(error, 2)
    try:
        experiment.run(config, dataset, command)
    except (loop.NonFiniteError, checkpoints.CheckpointError, parallel.ProcessError) as error:
        return fail(error, 1)
    return 0
