"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner.plots import FilePath, new_figure, save, tidy
from straw_experiments.table_classification.models import MODELS
from straw_experiments.table_classification.report import RIVALS


def draw(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, str]:
    """Draw a study's figures.

    Args:
        summary: Contents of `summary.json`.
        history: Lines of `metrics.jsonl`.
        out: Folder for the PNGs.

    Returns:
        File names by what they show.
    """
    plot_curves(summary, history, out / "curves.png")
    drawn = {"Accuracy on synthetic tables, by tables seen in training": "curves.png"}
    if "ranks" in summary:
        plot_rows(summary, out / "rows.png")
        drawn["Accuracy by number of labelled rows"] = "rows.png"
    return drawn


def plot_curves(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], path: FilePath
) -> None:
    """Draw accuracy on synthetic tables that are not trained on, against tables seen."""
    figure = new_figure("Synthetic tables that are not trained on", "", (5.4, 3.8))
    axes = figure.subplots()
    for name in summary["results"]:
        label = MODELS.label(name)
        for seed in summary["seeds"]:
            lines = [x for x in history if x["model"] == name and x["seed"] == seed]
            accuracy = [100 * line["validation"]["accuracy"] for line in lines]
            axes.plot(
                [summary["config"]["batch_size"] * line["step"] for line in lines],
                accuracy,
                color=MODELS.colour(name),
                label=label,
            )
            label = "_"  # One entry for all seeds.
    for name, style in {"logistic": "--", "neighbours": ":"}.items():
        if name in summary["rivals"]:
            level = 100 * summary["rivals"][name]["validation"]["mean"]
            axes.axhline(level, color="#777777", ls=style, lw=1, label=RIVALS[name])
    axes.set(xlabel="tables seen", ylabel="accuracy (%)")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)


def plot_rows(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw accuracy against the number of labelled rows: a panel a data set."""
    results, rivals = summary["results"], summary["rivals"]
    sets = list(next(iter(results.values()))["accuracy"])
    figure = new_figure("Test rows of scikit-learn's data sets", "", (2.6 * len(sets) + 2.2, 3.4))
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    rows = summary["rows"]
    for axes, name in zip(panels, sets, strict=True):
        for model, each in results.items():
            means = [100 * each["accuracy"][name][str(n)]["mean"] for n in rows]
            axes.plot(rows, means, "o-", color=MODELS.colour(model), label=MODELS.label(model))
        greys = ("#000000", "#555555", "#999999", "#BBBBBB")
        wanted = [rival for rival in rivals if rival != "majority"]
        for colour, rival in zip(greys, wanted, strict=False):
            means = [100 * rivals[rival]["accuracy"][name][str(n)]["mean"] for n in rows]
            axes.plot(rows, means, ".--", color=colour, lw=1, label=RIVALS[rival])
        axes.set_xscale("log", base=2)
        axes.set_xticks(rows, [str(n) for n in rows])
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="labelled rows")
        tidy(axes)
    panels[0].set_ylabel("accuracy (%)")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", frameon=False, fontsize=8)
    save(figure, path)
