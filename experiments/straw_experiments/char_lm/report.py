"""The text table and the Markdown report of a study, made from `summary.json`."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from straw_experiments.char_lm.analysis import TESTED
from straw_experiments.char_lm.models import MODELS
from straw_experiments.char_lm.published import BITS, SOURCE
from straw_experiments.data.text import TREEBANK
from straw_experiments.runner.precision import named
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
    statistic,
)

Results: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Of a summary, by model."""


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal.

    Args:
        summary: Contents of `summary.json`.

    Returns:
        Lines of text without a final newline.
    """
    header, *rows = _rows(summary)
    heading = [
        f"text    {summary['text']}",
        f"device  {summary['device']}",
        f"runs    {'; '.join([*named(summary), spread_note(summary)])}; bits a character",
        "",
    ]
    return "\n".join(heading + aligned([["", *header[1:]], *rows]))


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.

    Returns:
        Markdown: what was run and where, the results beside the paper's, what each model consists
        of, and what it writes.
    """
    results, config = summary["results"], summary["config"]
    characters = summary["characters"]
    facts = [
        ["text", summary["text"]],
        [
            "characters",
            f"{characters['train']:,} of training, {characters['validation']:,} of validation,"
            f" {characters['test']:,} of test; {characters['different']} different ones",
        ],
        [
            "recipe",
            f"{epochs(config)}, {config['batch_size']} pieces side by side, gradients"
            f" through {config['length']} characters; Adam, {rate(config)}, cosine; gradients of"
            f" norm 1 at most; dropout {config['dropout']:g}",
        ],
        *run_facts(summary, sum(each["seconds"] for each in results.values())),
    ]
    sections = [
        f"# {summary['study'].capitalize()}",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Results",
        results_table(summary),
        RESULTS,
        *[PUBLISHED] * (summary["text"] == TREEBANK),
        *parameters(results),
        *analysed(results),
        *(f"![{text}]({file})" for text, file in pictures.items()),
        *_samples(results),
    ]
    return "\n\n".join(sections) + "\n"


RESULTS = (
    "Bits a character, lower is better; less the LSTM: the difference from the LSTM with the same"
    " seeds, of those with layer norm from the one with layer norm."
)
"""What the table of results needs to be read."""
PUBLISHED = f"The paper's figures are of larger models, trained for longer. Source: {SOURCE}."
"""What its column of the paper's figures needs."""


def epochs(config: Mapping[str, Any]) -> str:
    """Say how often a study's models have read the text."""
    return f"{config['epochs']} epoch{'s' * (config['epochs'] > 1)}"


def rate(config: Mapping[str, Any]) -> str:
    """Name the learning rate of a study's models, or of each of them."""
    rates = config["learning_rate"]
    if not isinstance(rates, list):
        return f"rate {rates:g}"
    each = (
        f"{r:g} ({MODELS.label(name)})" for name, r in zip(config["models"], rates, strict=True)
    )
    return f"rates {', '.join(each)}"


def results_table(summary: Mapping[str, Any]) -> str:
    """Lay out bits a character, of Penn Treebank beside the paper's figures, in Markdown."""
    header, *rows = _rows(summary)
    return markdown_table(header, rows)


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the main table, the header first."""
    results = summary["results"]
    theirs = BITS if summary["text"] == TREEBANK else {}
    header = ["model", "test", "less the LSTM", "validation", *["the paper's test"] * bool(theirs)]
    rows = [[*header, "units", "parameters", "characters/s", "time a run"]]
    for name, each in results.items():
        bits = each["bits"]
        beside = [f"{theirs[name]:.3f}" if name in theirs else "-"] if theirs else []
        rows.append(
            [
                MODELS.label(name),
                mean_std(bits["test"], 1, 4),
                _difference(results, name),
                mean_std(bits["validation"], 1, 4),
                *beside,
                str(each["features"]),
                readable_count(each["parameters"]["all"]),
                f"{each['characters_per_second']:,.0f}",
                duration(each["seconds"] / len(bits["test"]["seeds"])),
            ]
        )
    return rows


def _difference(results: Results, name: str) -> str:
    """How many bits more than the LSTM's a model needs, seed by seed."""
    plain = MODELS[name].baseline
    if name == plain or plain not in results:
        return "-"
    ours, theirs = (results[each]["bits"]["test"]["seeds"] for each in (name, plain))
    return mean_std(statistic([a - b for a, b in zip(ours, theirs, strict=True)]), 1, 4, "+")


