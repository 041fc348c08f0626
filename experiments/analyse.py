#!/usr/bin/env python
"""Look at what a trained STRAW does: `python experiments/analyse.py --help`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arguments import parse_analysis
from process import fail, prepare, use_large_pages


def main() -> int:
    """Analyse the experiment that the command line names.

    Returns:
        The exit code: 0 finished, 1 a run's checkpoint is gone or damaged, 2 bad input, 130
        stopped by Ctrl-C.
    """
    arguments = parse_analysis(sys.argv[1:])
    try:
        return _analyse(arguments.settings, arguments.images)
    except KeyboardInterrupt:
        return fail("stopped; nothing was written", 130)


def _analyse(settings: dict[str, Any], images: int) -> int:
    prepare()
    from straw_jax import data

    sources = {name: settings[name] for name in ("fraction", "data_dir", "archive")}
    try:
        data.check(settings["dataset"], **sources)
    except ValueError as error:
        return fail(error, 2)

    import analysis_figures
    import modulator

    from straw_jax.training import checkpoints, experiment, records

    config = experiment.Config(**settings)
    try:
        found = experiment.Experiment(config, experiment.load_dataset(config))
        analysis = modulator.analyse(found, images)
    except checkpoints.CheckpointError as error:
        return fail(error, 1)
    except (ValueError, OSError) as error:
        return fail(error, 2)

    out = Path(config.out)
    for name in analysis["straw"]:
        print(_costs(analysis["straw"][name]["costs"]), end="\n\n")
        print(_updates(analysis["straw"][name], analysis["reference"]), end="\n\n")
        print(_movement(analysis["straw"][name]["movement"], analysis), end="\n\n")
        analysis_figures.plot_updates(analysis, name, out / f"analysis_{name}_updates.png")
        analysis_figures.plot_movement(analysis, name, out / f"analysis_{name}_movement.png")
    print(_turned(analysis), end="\n\n")
    analysis_figures.plot_turned(analysis, out / "analysis_angles.png")
    records.write_json(out / "analysis.json", analysis)
    print(f"All numbers and figures: {out}/analysis*")
    return 0


def _costs(rows: list[dict[str, Any]]) -> str:
    forms = {"whole": "whole kernels", "factors": "factors", "static": "static"}
    lines = [
        "Multiply-adds of one image and bytes of weights of its own",
        f"{'':<9}{'weights':>11}{'generated':>11}"
        + "".join(f"{title:>26}" for title in forms.values()),
    ]
    for row in rows:
        cells = [f"{row[form]['multiply_adds']:,} / {row[form]['bytes']:,}" for form in forms]
        counts = f"{row['dense_numbers']:>11,}{row['generated_numbers']:>11,}"
        lines.append(f"{row['layer']:<9}{counts}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def _updates(straw: Mapping[str, Any], reference: str) -> str:
    lines = [
        f"Updates: norm over that of the {reference} (5 to 95 %), standard deviation over images",
        "over the mean update's norm, share of the variance between classes (and corrected for",
        "chance), effective rank (5 to 95 %) of the largest possible",
    ]
    for path, found in straw["updates"].items():
        classes = {name: figure["mean"] for name, figure in found["between_classes"].items()}
        line = f"{path:<14}{_range(found['norm'], 2):>20}{found['variation']['mean']:>8.2f}"
        line += f"{classes['share']:>8.1%} ({classes['corrected']:.1%})"
        if "effective_rank" in found:
            largest = straw["leaves"][path]["largest"]
            line += f"{_range(found['effective_rank'], 1):>20} of {largest}"
        lines.append(line)
    return "\n".join(lines)


def _range(figure: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (f"{figure[name]['mean']:.{digits}f}" for name in ("mean", "p5", "p95"))
    return f"{mean} ({low}-{high})"


def _movement(movement: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    amounts = [f"{a}°" for a in analysis["angles"]] + [f"σ{s:g}" for s in analysis["sigmas"]]
    amounts += ["class", "other"]
    lines = [
        "Distance from an image's own update, over the mean norm: of the image turned, of it",
        "blurred (σ in pixels), of another image of its class, of any other image",
        " " * 14 + "".join(f"{amount:>6}" for amount in amounts),
    ]
    for path, found in movement.items():
        figures = [*found["rotation"], *found["blur"], found["same class"], found["another image"]]
        lines.append(f"{path:<14}" + "".join(f"{figure['mean']:>6.2f}" for figure in figures))
    return "\n".join(lines)


def _turned(analysis: Mapping[str, Any]) -> str:
    error, count = 100 * analysis["largest_standard_error"], analysis["images"]["accuracy"]
    lines = [
        f"Accuracy in % by angle on {count:,} test images (standard error up to {error:.1f})",
        " " * 30 + "".join(f"{f'{angle}°':>8}" for angle in analysis["angles"]),
    ]
    for name, styles in analysis["turned"].items():
        for style, figures in styles.items():
            title = name if style == "own" else f"{name}, {style}"
            cells = [f"{100 * figure['mean']:>8.1f}" for figure in figures]
            lines.append(f"{title:<30}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    use_large_pages()
    sys.exit(main())
