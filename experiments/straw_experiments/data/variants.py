"""The test set as it is, rotated and blurred: the same for every model and every run."""

import numpy as np

_ROTATED, _BLURRED = 0, 1  # Each variant has its own stream of random numbers.


def variants(images: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the article's three variants of test images.

    The transform of image i depends on the seed and on i alone: the first images of a set are
    transformed alike, however many follow.

    Args:
        images: uint8 `[n, height, width, channels]`, 1 channel or 3.
        seed: Fixes the angles and the widths of the blur.

    Returns:
        uint8 `[n, height, width, channels]` by name, in this order: "standard" (the images
        themselves); "rotated" (each by an angle of its own, uniform in -60 to 60 degrees; nearest
        neighbour, zeros outside); "blurred" (3 x 3 Gaussian, sigma uniform in 0.1 to 2.0 pixels,
        reflected edge).

    Raises:
        ValueError: The images are not uint8 `[n, height, width, channels]`.

    Example:
        >>> import numpy as np
        >>> from straw_experiments import data
        >>> images = np.zeros((2, 28, 28, 1), np.uint8)
        >>> {name: made.shape for name, made in data.variants(images).items()}
        {'standard': (2, 28, 28, 1), 'rotated': (2, 28, 28, 1), 'blurred': (2, 28, 28, 1)}
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"variants: expected uint8 images [n, height, width, 1 or 3], got {images.dtype} "
            f"{list(images.shape)}. Pass raw images: normalise the variants, not their source."
        )
    angles = np.random.default_rng([seed, _ROTATED]).uniform(-60.0, 60.0, len(images))
    sigmas = np.random.default_rng([seed, _BLURRED]).uniform(0.1, 2.0, len(images))
    return {"standard": images, "rotated": rotate(images, angles), "blurred": blur(images, sigmas)}


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Rotate each image about its centre, counter-clockwise, by nearest neighbour.

    Args:
        images: `[n, height, width, channels]`.
        degrees: float `[n]`, one angle per image.

    Returns:
        As `images`; pixels that come from outside are zero.
    """
    _, height, width, _ = images.shape
    angle = np.deg2rad(degrees)[:, None, None]
    down = np.arange(height)[:, None] - (height - 1) / 2
    right = np.arange(width) - (width - 1) / 2
    # The inverse rotation gives the pixel from which each output pixel comes.
    row = np.rint(np.cos(angle) * down + np.sin(angle) * right + (height - 1) / 2).astype(int)
    column = np.rint(np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2).astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    image = np.arange(len(images))[:, None, None]
    source = images[image, row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside[..., None], source, 0).astype(images.dtype)


def blur(images: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Blur each image with a 3 x 3 Gaussian kernel, sampled at the pixels and summing to one.

    Args:
        images: uint8 `[n, height, width, channels]`.
        sigmas: float `[n]`, in pixels, one per image.

    Returns:
        uint8, as `images`, rounded; the edge is reflected without repeating its pixel.
    """
    side = np.exp(-0.5 / sigmas.astype(np.float32) ** 2)
    middle = (1 / (1 + 2 * side))[:, None, None, None]
    side = side[:, None, None, None] * middle
    blurred = images.astype(np.float32)
    for axis in (1, 2):
        padding = [(1, 1) if axis == other else (0, 0) for other in range(4)]
        padded = np.pad(blurred, padding, mode="reflect")
        before, after = (np.take(padded, range(k, k + blurred.shape[axis]), axis) for k in (0, 2))
        blurred = middle * blurred + side * (before + after)
    return np.rint(blurred).astype(np.uint8)
