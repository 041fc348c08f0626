"""Figures of what a trained modulator does, made from `analysis.json`; each a PNG."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from straw_jax.training.figures import FilePath, model_colour, new_figure, save, tidy
from straw_jax.training.report import model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE_MARKS: dict[str, dict[str, Any]] = {
    "own": {"ls": "-", "marker": "o"},
    "upright style": {"ls": "--", "marker": "^"},
    "same class style": {"ls": "-.", "marker": "s"},
    "turned style": {"ls": ":", "marker": "v"},
}
_STYLE_NAMES = {
    "upright style": ", weights from\nthe upright image",
    "same class style": ", weights from\nanother upright image\nof the class",
    "turned style": " on upright images,\nweights from turned ones",
}


def plot_updates(analysis: Mapping[str, Any], straw: str, path: FilePath) -> None:
    """Draw each leaf's update as bars: size, variation, between classes, effective rank.

    Error bars are one sample standard deviation over seeds, where there are several.

    Args:
        analysis: contents of `analysis.json`.
        straw: which model.
        path: the PNG to write.
    """
    found, leaves = (analysis["straw"][straw][part] for part in ("updates", "leaves"))
    seeds, count = len(analysis["seeds"][straw]), analysis["images"]["updates"]
    spread = f"; bars ± 1 standard deviation over {seeds} seeds" if seeds > 1 else "; one seed"
    title = f"Weights that {model_name(straw)} writes for {count:,} test images{spread}"
    figure = new_figure(title, analysis["dataset"], (11.5, 0.38 * len(found) + 1.8))
    panels: list[Axes] = list(figure.subplots(1, 4, sharey=True))
    places = {leaf: len(found) - 1 - index for index, leaf in enumerate(found)}

    def bars(axes: "Axes", figures: Mapping[str, Mapping[str, Any]], label: str, form: str) -> None:
        at = [places[leaf] for leaf in figures]
        means = [each["mean"] for each in figures.values()]
        errors = [each["std"] or 0 for each in figures.values()]
        error_bars: dict[str, Any] = {"xerr": errors, "capsize": 3} if seeds > 1 else {}
        axes.barh(at, means, 0.68, color=model_colour(straw), **error_bars)
        for place, mean, error in zip(at, means, errors, strict=True):
            axes.annotate(
                format(mean, form), (max(mean, 0) + error, place), (4, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
        axes.set_xlabel(label, fontsize=9)
        axes.margins(x=0.22)
        tidy(axes)
        axes.grid(visible=False, axis="y")

    def of(*names: str) -> dict[str, Any]:
        chosen = {leaf: each for leaf, each in found.items() if names[0] in each}
        for name in names:
            chosen = {leaf: each[name] for leaf, each in chosen.items()}
        return chosen

    bars(panels[0], of("norm", "mean"), f"norm, over that of\nthe {analysis['reference']}", ".2f")
    bars(panels[1], of("variation"), "standard deviation over images,\nover the mean's norm", ".2f")
    bars(
        panels[2],
        of("between_classes", "corrected"),
        "share of the variance between\nclasses, corrected for chance",
        ".0%",
    )
    panels[2].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ranks = of("effective_rank", "mean")
    bars(panels[3], ranks, "effective rank, mean; line: 5 to\n95 % of images; | : largest", ".1f")
    for leaf, each in of("effective_rank").items():
        low, high = each["p5"]["mean"], each["p95"]["mean"]
        panels[3].hlines(places[leaf] - 0.42, low, high, color="black", lw=1.5)
        largest, at = leaves[leaf]["largest"], places[leaf]
        panels[3].vlines(largest, at - 0.4, at + 0.4, color="black", lw=1.5)
    panels[0].set_yticks(list(places.values()), list(places))
    save(figure, path)


def plot_movement(analysis: Mapping[str, Any], straw: str, path: FilePath) -> None:
    """Draw how far each kernel's update moves with rotation and blur, beside two yardsticks.

    Bands are the range over seeds.

    Args:
        analysis: contents of `analysis.json`.
        straw: which model.
        path: the PNG to write.
    """
    found, leaves = (analysis["straw"][straw][part] for part in ("movement", "leaves"))
    kernels = [leaf for leaf in found if leaves[leaf]["largest"] is not None]
    kinds = {"rotation": "rotation (degrees)", "blur": "blur, σ (pixels)"}
    amounts = {"rotation": analysis["angles"], "blur": analysis["sigmas"]}
    title = f"How far {model_name(straw)}'s weights move when an image is turned or blurred"
    figure = new_figure(title, analysis["dataset"], (2.5 * len(kernels) + 1.6, 5.2))
    grid: np.ndarray = figure.subplots(2, len(kernels), sharey=True, sharex="row", squeeze=False)
    yardsticks = {"another image": ("any other image", "-."), "same class": ("same class", "--")}
    handles: list[Any] = []
    for row, (kind, label) in zip(grid, kinds.items(), strict=True):
        for axes, leaf in zip(row, kernels, strict=True):
            handles = [
                axes.axhline(
                    found[leaf][name]["mean"], color="#555555", ls=style, lw=1.3, label=text
                )
                for name, (text, style) in yardsticks.items()
            ]
            marks = {"marker": "o", "ms": 4, "lw": 1.8, "label": "the image itself,\nchanged"}
            colour = model_colour(straw)
            handles += _line(axes, amounts[kind], found[leaf][kind], 1, color=colour, **marks)
            axes.set_xticks(amounts[kind][::2] if kind == "rotation" else amounts[kind])
            axes.set_xlabel(label, fontsize=9)
            tidy(axes)
        row[0].set_ylabel("distance / norm", fontsize=9)
    for axes, leaf in zip(grid[0], kernels, strict=True):
        axes.set_title(leaf, fontsize=10)
    grid[0, 0].set_ylim(bottom=0)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def plot_turned(analysis: Mapping[str, Any], path: FilePath) -> None:
    """Draw accuracy by angle, a line a model, and a STRAW's with other images' style vectors.

    Bands are the range over seeds.

    Args:
        analysis: contents of `analysis.json`.
        path: the PNG to write.
    """
    count, error = analysis["images"]["accuracy"], 100 * analysis["largest_standard_error"]
    figure = new_figure(
        f"Accuracy on {count:,} turned test images (standard error up to {error:.1f} points)",
        analysis["dataset"],
        (8.5, 4.6),
    )
    axes: Axes = figure.subplots()
    handles: list[Any] = []
    for model, styles in analysis["turned"].items():
        for style, figures in styles.items():
            label = model_name(model) + _STYLE_NAMES.get(style, "")
            marks = {"ms": 4, "lw": 1.8, "label": label, **_STYLE_MARKS[style]}
            handles += _line(
                axes, analysis["angles"], figures, 100, color=model_colour(model), **marks
            )
    axes.set(xlabel="rotation, either way (degrees)", ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_xticks(analysis["angles"])
    tidy(axes)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def _line(
    axes: "Axes",
    x: Sequence[float],
    figures: Sequence[Mapping[str, Any]],
    scale: float,
    *,
    color: str,
    **marks: Any,
) -> list[Any]:
    """Draw a line of means and a band of the range over seeds."""
    seeds = scale * np.array([figure["seeds"] for figure in figures])
    axes.fill_between(x, seeds.min(1), seeds.max(1), color=color, alpha=0.18, lw=0)
    return axes.plot(x, seeds.mean(1), color=color, **marks)
