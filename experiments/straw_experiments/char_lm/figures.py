"""The figures of a study, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.char_lm.models import MODELS
from straw_experiments.runner.plots import MONO, FilePath, drawable, new_figure, save, tidy

PICTURES = {
    "curves.png": "Bits a character by characters read",
    "movement.png": "How far the weights move at each character, by gate",
}
"""What a study's figures show."""


def draw(
    summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, str]:
    """Draw a study's figures.

    Args:
        summary: Contents of `summary.json`.
        history: Lines of `metrics.jsonl`.
        out: Folder for the PNGs.

    Returns:
        File names by what they show.
    """
    drawn = []
    if summary["config"]["epochs"] > 1:  # a point makes no curve
        plot_curves(history, out / "curves.png", title=summary["text"])
        drawn.append("curves.png")
    stretches = {
        name: each["examined"]["stretch"]
        for name, each in summary["results"].items()
        if "examined" in each
    }
    if stretches:
        plot_movement(stretches, out / "movement.png", title=summary["text"])
        drawn.append("movement.png")
    return {PICTURES[file]: file for file in drawn}


def plot_curves(history: Sequence[Mapping[str, Any]], path: FilePath, *, title: str) -> None:
    """Draw bits a character of validation against the characters read: a line a run.

    Args:
        history: Lines of `metrics.jsonl`.
        path: The PNG to write.
        title: Of the figure.
    """
    figure = new_figure("Bits a character, validation", title, (7.0, 4.2))
    axes = figure.subplots()
    for name in dict.fromkeys(line["model"] for line in history):
        label = MODELS.label(name)
        for seed in dict.fromkeys(line["seed"] for line in history):
            lines = [x for x in history if x["model"] == name and x["seed"] == seed]
            read = [line["characters"] / 1e6 for line in lines]
            bits = [line["validation"]["bits"] for line in lines]
            axes.plot(read, bits, "o-", ms=3, color=MODELS.colour(name), lw=1.4, label=label)
            label = "_"  # One entry for all seeds.
    axes.set(xlabel="characters read (millions)", ylabel="bits a character")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)


def plot_movement(
    stretches: Mapping[str, Mapping[str, Any]], path: FilePath, *, title: str
) -> None:
    """Draw how far weights move at each character of a text: a panel a model, a row a gate.

    Args:
        stretches: By model "text" and "gates", as `analysis.movement` returns them.
        path: The PNG to write.
        title: Of the figure.
    """
    figure = new_figure(
        "How far the weights move from one character to the next",
        title,
        (13, 1.4 * len(stretches) + 0.8),
    )
    panels = figure.subplots(len(stretches), squeeze=False)[:, 0]
    for axes, (name, stretch) in zip(panels, stretches.items(), strict=True):
        rows = [[100 * share for share in shares] for shares in stretch["gates"].values()]
        image = axes.imshow(rows, aspect="auto", cmap="magma", vmin=0, interpolation="nearest")
        figure.colorbar(image, ax=axes, pad=0.01).set_label("% of the mean", fontsize=7)
        shown = [_VISIBLE.get(each, drawable(each)) for each in stretch["text"]]
        axes.set_xticks(range(len(shown)), shown, family=MONO, fontsize=7)
        axes.set_yticks(range(len(rows)), list(stretch["gates"]), fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(MODELS.label(name), fontsize=10)
    save(figure, path)


_VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}
