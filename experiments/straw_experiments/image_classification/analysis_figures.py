"""Figures of what a trained modulator does, made from `analysis.json`; each a PNG."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from straw_experiments.image_classification.figures import RIGHT, WRONG, model_colour
from straw_experiments.image_classification.report import model_name
from straw_experiments.runner.plots import MONO, FilePath, drawable, new_figure, save, tidy

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
    "turned style": " on upright images,\nweights from rotated ones",
}


def plot_updates(analysis: Mapping[str, Any], straw: str, path: FilePath) -> None:
    """Draw each leaf's update as bars: size, variation, between classes, effective rank.

    Args:
        analysis: contents of `analysis.json`.
        straw: which model.
        path: the PNG to write.
    """
    found, leaves = (analysis["straw"][straw][part] for part in ("updates", "leaves"))
    seeds, count = len(analysis["seeds"][straw]), analysis["images"]["updates"]
    over_seeds = f"line: ± 1 std over {seeds} seeds" if seeds > 1 else "one seed"
    over_images = "line: 5 to 95 % of the images"
    title = f"Weights that {model_name(straw)} generates for {count:,} test images"
    figure = new_figure(title, analysis["dataset"], (12.5, 0.38 * len(found) + 1.8))
    panels: list[Axes] = list(figure.subplots(1, 4, sharey=True))
    places = {leaf: len(found) - 1 - index for index, leaf in enumerate(found)}
    panels[0].set_yticks(list(places.values()), list(places))

    reference = analysis["reference"]
    norms = {leaf: _quantiles(each["norm"]) for leaf, each in found.items()}
    texts = {leaf: f"{mean:.2f}" for leaf, (mean, *_) in norms.items()}
    _bars(panels[0], places, norms, texts, f"norm, over that of the {reference}\n{over_images}")

    variations = {leaf: _spread(each["variation"]) for leaf, each in found.items()}
    texts = {leaf: f"{mean:.2f}" for leaf, (mean, *_) in variations.items()}
    label = f"std over images, over the mean's norm\n{over_seeds}"
    _bars(panels[1], places, variations, texts, label)

    shares = {leaf: _spread(each["between_classes"]["corrected"]) for leaf, each in found.items()}
    texts = {leaf: f"{mean:.0%}" for leaf, (mean, *_) in shares.items()}
    label = f"variance between classes (less chance)\n{over_seeds}"
    _bars(panels[2], places, shares, texts, label)
    panels[2].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")

    ranks = {
        leaf: _quantiles(each["effective_rank"])
        for leaf, each in found.items()
        if "effective_rank" in each
    }
    texts = {leaf: f"{mean:.1f} of {leaves[leaf]['largest']}" for leaf, (mean, *_) in ranks.items()}
    _bars(panels[3], places, ranks, texts, f"effective rank of the largest possible\n{over_images}")
    for axes in panels:
        for bar in axes.patches:
            bar.set_facecolor(model_colour(straw))
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
    count, seeds = analysis["images"]["updates"], len(analysis["seeds"][straw])
    title = f"How far {model_name(straw)}'s weights move when an image is rotated or blurred"
    title += f" ({count:,} test images, {seeds} seed{'s' if seeds > 1 else ''})"
    figure = new_figure(title, analysis["dataset"], (2.5 * len(kernels) + 1.6, 5.2))
    grid: np.ndarray = figure.subplots(2, len(kernels), sharey=True, sharex="row", squeeze=False)
    yardsticks = {
        "another image": ("any other image", "-."),
        "same class": ("another image\nof its class", "--"),
    }
    handles: list[Any] = []
    for row, (kind, label) in zip(grid, kinds.items(), strict=True):
        for axes, leaf in zip(row, kernels, strict=True):
            marks = {"marker": "o", "ms": 4, "lw": 1.8, "label": "the image itself,\nchanged"}
            colour = model_colour(straw)
            handles = _line(axes, amounts[kind], found[leaf][kind], 1, color=colour, **marks)
            handles += [
                axes.axhline(found[leaf][name]["mean"], color="#555555", ls=ls, lw=1.3, label=text)
                for name, (text, ls) in yardsticks.items()
            ]
            axes.set_xticks(amounts[kind][::2] if kind == "rotation" else amounts[kind])
            axes.set_xlabel(label, fontsize=9)
            tidy(axes)
        row[0].set_ylabel("distance / norm", fontsize=9)
    for axes, leaf in zip(grid[0], kernels, strict=True):
        axes.set_title(leaf, fontsize=10)
    grid[0, 0].set_ylim(bottom=0)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def plot_rotated(analysis: Mapping[str, Any], path: FilePath) -> None:
    """Draw accuracy by angle, a line a model, and a STRAW's with other images' style vectors.

    Bands are the range over seeds.

    Args:
        analysis: contents of `analysis.json`.
        path: the PNG to write.
    """
    count, error = analysis["images"]["accuracy"], 100 * analysis["largest_standard_error"]
    figure = new_figure(
        f"Accuracy on {count:,} rotated test images (standard error up to {error:.1f} points)",
        analysis["dataset"],
        (8.5, 4.6),
    )
    axes: Axes = figure.subplots()
    handles: list[Any] = []
    for model, styles in analysis["turned"].items():
        for style, mark in _STYLE_MARKS.items():
            if style in styles:
                label = model_name(model) + _STYLE_NAMES.get(style, "")
                marks = {"ms": 4, "lw": 1.8, "label": label, **mark}
                x, colour = analysis["angles"], model_colour(model)
                handles += _line(axes, x, styles[style], 100, color=colour, **marks)
    axes.set(xlabel="rotation, either way (degrees)", ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_xticks(analysis["angles"])
    tidy(axes)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def plot_distortions(analysis: Mapping[str, Any], path: FilePath) -> None:
    """Draw accuracy by kind and amount of distortion, a line a model; bands are the range of seeds.

    Args:
        analysis: contents of `analysis.json`, with "distortions".
        path: the PNG to write.
    """
    found, count = analysis["distortions"], analysis["images"]["accuracy"]
    labels = {
        "rotation": "rotation (degrees)",
        "scale": "scale",
        "shear": "shear",
        "blur": "3x3 blur, σ (pixels)",
    }
    title = f"Accuracy on {count:,} distorted test images: mean of seeds, bands are their range"
    figure = new_figure(title, analysis["dataset"], (15.0, 4.4))
    widths = {"width_ratios": [2.2, 1, 1, 1]}
    panels: list[Axes] = list(figure.subplots(1, len(labels), sharey=True, gridspec_kw=widths))
    for axes, (kind, label) in zip(panels, labels.items(), strict=True):
        amounts = found["amounts"][kind]
        handles = []
        for model, figures in found["accuracy"][kind].items():
            marks = {"marker": "o", "ms": 3.5, "lw": 1.8, "label": model_name(model)}
            handles += _line(axes, amounts, figures, 100, color=model_colour(model), **marks)
        axes.set_xlabel(label)
        if kind == "rotation":
            axes.set_xticks(amounts[::2])
        tidy(axes)
    panels[0].set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def plot_poses(
    shown: Mapping[str, Any], class_names: Sequence[str], path: FilePath, *, dataset: str
) -> None:
    """Draw test images, the poses predicted for them, and weights before and after.

    Args:
        shown: from `distortions.sheet`.
        class_names: name of each class.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    images, before, after = (shown[name] for name in ("images", "before", "after"))
    units, middle = len(before), before.shape[1] // 2
    around = slice(middle - 5, middle + 5)
    columns = 3 + units
    size = (1.45 * columns, 1.55 * (len(images) + 1) + 0.6)
    figure = new_figure(
        "Predicted poses, the first layer's weights that follow, and the predicted class",
        dataset,
        size,
    )
    grid: np.ndarray = figure.subplots(len(images) + 1, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#BBBBBB")
    for axes in grid[0, :3]:
        axes.axis("off")
    most = np.abs(before).max()

    def draw_weights(axes: "Axes", weights: np.ndarray) -> None:
        axes.imshow(weights[around, around], cmap="RdBu_r", vmin=-most, vmax=most)

    grid[0, 2].annotate(
        "weights\nbefore", (0.9, 0.5), xycoords="axes fraction", ha="right", va="center"
    )
    for unit in range(units):
        draw_weights(grid[0, 3 + unit], before[unit])
        grid[0, 3 + unit].set_title(f"unit {unit + 1}", fontsize=9)
    titles = ("image", "predicted\nposes", "upright by\nthe likeliest", *["weights after"] * units)
    for axes, title in zip(grid[1], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for row, image in zip(grid[1:], range(len(images)), strict=True):
        row[0].imshow(images[image], cmap="gray_r", vmin=0, vmax=255)
        _draw_angles(row[1], shown["seen"][image])
        row[2].imshow(shown["resampled"][image], cmap="gray_r", vmin=0, vmax=255)
        for unit in range(units):
            draw_weights(row[3 + unit], after[image][unit])
        right = shown["guesses"][image] == shown["labels"][image]
        guess, label = (drawable(class_names[shown[key][image]]) for key in ("guesses", "labels"))
        row[0].set_ylabel(label, rotation=0, ha="right")
        row[0].set_xlabel(f"rotated {shown['degrees'][image]:+g}°", fontsize=8)
        row[2].set_xlabel(
            f"{'✓' if right else '✗'} {guess}", color=RIGHT if right else WRONG, family=MONO
        )
    save(figure, path)


def _draw_angles(axes: "Axes", seen: np.ndarray) -> None:
    """Draw each hypothesis as a hand: its angle from upright, its length the confidence."""
    confidence = np.exp(seen[:, 0] - seen[:, 0].max())
    confidence /= confidence.sum()
    axes.set(xlim=(-1.15, 1.15), ylim=(-0.45, 1.25), aspect="equal")
    axes.plot([0, 0], [0, 1], color="#CCCCCC", lw=1)
    for share, degrees in sorted(zip(confidence, seen[:, 1], strict=True)):
        if share > 0.03:
            angle = np.deg2rad(degrees)
            hand = [0, -share * np.sin(angle)], [0, share * np.cos(angle)]
            axes.plot(*hand, lw=2.2, color="#222222" if share == confidence.max() else "#999999")
    best = int(confidence.argmax())
    axes.annotate(
        f"{seen[best, 1]:+.0f}°, {confidence[best]:.0%}", (0, -0.4), ha="center", fontsize=8
    )


def _bars(
    axes: "Axes",
    places: Mapping[str, float],
    values: Mapping[str, tuple[float, float, float]],
    texts: Mapping[str, str],
    label: str,
) -> None:
    """Draw for each leaf a bar to its value, a line over its range, and a text beyond both."""
    for leaf, (value, low, high) in values.items():
        axes.barh(places[leaf], value, 0.68)
        axes.hlines(places[leaf], low, high, color="black", lw=1.5)
        beyond = max(value, high, 0), places[leaf]
        axes.annotate(texts[leaf], beyond, (4, 0), textcoords="offset points", va="center")
    axes.set_xlabel(label, fontsize=9)
    axes.margins(x=0.36)
    axes.set_xlim(left=min([0.0, *(low for _, low, _ in values.values())]))
    tidy(axes)
    axes.grid(visible=False, axis="y")


def _quantiles(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean and range over images, each the mean over seeds."""
    mean, low, high = (figure[name]["mean"] for name in ("mean", "p5", "p95"))
    return mean, low, high


def _spread(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    """Mean over seeds, and one standard deviation below and above it."""
    mean, std = figure["mean"], figure["std"] or 0.0
    return mean, mean - std, mean + std


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
