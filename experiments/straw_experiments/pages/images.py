"""Accuracy of image studies, as figures and as tables.

Accuracies are fractions in 0..1 in summaries, and per cent in tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from straw_experiments.image_classification.published import PUBLISHED, compare
from straw_experiments.image_classification.report import model_name
from straw_experiments.pages.stored import Results
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    statistic,
)

VARIANTS = ("standard", "rotated", "blurred")
FAR = 3  # percentage points from the article, beyond which a figure is marked
WEIGHTS = {
    "own": "own weights, on the sample",
    "same class": "weights of another image of the class",
    "shuffled": "weights of any other image",
    "mean": "weights of the mean style vector",
    "zero": "weights of the zero style vector",
}
"""Whose weights a trained STRAW classifies an image with, as `controls` in summaries names them."""


class Row(NamedTuple):
    """A model of a study, or a trained STRAW with weights of another style vector.

    Attributes:
        study: Its name.
        model: As the summary names it.
        weights: A key of `WEIGHTS`, or None for the model itself.
    """

    study: str
    model: str
    weights: str | None = None


def accuracies(results: Results, row: Row, images: str) -> dict[int, float]:
    """Return a model's accuracy on a variant of the test images, by seed."""
    summary = results.summaries[row.study]
    found = summary["results"][row.model]
    if row.weights:
        found = summary["controls"][row.model][row.weights]
    return dict(zip(summary["seeds"], found[images]["accuracy"]["seeds"], strict=True))


def accuracy(
    results: Results, study: str, model: str, images: str = "standard", weights: str | None = None
) -> float:
    """Return a model's mean accuracy over seeds."""
    values = accuracies(results, Row(study, model, weights), images).values()
    return float(statistic([*values])["mean"])


def differences(results: Results, row: Row, other: Row, images: str) -> list[float]:
    """Compute the accuracy of one model less that of another, for each seed that both have."""
    ours, theirs = (accuracies(results, each, images) for each in (row, other))
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def share_of_gain(
    results: Results, row: Row, straw: Row, standalone: Row, images: str
) -> float | None:
    """Compute which share of STRAW's gain over the standalone network another model has.

    Returns:
        `(row - standalone) / (straw - standalone)`, of means over seeds: 0 for the standalone's
        accuracy, 1 for STRAW's. None where STRAW gains nothing.
    """
    ours, best, least = (
        statistic([*accuracies(results, each, images).values()])["mean"]
        for each in (row, straw, standalone)
    )
    return (ours - least) / (best - least) if best > least else None


def label(results: Results, row: Row) -> str:
    """Name a row to a reader: controls without their model, STRAW with its base."""
    if row.weights:
        return WEIGHTS[row.weights]
    name = model_name(row.model)
    if row.model == "straw" and row.study in results.summaries:
        name += f", base {results.summaries[row.study]['config']['base']}"
    return name


def controls(results: Results, study: str, model: str) -> list[Row]:
    """Return a trained STRAW's rows with weights of other style vectors."""
    if study not in results.summaries:
        return []
    return [Row(study, model, name) for name in results.summaries[study]["controls"][model]]


# --- tables -------------------------------------------------------------------------------------

_COST = ["parameters", "multiply-adds"]


def accuracy_table(
    results: Results, rows: Iterable[Sequence[str]], names: Sequence[str] = ()
) -> str:
    """Lay out accuracy and cost: a line a row, also of those that have not been run.

    Args:
        results: What the studies left.
        rows: Each a `Row`, or such a sequence.
        names: Of the lines, where the usual ones do not tell them apart.
    """
    table = [_accuracy_line(results, Row(*row)) for row in rows]
    for line, name in zip(table, names, strict=False):
        line[0] = name
    return markdown_table(["model", "seeds", *(f"{v}, %" for v in VARIANTS), *_COST], table)


def _accuracy_line(results: Results, row: Row) -> list[str]:
    cells = [percent_cell(results, row, images) for images in VARIANTS]
    return [label(results, row), seeds_cell(results, row), *cells, *_cost(results, row)]


def article_table(results: Results, set_name: str, rows: Iterable[Sequence[str]]) -> str:
    """Lay out accuracy, in brackets less the article's, for one of its sets.

    Args:
        results: What the studies left.
        set_name: A key of `PUBLISHED`.
        rows: Each a `Row`, or such a sequence.
    """
    table = []
    for row in (Row(*row) for row in rows):
        cells = [_beside_the_article(results, set_name, row, images) for images in VARIANTS]
        table.append([label(results, row), seeds_cell(results, row), *cells, *_cost(results, row)])
    return markdown_table(["model", "seeds", *(f"{v}, %" for v in VARIANTS), *_COST], table)


