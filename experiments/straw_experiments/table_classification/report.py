"""The text table and the Markdown report of a study, made from `summary.json`.

Accuracies are fractions there, and per cent in print.
"""

from collections.abc import Mapping
from typing import Any

from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
)
from straw_experiments.table_classification.models import MODELS

RIVALS = {
    "logistic": "logistic regression",
    "boosting": "gradient boosting",
    "mlp": "fitted MLP",
    "neighbours": "5 nearest neighbours",
    "majority": "majority class",
}
"""Classifiers of scikit-learn by the names in stored results."""


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal."""
    rows: list[list[str] | str] = []
    for header, *cells in (
        _synthetic(summary),
        *([_accuracy(summary)] if _tested(summary) else []),
    ):
        rows.append("\n".join(["", *aligned([header, *cells])]))
    heading = [
        f"study   {summary['study']}",
        f"device  {summary['device']}",
        f"runs    {spread_note(summary)}",
    ]
    return "\n".join([*heading, *map(str, rows)])


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.
    """
    config = summary["config"]
    facts = [
        ["tables a step", f"{config['batch_size']:,}"],
        ["recipe", f"{config['steps']:,} steps of Adam, rate {config['learning_rate']:g}, cosine"],
        *run_facts(summary, sum(each["seconds"] for each in summary["results"].values())),
    ]
    sections = [
        f"# {summary['study'].capitalize()}",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Synthetic tables",
        synthetic_table(summary),
        "Accuracy in per cent on tables that are not trained on, by tables seen in training:",
        curve_table(summary),
    ]
    if _tested(summary):
        sections += [
            "## scikit-learn's data sets",
            f"Accuracy in per cent with {summary['rows'][-1]} labelled rows, and the mean"
            " rank over data sets and numbers of rows, 1 is best. Time: of one fit with most rows,"
            " or to write a classifier and answer, without compiling. Digits are given to models as"
            " 32 principal components of the labelled rows (fewer, if there are fewer rows), and"
            " to scikit-learn's classifiers with all features; diabetes is cut at the median.",
            sets_table(summary),
            "## Mean rank by number of labelled rows",
            mean_rank_table(summary),
            "## Controls",
            "Accuracy in per cent with most rows, one order of features, by what the weights are"
            " written from.",
            context_table(summary),
        ]
    sections += [f"![{text}]({file})" for text, file in pictures.items()]
    return "\n\n".join(sections) + "\n"


def synthetic_table(summary: Mapping[str, Any]) -> str:
    """Lay out what models make of synthetic tables, in Markdown."""
    header, *rows = _synthetic(summary)
    return markdown_table(header, rows)


def curve_table(summary: Mapping[str, Any]) -> str:
    """Lay out accuracy on synthetic tables by tables seen in training, in Markdown."""
    results = summary["results"]
    seen = list(next(iter(results.values()))["curve"])
    shown = list(dict.fromkeys([seen[0], *seen[3::4], seen[-1]]))
    rows = [
        [label(name), *(mean_std(each["curve"][count], 100, 1) for count in shown)]
        for name, each in results.items()
    ]
    return markdown_table(["tables seen", *(f"{int(count):,}" for count in shown)], rows)


def sets_table(summary: Mapping[str, Any]) -> str:
    """Lay out accuracies with most rows and mean ranks, in Markdown."""
    header, *rows = _accuracy(summary)
    return markdown_table(header, rows)


def mean_rank_table(summary: Mapping[str, Any]) -> str:
    """Lay out mean ranks by number of rows, in Markdown."""
    counts = [*map(str, summary["rows"]), "all"]
    rows = [
        [label(name), *(mean_std(ranks[count], 1, 2) for count in counts)]
        for name, ranks in summary["ranks"].items()
    ]
    return markdown_table(["", *counts], rows)


def context_table(summary: Mapping[str, Any]) -> str:
    """Lay out accuracies with weights that were written from something else, in Markdown."""
    rows = []
    for name, each in summary["results"].items():
        contexts = list(next(iter(each["controls"].values())))
        for context in contexts:
            found = (of_set[context] for of_set in each["controls"].values())
            rows.append([label(name), context, *(mean_std(figure, 100, 1) for figure in found)])
    sets = list(next(iter(summary["results"].values()))["controls"])
    return markdown_table(["", "context", *sets], rows)


def label(name: str) -> str:
    """Name a model or a classifier of scikit-learn to a reader."""
    return RIVALS.get(name) or MODELS.label(name)


def _tested(summary: Mapping[str, Any]) -> bool:
    return "ranks" in summary


def _synthetic(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = [["synthetic tables", "accuracy, %", "loss", "parameters", "time a run"]]
    for name, each in summary["results"].items():
        found, runs = each["validation"], len(summary["seeds"])
        rows.append(
            [
                label(name),
                mean_std(found["accuracy"], 100, 2),
                mean_std(found["loss"], 1, 4),
                readable_count(each["parameters"]),
                duration(each["seconds"] / runs),
            ]
        )
    for name, each in summary["rivals"].items():
        if "validation" in each:
            rows.append(
                [
                    f"{label(name)} (fewer tables)",
                    mean_std(each["validation"], 100, 2),
                    "-",
                    "-",
                    "-",
                ]
            )
    return rows


def _accuracy(summary: Mapping[str, Any]) -> list[list[str]]:
    most = str(summary["rows"][-1])
    every = {**summary["results"], **summary["rivals"]}
    sets = list(next(iter(every.values()))["accuracy"])
    rows = [["", *sets, "mean rank", "time, s"]]
    for name, each in every.items():
        ranks = summary["ranks"][name]
        seconds = [of_set[most]["mean"] for of_set in each["fit seconds"].values()]
        rows.append(
            [
                label(name),
                *(mean_std(each["accuracy"][of][most], 100, 1) for of in sets),
                mean_std(ranks["all"], 1, 2),
                f"{sum(seconds) / len(seconds):.3f}",
            ]
        )
    return rows
