"""Characters drawn from the fonts that matplotlib ships: a data set that needs no download.

Each letter shape is kept as a signed distance to its outline. An image samples that distance
through a random affine and elastic warp and inks what lies within a random stroke width, so one
shape gives endless different drawings, and image `i` depends on the seed, the split and `i` alone.

The spreads are set so that the set is about as hard as it is useful: the article's CNN reaches
about 75 % in 5 epochs on a tenth of it (EMNIST balanced: 68 %).
"""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from straw_experiments.data.cache import cached
from straw_experiments.data.emnist_archive import CLASS_NAMES

if TYPE_CHECKING:
    from PIL import ImageFont

VERSION = 1  # Part of every cached file's name: raise it when a change alters a pixel.

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
_SHAPE = 44  # of which its longer side takes this many,
_LETTER = 21.0  # and that many of an image.
_KNOTS = 5  # The elastic warp moves a grid of 5 x 5 knots.
_CHUNK = 1024  # Images drawn at a time: bounds the memory.


class _Shapes(NamedTuple):
    """Signed distances to the outlines, in image pixels, negative in the ink.

    `distance` is float32 [shapes, 64, 64], `half_width` float32 [shapes] each shape's mean half
    stroke width; the shapes of class c are `first[c]` up to `first[c + 1]`.
    """

    distance: np.ndarray
    half_width: np.ndarray
    first: np.ndarray


def labels(split: str) -> np.ndarray:
    """Return the class of every image of a split: 0 to 46, again and again.

    47 is prime, so every stride that is not a multiple of 47 meets all classes equally often.

    Args:
        split: "train" or "test".

    Returns:
        int32 [images].
    """
    return (np.arange(COUNTS[split]) % len(CLASS_NAMES)).astype(np.int32)


def load(
    split: str, indices: np.ndarray, data_dir: Path, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels, drawn at the first call and stored in `data_dir`.

    Args:
        split: "train" or "test".
        indices: int64 [n], positions in the split.
        data_dir: its folder `straw_jax` holds one file for each choice of images.
        seed: of the whole set.

    Returns:
        uint8 [n, 28, 28, 1] and int32 [n].
    """
    choice = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()[:12]
    path = data_dir / "straw_jax" / f"glyphs-{VERSION}-{split}-seed{seed}-{choice}.npz"
    images = cached(path, lambda: {"images": draw(split, indices, seed=seed)})["images"]
    return images, labels(split)[indices]


def draw(split: str, indices: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Draw the images of a split that stand at `indices`.

    Args:
        split: "train" or "test"; the two share no random number.
        indices: int [n], positions in the split.
        seed: of the whole set. Each image depends on seed, split and its own index only.

    Returns:
        uint8 [n, 28, 28, 1], bright strokes on black.
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
    """Return all random numbers of one image: one uniform, then standard normals."""
    generator = np.random.default_rng([seed, stream, index])
    normals = generator.standard_normal(8 + 2 * _KNOTS**2)
    return np.concatenate([[generator.random()], normals])


def _ink(shapes: _Shapes, classes: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draw one image for each class in `classes` from its row of random numbers."""
    first, past = shapes.first[classes], shapes.first[classes + 1]
    chosen = first + (draws[:, 0] * (past - first)).astype(np.int64)
    distance = _sample(shapes.distance, chosen, _warp(draws[:, 1:7], draws[:, 9:]))
    # Most of the way from the font's own stroke to a pen's: thick and thin strokes both survive.
    pen = 1.6 * np.exp(0.2 * draws[:, 7])
    grow = 0.7 * (pen - shapes.half_width[chosen])
    softness = 1.5 * np.exp(0.2 * draws[:, 8])
    ink = 0.5 + (grow[:, None, None] - distance) / softness[:, None, None]
    return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)


def _warp(affine: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Return where in its shape each pixel looks: [n, 28, 28, 2] rows and columns of the grid."""
    angle = 0.1 * affine[:, 0]  # Radians.
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    stretch = np.zeros_like(turn)
    stretch[:, 0, 0] = np.exp(0.09 * affine[:, 1])
    stretch[:, 1, 1] = np.exp(0.11 * affine[:, 2])
    stretch[:, 1, 0] = 0.13 * affine[:, 3]  # Slant.
    offsets = np.arange(_SIDE) - (_SIDE - 1) / 2
    pixels = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1).reshape(1, -1, 2)
    straight = (pixels - 0.6 * affine[:, None, 4:6]) @ (turn @ stretch)
    bump = _bumps()
    bent = bump @ (1.0 * knots).reshape(-1, 2, _KNOTS, _KNOTS) @ bump.T
    position = straight.reshape(-1, _SIDE, _SIDE, 2) + np.moveaxis(bent, 1, -1)
    return position * (_SHAPE / _LETTER) + (_GRID - 1) / 2


def _bumps() -> np.ndarray:
    """Return how far each knot moves each pixel along one axis: [28, 5], rows of unit length."""
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
    """Measure every character of every class in every face, once a process."""
    per_class = [[_distance(*glyph) for glyph in _glyphs(name)] for name in CLASS_NAMES]
    distance = np.stack([shape for shapes in per_class for shape in shapes])
    # Across a stroke of half width h the depth runs 0..h..0: its mean is h / 2.
    half_width = np.array([-2 * shape[shape < 0].mean() for shape in distance], np.float32)
    first = np.concatenate([[0], np.cumsum([len(shapes) for shapes in per_class])])
    return _Shapes(distance, half_width, first)


def _glyphs(name: str) -> Iterable[tuple[str, str]]:
    """Name every (face, character) that stands for a class.

    A capital whose small letter is no class of its own stands for both, as in EMNIST balanced.
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

    ink = _render(face, character) > 127
    outside = ndimage.distance_transform_edt(~ink)
    inside = ndimage.distance_transform_edt(ink)
    # The outline lies half-way between the two nearest pixel centres; smoothing hides its steps.
    smooth = ndimage.gaussian_filter(outside - inside, 0.7)
    return (smooth * (_LETTER / _SHAPE)).astype(np.float32)


def _render(face: str, character: str) -> np.ndarray:
    """Render one character, its longer side 44 pixels, in the middle of a uint8 [64, 64]."""
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
