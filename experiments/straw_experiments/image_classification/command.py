"""The command `run.py`."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from straw_experiments.image_classification.config import Config, check_batch, parse
from straw_experiments.runner.command import run_study

if TYPE_CHECKING:
    from straw_experiments.image_classification.study import Study


def main(argv: Sequence[str]) -> int:
    """Train and test the models that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 failed, 2 bad input, 128 + N stopped by signal N.
    """
    return run_study(
        argv, parse=parse, load=_load, report="straw_experiments.image_classification.report"
    )


def _load(config: Config) -> "Study":
    """Load the data; the quickest checks come first, so that no mistake waits for JAX."""
    check_data(config)

    from straw_experiments.image_classification.study import Study, load_dataset
    from straw_experiments.runner import hosts, limits, processes
    from straw_jax.sharding import make_mesh

    if config.distributed is not None:
        hosts.join(*config.distributed)
    processes.jobs_for(1, config.jobs)  # refuses what the devices cannot do, as does the next
    if config.mesh:
        make_mesh(**config.mesh)
    study = Study(config, hosts.first_then_others(partial(load_dataset, config)))
    check_batch(config, study.dataset.train_images.shape[1:])
    counts = ((name, study.trainer(name).parameters()) for name in study.names)
    limits.check_weights(counts, machines=math.prod(study.mesh.shape.values()) if study.mesh else 1)
    return study


def check_data(config: Config) -> None:
    """Check the data as far as a quick look allows; needs no JAX.

    Raises:
        ValueError: They are missing, damaged, or not what their name says.
    """
    from straw_experiments import data

    data.check(
        config.dataset,
        fraction=config.fraction,
        data_dir=config.data_dir,
        archive=config.archive,
    )
