"""Scores of fields: PSNR of images, controls of the context, and rivals that need no training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.fields.networks import grid
from straw_jax import Straw

Params = Any

BATCH = 256  # images at a time: every call is of this size, so that nothing is compiled twice
_LEAST = 1e-10  # a mean squared error: 100 dB


def psnr(errors: Array) -> Array:
    """Return the PSNR in dB of mean squared errors of intensities in [0, 1]."""
    return -10 * jnp.log10(jnp.maximum(errors, _LEAST))


class Reader(NamedTuple):
    """What scores a writer's fields, compiled once.

    Attributes:
        styles: `(params, images [BATCH, h, w]) -> styles`.
        scores: `(params, styles, images) -> PSNR [BATCH]` of each image's field.
    """

    styles: Callable[[Params, Array], Array]
    scores: Callable[[Params, Array, Array], Array]

    @classmethod
    def of(cls, straw: Straw, image: tuple[int, int]) -> "Reader":
        """Make the reader of a writer of fields for images `[height, width]`."""

        @jax.jit
        def scores(params: Params, styles: Array, images: Array) -> Array:
            read = fields(straw, params, styles, jnp.asarray(grid(*image)))
            return psnr(jnp.mean((read - images.reshape(len(images), -1)) ** 2, axis=1))

        return cls(jax.jit(straw.styles), scores)

    def own(self, params: Params, images: np.ndarray) -> np.ndarray:
        """Return the PSNR `[n]` of the fields that images, uint8, get."""
        return _by_batch(lambda x: self.scores(params, self.styles(params, x), x), images)

    def controls(
        self, params: Params, images: np.ndarray, training: np.ndarray
    ) -> Mapping[str, float]:
        """Return the mean PSNR of fields that were written for another context.

        Args:
            params: trained.
            images: uint8 `[n, h, w]`.
            training: images whose mean style is the mean context.

        Returns:
            "another image": each image read from the field of the next one. "mean context": all
            read from that of the mean style.
        """
        styles = _by_batch(partial(self.styles, params), training[: 16 * BATCH])
        mean = jnp.broadcast_to(styles.mean(axis=0), (BATCH, *styles.shape[1:]))

        def another(x: Array) -> Array:
            return self.scores(params, jnp.roll(self.styles(params, x), 1, axis=0), x)

        found = {
            "another image": _by_batch(another, images),
            "mean context": _by_batch(lambda x: self.scores(params, mean, x), images),
        }
        return {name: float(each.mean()) for name, each in found.items()}


def fields(straw: Straw, params: Params, styles: Array, points: Array) -> Array:
    """Read at `points` the fields that styles write: `[n, points]`."""
    return straw.apply_styles(params, styles, jnp.zeros((len(styles), 1)), points=points)


def scaled(images: np.ndarray | Array) -> Array:
    """Return images as intensities in [0, 1], float32."""
    return jnp.asarray(images, jnp.float32) / 255


def _by_batch(function: Callable[[Array], Array], images: np.ndarray) -> np.ndarray:
    found = []
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        filled = np.resize(batch, (BATCH, *batch.shape[1:]))
        found.append(np.asarray(function(scaled(filled)))[: len(batch)])
    return np.concatenate(found)


def components(
    training: np.ndarray, tested: Mapping[str, np.ndarray], counts: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Return the PSNR of principal components: a yardstick that needs no gradient.

    Args:
        training: images uint8 `[n, h, w]`, of which mean and components are taken.
        tested: images by name.
        counts: numbers of components. 0 is the mean image, which no field without a context can
            do better than on the training images' mean squared error.

    Returns:
        Mean PSNR by name of images and count.
    """
    flat = training.reshape(len(training), -1).astype(np.float32) / 255
    mean = flat.mean(axis=0)
    flat -= mean
    basis = np.linalg.eigh(flat.T @ flat)[1][:, ::-1]

    def score(images: np.ndarray, count: int) -> float:
        left = images.reshape(len(images), -1).astype(np.float32) / 255 - mean
        left -= (left @ basis[:, :count]) @ basis[:, :count].T
        return float(psnr(jnp.asarray(np.mean(left**2, axis=1))).mean())

    return {
        name: {str(count): score(images, count) for count in counts}
        for name, images in tested.items()
    }
