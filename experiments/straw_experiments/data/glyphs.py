"""Characters drawn from the fonts that matplotlib ships: a data set that needs no download.

Each letter shape is stored as a signed distance to its outline. An image samples this distance
through a random affine and elastic warp, and is bright within a random stroke width: one shape
gives any number of different images. Image `i` depends on the seed, the split and `i` alone.

The spread of the random numbers makes the set about as hard as EMNIST balanced: in 5 epochs on a
tenth of the images, the article's CNN reaches about 75 % (EMNIST balanced: 68 %).
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from straw_experiments.data.cache import cached
from straw_experiments.data.emnist_archive import CLASS_NAMES
from straw_experiments.data.reading import reason

if TYPE_CHECKING:
    from PIL import ImageFont

VERSION = 1  # Part of the name of every stored file: raise it when a change alters a pixel.

COUNTS = {"train": 2400 * len(CLASS_NAMES), "test": 200 * len(CLASS_NAMES)}

_FACES = (
    *(f"DejaVuSans{face}" for face in ("", "-Oblique", "-Bold", "-BoldOblique")),
    *(f"DejaVuSansMono{face}" for face in ("", "-Oblique", "-Bold", "-BoldOblique")),
    *(f"DejaVuSerif{face}" for face in ("", "-Italic", "-Bold", "-BoldItalic")),
    *(f"STIXGeneral{face}" for face in ("", "Italic", "Bol", "BolIta")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
_SCRIPT_FACE = "STIXGeneralBolIta"  # Its mathematical script alphabet: the only handwriting there.
_SCRIPT_A = {"A": 0x1D4D0, "a": 0x1D4EA}

_SIDE = 28  # Pixels of an image.
_GRID = 64  # Pixels of a stored shape,
_SHAPE = 44  # of which its longer side takes this many;
_LETTER = 21.0  # in an image it takes this many.
_KNOTS = 5  # The elastic warp moves a grid of 5 x 5 knots.
_CHUNK = 1024  # Images drawn at a time: bounds the memory.


class _Shapes(NamedTuple):
    """The shapes of all classes.

    Attributes:
        distance: float32 `[shapes, 64, 64]`, signed distances to the outlines in image pixels,
            negative inside the strokes.
        half_width: float32 `[shapes]`, each shape's mean half stroke width.
        first: int `[classes + 1]`: the shapes of class c are `first[c]` up to `first[c + 1]`.
    """

    distance: np.ndarray
    half_width: np.ndarray
    first: np.ndarray


def labels(split: str) -> np.ndarray:
    """Return the class of every image of a split: 0 to 46, repeated.

    47 is prime, so a stride that is not a multiple of 47 takes all classes equally often.

    Args:
        split: "train" or "test".

    Returns:
        int32 `[images]`.
    """
    return (np.arange(COUNTS[split]) % len(CLASS_NAMES)).astype(np.int32)


def load(
    split: str, indices: np.ndarray, data_dir: Path, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels; the first call draws the images and stores them in `data_dir`.

    Args:
        split: "train" or "test".
        indices: int64 `[n]`, positions in the split.
        data_dir: Its folder `straw_jax` holds one file for each choice of images.
        seed: Of the whole set.

    Returns:
        uint8 `[n, 28, 28, 1]` and int32 `[n]`.
    """
    choice = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()[:12]
    path = data_dir / "straw_jax" / f"glyphs-{VERSION}-{split}-seed{seed}-{choice}.npz"
    images = cached(path, lambda: {"images": draw(split, indices, seed=seed)})["images"]
    return images, labels(split)[indices]


def draw(split: str, indices: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Draw the images at some positions of a split.

    Args:
        split: "train" or "test"; the two share no random number.
        indices: int `[n]`, positions in the split.
        seed: Of the whole set. Each image depends on the seed, the split and its own index only.

    Returns:
        uint8 `[n, 28, 28, 1]`, bright strokes on black.
    """
    shapes = _shapes()
    classes = labels(split)[indices]
    stream = list(COUNTS).index(split)
    images = np.empty((len(indices), _SIDE, _SIDE, 1), np.uint8)
    for start in range(0, len(indices), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        draws = [_numbers(seed, stream, int(index)) for index in indices[chunk]]
        images[chunk, ..., 0] = _ink(shapes, classes[chunk], np.stack(draws))
    return images


def _numbers(seed: int, stream: int, index: int) -> np.ndarray:
    """Return all random numbers for one image: one uniform, then standard normals."""
    generator = np.random.default_rng([seed, stream, index])
    normals = generator.standard_normal(8 + 2 * _KNOTS**2)
    return np.concatenate([[generator.random()], normals])


def _ink(shapes: _Shapes, classes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draw one image for each class in `classes` from its row of random numbers."""
    first, past = shapes.first[classes], shapes.first[classes + 1]
    chosen = first + (draws[:, 0] * (past - first)).astype(np.int64)
    distance = _sample(shapes.distance, chosen, _warp(draws[:, 1:7], draws[:, 9:]))
    # 70 % of the way from the font's stroke width to a pen's keeps thick and thin strokes.
    pen = 1.6 * np.exp(0.2 * draws[:, 7])
    grow = 0.7 * (pen - shapes.half_width[chosen])
    softness = 1.5 * np.exp(0.2 * draws[:, 8])
    ink = 0.5 + (grow[:, None, None] - distance) / softness[:, None, None]
    return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)


