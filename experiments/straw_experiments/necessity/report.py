"""The text table and the Markdown report of a study, made from `summary.json`.

Accuracies are fractions there, and per cent in print.
"""

from collections.abc import Mapping
from typing import Any

from straw_experiments.necessity import analysis
from straw_experiments.necessity.models import METHODS
from straw_experiments.necessity.tasks import TASKS
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
)

PARAMETERS, MULTIPLY_ADDS = 0.02, 0.05
"""By which shares of the budget methods may differ from it."""

CONTEXTS = {
    "own": "own",
    "another task": "another task's",
    "mixed": "mixed",
    "shuffled": "pairs shuffled",
}
"""By their names in stored results."""

_METRICS = {"accuracy": "accuracy, %", "loss": "squared error"}
_OFF = " †"


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal."""
    heading = [
        f"study   {summary['study']}",
        f"device  {summary['device']}",
        f"runs    {spread_note(summary)}",
        "",
    ]
    judged = [f"{each['verdict']:<10} {each['text']}" for each in summary["predictions"]]
    return "\n".join([*heading, *aligned(_scores(summary)), "", *judged])


def progress(summary: Mapping[str, Any]) -> str:
    """Write what is known before a study is finished: cells that are still to come are empty.

    Args:
        summary: What `summary.json` will hold: "study", "tasks", "methods", "seeds", and "results"
            as far as there are any.
    """
    return f"# {summary['study'].capitalize()}, in progress\n\n{scores_table(summary)}\n"


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.
    """
    config, budget = summary["config"], summary["budget"]
    rates = " ".join(f"{rate:g}" for rate in config["rates"])
    facts = [
        *([what, name] for what, name in summary["data"].items()),
        ["budget, parameters", f"{budget['parameters']:,}"],
        ["budget, multiply-adds a query", f"{budget['multiply_adds']:,}"],
        ["recipe", f"{config['steps']:,} steps of Adam, {config['batch_size']} new tasks each"],
        ["rates to choose from", rates],
        ["test", f"{summary['tested']} tasks, the same for all"],
        *run_facts(summary, sum(each["seconds"] for each in summary["results"].values())),
    ]
    sections = [
        f"# {summary['study'].capitalize()}",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Methods by tasks",
        scores_table(summary),
        "## The best",
        best_table(summary),
        "## Predictions",
        predictions_table(summary),
        "## Learning rates",
        rates_table(summary),
    ]
    for task in summary["tasks"]:
        sections += [
            f"## {TASKS.label(task).capitalize()}",
            f"Figures are {unit(summary, task)}.",
            "By context:",
            contexts_table(summary, task),
            "By items of the context:",
            lengths_table(summary, task),
            "Costs:",
            budget_table(summary, task),
        ]
    sections += [f"![{text}]({file})" for text, file in pictures.items()]
    return "\n\n".join(sections) + "\n"


def unit(summary: Mapping[str, Any], task: str) -> str:
    """Name the unit of a task's figures."""
    return _METRICS[summary["tasks"][task]["metric"]]


def figure(summary: Mapping[str, Any], task: str, found: Mapping[str, Any]) -> str:
    """Write a task's figure over seeds: per cent, or a squared error."""
    accuracy = summary["tasks"][task]["metric"] == "accuracy"
    return mean_std(found, 100, 1) if accuracy else mean_std(found, 1, 3)


def score(summary: Mapping[str, Any], task: str, method: str) -> str:
    """Write a method's figure on a task, with its unit."""
    found = figure(summary, task, analysis.scores(summary, task)[method])
    return f"{found} %" if summary["tasks"][task]["metric"] == "accuracy" else found


def scores_table(summary: Mapping[str, Any]) -> str:
    """Lay out methods by tasks, in Markdown."""
    header, *rows = _scores(summary)
    return markdown_table(header, rows)


def best_table(summary: Mapping[str, Any]) -> str:
    """Lay out the best of all methods, of written weights, and of static networks, in Markdown."""
    rows = []
    for task, groups in summary["best"].items():
        cells = [_named(summary, task, groups[group]) for group in ("all", "written", "static")]
        rows.append([TASKS.label(task), *cells])
    return markdown_table(["", "best", "best written weights", "best static"], rows)