def from_article(results: Results, set_name: str, row: Row, images: str) -> float | None:
    """Return our accuracy less the article's, in percentage points.

    None where the article has no such figure, or where its figures may not be compared.
    """
    summary = results.summaries[row.study]
    theirs = PUBLISHED[set_name][images].get(row.model)
    comparison = compare({**summary, "experiment": set_name})
    other_base = row.model == "straw" and summary["config"]["base"] != "none"
    if theirs is None or not comparison or not comparison.fair or row.weights or other_base:
        return None
    return 100 * accuracy(results, row.study, row.model, images) - theirs[0]


def _beside_the_article(results: Results, set_name: str, row: Row, images: str) -> str:
    cell = percent_cell(results, row, images)
    if row.study not in results.summaries:
        return cell
    difference = from_article(results, set_name, row, images)
    if difference is None:
        return cell
    return f"{cell} ({difference:+.2f}){' †' * (abs(difference) > FAR)}"


def published_table() -> str:
    """Lay out the article's own figures."""
    table = [
        [str(number), model_name(model), *(f"{figures[v][model][0]:.2f}" for v in VARIANTS)]
        for number, figures in enumerate(PUBLISHED.values(), 1)
        for model in figures["standard"]
    ]
    return markdown_table(["set", "model", *(f"{v}, %" for v in VARIANTS)], table)


def published(set_name: str, model: str, images: str = "standard") -> float:
    """Return the article's accuracy, as a fraction."""
    return PUBLISHED[set_name][images][model][0] / 100


def gain_table(
    results: Results,
    straw: Sequence[str],
    standalone: Sequence[str],
    rows: Iterable[Sequence[str]],
) -> str:
    """Lay out accuracy, and which share it is of STRAW's gain over the standalone network.

    Args:
        results: What the studies left.
        straw: A `Row`, or such a sequence.
        standalone: Another.
        rows: Further ones.
    """
    best, least = Row(*straw), Row(*standalone)
    table = []
    for row in [least, best, *(Row(*row) for row in rows)]:
        cells = [label(results, row), _cost(results, row)[0]]
        for images in VARIANTS:
            cells += [percent_cell(results, row, images), _share(results, row, best, least, images)]
        table.append(cells)
    header = ["model", "parameters"]
    header += [title for images in VARIANTS for title in (f"{images}, %", "share, %")]
    return markdown_table(header, table)


def _share(results: Results, row: Row, straw: Row, standalone: Row, images: str) -> str:
    """Write a share in per cent; how far below the standalone a model falls is no share."""
    if any(each.study not in results.summaries for each in (row, straw, standalone)):
        return "-"
    share = share_of_gain(results, row, straw, standalone, images)
    if share is None:
        return "-"
    return "none" if share < 0 else f"{100 * share:.0f}"


def difference_cell(
    results: Results, row: Sequence[str], other: Sequence[str], images: str = "standard"
) -> str:
    """Write the mean and spread of differences, seed by seed, in percentage points."""
    rows = Row(*row), Row(*other)
    if any(each.study not in results.summaries for each in rows):
        return "-"
    found = differences(results, *rows, images)
    return mean_std(statistic(found), 100, 2, "+")


def difference_table(results: Results, row: Sequence[str], other: Sequence[str]) -> str:
    """Lay out two models and their difference, seed by seed: a line a variant of the images."""
    rows = [Row(*row), Row(*other)]
    table = [
        [
            images,
            *(percent_cell(results, each, images) for each in rows),
            difference_cell(results, row, other, images),
        ]
        for images in VARIANTS
    ]
    names = (f"{label(results, each)}, %" for each in rows)
    return markdown_table(["test images", *names, "difference, points"], table)


def rank_rows(results: Results, studies: Iterable[str]) -> list[Row]:
    """Return STRAW of those studies that have been run, by base and rank."""
    run = [name for name in studies if name in results.summaries]
    return [Row(name, "straw") for name in sorted(run, key=lambda name: _base_rank(results, name))]


