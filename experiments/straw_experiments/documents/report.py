"""The text table and the Markdown report of a study, made from `summary.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from straw_experiments.documents.models import MODELS
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

WHOSE = {
    "own": "",
    "other": ", of another context",
    "mean": ", mean of 16 training contexts",
}
"""Whose weights a row is of, behind the model's label."""


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal.

    Args:
        summary: Contents of `summary.json`.

    Returns:
        Lines of text without a final newline.
    """
    header, *rows = main_rows(summary)
    heading = [
        f"texts   {summary['texts']['name']}",
        f"device  {summary['device']}",
        f"runs    {'; '.join([*named(summary), spread_note(summary)])}",
        "",
    ]
    return "\n".join(heading + aligned([["", *header[1:]], *rows]))


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.

    Returns:
        Markdown: what was run and where, the results with their controls, by length, and costs.
    """
    config, read = summary["config"], summary["texts"]
    facts = [
        ["texts", read["name"]],
        *(
            [part, f"{read['tokens'][part]:,} tokens, {read['documents'][part]:,} documents of"
             f" {read['packages'][part]:,} packages"]
            for part in read["tokens"]
        ),
        ["adapters", f"of {', '.join(config['kernels'])} in all layers, rank {config['rank']}"],
        ["contexts", contexts(summary)],
        [
            "recipe",
            f"{config['steps']:,} steps of {config['batch_size']} contexts; Adam, rate"
            f" {config['learning_rate']:g}, cosine; gradients of norm 1 at most",
        ],
        *run_facts(summary, sum(each["seconds"] for each in summary["results"].values())),
    ]  # fmt: skip
    sections = [
        f"# {summary['study'].capitalize()}",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Results",
        results_table(summary),
        explained(summary),
        "## By context",
        conditions_table(summary),
        *(["## Costs", _COSTS, costs_table(summary)] if _costs(summary) else []),
        *(f"![{text}]({file})" for text, file in pictures.items()),
    ]
    return "\n\n".join(sections) + "\n"


def contexts(summary: Mapping[str, Any]) -> str:
    """Describe what is read and what is asked for."""
    config = summary["config"]
    if config["task"] == "documents":
        return (
            f"up to {config['length']} tokens in training, then a passage of"
            f" {config['passage']} tokens that is read without them"
        )
    facts = config["facts"]
    return (
        f"up to {config['length']} tokens in training, with {facts} fact{'s' * (facts > 1)}:"
        ' "The code of the blue door is 4183."'
    )


def explained(summary: Mapping[str, Any]) -> str:
    """Say what the main table needs to be read."""
    config, tests = summary["config"], summary["tests"]
    if config["task"] == "documents":
        return (
            f"Nats a token of the passage, in {config['tests']} test documents, after a context of"
            f" {tests[0]} tokens; lower is better. Share: of what the context in the window gains"
            " over the better static adapter, what the written weights gain, seed by seed. The"
            " static adapters and the writer without context are trained on the same passages for"
            " as many steps. No test document is of a package of training."
        )
    return (
        f"Share of codes of four digits that are answered rightly, of {config['tests']} contexts of"
        f" {tests[0].split('/')[0]} tokens; chance is 0.01 %. Nats are of a digit, chance is 2.30."
        " Facts of the tests are of other pairs (such as blue door) than those of training, and"
        " the text around them of other packages."
    )


def main_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the main table, the header first."""
    first, needles = summary["tests"][0], summary["config"]["task"] == "needles"
    shares = summary["shares"]
    header = ["weights", *["exact, %"] * needles, "nats", *["share, %"] * (not needles)]
    rows = [[*header, "trained parameters", "time a run"]]

    def row(label: str, cells: Sequence[str], more: Sequence[str] = ("-", "-")) -> None:
        rows.append([label, *cells, *more])

    def measured(found: Mapping[str, Any], share: str) -> list[str]:
        exact = [_percent(found["exact"])] * needles
        return [*exact, _nats(found["nats"]), *[share] * (not needles)]

    frozen = summary["frozen"]
    row("no adapter, without context", measured(frozen["without"][first], "-"))
    row("no adapter, context in the window", measured(frozen["in context"][first], "100"))
    for name, each in summary["results"].items():
        seeds = len(next(iter(each["test"]["own"].values()))["nats"]["seeds"])
        more = [readable_count(each["parameters"]), duration(each["seconds"] / seeds)]
        for whose, by_test in each["test"].items():
            share = shares.get(name, {}).get(whose)
            cells = measured(by_test[first], mean_std(share, 100, 1) if share else "-")
            own = more if whose == "own" else ["-", "-"]
            row(f"{MODELS.label(name)}{WHOSE[whose]}", cells, own)
    return rows


def condition_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table by length of context and number of facts, the header first."""
    needles = summary["config"]["task"] == "needles"
    measure, write = ("exact", _percent) if needles else ("nats", _nats)
    names = list(summary["results"])
    heads = ["tokens of context", *["facts"] * needles, "without", "in the window"]
    rows = [[*heads, *map(MODELS.label, names)]]
    for test in summary["tests"]:
        cells = [write(summary["frozen"][way][test][measure]) for way in ("without", "in context")]
        cells += [write(summary["results"][name]["test"]["own"][test][measure]) for name in names]
        rows.append([*test.split("/"), *cells])
    return rows


def results_table(summary: Mapping[str, Any]) -> str:
    """Lay out the main table in Markdown."""
    return markdown_table(*_split(main_rows(summary)))


def conditions_table(summary: Mapping[str, Any]) -> str:
    """Lay out tests by length of context and number of facts in Markdown."""
    return markdown_table(*_split(condition_rows(summary)))


def costs_table(summary: Mapping[str, Any]) -> str:
    """Lay out in Markdown what writing costs, and after how many queries it is cheaper."""
    rows = []
    for name, by_test in _costs(summary).items():
        for test, found in by_test.items():
            saved = found["in context"] - found["query"]
            after = f"{found['write'] / saved:.1f}" if saved > 0 else "never"
            seconds = [f"{1000 * found[key]:.0f}" for key in ("write", "query", "in context")]
            sizes = [f"{found[key] / 1e6:.2f}" for key in ("adapter", "cache")]
            rows.append([MODELS.label(name), test.split("/")[0], *seconds, after, *sizes])
    header = ["model", "tokens of context", "write, ms", "query with the adapter, ms",
              "query with the context, ms", "cheaper after queries", "adapter, MB",
              "keys and values, MB"]  # fmt: skip
    return markdown_table(header, rows)


def _costs(summary: Mapping[str, Any]) -> dict[str, Any]:
    results = summary["results"]
    return {name: each["costs"] for name, each in results.items() if "costs" in each}


_COSTS = (
    "One context at a time, the least of five. A query with the context reads it anew; to keep its"
    " keys and values instead takes as much memory as the last column says, for each context."
)


def _split(rows: Sequence[list[str]]) -> tuple[list[str], list[list[str]]]:
    header, *others = rows
    return header, others


def _nats(found: Any) -> str:
    return f"{found:.4f}" if isinstance(found, float) else mean_std(found, 1, 4)


def _percent(found: Any) -> str:
    return f"{100 * found:.1f}" if isinstance(found, float) else mean_std(found, 100, 1)
