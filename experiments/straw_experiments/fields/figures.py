"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments.fields.models import MODELS
from straw_experiments.runner.plots import FilePath, drawable, new_figure, save, tidy

_STARTS = {"siren": "#777777", "base": "#009988", "written": "#CC3311"}


def draw(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, str]:
    """Draw a study's curves.

    Args:
        summary: Contents of `summary.json`.
        history: Lines of `metrics.jsonl`.
        out: Folder for the PNGs.

    Returns:
        File names by what they show.
    """
    plot_curves(summary, history, out / "curves.png")
    drawn = {"PSNR of written fields by training step": "curves.png"}
    if any("fitting" in each for each in summary["results"].values()):
        plot_fitting(summary, out / "fitting.png")
        drawn["PSNR of fitted fields by step of fitting"] = "fitting.png"
    return drawn


def plot_curves(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], path: FilePath
) -> None:
    """Draw the PSNR on validation images against training steps."""
    figure = new_figure("Written fields, validation images", summary["dataset"], (6.4, 4.2))
    axes = figure.subplots()
    for name in summary["results"]:
        label = MODELS.label(name)
        for seed in summary["seeds"]:
            lines = [x for x in history if x["model"] == name and x["seed"] == seed]
            steps, scores = ([f(x) for x in lines] for f in (_step, _psnr))
            axes.plot(steps, scores, color=MODELS.colour(name), lw=1.6, label=label)
            label = "_"  # one entry for all seeds
    axes.set(xlabel="training step", ylabel="PSNR (dB)")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)


def _step(line: Mapping[str, Any]) -> int:
    step: int = line["step"]
    return step


def _psnr(line: Mapping[str, Any]) -> float:
    psnr: float = line["validation"]["psnr"]
    return psnr


def plot_fitting(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw the PSNR of fitted fields against steps, a panel a writer; its own level is a line."""
    fits = {name: each for name, each in summary["results"].items() if "fitting" in each}
    figure = new_figure("Fields fitted to each image", summary["dataset"], (3.4 * len(fits), 3.6))
    panels = figure.subplots(1, len(fits), sharey=True, squeeze=False)[0]
    for axes, (name, of_writer) in zip(panels, fits.items(), strict=True):
        for start, colour in _STARTS.items():
            curve = [each["mean"] for each in of_writer["fitting"]["curves"][start]["psnr"]]
            axes.plot(summary["steps of fitting"], curve, "o-", color=colour, ms=3, label=start)
        level = of_writer["fitting"]["curves"]["written"]["psnr"][0]["mean"]
        axes.axhline(level, color="#CC3311", lw=0.8, ls=":")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=-0.3)
        axes.set_title(MODELS.label(name), fontsize=10)
        axes.set(xlabel="steps of Adam")
        tidy(axes)
    panels[0].set_ylabel("PSNR (dB)")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def plot_images(
    shown: Mapping[str, Mapping[str, np.ndarray]], path: FilePath, *, title: str
) -> None:
    """Draw images beside their fields: a column an image, a row a reading.

    Args:
        shown: As from `fitting.pictures`.
        path: The PNG to write.
        title: Of the figure.
    """
    rows = list(next(iter(shown.values())))
    columns = [(name, i) for name, each in shown.items() for i in range(len(each["image"]))]
    figure = new_figure(title, "; ".join(shown), (0.9 * len(columns) + 1.1, 0.9 * len(rows) + 0.9))
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, of_row in zip(rows, panels, strict=True):
        for (name, i), axes in zip(columns, of_row, strict=True):
            axes.imshow(shown[name][row][i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        of_row[0].set_ylabel(drawable(row), fontsize=8, rotation=0, ha="right", va="center")
    save(figure, path)