def rank_table(results: Results, studies: Iterable[str]) -> str:
    """Lay out STRAW by base and rank."""
    table = []
    for row in rank_rows(results, studies):
        base, rank = _base_rank(results, row.study)
        _, *cells = _accuracy_line(results, row)
        table.append([base, str(rank), *cells])
    return markdown_table(["base", "rank", "seeds", *(f"{v}, %" for v in VARIANTS), *_COST], table)


def _base_rank(results: Results, study: str) -> tuple[str, int]:
    config = results.summaries[study]["config"]
    return config["base"], config["rank"]


def percent_cell(results: Results, row: Row, images: str) -> str:
    """Write mean and spread over seeds in per cent."""
    if row.study not in results.summaries:
        return "not run"
    return mean_std(statistic([*accuracies(results, row, images).values()]), 100, 2)


def seeds_cell(results: Results, row: Row) -> str:
    """Write the number of seeds."""
    if row.study not in results.summaries:
        return "-"
    return str(len(results.summaries[row.study]["seeds"]))


def _cost(results: Results, row: Row) -> list[str]:
    if row.study not in results.summaries:
        return ["-", "-"]
    summary = results.summaries[row.study]
    return [
        f"{summary['parameters'][row.model]:,}",
        readable_count(summary["multiply_adds"][row.model]),
    ]


def terminal_table(results: Results, planned: Iterable[str]) -> str:
    """Lay out what has been run as aligned plain text.

    Args:
        results: What the studies left.
        planned: Image studies in the order in which they shall stand; others follow.

    Returns:
        Lines without a final newline: accuracy by study and model, and what is still to be run.
    """
    images = {name: each for name, each in results.summaries.items() if "study" not in each}
    names = [*planned, *(name for name in images if name not in planned)]
    rows: list[list[str] | str] = [["accuracy, %", "seeds", *VARIANTS, "parameters", "time a seed"]]
    for name in names:
        if name in images:
            rows += [
                name,
                *(_terminal_line(results, name, each) for each in images[name]["results"]),
            ]
    missing = [name for name in names if name not in images]
    lines = aligned(rows) if images else []
    return "\n".join([*lines, f"not run: {', '.join(missing)}"] if missing else lines)


def _terminal_line(results: Results, study: str, model: str) -> list[str]:
    summary, row = results.summaries[study], Row(study, model)
    cells = [percent_cell(results, row, images) for images in VARIANTS]
    count = readable_count(summary["parameters"][model])
    seconds = summary["seconds"][model] / len(summary["seeds"])
    return [f"  {label(results, row)}", seeds_cell(results, row), *cells, count, duration(seconds)]


# --- analyses -----------------------------------------------------------------------------------

_FORMS = {"whole": "whole kernels", "factors": "factors", "static": "static"}
_STYLES = {
    "upright style": "weights of the image before rotation",
    "same class style": "weights of another upright image of the class",
    "turned style": "on upright images, weights of the rotated image",
}


def angle_table(analysis: Mapping[str, Any]) -> str:
    """Lay out accuracy by angle of rotation, with own weights and with those of other images."""
    table = [
        [style_label(model, style), *(mean_std(figure, 100, 1) for figure in figures)]
        for model, styles in analysis["turned"].items()
        for style, figures in styles.items()
    ]
    return markdown_table(["accuracy, %", *(f"{angle}°" for angle in analysis["angles"])], table)


def style_label(model: str, style: str) -> str:
    """Name a model in the analysis by angle, with whose weights it has."""
    return ", ".join([model_name(model), *([_STYLES[style]] if style in _STYLES else [])])


def cost_table(straw: Mapping[str, Any]) -> str:
    """Lay out what one image costs by layer, with whole kernels, factors, and static weights."""
    header = ["layer", "weights", "generated numbers"]
    header += [f"multiply-adds: {title}" for title in _FORMS.values()]
    header += [f"bytes: {_FORMS[form]}" for form in ("whole", "factors")]
    table = [
        [row["layer"], f"{row['dense_numbers']:,}", f"{row['generated_numbers']:,}"]
        + [readable_count(row[form]["multiply_adds"]) for form in _FORMS]
        + [f"{row[form]['bytes']:,}" for form in ("whole", "factors")]
        for row in straw["costs"]
    ]
    return markdown_table(header, table)


