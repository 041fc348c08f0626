"""The text table and the Markdown report of a study, made from `summary.json`.

Shares of variance are fractions there, and per cent in print.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from straw_experiments.runner.precision import named
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
)
from straw_experiments.weight_prediction.published import EXPLAINED, OUTPUT_LOSS, SOURCE

Results: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Of a summary, or of several, by cell."""

_ZERO = -0.005  # A share below it is written as "below 0".


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal.

    Args:
        summary: Contents of `summary.json`.

    Returns:
        Lines of text without a final newline.
    """
    results = summary["results"]
    runs = "; ".join([*named(summary), spread_note(summary)])
    header, *rows = _rows(results)
    lines: list[list[str] | str] = [["", *header[1:]]]
    network = None
    for name, cells in zip(results, rows, strict=True):
        if results[name]["network"] != network:
            network = results[name]["network"]
            lines.append(_network(results[name]))
        lines.append([f"  {results[name]['predictor']}", *cells[1:]])
    heading = [
        f"study   {summary['study']}",
        f"device  {summary['device']}",
        f"runs    {runs}; tested on {summary['tasks']:,} new networks each",
        "",
    ]
    return "\n".join(heading + aligned(lines))


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.

    Returns:
        Markdown: what was run and where, the results beside the post's, and what was examined.
    """
    results = summary["results"]
    config = summary["config"]
    facts = [
        ["networks a step", f"{config['batch_size']:,}"],
        [
            "recipe",
            f"{config['steps']:,} steps of {config['optimizer']}, rate {config['learning_rate']:g},"
            " cosine",
        ],
        *run_facts(summary, sum(each["seconds"] for each in results.values())),
    ]
    sections = [
        f"# {summary['study'].capitalize()}",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Results",
        results_table(results),
        f"The post's figures are of one run each. Source: {SOURCE}.",
        *examined(results),
        *(f"![{text}]({file})" for text, file in pictures.items()),
    ]
    return "\n\n".join(sections) + "\n"


def results_table(results: Results) -> str:
    """Lay out what predictors explain, beside the post's figures, in Markdown."""
    header, *rows = _rows(results)
    named = [
        [_network(of_cell), of_cell["predictor"], *cells[1:]]
        for of_cell, cells in zip(results.values(), rows, strict=True)
    ]
    return markdown_table(["networks", *header], named)


def examined(results: Results) -> list[str]:
    """Tell in Markdown what `examination.examine` found, where weights were predicted."""
    found = {name: each for name, each in results.items() if "examined" in each}
    if not found:
        return []
    return [
        part
        for title, text, columns in _EXAMINED
        for part in _examined_part(found, title, text, columns)
    ]


def explained(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Write a share of variance in per cent; how far below 0 it is says nothing more."""
    return "below 0" if figure["mean"] < _ZERO else mean_std(figure, 100, digits)


def published(of_cell: Mapping[str, Any]) -> float | None:
    """Return the share that the post reports for as many unknowns and pairs, or None."""
    return EXPLAINED.get((of_cell["unknowns"], of_cell["pairs"]))


def _rows(results: Results) -> list[list[str]]:
    """Cells of the main table, the header first."""
    weights = any(each["pairs"] for each in results.values())
    header = ["predictor", *["pairs"] * weights, "explained, %", "loss"]
    header += ["the post's, %" if weights else "the post's loss"]
    header += ["parameters", "steps/s", "time a run"]
    rows = [header]
    for each in results.values():
        cells = [each["predictor"], *[str(each["pairs"])] * weights]
        cells += [explained(each["explained"]), mean_std(each["loss"], 1, 5)]
        cells += [_beside(each) if weights else _loss_beside(each)]
        cells += [readable_count(each["parameters"]), f"{each['steps_per_second']:.0f}"]
        rows.append([*cells, duration(each["seconds"] / len(each["loss"]["seeds"]))])
    return rows


def _beside(of_cell: Mapping[str, Any]) -> str:
    """The post's share, with what ours is above it in percentage points."""
    theirs = published(of_cell)
    if theirs is None:
        return "-"
    return f"{100 * theirs:.1f} ({100 * (of_cell['explained']['mean'] - theirs):+.1f})"


def _loss_beside(of_cell: Mapping[str, Any]) -> str:
    theirs = OUTPUT_LOSS.get(of_cell["predictor"])
    return "-" if theirs is None else f"{theirs:g}"


def _network(of_cell: Mapping[str, Any]) -> str:
    return f"{of_cell['network']}, {of_cell['unknowns']} unknowns"


# --- the analysis -------------------------------------------------------------------------------

Columns: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, str]]


