"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.documents.models import MODELS
from straw_experiments.runner.plots import FilePath, new_figure, save, tidy

PICTURES = {
    "curves.png": "Validation by the contexts that training has read",
    "lengths.png": "Test by length of the context",
}
"""What a study's figures show."""


def draw(summary: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Draw a study's figures.

    Args:
        summary: Contents of `summary.json`.
        out: Folder for the PNGs.

    Returns:
        File names by what they show.
    """
    drawn = []
    if summary["config"]["parts"] > 1:  # a point makes no curve
        plot_curves(summary, out / "curves.png")
        drawn.append("curves.png")
    if len(by_length(summary)) > 1:
        plot_lengths(summary, out / "lengths.png")
        drawn.append("lengths.png")
    return {PICTURES[file]: file for file in drawn}


def by_length(summary: Mapping[str, Any]) -> dict[int, str]:
    """Return the tests by length of context, in order, with as many facts as the first has."""
    facts = summary["tests"][0].partition("/")[2]
    found = {}
    for test in summary["tests"]:
        length, _, of = test.partition("/")
        if of == facts:
            found[int(length)] = test
    return dict(sorted(found.items()))


def plot_curves(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw validation against the contexts that training has read: a line a model.

    Args:
        summary: Contents of `summary.json`.
        path: The PNG to write.
    """
    measure, label = _measure(summary)
    figure = new_figure("Validation", summary["texts"]["name"], (7.0, 4.2))
    axes = figure.subplots()
    for name, each in summary["results"].items():
        contexts = [int(step) * summary["config"]["batch_size"] for step in each["validation"]]
        _line(axes, name, contexts, [found[measure] for found in each["validation"].values()])
    axes.set(xlabel="contexts that training has read", ylabel=label)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)


def plot_lengths(summary: Mapping[str, Any], path: FilePath) -> None:
    """Draw tests against the length of the context: a line a model, and the frozen one's two.

    Args:
        summary: Contents of `summary.json`.
        path: The PNG to write.
    """
    measure, label = _measure(summary)
    figure = new_figure("Test by length of the context", summary["texts"]["name"], (7.0, 4.2))
    axes = figure.subplots()
    tests = by_length(summary)
    for way, text, style in (
        ("without", "no adapter, without context", ":"),
        ("in context", "no adapter, context in the window", "--"),
    ):
        values = [summary["frozen"][way][test][measure] for test in tests.values()]
        axes.plot(list(tests), values, style, color="#555555", lw=1.4, label=text)
    for name, each in summary["results"].items():
        found = [each["test"]["own"][test][measure] for test in tests.values()]
        _line(axes, name, list(tests), found)
    axes.axvline(summary["config"]["length"], color="#BBBBBB", lw=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(tests), [str(length) for length in tests])
    axes.set(xlabel="tokens of context (grey: the most in training)", ylabel=label)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)


def _line(axes: Any, name: str, x: Sequence[float], found: Sequence[Mapping[str, Any]]) -> None:
    """Draw statistics over seeds, with their spread."""
    axes.errorbar(
        x,
        [value["mean"] for value in found],
        [value["std"] or 0.0 for value in found],
        fmt="o-",
        ms=3,
        lw=1.4,
        capsize=2,
        color=MODELS.colour(name),
        label=MODELS.label(name),
    )


def _measure(summary: Mapping[str, Any]) -> tuple[str, str]:
    if summary["config"]["task"] == "needles":
        return "exact", "share of codes answered rightly"
    return "nats", "nats a token"
