"""Look at what a trained STRAW does: `python experiments/analyse.py --help`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from straw_experiments.image_classification.config import parse_analysis
from straw_experiments.runner.command import data_mistake, fail, prepare

_TURNED = (-60, -40, -20, 0, 15, 30, 45, 60)  # degrees, of the images on the sheet of poses


def main(argv: Sequence[str]) -> int:
    """Analyse the experiment that the command line names.

    Returns:
        The exit code: 0 finished, 1 a run's checkpoint is gone or damaged, 2 bad input, 130
        stopped by Ctrl-C.
    """
    arguments = parse_analysis(argv)
    try:
        return _analyse(arguments.settings, arguments.images)
    except KeyboardInterrupt:
        return fail("stopped", 130)


def _analyse(settings: dict[str, Any], images: int) -> int:
    prepare()
    if mistake := data_mistake(settings):
        return fail(mistake, 2)

    from straw_experiments.image_classification import analysis as modulator
    from straw_experiments.image_classification import analysis_figures, distortions
    from straw_experiments.image_classification import study as experiment
    from straw_experiments.pages.analysis import analysis_text
    from straw_experiments.runner import checkpoints, environment, records

    config = experiment.Config(**settings)
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": environment.commit(),
        "device": environment.device(),
        "versions": environment.versions(),
    }
    try:
        found = experiment.Experiment(config, experiment.load_dataset(config))
        analysis = modulator.analyse(found, images)
    except checkpoints.CheckpointError as error:
        return fail(error, 1)
    except (ValueError, OSError) as error:
        return fail(error, 2)

    out = Path(config.out)
    for name in analysis["straw"]:
        analysis_figures.plot_updates(analysis, name, out / f"analysis_{name}_updates.png")
        analysis_figures.plot_movement(analysis, name, out / f"analysis_{name}_movement.png")
    analysis_figures.plot_turned(analysis, out / "analysis_angles.png")
    analysis_figures.plot_distortions(analysis, out / "analysis_distortions.png")
    for name in analysis["distortions"]["seen"]:
        seed, upright = analysis["seeds"][name][0], found.dataset.test_images
        shown = distortions.sheet(found, name, seed, _TURNED[: len(upright)])
        path, names = out / f"analysis_{name}_poses.png", found.dataset.class_names
        analysis_figures.plot_poses(shown, names, path, dataset=found.dataset.name)
    records.write_json(out / "analysis.json", {**made, **analysis})
    print(analysis_text(out.name, analysis))
    print(f"All numbers and figures: {out}/analysis*")
    return 0