def _shares(name: str) -> Columns:
    return lambda found: {key: explained(figure, 1) for key, figure in found[name].items()}


def _fits(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{start}, {steps}": f"{explained(each['explained'], 1)}; "
        f"{mean_std(each['solved'], 100, 0)}"
        for start, by_steps in found["fit"].items()
        for steps, each in by_steps.items()
    }


def _of_units(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: mean_std(figure, 100, 1) for name, figure in found.get("units", {}).items()}


def _sizes(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{n} pairs": explained(figure, 1)
        + (f" ({explained(found['least squares'][n], 1)})" if "least squares" in found else "")
        for n, figure in found["pairs"].items()
    }


def _inputs(found: Mapping[str, Any]) -> dict[str, str]:
    fresh, context = (
        {f"{kind}: {key}": text for key, text in _shares(f"{kind} inputs")(found).items()}
        for kind in ("fresh", "context")
    )
    return {**fresh, **context, "another network's pairs": explained(found["other task"])}


_EXAMINED: Sequence[tuple[str, str, Columns]] = (
    (
        "### Other inputs",
        "Variance explained, in per cent, where inputs are drawn otherwise than in training: those"
        " on which predicted weights are judged (fresh), or those of the pairs that the predictor"
        " is shown (context). Networks without biases, true and predicted, multiply their output"
        " by what their input is multiplied by: the scale of fresh inputs cannot matter, and is"
        " here as a check. In the end, weights that were predicted from another network's pairs.",
        _inputs,
    ),
    (
        "### Sets of other sizes",
        "Variance explained, in per cent, by the number of pairs shown, whatever it was trained"
        " with; for linear networks in brackets what least squares explains.",
        _sizes,
    ),
    (
        "### Fitted to the pairs",
        "After some Levenberg-Marquardt steps on the pairs shown, from the predicted weights or"
        " from random ones: variance explained, in per cent, and the share of networks with an"
        " error below 1e-4 of the variance. Columns are start and steps.",
        _fits,
    ),
    (
        "### The same units?",
        "In per cent. Share: what the predicted network's hidden units have in common with the true"
        " ones, paired so that order and scale do not count (100: the same network; by chance:"
        " another task's). Then two predictions for one network from two sets of pairs: paired"
        " units in the same place, agreement of the weights as numbers, and of the functions."
        " Preference: how far each unit keeps to one direction over all networks.",
        _of_units,
    ),
)


def _examined_part(results: Results, title: str, text: str, columns: Columns) -> list[str]:
    """A heading, a text, and for networks of each size a table: a column a cell."""
    parts = []
    for network in dict.fromkeys(each["network"] for each in results.values()):
        of_network = [each for each in results.values() if each["network"] == network]
        found = [columns(each["examined"]) for each in of_network]
        if not any(found):
            continue
        header = [network, *(f"{each['predictor']}, {each['pairs']} pairs" for each in of_network)]
        names = list(dict.fromkeys(name for each in found for name in each))
        rows = [[name, *(each.get(name, "-") for each in found)] for name in names]
        parts.append(markdown_table(header, rows))
    return [title, text, *parts] if parts else []
