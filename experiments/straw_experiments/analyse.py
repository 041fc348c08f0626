"""The command `analyse.py`: measures of the trained models of a finished `run.py`."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from straw_experiments.image_classification.command import check_data
from straw_experiments.image_classification.config import Analysis, parse_analysis
from straw_experiments.runner import lock
from straw_experiments.runner.command import fail, interruptible, prepare, show_warnings

_ANGLES = (-60, -40, -20, 0, 15, 30, 45, 60)  # degrees, of the images on the sheet of poses


def main(argv: Sequence[str]) -> int:
    """Analyse the finished run that the command line names.

    Args:
        argv: The words after the program's name.

    Returns:
        The exit code: 0 finished, 1 a run's checkpoint is gone or damaged or a file failed, 2 bad
        input, 128 + N stopped by signal N.
    """
    show_warnings()
    asked = parse_analysis(argv)
    return interruptible(lambda command: _locked(asked, command), resumes=True)


def _locked(asked: Analysis, command: str) -> int:
    prepare()
    with contextlib.ExitStack() as until_the_end:
        try:
            check_data(asked.config)
            until_the_end.enter_context(lock.held(Path(asked.config.out)))
        except ValueError as error:
            return fail(error, 2)
        return _analyse(asked, command)


def _analyse(asked: Analysis, command: str) -> int:
    config = asked.config

    from straw_experiments.image_classification import analysis_figures, distortions
    from straw_experiments.image_classification.analysis import analyse
    from straw_experiments.image_classification.study import Study, load_dataset
    from straw_experiments.pages.analysis import analysis_text
    from straw_experiments.runner import checkpoints, environment, records

    made = {
        "command": command,
        "commit": environment.commit(),
        "device": environment.device(),
        "versions": environment.versions(),
    }
    try:
        study = Study(config, load_dataset(config))
        analysis = analyse(study, asked.images)
    except checkpoints.CheckpointError as error:
        return fail(error, 1)
    except (ValueError, OSError) as error:
        return fail(error, 2)

    out = Path(config.out)
    for name in analysis["straw"]:
        analysis_figures.plot_updates(analysis, name, out / f"analysis_{name}_updates.png")
        analysis_figures.plot_movement(analysis, name, out / f"analysis_{name}_movement.png")
    analysis_figures.plot_rotated(analysis, out / "analysis_angles.png")
    analysis_figures.plot_distortions(analysis, out / "analysis_distortions.png")
    for name in analysis["distortions"]["seen"]:
        seed, upright = analysis["seeds"][name][0], study.dataset.test_images
        shown = distortions.sheet(study, name, seed, _ANGLES[: len(upright)])
        path, names = out / f"analysis_{name}_poses.png", study.dataset.class_names
        analysis_figures.plot_poses(shown, names, path, dataset=study.dataset.name)
    pictures = {path.name: records.file_checksum(path) for path in out.glob("analysis_*.png")}
    records.write_json(out / "analysis.json", {**made, **analysis, "files": pictures})
    print(analysis_text(out.name, analysis))
    print(f"All numbers and figures: {out}/analysis*")
    return 0
