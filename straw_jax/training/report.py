"""What a run says of itself: a text table, a Markdown report and four figures.

The texts and the figure by variant are made from `summary.json`, the curves from `metrics.jsonl`.
Accuracies are fractions in 0..1 there, and per cent in print.
"""

import statistics
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # matplotlib is imported where it draws: the texts do without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FilePath = str | PathLike[str]
# By test variant and model: test accuracy in per cent and test loss, each of one run.
PublishedResults = dict[str, dict[str, tuple[float, float]]]


def _row(
    standalone: tuple[float, float], resnet34: tuple[float, float], straw: tuple[float, float]
) -> dict[str, tuple[float, float]]:
    return {"standalone": standalone, "resnet34": resnet34, "straw": straw}


PUBLISHED: dict[str, PublishedResults] = {
    "full_rank16": {  # 100 % of the training images, rank 16, 10 epochs
        "standard": _row((85.64, 0.4253), (88.10, 0.4229), (86.71, 0.4351)),
        "rotated": _row((46.22, 2.7142), (49.29, 3.2246), (45.42, 3.8830)),
        "blurred": _row((83.57, 0.5055), (87.04, 0.4742), (85.05, 0.4512)),
    },
    "10pct_rank16": {  # 10 % of the training images, rank 16, 5 epochs
        "standard": _row((68.37, 1.1738), (81.91, 0.5921), (71.87, 0.9378)),
        "rotated": _row((29.22, 3.0280), (40.06, 2.5397), (31.90, 3.3891)),
        "blurred": _row((67.22, 1.2908), (79.36, 0.6730), (70.95, 1.0134)),
    },
    "20pct_rank32": {  # 20 % of the training images, rank 32, 5 epochs
        "standard": _row((76.89, 0.7993), (83.62, 0.5126), (81.55, 0.5696)),
        "rotated": _row((36.13, 2.8075), (44.56, 2.5405), (40.73, 2.7891)),
        "blurred": _row((76.11, 0.8964), (80.92, 0.6044), (80.20, 0.6977)),
    },
}
"""The figures published in `SOURCE`, by experiment."""

SOURCE = (
    '"Sample-Tuned Rank-Augmented Weights", the article that introduces STRAW, '
    "with code at https://github.com/REDDITARUN/STRAW"
)
# In all three sets; the published figures come from the code without base weights.
PUBLISHED_SETTINGS = {"base": "none", "batch_size": 128, "learning_rate": 1e-4}

OFFICIAL = "EMNIST balanced"
UNOFFICIAL = "EMNIST (unofficial archive"

# A model keeps its colour in every figure; the three differ in lightness as well as in hue.
MODEL_COLOURS = {"standalone": "#0077BB", "straw": "#EE7733", "resnet34": "#555555"}
MODEL_NAMES = {"straw": "STRAW", "resnet34": "ResNet-34"}
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
DPI = 150
STYLES_INCHES = (8.0, 7.2)
MOST_POINTS = 4_000  # more make a larger file and no clearer figure
# This face has a dotted zero, so that 0 and O, 1 and l can be told apart.
MONO = "DejaVu Sans Mono"


class Comparison(NamedTuple):
    """How far the article's figures may be set beside a run's.

    `verdict` is "comparable", "nearly comparable" or "not comparable"; `results` is as in
    `PUBLISHED`.
    """

    verdict: str
    reason: str
    results: PublishedResults

    @property
    def fair(self) -> bool:
        """Whether the article's figures may stand on one scale with the run's."""
        return self.verdict != "not comparable"


def compare(summary: Mapping[str, Any]) -> Comparison | None:
    """Say how a run compares with the article.

    Args:
        summary: contents of `summary.json`.

    Returns:
        The published figures and how comparable they are, or None where the run is none of the
        article's three sets.
    """
    published = PUBLISHED.get(summary["experiment"])
    if published is None:
        return None
    dataset = summary["dataset"]
    if dataset == OFFICIAL:
        verdict = "comparable"
        reason = (
            f"the same data and the same split ({OFFICIAL}); "
            "only the angles and blurs of the test variants are drawn anew."
        )
    elif dataset.startswith(UNOFFICIAL):
        verdict = "nearly comparable"
        reason = (
            "the same task, but another split of EMNIST than the official one. "
            "Compare differences between models rather than levels."
        )
    else:
        verdict = "not comparable"
        reason = f"the article's figures are for {OFFICIAL}, these are for {dataset}."
    departures = _departures(summary["config"])
    if departures:
        reason += (
            f" This run departs from the article's settings: {', '.join(departures.values())}."
        )
    if departures.keys() - {"base"}:
        verdict = "not comparable"
    elif departures and verdict == "comparable":
        verdict = "nearly comparable"  # the base is STRAW's alone: the others are as published
    return Comparison(verdict, reason, published)