def predictions_table(summary: Mapping[str, Any]) -> str:
    """Lay out predictions, how they were judged, and by which figures, in Markdown."""
    rows = []
    for each in summary["predictions"]:
        few = [of for of in each["compared"] if of["lead"] != -1]  # of many, those that are open
        shown = [
            f"{TASKS.label(of['task'])}: {_named(summary, of['task'], of['ours'])};"
            f" {_named(summary, of['task'], of['other'])}"
            for of in (few if len(each["compared"]) > 1 else each["compared"])
        ]
        rows.append([each["text"], each["verdict"], ". ".join(shown) or "-"])
    return markdown_table(["prediction", "it is", "the best of these; of all others"], rows)


def rates_table(summary: Mapping[str, Any]) -> str:
    """Lay out the chosen learning rates, methods by tasks, in Markdown."""
    return _by_tasks(summary, lambda task, each: f"{each['rate']:g}" if each["rates"] else "-")


def contexts_table(summary: Mapping[str, Any], task: str) -> str:
    """Lay out a task's figures with right and wrong contexts, in Markdown."""
    cells, metric = _cells(summary, task), summary["tasks"][task]["metric"]
    names = [name for name in CONTEXTS if any(name in each["test"]["contexts"] for each in cells)]
    rows = [
        [METHODS.label(each["method"])]
        + [figure(summary, task, each["test"]["contexts"][name][metric]) for name in names]
        for each in cells
    ]
    return markdown_table(["", *(CONTEXTS[name] for name in names)], rows)


def lengths_table(summary: Mapping[str, Any], task: str) -> str:
    """Lay out a task's figures by the length of the context, in Markdown."""
    cells, metric = _cells(summary, task), summary["tasks"][task]["metric"]
    counts = [str(count) for count in analysis.by_length(cells[0])]
    rows = [
        [METHODS.label(each["method"])]
        + [figure(summary, task, found[metric]) for found in analysis.by_length(each).values()]
        for each in cells
    ]
    return markdown_table(["items", *counts], rows)


def budget_table(summary: Mapping[str, Any], task: str) -> str:
    """Lay out what methods use on a task, in Markdown; † marks what is off the budget."""
    budget = summary["budget"]
    runs = len(summary["seeds"])
    rows = []
    for each in _cells(summary, task):
        parameters, adds = each["parameters"], each["multiply_adds"]
        rows.append(
            [
                METHODS.label(each["method"]),
                f"{parameters:,}" + _mark(parameters, budget["parameters"], PARAMETERS),
                f"{adds:,}" + _mark(adds, budget["multiply_adds"], MULTIPLY_ADDS),
                readable_count(each["context"]),
                duration(each["seconds"] / runs),
                f"{each['rate']:g}" if each["rates"] else "-",
            ]
        )
    header = ["", "parameters", "multiply-adds a query", "of a context", "time a run", "rate"]
    return markdown_table(header, rows)


def _mark(found: int, wanted: int, share: float) -> str:
    return _OFF if abs(found - wanted) > share * wanted else ""


def _named(summary: Mapping[str, Any], task: str, method: str | None) -> str:
    if method is None:
        return "-"
    return f"{METHODS.label(method)} {score(summary, task, method)}"


def _cells(summary: Mapping[str, Any], task: str) -> list[Mapping[str, Any]]:
    return [each for each in summary["results"].values() if each["task"] == task]


def _scores(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the main table, the header first: methods by tasks, and what needs no context."""
    tasks = summary["tasks"]
    header = ["", *(f"{TASKS.label(name)}, {unit(summary, name)}" for name in tasks)]
    own = {name: analysis.scores(summary, name) for name in tasks}
    rows = _rows(summary, lambda task, each: figure(summary, task, own[task][each["method"]]))
    without = ["(at best without a context)"]
    for name, each in tasks.items():
        value = each["without context"].get(each["metric"])
        exact = {"mean": value, "std": None}
        without.append("-" if value is None else figure(summary, name, exact))
    return [header, *rows, without]


def _by_tasks(summary: Mapping[str, Any], cell: Any) -> str:
    return markdown_table(["", *map(TASKS.label, summary["tasks"])], _rows(summary, cell))


def _rows(summary: Mapping[str, Any], cell: Any) -> list[list[str]]:
    """Lay out methods by tasks: "-" where a method does not apply, nothing where it has not run."""
    found = {(each["task"], each["method"]): each for each in summary["results"].values()}

    def of(task: str, method: str) -> str:
        if (task, method) in found:
            return str(cell(task, found[task, method]))
        known = method in METHODS and task in TASKS
        return "" if known and METHODS[method].applies(TASKS[task]) else "-"

    return [
        [METHODS.label(method), *(of(task, method) for task in summary["tasks"])]
        for method in summary["methods"]
    ]
