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
    figure.suptitle(f"{title}\n{dataset}".rstrip(), fontsize=11)
    return figure


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