def _departures(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{name} {config[name]} (article: {value})"
        for name, value in PUBLISHED_SETTINGS.items()
        if name in config and config[name] != value
    }


# --- text ---------------------------------------------------------------------------------------


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a run's results as aligned plain text, for the terminal.

    Args:
        summary: contents of `summary.json`.

    Returns:
        Lines of text without a final newline: data set, device, seeds, then accuracy in per cent
        and loss by model (rows) and test variant (columns). Published accuracies follow where
        they may be compared.
    """
    results, variants = summary["results"], _variants(summary)
    rows: list[list[str] | str] = [["", *variants, "parameters", "training time"]]
    rows.append("accuracy, %")
    for model, by_variant in results.items():
        accuracy = [_mean_std(by_variant[v]["accuracy"], 100, 2) for v in variants]
        cost = [_count(summary["parameters"][model]), _duration(summary["seconds"][model])]
        rows.append([f"  {_name(model)}", *accuracy, *cost])
    rows.append("loss")
    for model, by_variant in results.items():
        loss = [_mean_std(by_variant[v]["loss"], 1, 4) for v in variants]
        rows.append([f"  {_name(model)}", *loss, "", ""])
    comparison = compare(summary)
    if comparison and comparison.fair:
        rows.append(f"the article's accuracy, %: {comparison.verdict}, one run each")
        for model in results:
            accuracy = [_published(comparison, v, model)[0] for v in variants]
            rows.append([f"  {_name(model)}", *accuracy, "", ""])
    heading = [
        f"data set  {summary['dataset']}",
        f"device    {summary['device']}",
        f"run       {summary['experiment'] or 'own settings'}; {_seeds(summary)}",
        "",
    ]
    return "\n".join(heading + _aligned(rows))


def _aligned(rows: Sequence[list[str] | str]) -> list[str]:
    """Line up columns (the first to the left, others to the right); a bare string spans them."""
    cells = [row for row in rows if not isinstance(row, str)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in rows:
        if not isinstance(row, str):
            first, *others = row
            padded = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            row = "  ".join([first.ljust(widths[0]), *padded])
        lines.append(row.rstrip())
    return lines


def markdown(summary: Mapping[str, Any]) -> str:
    """Write a run's report.

    Args:
        summary: contents of `summary.json`.

    Returns:
        Markdown: what was run and where, results by test variant and model with the article's
        figures beside them where there are any, differences between the models, what each model
        costs, every seed, and links to the figures in the same folder.
    """
    sections = [
        _section_run(summary),
        _section_results(summary),
        _section_differences(summary),
        _section_models(summary),
        _section_seeds(summary),
        _section_figures(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section_run(summary: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    facts = [
        ["data set", summary["dataset"]],
        ["the article's set", summary["experiment"] or "none of the three"],
        ["device", summary["device"]],
        ["seeds", ", ".join(map(str, summary["seeds"]))],
        ["training time, all models and seeds", _duration(sum(summary["seconds"].values()))],
        ["versions", versions],
    ]
    title = f"# STRAW on {summary['dataset']}"
    if summary["experiment"]:
        title += f": {summary['experiment']}"
    command = f"```bash\n{summary['command']}\n```\n\nEvery setting is in `config.json`."
    return "\n\n".join([title, command, _markdown_table(["what", "value"], facts)])


def _section_results(summary: Mapping[str, Any]) -> str:
    comparison = compare(summary)
    header = ["test images", "model", "accuracy, %", "loss"]
    if comparison:
        header += ["article: accuracy, %", "article: loss"]
    rows = []
    for variant in _variants(summary):
        for model, by_variant in summary["results"].items():
            accuracy = _mean_std(by_variant[variant]["accuracy"], 100, 2)
            loss = _mean_std(by_variant[variant]["loss"], 1, 4)
            rows.append([variant, _name(model), accuracy, loss])
            if comparison:
                rows[-1] += _published(comparison, variant, model)
    if comparison:
        remark = (
            f"**The article's figures are {comparison.verdict}:** {comparison.reason} "
            f"They are of one run each, without a spread. Source: {SOURCE}."
        )
    else:
        remark = "No figures of the article stand beside these: the run is none of its three sets."
    spread = f"{_seeds(summary).capitalize()}."
    return "\n\n".join(["## Results", spread, remark, _markdown_table(header, rows)])


def _section_differences(summary: Mapping[str, Any]) -> str:
    """Accuracy of each model less the standalone's, seed by seed; empty without both."""
    results, comparison = summary["results"], compare(summary)
    others = [model for model in results if model != "standalone"]
    if "standalone" not in results or not others:
        return ""
    rows = []
    for variant in _variants(summary):
        for model in others:
            ours = results[model][variant]["accuracy"]["seeds"]
            base = results["standalone"][variant]["accuracy"]["seeds"]
            pairs = [a - b for a, b in zip(ours, base, strict=True)]
            std = statistics.stdev(pairs) if len(pairs) > 1 else None
            difference = {"mean": statistics.mean(pairs), "std": std}
            rows.append([variant, _name(model), _mean_std(difference, 100, 2, sign="+")])
            if comparison:
                rows[-1].append(_published_difference(comparison, variant, model))
    header = ["test images", "model", "difference, percentage points"]
    if comparison:
        header.append(f"article ({comparison.verdict})")
    text = "Accuracy less that of the standalone with the same seed."
    return "\n\n".join(["## Difference from the standalone", text, _markdown_table(header, rows)])


