"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from straw_experiments.runner.plots import FilePath, new_figure, save, tidy
from straw_experiments.weight_prediction.models import MODELS
from straw_experiments.weight_prediction.report import published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_COLOURS = ("#0077BB", "#EE7733", "#009988", "#CC3311", "#AA3377", "#33BBEE")


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
    title = summary["study"].capitalize()
    plot_curves(summary["results"], history, out / "curves.png", title=title)
    drawn = {"What remains unexplained, by training step": "curves.png"}
    if summary["config"]["predict"] == "weights":
        plot_pairs(summary["results"], out / "pairs.png", title=title)
        drawn["What remains unexplained, by pairs an unknown"] = "pairs.png"
    return drawn


def _panels(
    results: Mapping[str, Mapping[str, Any]], title: str
) -> "tuple[Figure, dict[str, Axes]]":
    """Make a figure of what is not explained, on a logarithmic axis: a panel a network."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    networks = list(dict.fromkeys(each["network"] for each in results.values()))
    figure = new_figure(title, "", (4.6 * len(networks) + 0.6, 3.8))
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"networks {network}", fontsize=10)
        tidy(axes)
    panels[0].set_ylabel("variance not explained (%)")
    return figure, dict(zip(networks, panels, strict=True))


def plot_curves(
    results: Mapping[str, Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    path: FilePath,
    *,
    title: str,
) -> None:
    """Draw the share of variance that is not explained against steps: a panel a network.

    Args:
        results: Of a summary.
        history: Lines of `metrics.jsonl`.
        path: The PNG to write.
        title: Of the figure.
    """
    figure, panels = _panels(results, title)
    for network, axes in panels.items():
        cells = [name for name, each in results.items() if each["network"] == network]
        for colour, name in zip(_CELL_COLOURS * len(cells), cells, strict=False):
            pairs = results[name]["pairs"]
            label = results[name]["predictor"] + (f", {pairs} pairs" if pairs else "")
            for seed in dict.fromkeys(line["seed"] for line in history):
                lines = [x for x in history if x["model"] == name and x["seed"] == seed]
                steps = [line["step"] for line in lines]
                left = [100 * (1 - line["test"]["explained"]) for line in lines]
                axes.plot(steps, left, color=colour, lw=1.6, label=label)
                label = "_"  # One entry for all seeds.
        axes.set(xlabel="step")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def plot_pairs(results: Mapping[str, Mapping[str, Any]], path: FilePath, *, title: str) -> None:
    """Draw the share of variance that is not explained against the pairs an unknown.

    Each predictor is a curve through its cells, and thin through sets of other sizes; the post's
    figures are diamonds.

    Args:
        results: Of a summary.
        path: The PNG to write.
        title: Of the figure.
    """
    figure, panels = _panels(results, title)
    for network, axes in panels.items():
        of_network = [each for each in results.values() if each["network"] == network]
        predictors = list(dict.fromkeys(each["predictor"] for each in of_network))
        for predictor in predictors:
            colour = MODELS.colour(predictor)
            cells = [each for each in of_network if each["predictor"] == predictor]
            for cell in cells:
                sizes = cell["examined"]["pairs"]
                axes.plot(
                    [int(n) / cell["unknowns"] for n in sizes],
                    [100 * (1 - figure_["mean"]) for figure_ in sizes.values()],
                    color=colour,
                    lw=0.8,
                    alpha=0.5,
                )
            axes.errorbar(
                [cell["pairs"] / cell["unknowns"] for cell in cells],
                [100 * (1 - cell["explained"]["mean"]) for cell in cells],
                [100 * (cell["explained"]["std"] or 0) for cell in cells],
                fmt="o-",
                color=colour,
                capsize=3,
                ms=5,
                label=f"{predictor}, trained with as many",
            )
        theirs = {
            cell["pairs"] / cell["unknowns"]: 100 * (1 - share)
            for cell in of_network
            if (share := published(cell)) is not None
        }
        if theirs:
            axes.plot([*theirs], [*theirs.values()], "D", mfc="none", mec="black", label="the post")
        axes.plot([], [], color="#888888", lw=0.8, label="sets of other sizes")
        axes.set(xlabel="pairs an unknown")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)