def parameters(results: Results) -> list[str]:
    """List in Markdown what the parameters belong to, and what a character costs."""
    parts = list(next(iter(results.values()))["parameters"])
    rows = [
        [
            MODELS.label(name),
            *(f"{each['parameters'][part]:,}" for part in parts),
            f"{each['multiply_adds']:,}",
        ]
        for name, each in results.items()
    ]
    costs = [each["multiply_adds"] for each in results.values()]
    text = (
        "Almost every parameter is multiplied once a character: models of as many parameters cost"
        f" as many multiply-adds, here to within {max(costs) / min(costs) - 1:.1%}. An LSTM of the"
        " same compute would be the same LSTM. By the clock they differ: see characters/s."
    )
    return ["## Parameters", text, markdown_table(["model", *parts, "multiply-adds"], rows)]


def analysed(results: Results) -> list[str]:
    """Lay out in Markdown what `analysis.analyse` measured, of models with a hyper cell."""
    found = {
        MODELS.label(name): each["examined"] for name, each in results.items() if "examined" in each
    }
    if not found:
        return []
    return [
        "## What the hyper cell is good for",
        _CONTROLS,
        _by_model({name: each["controls"] for name, each in found.items()}, 1, 4),
        "## How far the weights move",
        _MOVEMENT,
        _by_model({name: each["movement"]["gates"] for name, each in found.items()}, 100, 2),
        markdown_table(
            ["model", "farthest at", "least at"],
            [[name, *_extremes(each["movement"]["characters"])] for name, each in found.items()],
        ),
    ]


_CONTROLS = (
    f"Bits a character on the first {TESTED:,} characters of the test, with something else in the"
    " place of the hyper cell's state, from which all that it writes is computed: its mean over as"
    " much of the training text (frozen), its state at another moment of the same text (shuffled),"
    " or zero. In mean weights what is written is frozen to its mean over that training text: of a"
    " HyperLSTM this is what the mean state writes, of the low-rank LSTM, whose update is a product"
    " of two factors, it is not. Nothing is trained anew."
)
_MOVEMENT = (
    "From one character to the next, norm of the change of a gate's weights as a share of the norm"
    " of their mean, in per cent; and the characters at which they move the farthest and the least"
    " (mean of the gates). The HyperLSTM's weights are its kernels with scaled columns, those of"
    " the low-rank LSTM its kernel with the update; biases do not count."
)
_EXTREMES = 5  # characters


def _by_model(found: Results, scale: int, digits: int) -> str:
    """A table of figures: a row a model."""
    names = list(next(iter(found.values())))
    rows = [
        [name, *(mean_std(each[key], scale, digits) for key in names)]
        for name, each in found.items()
    ]
    return markdown_table(["model", *names], rows)


def _extremes(by_character: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """List the characters with the largest means, and those with the smallest."""
    ranked = sorted(by_character, key=lambda character: -by_character[character]["mean"])
    listed = [
        f"`{_VISIBLE.get(character, character)}` {mean_std(by_character[character], 100, 1)}"
        for character in ranked
    ]
    return ", ".join(listed[:_EXTREMES]), ", ".join(listed[: -_EXTREMES - 1 : -1])


_VISIBLE = {" ": "space", "\n": "end of line", "\t": "tab", "|": "bar", "`": "backquote"}


def _samples(results: Results) -> list[str]:
    """Show a text of each model."""
    shown = {name: each["samples"][0] for name, each in results.items() if each["samples"][0]}
    if not shown:
        return []
    parts = ["## Samples", "Drawn from the first seed's model, each character as likely as it is."]
    for name, text in shown.items():
        parts += [
            f"### {MODELS.label(name)}",
            "\n".join(f"    {line}" for line in text.split("\n")),
        ]
    return parts
