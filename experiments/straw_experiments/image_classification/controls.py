"""Is it the sample? A trained STRAW with other style vectors than each image's own."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from straw_experiments.image_classification.evaluate import Forward, in_batches, score
from straw_experiments.image_classification.step import as_input
from straw_experiments.runner.state import Variables
from straw_jax.straw import Straw

_SEED = 0  # of the shuffling: one for all models and runs
_IMAGES = 5_000  # at most: there are as many passes over them as controls and variants


def other_styles(
    styles: np.ndarray, labels: np.ndarray, training_styles: np.ndarray
) -> dict[str, np.ndarray]:
    """Put other style vectors in the place of each image's own.

    Args:
        styles: float32 [n, style], of the test images.
        labels: int [n].
        training_styles: float32 [m, style].

    Returns:
        float32 [n, style] by name: "own", "same class" (of another image of the class, where it
        has more than one), "shuffled" (of another image), "mean" (the mean of the training images
        for every image: one static network), "zero".
    """
    generator = np.random.default_rng(_SEED)
    everywhere = np.zeros((len(styles), 1), styles.dtype)
    return {
        "own": styles,
        "same class": styles[exchanged(labels, generator)],
        "shuffled": styles[exchanged(np.zeros_like(labels), generator)],
        "mean": everywhere + training_styles.mean(axis=0),
        "zero": everywhere + np.zeros_like(styles[:1]),
    }


def sample(images: int) -> slice:
    """Choose at most 5,000 of so many test images, evenly strided."""
    return slice(None, None, -(-images // _IMAGES))


def style_function(straw: Straw) -> Forward:
    """Build the jitted `(variables, images uint8 [b, h, w, c]) -> styles float32 [b, style]`."""

    @jax.jit
    def styles(variables: Variables, images: jax.Array) -> jax.Array:
        return straw.styles(variables["params"], as_input(images)).astype(jnp.float32)

    return styles


def control_scores(
    straw: Straw,
    variables: Variables,
    training_images: np.ndarray,
    variants: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, dict[str, dict[str, float]]]:
    """Test a trained STRAW with other style vectors than each image's own.

    Of many test images an evenly strided sample is taken, see `sample`.

    Args:
        straw: The model.
        variables: The trained model's.
        training_images: uint8 [m, 28, 28, 1].
        variants: Test images, uint8 [n, 28, 28, 1] by name.
        labels: int [n].

    Returns:
        By control, as `other_styles` names them, and variant: "loss" and "accuracy".
    """

    @jax.jit
    def forward(variables: Variables, images: jax.Array, styles: jax.Array) -> jax.Array:
        logits = straw.apply_styles(variables["params"], styles, as_input(images))
        return logits.astype(jnp.float32)

    styles_of, chosen = style_function(straw), sample(len(labels))
    training_styles = in_batches(styles_of, variables, training_images)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for variant, images in variants.items():
        styles = in_batches(styles_of, variables, images[chosen])
        for name, given in other_styles(styles, labels[chosen], training_styles).items():
            logits = in_batches(forward, variables, images[chosen], given)
            scores.setdefault(name, {})[variant] = score(logits, labels[chosen])._asdict()
    return scores


def exchanged(groups: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Give each sample another one of its group, if there is one, and each to just one.

    Args:
        groups: int [n], such as labels.
        generator: Chooses.

    Returns:
        int64 [n], a permutation.
    """
    others = np.arange(len(groups))
    for group in np.unique(groups):
        members = generator.permutation(np.flatnonzero(groups == group))
        others[members] = np.roll(members, 1)
    return others
