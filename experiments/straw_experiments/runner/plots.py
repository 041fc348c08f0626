"""What every figure has: size, title, axes, and the PNG. matplotlib is imported where it draws."""

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FilePath = str | PathLike[str]


DPI = 150


# This face has a dotted zero, so that 0 and O, 1 and l differ.
MONO = "DejaVu Sans Mono"


def new_figure(title: str, dataset: str, size: tuple[float, float]) -> "Figure":
    """Make a figure of `size` in inches, entitled with what it shows and the data set's name."""
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}\n{drawable(dataset)}".rstrip(), fontsize=11)
    return figure


def drawable(text: str, most: int | None = None) -> str:
    """Write a text as figures can show it.

    Args:
        text: Any, such as a user's class name.
        most: Characters after which it is cut off.

    Returns:
        The text with "?" for what the font lacks, and with dollars that begin no formula.
    """
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(MONO)).get_charmap()
    shown = "".join(each if ord(each) in known else "?" for each in text)
    if most is not None and len(shown) > most:
        shown = shown[: most - 1] + "…"
    return shown.replace("$", r"\$")


def save(figure: "Figure", path: FilePath) -> None:
    """Write a PNG of 256 colours: a third of the size, with no visible difference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, "png", dpi=(DPI, DPI))


def tidy(axes: "Axes") -> None:
    """Leave two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
