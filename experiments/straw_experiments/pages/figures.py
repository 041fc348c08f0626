"""Pictures of the pages of results, each a PNG."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from straw_experiments.char_lm.models import MODELS as CELLS
from straw_experiments.documents.figures import plot_curves as plot_text
from straw_experiments.documents.figures import plot_lengths
from straw_experiments.fields.figures import plot_fitting
from straw_experiments.image_classification.figures import model_colour
from straw_experiments.image_classification.published import PUBLISHED
from straw_experiments.image_classification.report import model_name
from straw_experiments.necessity.figures import plot_curves, plot_matrix
from straw_experiments.pages.images import (
    VARIANTS,
    Row,
    accuracies,
    controls,
    from_article,
    label,
    rank_rows,
    style_label,
)
from straw_experiments.pages.stored import Results
from straw_experiments.pages.tables import prediction_cells
from straw_experiments.runner.plots import new_figure, save, tidy
from straw_experiments.runner.tables import statistic
from straw_experiments.table_classification.figures import plot_rows
from straw_experiments.weight_prediction.published import EXPLAINED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[[Path], None]

RANKS = [f"rank{rank}{base}" for rank in (1, 2, 4, 8, 32, 64) for base in ("", "_trained")]
_BASE_COLOURS = {"none": model_colour("straw"), "trained": "#AA3377"}
_COLOURS = ("#0077BB", "#EE7733", "#009988", "#CC3311", "#AA3377", "#33BBEE")
_OF_OTHERS = "white"  # face of a dot with weights of another image


class Picture(NamedTuple):
    """A picture, and what it needs.

    Attributes:
        draw: Takes the results and a path.
        summaries: Studies.
        analyses: Studies.
    """

    draw: Callable[[Results, Path], None]
    summaries: Sequence[str] = ()
    analyses: Sequence[str] = ()


def drawings(results: Results) -> dict[str, Draw]:
    """Return what draws each picture that the results have the figures for, by file name."""

    def bound(picture: Picture) -> Draw:
        return lambda path: picture.draw(results, path)

    return {
        name: bound(picture)
        for name, picture in PICTURES.items()
        if not results.missing(summaries=[*picture.summaries], analyses=[*picture.analyses])
    }


# --- dots: accuracy by model --------------------------------------------------------------------


class Panel(NamedTuple):
    """A panel of dots.

    Attributes:
        title: Above it.
        rows: A line each, from the top.
        images: A variant of the test images.
        article: The article's set, a key of `PUBLISHED`, whose figures are diamonds.
    """

    title: str
    rows: Sequence[Row]
    images: str = "standard"
    article: str | None = None


def _dots(
    results: Results,
    title: str,
    panels: Sequence[Panel],
    path: Path,
    *,
    columns: int = 1,
    shared: bool = False,
) -> None:
    """Draw mean accuracies, with one standard deviation: a line a row.

    Args:
        results: What the studies left.
        title: Of the figure.
        panels: Row by row.
        path: The PNG to write.
        columns: Of panels.
        shared: Whether all have one axis.
    """
    lines = -(-len(panels) // columns)
    longest = max(len(panel.rows) for panel in panels)
    size = (2.6 + (4.6 if columns == 1 else 2.5 * columns), 1.0 + lines * (0.6 + 0.24 * longest))
    figure = new_figure(title, "", size)
    heights = [len(panel.rows) + 2 for panel in panels[::columns]]
    grid = figure.subplots(
        lines, columns, squeeze=False, sharex=shared, gridspec_kw={"height_ratios": heights}
    )
    for axes, panel in zip(grid.ravel(), panels, strict=True):
        names = [label(results, row) for row in panel.rows]
        for place, row in enumerate(panel.rows):
            _dot(results, axes, row, panel, place)
        left = axes in grid[:, 0] or names != [label(results, row) for row in panels[0].rows]
        axes.set_yticks(range(len(names)), names if left else [""] * len(names), fontsize=9)
        axes.set_title(panel.title, fontsize=10)
        axes.set(ylim=(len(names) - 0.5, -0.5))
        if not shared or panel is panels[-1]:
            axes.set_xlabel("accuracy (%)")
        tidy(axes)
    handles = [*grid[0, 0].plot([], [], "o", color="black", label="mean ± 1 standard deviation")]
    if any(row.weights for panel in panels for row in panel.rows):
        dot = {"color": "black", "mfc": _OF_OTHERS, "label": "the same model, other weights"}
        handles += grid[0, 0].plot([], [], "o", **dot)
    if any(panel.article for panel in panels):
        handles += grid[0, 0].plot([], [], "D", **_DIAMOND, label="the article, one run")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


_DIAMOND: dict[str, Any] = {"mfc": "none", "mec": "black", "ms": 8, "zorder": 4}


def _dot(results: Results, axes: "Axes", row: Row, panel: Panel, place: int) -> None:
    colour = model_colour(row.model)
    if row.model == "straw" and row.study in results.summaries:
        colour = _BASE_COLOURS[results.summaries[row.study]["config"]["base"]]
    if row.study in results.summaries:
        found = statistic([*accuracies(results, row, panel.images).values()])
        style: dict[str, Any] = {
            "color": colour,
            "mfc": _OF_OTHERS if row.weights else colour,
            "capsize": 3,
        }
        spread = [100 * (found["std"] or 0)]
        axes.errorbar([100 * found["mean"]], [place], xerr=spread, fmt="o", ms=6, **style)
    if panel.article and (
        row.study not in results.summaries
        or from_article(results, panel.article, row, panel.images) is not None
    ):
        theirs = PUBLISHED[panel.article][panel.images][row.model][0]
        axes.plot(theirs, place, "D", **_DIAMOND)


def _article(results: Results, path: Path) -> None:
    second = [Row("set2", "standalone"), Row("set2", "straw"), Row("set2_resnet34", "resnet34")]
    third = [Row("set3", "standalone"), Row("set3", "straw"), Row("set3_resnet34", "resnet34")]
    panels = [
        Panel(f"{share} of the images: {images}", rows, images, article)
        for share, rows, article in (
            ("10 %", second, "10pct_rank16"),
            ("20 %", third, "20pct_rank32"),
        )
        for images in VARIANTS
    ]
    _dots(results, "Test accuracy, ours and the article's", panels, path, columns=3)


def _capacity(results: Results, path: Path) -> None:
    static = [Row("set2", model) for model in ("standalone", "wide_compute", "wide_dense")]
    panels = [
        Panel("10 % of the images, base none", [*static, *_with_controls(results, "set2")]),
        Panel(
            "10 % of the images, base trained", [*static, *_with_controls(results, "set2_trained")]
        ),
        Panel(
            "20 % of the images, base none",
            [Row("set3", "standalone"), *_with_controls(results, "set3")],
        ),
    ]
    _dots(results, "Accuracy on standard test images", panels, path, shared=True)


def _with_controls(results: Results, study: str, model: str = "straw") -> list[Row]:
    return [Row(study, model), *controls(results, study, model)]


def _encoders(results: Results, path: Path) -> None:
    panels = [
        Panel("convolutional encoder, CNN, base none", _with_controls(results, "set2")),
        Panel("TRM encoder, CNN, base none", _with_controls(results, "trm2")),
        Panel(
            "vision transformer, base trained (one seed)",
            [
                *(Row("vit2", model) for model in ("standalone", "wide")),
                *_with_controls(results, "vit2"),
            ],
        ),
    ]
    _dots(
        results, "Accuracy on standard test images, 10 % of the images", panels, path, shared=True
    )


def _preset(results: Results, path: Path) -> None:
    static = [Row("preset2", model) for model in ("compact_static", "compact_wide")]
    rows = [*static, *_with_controls(results, "preset2", "compact")]
    panels = [Panel(f"{images} test images", rows, images) for images in VARIANTS]
    _dots(results, "The compact preset, 10 % of the images", panels, path, columns=3)


def _hypernetworks(results: Results, path: Path) -> None:
    forms = ("", "_narrow", "_generated")
    panels = [
        Panel("MNIST, three seeds", [Row("static_mnist", f"conv7{form}") for form in forms]),
        Panel("EMNIST, one seed", [Row("static_wrn", f"wrn_16_1{form}") for form in forms]),
    ]
    _dots(results, "Own kernels, fewer own kernels, and generated kernels", panels, path)


# --- curves -------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """A curve of means over seeds, and a band of their range.

    Attributes:
        name: In the legend.
        x: Places.
        figures: One a place, each with "seeds".
        colour: Of it.
        style: Of the line.
    """

    name: str
    x: Sequence[float]
    figures: Sequence[Mapping[str, Any]]
    colour: str
    style: str = "o-"


def _curves(axes: "Axes", curves: Iterable[Curve], *, legend: bool = True) -> None:
    """Draw curves of accuracy in per cent."""
    for curve in curves:
        low = [100 * min(figure["seeds"]) for figure in curve.figures]
        high = [100 * max(figure["seeds"]) for figure in curve.figures]
        means = [100 * figure["mean"] for figure in curve.figures]
        axes.fill_between(curve.x, low, high, color=curve.colour, alpha=0.18, lw=0)
        axes.plot(curve.x, means, curve.style, color=curve.colour, ms=4, lw=1.8, label=curve.name)
    tidy(axes)
    if legend:
        axes.figure.legend(loc="outside right center", frameon=False, fontsize=9)


def _ranks(results: Results, path: Path) -> None:
    rows = rank_rows(results, ["set2", "set2_trained", *RANKS])
    figure = new_figure("Accuracy by rank: one seed, three at rank 16", "", (9.5, 3.6))
    for axes, images in zip(figure.subplots(1, len(VARIANTS)), VARIANTS, strict=True):
        curves = []
        for base, colour in _BASE_COLOURS.items():
            configs = [(row, results.summaries[row.study]["config"]) for row in rows]
            of_base = [(row, config["rank"]) for row, config in configs if config["base"] == base]
            figures = [
                statistic([*accuracies(results, row, images).values()]) for row, _ in of_base
            ]
            curves.append(Curve(f"base {base}", [rank for _, rank in of_base], figures, colour))
        _curves(axes, curves, legend=False)
        axes.set_xscale("log", base=2)
        ticks = sorted({rank for curve in curves for rank in curve.x})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel="rank", ylabel="accuracy (%)")
        axes.set_title(f"{images} test images", fontsize=10)
    axes.legend(frameon=False)
    save(figure, path)


_STYLES = {
    "own": "o-",
    "upright style": "^--",
    "same class style": "s-.",
    "turned style": "v:",
}


def _angles(results: Results, path: Path) -> None:
    analysis = results.analyses["set2"]
    figure = new_figure("Accuracy on rotated test images, 10 % of the images", "", (10.5, 4.4))
    axes = figure.subplots()
    _curves(
        axes,
        [
            Curve(_wrapped(style_label(model, style)), analysis["angles"], figures, colour, line)
            for model, styles in analysis["turned"].items()
            for style, figures in styles.items()
            for colour, line in [(model_colour(model), _STYLES[style])]
        ],
    )
    axes.set(xlabel="rotation, to either side (degrees)", ylabel="accuracy (%)", ylim=(0, 100))
    save(figure, path)


def _wrapped(text: str) -> str:
    """Break a label after its first comma."""
    return text.replace(", ", ",\n", 1)


_KINDS = {
    "rotation": "rotation (degrees)",
    "scale": "scale",
    "shear": "shear",
    "blur": "blur, σ (pixels)",
}


def _distortion_curves(
    analysis: Mapping[str, Any], kind: str, models: Sequence[str]
) -> list[Curve]:
    found = analysis["distortions"]
    by_model = found["accuracy"][kind]
    amounts = found["amounts"][kind]
    return [
        Curve(model_name(model), amounts, by_model[model], model_colour(model)) for model in models
    ]


def _poses(results: Results, path: Path) -> None:
    models = ["geometric", "compact_augmented", "compact_fan", "geometric_stn", "compact_static"]
    figure = new_figure("Accuracy by angle of rotation, 20 % of the images", "", (9.5, 4.2))
    axes = figure.subplots()
    axes.axvspan(-60, 60, color="#F3F3F3", lw=0)
    axes.annotate("angles of training and test", (0, 3), ha="center", fontsize=9)
    curves = _distortion_curves(results.analyses["geometry3"], "rotation", models)
    article = _distortion_curves(results.analyses["set3"], "rotation", ["standalone"])
    _curves(axes, [*curves, *article])
    axes.set(xlabel=_KINDS["rotation"], ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_xticks(range(-90, 91, 30))
    save(figure, path)


def _distortions(results: Results, path: Path) -> None:
    models = ["compact_static", "geometric", "geometric_affine"]
    figure = new_figure("Accuracy on distorted test images, 20 % of the images", "", (11, 6))
    grid = figure.subplots(2, 2, sharey=True)
    for axes, (kind, title) in zip(grid.ravel(), _KINDS.items(), strict=True):
        curves = _distortion_curves(results.analyses["geometry3"], kind, models)
        _curves(axes, curves, legend=kind == "rotation")
        axes.set(xlabel=title, ylabel="accuracy (%)", ylim=(0, 100))
    save(figure, path)


# --- other studies ------------------------------------------------------------------------------


def _weights(results: Results, path: Path) -> None:
    cells = prediction_cells(results, "weights", unusual=False)
    networks = list(dict.fromkeys(each["network"] for each in cells.values()))
    figure = new_figure("Weights predicted from pairs: what they do not explain", "", (9.5, 3.8))
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        of_network = [each for each in cells.values() if each["network"] == network]
        for colour, predictor in zip(_COLOURS, ("mean", "attention"), strict=False):
            left = {
                each["pairs"]: 100 * (1 - each["explained"]["mean"])
                for each in of_network
                if each["predictor"] == predictor
            }
            axes.plot([*left], [*left.values()], "o-", color=colour, label=f"ours, {predictor}")
        unknowns = of_network[0]["unknowns"]
        theirs = {n: 100 * (1 - share) for (of, n), share in EXPLAINED.items() if of == unknowns}
        axes.plot([*theirs], [*theirs.values()], "D", **_DIAMOND, label="the post, mean")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks([each["pairs"] for each in of_network if each["predictor"] == "mean"])
        axes.set(xlabel="pairs", ylim=(0.5, 100))
        axes.set_title(f"networks {network}, {unknowns} unknowns", fontsize=10)
        tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("variance not explained (%)")
    save(figure, path)


def _fits(results: Results, path: Path) -> None:
    cells = [
        each
        for each in prediction_cells(results, "weights", unusual=False).values()
        if each["predictor"] == "mean" and each["network"] != "5-1"
    ]
    networks = list(dict.fromkeys(each["network"] for each in cells))
    title = "Fitting to the pairs: from predicted weights (solid), from random weights (dashed)"
    figure = new_figure(title, "", (10.5, 4))
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        of_network = [each for each in cells if each["network"] == network]
        for colour, each in zip(_COLOURS, of_network, strict=False):
            for start, line in (("predicted", "o-"), ("random", "o--")):
                fits = {int(n): fit for n, fit in each["examined"]["fit"][start].items()}
                left = {n: 100 * (1 - fit["explained"]["mean"]) for n, fit in fits.items()}
                name = f"{each['pairs']} pairs" if start == "predicted" else "_"
                axes.plot([*left], [*left.values()], line, color=colour, ms=4, label=name)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("log")
        axes.set_xticks([*left], [str(n) for n in left])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(xlabel="steps of Levenberg-Marquardt", ylim=(0.05, 100))
        axes.set_title(f"networks {network}", fontsize=10)
        axes.legend(frameon=False, fontsize=9, loc="lower left")
        tidy(axes)
    panels[0].set_ylabel("variance not explained (%)")
    save(figure, path)


def _bits(results: Results, path: Path) -> None:
    found = results.summaries["characters"]["results"]
    figure = new_figure("Penn Treebank: bits per character, a dot a seed", "", (10.5, 3.4))
    left, right = figure.subplots(1, 2)
    for place, each in enumerate(found.values()):
        bits = each["bits"]["test"]["seeds"]
        left.plot(bits, [place] * len(bits), "o", color=_COLOURS[place], alpha=0.8)
    left.set_yticks(range(len(found)), [CELLS.label(name) for name in found], fontsize=9)
    left.set(xlabel="bits per character, test", ylim=(len(found) - 0.5, -0.5))
    states = {"own": "own", "mean": "mean over time", "shuffled": "shuffled in time"}
    modulated = {name: each for name, each in found.items() if "examined" in each}
    for name, each in modulated.items():
        seeds = [each["examined"]["controls"][state]["seeds"] for state in states]
        colour = _COLOURS[list(found).index(name)]
        means = [sum(values) / len(values) for values in seeds]
        right.plot(means, "o-", color=colour, label=CELLS.label(name))
    right.set_xticks(range(len(states)), [*states.values()], fontsize=9)
    right.set(xlabel="state of the hyper cell", ylabel="bits per character")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        tidy(axes)
    save(figure, path)


def _of_summary(study: str, draw: Callable[[Any, Path], None]) -> "Picture":
    """Return a picture that a study draws of its summary itself."""
    return Picture(lambda results, path: draw(results.summaries[study], path), [study])


PICTURES = {
    "article.png": Picture(_article, ["set2", "set2_resnet34", "set3"]),
    "capacity.png": Picture(_capacity, ["set2", "set2_trained", "set3"]),
    "ranks.png": Picture(_ranks, ["set2", "set2_trained", *RANKS]),
    "encoders.png": Picture(_encoders, ["set2", "trm2", "vit2"]),
    "preset.png": Picture(_preset, ["preset2"]),
    "poses.png": Picture(_poses, analyses=["geometry3", "set3"]),
    "distortions.png": Picture(_distortions, analyses=["geometry3"]),
    "modulator.png": Picture(_angles, analyses=["set2"]),
    "weight_prediction.png": Picture(_weights, ["weights_mean", "weights_attention"]),
    "predicted_functions.png": Picture(_fits, ["weights_mean"]),
    "hypernetworks.png": Picture(_hypernetworks, ["static_mnist", "static_wrn"]),
    "characters.png": Picture(_bits, ["characters"]),
    "tables.png": _of_summary("tables", plot_rows),
    "needles.png": _of_summary("needles", plot_lengths),
    "documents.png": _of_summary("documents", plot_lengths),
    "documents_text.png": _of_summary("documents", plot_text),
    "fields.png": _of_summary("fields", plot_fitting),
    "necessity.png": _of_summary("necessity", plot_matrix),
    "necessity_lengths.png": _of_summary("necessity", plot_curves),
}
"""By file name."""