def _warp(affine: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return the point of its shape that each pixel samples: [n, 28, 28, 2], row and column."""
    angle = 0.1 * affine[:, 0]  # Radians.
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    stretch = np.zeros_like(rotation)
    stretch[:, 0, 0] = np.exp(0.09 * affine[:, 1])
    stretch[:, 1, 1] = np.exp(0.11 * affine[:, 2])
    stretch[:, 1, 0] = 0.13 * affine[:, 3]  # Slant.
    offsets = np.arange(_SIDE) - (_SIDE - 1) / 2
    pixels = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1).reshape(1, -1, 2)
    straight = (pixels - 0.6 * affine[:, None, 4:6]) @ (rotation @ stretch)
    bump = _bumps()
    bent = bump @ (1.0 * knots).reshape(-1, 2, _KNOTS, _KNOTS) @ bump.T
    position = straight.reshape(-1, _SIDE, _SIDE, 2) + np.moveaxis(bent, 1, -1)
    return position * (_SHAPE / _LETTER) + (_GRID - 1) / 2


def _bumps() -> np.ndarray:
    """Return the weight of each knot for each pixel along one axis: [28, 5], rows of norm 1."""
    knots = np.linspace(0, _SIDE - 1, _KNOTS)
    reach = _SIDE / _KNOTS
    weights = np.exp(-0.5 * ((np.arange(_SIDE)[:, None] - knots) / reach) ** 2)
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def _sample(grids: np.ndarray, chosen: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Interpolate bilinearly: grid `chosen[n]` at `position[n]`, clamped to the grid's edge."""
    position = np.clip(position, 0, _GRID - 1.001)
    corner = position.astype(np.int64)
    row, column = np.moveaxis((position - corner).astype(np.float32), -1, 0)
    corner_index = (chosen[:, None, None] * _GRID + corner[..., 0]) * _GRID + corner[..., 1]
    flat = grids.reshape(-1)
    top = flat[corner_index] * (1 - column) + flat[corner_index + 1] * column
    below = corner_index + _GRID
    bottom = flat[below] * (1 - column) + flat[below + 1] * column
    return top * (1 - row) + bottom * row


@functools.cache
def _shapes() -> _Shapes:
    """Compute the shapes of every character of every class in every face, once per process."""
    per_class = [[_distance(*glyph) for glyph in _glyphs(name)] for name in CLASS_NAMES]
    distance = np.stack([shape for shapes in per_class for shape in shapes])
    # Across a stroke of half width h the depth runs 0..h..0: its mean is h / 2.
    half_width = np.array([-2 * shape[shape < 0].mean() for shape in distance], np.float32)
    first = np.concatenate([[0], np.cumsum([len(shapes) for shapes in per_class])])
    return _Shapes(distance, half_width, first)


def _glyphs(name: str) -> Iterable[tuple[str, str]]:
    """Yield every (face, character) of a class.

    If a small letter has no class, the class of its capital holds both, as in EMNIST balanced.
    """
    small = name.lower()
    for character in [name] if small in CLASS_NAMES else [name, small]:
        yield from ((face, character) for face in _FACES)
        if character.isalpha():
            first = "a" if character.islower() else "A"
            yield _SCRIPT_FACE, chr(_SCRIPT_A[first] + ord(character) - ord(first))


def _distance(face: str, character: str) -> np.ndarray:
    """Return one character's signed distance, float32 [64, 64], in image pixels."""
    from scipy import ndimage

    try:
        ink = _render(face, character) > 127
    except OSError as error:
        raise ValueError(
            f"glyphs: expected matplotlib's font {face}.ttf, got: {reason(error)}. Install "
            "matplotlib again."
        ) from error
    outside = ndimage.distance_transform_edt(~ink)
    inside = ndimage.distance_transform_edt(ink)
    # The outline is half-way between the two nearest pixel centres; smoothing removes its steps.
    smooth = ndimage.gaussian_filter(outside - inside, 0.7)
    return (smooth * (_LETTER / _SHAPE)).astype(np.float32)


def _render(face: str, character: str) -> np.ndarray:
    """Render one character in the middle of a uint8 [64, 64], its longer side 44 pixels."""
    from PIL import Image, ImageDraw

    probe = _font(face, 4 * _SHAPE)
    left, top, right, bottom = probe.getbbox(character)
    size = 4 * _SHAPE * _SHAPE / max(right - left, bottom - top)
    image = Image.new("L", (_GRID, _GRID))
    font = _font(face, size)
    left, top, right, bottom = font.getbbox(character)
    corner = ((_GRID - left - right) / 2, (_GRID - top - bottom) / 2)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    return np.asarray(image)


@functools.cache
def _font(face: str, size: float) -> "ImageFont.FreeTypeFont":
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
