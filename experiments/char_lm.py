#!/usr/bin/env python
"""Model text character by character: `python experiments/char_lm.py --help`."""

import sys
from typing import Any

from language_arguments import parse
from process import fail, interruptible, prepare, told_if_finished, use_large_pages


def main() -> int:
    """Run the study that the command line describes.

    Returns:
        The exit code: 0 finished, 1 training failed, 2 bad input, 130 stopped by Ctrl-C.
    """
    settings = vars(parse(sys.argv[1:]))
    return interruptible(lambda command: _run(settings, command), resumes=settings["resume"])


def _run(settings: dict[str, Any], command: str) -> int:
    prepare()
    if told_if_finished(settings["out"], "straw_jax.language.report"):
        return 0
    from straw_jax.language import study
    from straw_jax.training import checkpoints, loop, parallel

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


if __name__ == "__main__":
    use_large_pages()
    sys.exit(main())
