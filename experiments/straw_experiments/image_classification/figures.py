"""What a run shows of itself: figures, each a PNG.

Accuracies are fractions in 0..1 in the records, and per cent in print. matplotlib is imported where
it draws.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from straw_experiments.image_classification.models import MODELS
from straw_experiments.image_classification.published import compare
from straw_experiments.image_classification.report import model_name, variant_names
from straw_experiments.runner.plots import MONO, FilePath, drawable, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


RIGHT, WRONG = "#00796B", "#CC3311"
# Paul Tol's "muted" scheme, dealt out to the classes again and again.
CLASS_COLOURS = (
    "#332288",
    "#DDCC77",
    "#AA4499",
    "#117733",
    "#CC6677",
    "#88CCEE",
    "#882255",
    "#999933",
    "#44AA99",
)
_LONGEST = 16  # characters of a class name
STYLES_INCHES = (8.0, 7.2)
MOST_POINTS = 4_000  # more make a larger file and no clearer figure


def plot_curves(history: Sequence[Mapping[str, Any]], path: FilePath, *, dataset: str = "") -> None:
    """Draw accuracy and loss by epoch: test solid, training dashed, range over seeds as a band.

    Args:
        history: lines of `metrics.jsonl`; of two lines for one epoch, the later counts.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(
        "Accuracy and loss by epoch (test: a sample of the standard images)", dataset, (9.5, 4.2)
    )
    models = list(dict.fromkeys(line["model"] for line in history))
    marks: dict[str, dict[str, Any]] = {
        "train": {"ls": "--", "lw": 1.8, "marker": "o", "ms": 4, "mfc": "white"},
        "test": {"ls": "-", "lw": 1.8, "marker": "o", "ms": 4},
    }
    panels: list[Axes] = list(figure.subplots(1, 2))
    units = {"accuracy": "%", "loss": "nats"}
    for axes, (metric, unit) in zip(panels, units.items(), strict=True):
        for model in models:
            colour = model_colour(model)
            for split, mark in marks.items():
                epochs, low, mean, high = _curve(history, model, split, metric)
                axes.fill_between(epochs, low, high, color=colour, alpha=0.18, lw=0)
                axes.vlines(
                    epochs, low, high, color=model_colour(model), lw=1
                )  # seen with one epoch
                axes.plot(epochs, mean, color=colour, **mark)
        axes.set(xlabel="epoch", ylabel=f"{metric} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.06, y=0.08)
        tidy(axes)
    seeds = len({line["seed"] for line in history})
    handles = [
        Line2D([], [], color=model_colour(model), lw=4, label=model_name(model)) for model in models
    ]
    handles.append(Line2D([], [], color="black", label="test", **marks["test"]))
    handles.append(Line2D([], [], color="black", label="training", **marks["train"]))
    if seeds > 1:
        label = f"range over\n{seeds} seeds"
        handles.append(Line2D([], [], color="#CCCCCC", lw=9, label=label))
    else:
        handles.append(Line2D([], [], ls="none", label="one seed:\nno spread"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def _curve(
    history: Sequence[Mapping[str, Any]], model: str, split: str, metric: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs, and least, mean and greatest value over the seeds at each of them."""
    by_epoch: dict[int, dict[int, float]] = {}
    for line in history:
        if line["model"] == model:
            by_epoch.setdefault(line["epoch"], {})[line["seed"]] = line[split][metric]
    epochs = sorted(by_epoch)
    scale = 100 if metric == "accuracy" else 1
    values = [[scale * value for value in by_epoch[epoch].values()] for epoch in epochs]
    return epochs, [*map(min, values)], [*map(statistics.mean, values)], [*map(max, values)]


def plot_variants(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw test accuracy as bars, by test variant and model.

    Error bars are one sample standard deviation, where there are several seeds. The article's
    figures are drawn as diamonds where they may be compared.

    Args:
        summary: contents of `summary.json`.
        path: the PNG to write.
    """
    results, variants, seeds = summary["results"], variant_names(summary), len(summary["seeds"])
    comparison = compare(summary)
    inches = 8.5 + 1.3 * max(len(results) - 4, 0)
    figure = new_figure("Test accuracy by variant", summary["dataset"], (inches, 4.4))
    axes: Axes = figure.subplots()
    width = 0.8 / max(len(results), 2)
    handles: list[Any] = []
    for index, (model, by_variant) in enumerate(results.items()):
        places = np.arange(len(variants)) + width * (index - (len(results) - 1) / 2)
        means = np.array([100 * by_variant[v]["accuracy"]["mean"] for v in variants])
        stds = np.array([100 * (by_variant[v]["accuracy"]["std"] or 0) for v in variants])
        handles.append(
            axes.bar(
                places, means, 0.92 * width, color=model_colour(model), label=model_name(model)
            )
        )
        tops = means + stds
        if seeds > 1:
            spread = axes.errorbar(places, means, stds, fmt="none", ecolor="black", capsize=4)
        if comparison and comparison.fair:
            figures = [comparison.results.get(v, {}).get(model, (np.nan,))[0] for v in variants]
            # Beside the middle, where it would hide the error bar.
            beside = places + 0.28 * width
            article = axes.plot(beside, figures, "D", mfc="white", mec="black", ms=6, zorder=4)
            close = np.subtract(figures, tops) < 8
            tops = np.where(close, np.fmax(tops, np.add(figures, 1)), tops)
        for place, mean, top in zip(places, means, tops, strict=True):
            axes.annotate(
                f"{mean:.1f}", (place, top), (0, 4), textcoords="offset points", ha="center"
            )
    if seeds > 1:
        spread.set_label(f"± 1 standard deviation\n({seeds} seeds)")
        handles.append(spread)
    else:
        handles += axes.plot([], [], " ", label="one seed: no spread")
    if comparison and comparison.fair:
        article[0].set_label(f"the article, one run each\n({comparison.verdict})")
        handles += article
    axes.set(xticks=range(len(variants)), xticklabels=variants, xlim=(-0.55, len(variants) - 0.45))
    axes.set(xlabel="test images", ylabel="accuracy (%)", ylim=(0, 106), yticks=range(0, 101, 20))
    tidy(axes)
    axes.grid(visible=False, axis="x")
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save(figure, path)


def plot_samples(
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    class_names: Sequence[str],
    path: FilePath,
    *,
    dataset: str = "",
) -> None:
    """Draw test samples (rows) in each variant (columns), with what every model takes them for.

    Args:
        images: for each variant, uint8 `[n, height, width, channels]`, the same samples in the same
            order.
        labels: true classes, int `[n]`.
        predictions: for each model and variant, predicted classes, int `[n]`.
        class_names: name of each class.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    name_width = max(len(model_name(model)) for model in predictions)
    class_names = [drawable(name, _LONGEST) for name in class_names]
    class_width = max(map(len, class_names))
    # Inches: a character of the 8 point face is 0.067 wide.
    column_width = max(1.35, 0.067 * (name_width + class_width + 4) + 0.2)
    row_height = 1.1 + 0.16 * len(predictions)
    size = (1.2 + column_width * len(images), 0.8 + row_height * len(labels))
    figure = new_figure("Test samples: ✓ right, ✗ wrong", dataset, size)
    grid: np.ndarray = figure.subplots(len(labels), len(images), squeeze=False)
    for row, label in enumerate(labels):
        for column, (variant, pictures) in enumerate(images.items()):
            axes: Axes = grid[row, column]
            picture = pictures[row]  # imshow takes three channels as colour
            if picture.shape[-1] == 1:
                picture = picture[..., 0]
            axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#BBBBBB")
            for line, (model, by_variant) in enumerate(predictions.items()):
                guess = by_variant[variant][row]
                mark, colour = ("✓", RIGHT) if guess == label else ("✗", WRONG)
                name = f"{model_name(model):<{name_width}}"
                axes.annotate(
                    f"{mark} {name}  {class_names[guess]:<{class_width}}",
                    (0.5, 0),
                    (0, -4 - 10 * line),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    color=colour,
                    family=MONO,
                    fontsize=8,
                    ha="center",
                    va="top",
                )
        true_class = f"true class\n{class_names[label]}"
        grid[row, 0].set_ylabel(true_class, rotation=0, ha="right", va="center", family=MONO)
    for axes, variant in zip(grid[0], images, strict=True):
        axes.set_title(variant, fontsize=10)
    save(figure, path)


def plot_styles(
    styles: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    path: FilePath,
    *,
    dataset: str = "",
) -> None:
    """Draw style vectors in the plane of their first two principal components.

    Plane and centroids are those of all vectors; of many, only a random part is drawn.

    Args:
        styles: float `[n, d]`, with n and d at least 2.
        labels: true classes, int `[n]`.
        class_names: name of each class; they stand at the classes' centroids.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    points, shares = _principal_plane(np.asarray(styles, np.float64))
    classes, members = np.unique(labels, return_inverse=True)
    centroids = np.stack([points[members == index].mean(0) for index in range(len(classes))])
    colours = _spread_colours(centroids)
    drawn = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    title = f"Style vectors of {len(points):,} test images"
    if len(drawn) < len(points):
        title += f" ({len(drawn):,} of them drawn)"

    figure = new_figure(title, dataset, STYLES_INCHES)
    axes: Axes = figure.subplots()
    x, y = points[drawn].T
    axes.scatter(x, y, s=10, c=colours[members[drawn]], alpha=0.7, lw=0)
    axes.set_xlabel(f"first principal component ({100 * shares[0]:.1f} % of the variance)")
    axes.set_ylabel(f"second principal component ({100 * shares[1]:.1f} % of the variance)")
    tidy(axes)
    names = [drawable(class_names[index], _LONGEST) for index in classes]
    _label_classes(axes, centroids, names, colours)
    save(figure, path)


def _principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project `[n, d]` on its first two principal axes: `[n, 2]`, and their shares of variance."""
    centred = vectors - vectors.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of a principal axis is arbitrary: let its largest entry be positive.
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    variance = spread**2
    return centred @ axes.T, variance[:2] / max(variance.sum(), np.finfo(np.float64).tiny)


def _spread_colours(centroids: np.ndarray) -> np.ndarray:
    """Colours `[classes, 4]`: classes in neighbouring directions get different ones."""
    from matplotlib.colors import to_rgba_array

    around = np.arctan2(centroids[:, 1], centroids[:, 0]).argsort().argsort()
    return to_rgba_array(CLASS_COLOURS)[around % len(CLASS_COLOURS)]


def _label_classes(
    axes: "Axes", centroids: np.ndarray, names: Sequence[str], colours: np.ndarray
) -> None:
    """Write each class's name at its centroid, or beside it with a line where it is crowded."""
    extent = np.maximum(axes.dataLim.size, 1e-9)
    points_per_unit = 72 * 0.8 * np.array(STYLES_INCHES) / extent
    box = np.array([12 + 6 * max(map(len, names)), 20])  # of a label, in points
    start = centroids * points_per_unit / box
    offsets = (_pushed_apart(start) - start) * box
    for name, centroid, offset, colour in zip(names, centroids, offsets, colours, strict=True):
        line = {"arrowstyle": "-", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        frame = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "lw": 1.6}
        place: dict[str, Any] = {"xy": centroid, "xytext": offset, "textcoords": "offset points"}
        face: dict[str, Any] = {"family": MONO, "fontsize": 9, "ha": "center", "va": "center"}
        axes.annotate("", **place, arrowprops=line, zorder=3)  # under every name, not just its own
        axes.annotate(name, **place, **face, bbox=frame, zorder=4)


def _pushed_apart(places: np.ndarray) -> np.ndarray:
    """Move points `[n, 2]` little by little until hardly any two are less than one unit apart."""
    turn = np.arange(len(places))
    places = places + 1e-3 * np.stack([np.cos(turn), np.sin(turn)], 1)  # none upon another
    for _ in range(300):
        gaps = places[:, None] - places
        distances = np.hypot(gaps[..., 0], gaps[..., 1]) + 1e-9
        push = np.maximum(1.1 - distances, 0) / distances
        places = places + 0.25 * (push[..., None] * gaps).sum(1)
    return places


def model_colour(model: str) -> str:
    """Return a model's colour, the same in all figures."""
    return MODELS.colour(model)
