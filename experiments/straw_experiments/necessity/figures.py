"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments.necessity import analysis, report
from straw_experiments.necessity.models import METHODS
from straw_experiments.necessity.tasks import TASKS
from straw_experiments.runner.plots import FilePath, new_figure, save, tidy

_DARK = 0.6  # shares of the gap from which letters are white


def draw(summary: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Draw a study's figures.

    Args:
        summary: Contents of `summary.json`.
        out: Folder for the PNGs.

    Returns:
        File names by what they show.
    """
    plot_matrix(summary, out / "matrix.png")
    plot_curves(summary, out / "lengths.png")
    return {
        "Methods by tasks: share of the way from the static network to the best": "matrix.png",
        "Figures by items of the context": "lengths.png",
    }


def plot_matrix(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw methods by tasks, coloured by the share of the way from static to the best."""
    tasks, methods = list(summary["tasks"]), list(summary["methods"])
    found = {(each["task"], each["method"]): each for each in summary["results"].values()}
    shares = np.full((len(methods), len(tasks)), np.nan)
    size = 1.35 * len(tasks) + 2.4, 0.34 * len(methods) + 1.7
    figure = new_figure("Methods by tasks", "blue: share of the way from static to the best", size)
    axes = figure.subplots()
    for row, method in enumerate(methods):
        for column, task in enumerate(tasks):
            if (task, method) not in found:
                axes.text(column, row, "-", ha="center", va="center", fontsize=8, color="#777777")
                continue
            share = analysis.gap_share(summary, task, method)
            shares[row, column] = 0.0 if share is None else share
            own = analysis.scores(summary, task)[method]
            axes.text(
                column,
                row,
                report.figure(summary, task, own),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if shares[row, column] > _DARK else "black",
            )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(
        range(len(tasks)), [f"{TASKS.label(task)}\n{report.unit(summary, task)}" for task in tasks]
    )
    axes.set_yticks(range(len(methods)), [METHODS.label(method) for method in methods])
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def plot_curves(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw each task's figures against the length of the context, a panel a task."""
    tasks = list(summary["tasks"])
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure = new_figure("Figures by items of the context", "", (3.2 * columns + 1.8, 2.9 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    labels: dict[str, Any] = {}
    for axes, task in zip(panels, tasks, strict=False):
        metric = summary["tasks"][task]["metric"]
        scale = 100 if metric == "accuracy" else 1
        for each in summary["results"].values():
            if each["task"] != task:
                continue
            method, lengths = each["method"], analysis.by_length(each)
            means = [scale * found[metric]["mean"] for found in lengths.values()]
            style = "--" if method in analysis.STATIC else "o-"
            (line,) = axes.plot(
                list(lengths),
                means,
                style,
                ms=3,
                lw=1.2,
                color=METHODS.colour(method),
            )
            labels.setdefault(METHODS.label(method), line)
        axes.axvline(summary["tasks"][task]["length"], color="#BBBBBB", lw=0.8, zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(lengths), [str(count) for count in lengths])
        axes.minorticks_off()
        if metric == "loss":
            axes.set_yscale("log")
        axes.set_title(TASKS.label(task), fontsize=10)
        axes.set_ylabel(report.unit(summary, task), fontsize=8)
        tidy(axes)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.legend(
        labels.values(), labels.keys(), loc="outside right center", frameon=False, fontsize=8
    )
    save(figure, path)