def update_table(straw: Mapping[str, Any]) -> str:
    """Lay out the size and spread of the updates, by array of weights."""
    table = []
    for path, found in straw["updates"].items():
        share, corrected = (
            f"{100 * found['between_classes'][name]['mean']:.1f}" for name in ("share", "corrected")
        )
        rank = "-"
        if "effective_rank" in found:
            rank = f"{_range(found['effective_rank'], 1)} of {straw['leaves'][path]['largest']}"
        spread = f"{found['variation']['mean']:.2f}"
        table.append([path, _range(found["norm"], 2), spread, f"{share} ({corrected})", rank])
    header = ["weights", "norm", "spread over images", "between classes, %", "effective rank"]
    return markdown_table(header, table)


def _range(figure: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (f"{figure[name]['mean']:.{digits}f}" for name in ("mean", "p5", "p95"))
    return f"{mean} ({low} to {high})"


def movement_table(
    analysis: Mapping[str, Any], model: str, angles: Sequence[int], sigmas: Sequence[float]
) -> str:
    """Lay out how far an update moves when its image is rotated or blurred."""
    header = ["weights", *(f"{angle}°" for angle in angles), *(f"σ {sigma:g}" for sigma in sigmas)]
    header += ["another image of the class", "any other image"]
    turns = [analysis["angles"].index(angle) for angle in angles]
    blurs = [analysis["sigmas"].index(sigma) for sigma in sigmas]
    table = []
    for path, found in analysis["straw"][model]["movement"].items():
        figures = [found["rotation"][i] for i in turns] + [found["blur"][i] for i in blurs]
        figures += [found["same class"], found["another image"]]
        table.append([path, *(f"{figure['mean']:.2f}" for figure in figures)])
    return markdown_table(header, table)


def distortion_table(
    analysis: Mapping[str, Any], kind: str, amounts: Sequence[float], models: Sequence[str] = ()
) -> str:
    """Lay out accuracy by amount of a distortion, of all models or of some."""
    found = analysis["distortions"]
    places = [found["amounts"][kind].index(amount) for amount in amounts]
    by_model = found["accuracy"][kind]
    table = [
        [model_name(model), *(mean_std(by_model[model][place], 100, 1) for place in places)]
        for model in models or by_model
    ]
    return markdown_table([kind, *(f"{amount:g}" for amount in amounts)], table)


def distorted(analysis: Mapping[str, Any], model: str, kind: str, amount: float) -> float:
    """Return the mean accuracy on images that are distorted by an amount."""
    found = analysis["distortions"]
    place = found["amounts"][kind].index(amount)
    return float(found["accuracy"][kind][model][place]["mean"])


_SEEN = {"median": (1, 1), "share": (100, 1), "told": (100, 1)}


def pose_table(analysis: Mapping[str, Any], what: str, angles: Sequence[int]) -> str:
    """Lay out by angle how well pose encoders predict it, a line a model.

    Args:
        analysis: Contents of `analysis.json`.
        what: "median" error in degrees; "share" of images, with a predicted pose within 15 degrees;
            "told": accuracy where the model is given the angle.
        angles: Those to show.
    """
    places = [analysis["distortions"]["amounts"]["rotation"].index(angle) for angle in angles]
    table = [
        [model_name(model), *(mean_std(found[what][place], *_SEEN[what]) for place in places)]
        for model, found in analysis["distortions"]["seen"].items()
    ]
    return markdown_table(["model", *(f"{angle:g}°" for angle in angles)], table)


def pose_figures(
    analysis: Mapping[str, Any], model: str, what: str, angles: Sequence[int] | None = None
) -> list[float]:
    """Return means over seeds of what `pose_table` shows, by angle."""
    amounts = analysis["distortions"]["amounts"]["rotation"]
    found = analysis["distortions"]["seen"][model][what]
    return [found[amounts.index(angle)]["mean"] for angle in angles or amounts]


def confused_table(analysis: Mapping[str, Any], models: Sequence[str]) -> str:
    """Lay out the pairs of classes that are confused more often when rotated."""
    table = [
        [" ".join(each["pair"])]
        + [f"{100 * each['upright'][m]:.2f}, {100 * each['turned'][m]:.2f}" for m in models]
        for each in analysis["distortions"]["confused"]
    ]
    return markdown_table(["pair", *map(model_name, models)], table)


def confusion_growth(analysis: Mapping[str, Any], model: str) -> float:
    """Return how much more often those pairs are confused when rotated, as a share of images."""
    pairs = analysis["distortions"]["confused"]
    return float(sum(each["turned"][model] - each["upright"][model] for each in pairs))
