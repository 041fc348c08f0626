"""What a study shows of itself: figures, each a PNG. matplotlib is imported where it draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_jax.language.report import NAMES
from straw_jax.training.figures import FilePath, new_figure, save, tidy

COLOURS = {
    "lstm": "#0077BB",
    "ln_lstm": "#33BBEE",
    "hyper": "#EE7733",
    "ln_hyper": "#CC3311",
    "lowrank": "#009988",
    "ln_lowrank": "#AA3377",
}


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
    plot_curves(history, out / "curves.png", title=summary["text"])
    return {"Bits a character by characters read": "curves.png"}


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
        label = NAMES[name]
        for seed in dict.fromkeys(line["seed"] for line in history):
            lines = [x for x in history if x["model"] == name and x["seed"] == seed]
            read = [line["characters"] / 1e6 for line in lines]
            bits = [line["validation"]["bits"] for line in lines]
            axes.plot(read, bits, "o-", ms=3, color=COLOURS[name], lw=1.4, label=label)
            label = "_"  # One entry for all seeds.
    axes.set(xlabel="characters read (millions)", ylabel="bits a character")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)