def _section_models(summary: Mapping[str, Any]) -> str:
    parameters, seconds = summary["parameters"], summary["seconds"]
    rows = [
        [_name(model), f"{count:,}", _count(count), _duration(seconds[model])]
        for model, count in parameters.items()
    ]
    header = ["model", "trained parameters", "about", "training time, all seeds"]
    parts = ["## Models", _markdown_table(header, rows)]
    largest, smallest = (f(parameters, key=parameters.__getitem__) for f in (max, min))
    ratio = parameters[largest] / parameters[smallest]
    if ratio > 1.1:
        parts.append(
            f"{_name(largest)} trains {ratio:.1f} times as many parameters as {_name(smallest)}: "
            "a difference in accuracy may be one of capacity."
        )
    return "\n\n".join(parts)


def _section_seeds(summary: Mapping[str, Any]) -> str:
    """Accuracy of every single run; empty with one seed, where it would repeat the results."""
    seeds = summary["seeds"]
    if len(seeds) == 1:
        return ""
    rows = [
        [variant, _name(model)]
        + [f"{100 * value:.2f}" for value in by_variant[variant]["accuracy"]["seeds"]]
        for variant in _variants(summary)
        for model, by_variant in summary["results"].items()
    ]
    header = ["test images", "model", *(f"seed {seed}: accuracy, %" for seed in seeds)]
    return "\n\n".join(["## Every seed", _markdown_table(header, rows)])


def _section_figures(summary: Mapping[str, Any]) -> str:
    figures = {
        "curves.png": "Accuracy and loss by epoch",
        "variants.png": "Accuracy by test variant",
        "samples.png": "Test samples and what the models take them for",
    }
    if "straw" in summary["results"]:
        figures["styles.png"] = "Style vectors of test images, coloured by class"
    links = [f"![{text}, {summary['dataset']}]({file})" for file, text in figures.items()]
    return "\n\n".join(["## Figures", *links])


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _published(comparison: Comparison, variant: str, model: str) -> list[str]:
    """Accuracy and loss of the article as text, dashes where it has none."""
    accuracy, loss = comparison.results.get(variant, {}).get(model, (None, None))
    return ["-", "-"] if accuracy is None else [f"{accuracy:.2f}", f"{loss:.4f}"]


def _published_difference(comparison: Comparison, variant: str, model: str) -> str:
    figures = comparison.results.get(variant, {})
    if model not in figures:
        return "-"
    return f"{figures[model][0] - figures['standalone'][0]:+.2f}"


def _variants(summary: Mapping[str, Any]) -> list[str]:
    return list(next(iter(summary["results"].values())))


def _name(model: str) -> str:
    return MODEL_NAMES.get(model, model)


def _seeds(summary: Mapping[str, Any]) -> str:
    seeds = summary["seeds"]
    if len(seeds) == 1:
        return "one seed: no spread"
    return f"mean ± sample standard deviation over {len(seeds)} seeds"


def _mean_std(figure: Mapping[str, Any], scale: int, digits: int, sign: str = "") -> str:
    mean = f"{scale * figure['mean']:{sign}.{digits}f}"
    return mean if figure["std"] is None else f"{mean} ± {scale * figure['std']:.{digits}f}"


def _count(number: int) -> str:
    """A count in three or four significant digits: 850, 12.35 k, 20.61 M."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _duration(seconds: float) -> str:
    """A time in the two largest units that matter: 4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# --- figures ------------------------------------------------------------------------------------


