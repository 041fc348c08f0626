"""The results page's section on models of text."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from straw_experiments.char_lm.figures import PICTURES
from straw_experiments.char_lm.report import (
    NAMES,
    PUBLISHED,
    RESULTS,
    epochs,
    examined,
    parameters,
    rate,
    results_table,
)
from straw_experiments.data.text import TREEBANK


def language_parts(
    studies: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, Sequence[str]]
) -> list[str]:
    """Tell what the studies of char_lm.py found, in Markdown.

    Args:
        studies: Those that have been run: by name, what `summary.json` holds.
        pictures: Files that char_lm.py drew, by study, as links from the page.
    """
    parts = []
    for name, summary in studies.items():
        config, results = summary["config"], summary["results"]
        read = max(each["characters"] for each in results.values())
        setting = (
            f"{', '.join(NAMES[name] for name in results)}, of {config['parameters']:,} parameters"
            f" at most; each has read {read:,} characters ({epochs(config)},"
            f" {config['batch_size']} pieces side by side, gradients through {config['length']}"
            f" characters), by Adam, {rate(config)}, cosine, gradients of norm 1 at most, dropout"
            f" {config['dropout']:g}."
        )
        parts += [f"### {summary['text']}", setting, results_table(summary), RESULTS]
        parts += [PUBLISHED] * (summary["text"] == TREEBANK)
        parts += [*parameters(results), *examined(results)]
        parts += [
            f"![{PICTURES[PurePosixPath(file).name]}]({file})" for file in pictures.get(name, [])
        ]
    return [part.replace("## ", "#### ", 1) if part.startswith("## ") else part for part in parts]
