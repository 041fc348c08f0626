"""Figures of the results page, each a PNG."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from straw_experiments.image_classification.figures import model_colour
from straw_experiments.image_classification.published import compare
from straw_experiments.image_classification.report import model_name, variant_names
from straw_experiments.pages.page import (
    Row,
    Studies,
    finished,
    published_name,
    rank_rows,
    set_rows,
)
from straw_experiments.runner.plots import FilePath, new_figure, save, tidy
from straw_experiments.runner.tables import statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BASE_COLOURS = {"none": model_colour("straw"), "trained": "#AA3377"}


def draw(studies: Studies, files: Mapping[str, Path]) -> list[str]:
    """Draw the figures that the studies have figures for.

    Args:
        studies: As `results_page.page` takes them.
        files: The PNGs to write: "main" (the article's second and third set) and "rank".

    Returns:
        The names of those that were drawn.
    """
    run = finished(studies)
    sets = {name: rows for name in ("set2", "set3") if (rows := set_rows(run, name))}
    ranks = rank_rows(run)
    drawings: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "main": (bool(sets), lambda path: plot_sets(sets, path)),
        "rank": (len(ranks) > 1, lambda path: plot_ranks(ranks, path)),
    }
    for name, (has_data, plot) in drawings.items():
        if has_data:
            plot(files[name])
    return [name for name, (has_data, _) in drawings.items() if has_data]


def plot_sets(sets: Mapping[str, Sequence[Row]], path: FilePath) -> None:
    """Draw standard accuracy by model and control: a panel a set, a line a row.

    Bars are one sample standard deviation; the article's figures are diamonds, where they may be
    compared.

    Args:
        sets: Rows by set, as from `results_page.set_rows`.
        path: The PNG to write.
    """
    rows = {
        name: [each for row in of_set for each in (row, *row.controls())]
        for name, of_set in sets.items()
    }
    places: dict[str, int] = {}  # of the lines, by label
    labels = [_label(row) for of_set in rows.values() for row in of_set]
    labels += [label for of_set in rows.values() for label in _published(of_set)]
    for label in labels:
        places.setdefault(label, len(places))
    dataset = next(iter(rows.values()))[0].summary["dataset"]
    size = (4.2 + 3.2 * len(rows), 1.5 + 0.27 * len(places))
    figure = new_figure("Accuracy on standard test images", dataset, size)
    panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
    diamond: dict[str, Any] = {"mfc": "none", "mec": "black", "ms": 8, "zorder": 4}
    for axes, (name, of_set) in zip(panels, rows.items(), strict=True):
        for row in of_set:
            _dot(axes, row, places[_label(row)])
        for label, accuracy in _published(of_set).items():
            axes.plot(accuracy, places[label], "D", **diamond)
        config = of_set[0].summary["config"]
        axes.set_title(f"set {name[-1]}: {100 * config['fraction']:g} % of the images", fontsize=10)
        axes.set(xlabel="accuracy (%)", xlim=(0, 103))
        axes.set_yticks([*places.values()], [*places], fontsize=9)
        tidy(axes)
    panels[0].invert_yaxis()
    handles = [
        *panels[0].plot([], [], "o", color="black", label="ours, ± 1 standard deviation"),
        *panels[0].plot([], [], "o", color="black", mfc="white", label="other style vectors"),
        *panels[0].plot([], [], "D", **diamond, label="the article, one run each"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def _label(row: Row) -> str:
    return f"{row.name} ({row.base})" if row.control else row.name


def _published(rows: Sequence[Row]) -> dict[str, float]:
    """The article's accuracy in per cent by label, where it may be compared."""
    comparison = compare(rows[0].summary)
    if not comparison or not comparison.fair:
        return {}
    return {
        published_name(model): accuracy
        for model, (accuracy, _) in comparison.results["standard"].items()
    }


def _dot(axes: "Axes", row: Row, place: int) -> None:
    accuracy = statistic([*row.accuracy("standard").values()])
    spread = 100 * accuracy["std"] if accuracy["std"] is not None else None
    is_straw = row.model == "straw"
    colour = _BASE_COLOURS[row.base or "none"] if is_straw else model_colour(row.model)
    style: dict[str, Any] = {"fmt": "o", "color": colour, "capsize": 3, "ms": 6, "zorder": 3}
    face = "white" if row.control else colour
    axes.errorbar([100 * accuracy["mean"]], [place], xerr=spread, mfc=face, **style)


def plot_ranks(rows: Sequence[Row], path: FilePath) -> None:
    """Draw accuracy against rank: a panel a test variant, a curve a base.

    Args:
        rows: As from `results_page.rank_rows`.
        path: The PNG to write.
    """
    variants = variant_names(rows[0].summary)
    title = f"{model_name('straw')}: accuracy by rank"
    figure = new_figure(title, rows[0].summary["dataset"], (9.5, 3.6))
    for axes, variant in zip(figure.subplots(1, len(variants)), variants, strict=True):
        for base in sorted({row.base for row in rows if row.base}):
            of_base = [row for row in rows if row.base == base]
            ranks = [row.summary["config"]["rank"] for row in of_base]
            found = [statistic([*row.accuracy(variant).values()]) for row in of_base]
            axes.errorbar(
                ranks,
                [100 * each["mean"] for each in found],
                [100 * (each["std"] or 0) for each in found],
                fmt="o-",
                color=_BASE_COLOURS[base],
                label=f"base {base}",
                capsize=3,
                ms=5,
            )
        axes.set_xscale("log", base=2)
        ticks = sorted({row.summary["config"]["rank"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_title(variant, fontsize=10)
        axes.set(xlabel="rank", ylabel="accuracy (%)")
        tidy(axes)
    axes.legend(frameon=False)
    save(figure, path)