def plot_curves(history: Sequence[Mapping[str, Any]], path: FilePath, *, dataset: str = "") -> None:
    """Draw accuracy and loss by epoch: test solid, training dashed, range over seeds as a band.

    Args:
        history: lines of `metrics.jsonl`; where a resumed run repeats an epoch, the later counts.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = _figure("Accuracy and loss by epoch (test images: standard)", dataset, (9.5, 4.2))
    models = list(dict.fromkeys(line["model"] for line in history))
    marks: dict[str, dict[str, Any]] = {
        "train": {"ls": "--", "lw": 1.8, "marker": "o", "ms": 4, "mfc": "white"},
        "test": {"ls": "-", "lw": 1.8, "marker": "o", "ms": 4},
    }
    panels: list[Axes] = list(figure.subplots(1, 2))
    units = {"accuracy": "%", "loss": "nats"}
    for axes, (metric, unit) in zip(panels, units.items(), strict=True):
        for model in models:
            for split, mark in marks.items():
                epochs, low, mean, high = _curve(history, model, split, metric)
                axes.fill_between(epochs, low, high, color=_colour(model), alpha=0.18, lw=0)
                axes.vlines(epochs, low, high, color=_colour(model), lw=1)  # seen with one epoch
                axes.plot(epochs, mean, color=_colour(model), **mark)
        axes.set(xlabel="epoch", ylabel=f"{metric} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.06, y=0.08)
        _tidy(axes)
    seeds = len({line["seed"] for line in history})
    handles = [Line2D([], [], color=_colour(model), lw=4, label=_name(model)) for model in models]
    handles.append(Line2D([], [], color="black", label="test", **marks["test"]))
    handles.append(Line2D([], [], color="black", label="training", **marks["train"]))
    if seeds > 1:
        label = f"range over\n{seeds} seeds"
        handles.append(Line2D([], [], color="#CCCCCC", lw=9, label=label))
    else:
        handles.append(Line2D([], [], ls="none", label="one seed:\nno spread"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    _save(figure, path)


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
    results, variants, seeds = summary["results"], _variants(summary), len(summary["seeds"])
    comparison = compare(summary)
    figure = _figure("Test accuracy by variant", summary["dataset"], (8.5, 4.4))
    axes: Axes = figure.subplots()
    width = 0.8 / max(len(results), 2)
    handles: list[Any] = []
    for index, (model, by_variant) in enumerate(results.items()):
        places = np.arange(len(variants)) + width * (index - (len(results) - 1) / 2)
        means = np.array([100 * by_variant[v]["accuracy"]["mean"] for v in variants])
        stds = np.array([100 * (by_variant[v]["accuracy"]["std"] or 0) for v in variants])
        handles.append(
            axes.bar(places, means, 0.92 * width, color=_colour(model), label=_name(model))
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
    _tidy(axes)
    axes.grid(visible=False, axis="x")
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    _save(figure, path)


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
        images: for each variant, uint8 `[n, 28, 28, 1]`, the same samples in the same order.
        labels: true classes, int `[n]`.
        predictions: for each model and variant, predicted classes, int `[n]`.
        class_names: name of each class.
        path: the PNG to write.
        dataset: true name of the data set, for the title.
    """
    name_width = max(len(_name(model)) for model in predictions)
    class_width = max(map(len, class_names))
    # Inches: a character of the 8 point face is 0.067 wide.
    column_width = max(1.35, 0.067 * (name_width + class_width + 4) + 0.2)
    row_height = 1.1 + 0.16 * len(predictions)
    size = (1.2 + column_width * len(images), 0.8 + row_height * len(labels))
    figure = _figure("Test samples: ✓ right, ✗ wrong", dataset, size)
    grid: np.ndarray = figure.subplots(len(labels), len(images), squeeze=False)
    for row, label in enumerate(labels):
        for column, (variant, pictures) in enumerate(images.items()):
            axes: Axes = grid[row, column]
            axes.imshow(pictures[row, :, :, 0], cmap="gray_r", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#BBBBBB")
            for line, (model, by_variant) in enumerate(predictions.items()):
                guess = by_variant[variant][row]
                mark, colour = ("✓", RIGHT) if guess == label else ("✗", WRONG)
                axes.annotate(
                    f"{mark} {_name(model):<{name_width}}  {class_names[guess]:<{class_width}}",
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
    _save(figure, path)


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

    figure = _figure(title, dataset, STYLES_INCHES)
    axes: Axes = figure.subplots()
    x, y = points[drawn].T
    axes.scatter(x, y, s=10, c=colours[members[drawn]], alpha=0.7, lw=0)
    axes.set_xlabel(f"first principal component ({100 * shares[0]:.1f} % of the variance)")
    axes.set_ylabel(f"second principal component ({100 * shares[1]:.1f} % of the variance)")
    _tidy(axes)
    _label_classes(axes, centroids, [class_names[index] for index in classes], colours)
    _save(figure, path)


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


def _figure(title: str, dataset: str, size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}\n{dataset}".rstrip(), fontsize=11)
    return figure


def _save(figure: "Figure", path: FilePath) -> None:
    """Write a PNG of 256 colours: a third of the size, to the eye the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, "png", dpi=(DPI, DPI))


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)


def _colour(model: str) -> str:
    return MODEL_COLOURS.get(model, "#AA3377")
