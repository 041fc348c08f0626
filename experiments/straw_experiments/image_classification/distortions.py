"""Accuracy on rotated, scaled, sheared and blurred images, and the poses that are predicted."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from straw_experiments.data.variants import blur, rotate
from straw_experiments.image_classification.controls import style_function
from straw_experiments.image_classification.evaluate import in_batches, predict, score
from straw_experiments.image_classification.step import as_input
from straw_experiments.image_classification.study import Study
from straw_experiments.runner.tables import over_seeds, statistic
from straw_jax.geometry import affine, composed, resample
from straw_jax.kinds import Posed
from straw_jax.pose import NUMBERS
from straw_jax.straw import Straw

AMOUNTS: Mapping[str, Sequence[float]] = {
    "rotation": tuple(range(-90, 91, 15)),  # degrees, counter-clockwise
    "scale": (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4),
    "shear": (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6),  # as in `affine`
    "blur": (0.0, 0.5, 1.0, 1.5, 2.0),  # pixels
}
_PAIRS = 12  # confusions that are listed
_FAR = (-60, -45, -30, 30, 45, 60)  # degrees, of images that count as rotated
_UNITS = 3  # of the first layer, on the sheet
_CLOSE = 15  # degrees
_LIKELY = 0.05  # confidence from which a hypothesis counts


def predicts_poses(straw: Straw | None) -> bool:
    """Say whether a model's style vectors are poses, as of `straw_jax.pose.Geometric`."""
    return straw is not None and any(leaf.rank == "pose" for leaf in straw.spec)


def distorted(images: np.ndarray, kind: str, amount: float) -> np.ndarray:
    """Return images uint8 [n, h, w, c], all changed alike; rotation and blur as in the variants."""
    if kind == "rotation":
        return rotate(images, np.full(len(images), amount))
    if kind == "blur":
        return blur(images, np.full(len(images), amount)) if amount else images
    matrix = affine(0.0, **{kind: amount})
    return np.rint(np.asarray(_resampled(images, matrix))).astype(np.uint8)


def measure(
    study: Study,
    seeds: Mapping[str, Sequence[int]],
    tested: np.ndarray,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Test every finished run on distorted images.

    Args:
        study: The runs'.
        seeds: Those that are finished, by model.
        tested: Positions of the test images to take.
        say: Prints what is being done.

    Returns:
        "amounts" by kind of distortion; "accuracy" by kind and model, a spread for each amount;
        "seen", of models with a pose encoder, by rotation: the "median" of the likeliest angle's
        error in degrees, the "share" of images that have a hypothesis within 15 degrees, of a
        confidence of 5 % or more, and "told", the accuracy with the true angle in place of the
        predicted one; and "confused", the pairs of classes that the model which is best on rotated
        images confuses more often once they are rotated, with the share of all images by model,
        "upright" and "turned". (The keys are those of stored analyses.)
    """
    dataset = study.dataset
    images, labels = dataset.test_images[tested], dataset.test_labels[tested]
    sets = {
        kind: [distorted(images, kind, amount) for amount in amounts]
        for kind, amounts in AMOUNTS.items()
    }
    found: dict[str, Any] = {kind: {} for kind in sets}
    count = sum(map(len, sets.values()))
    poses: dict[str, Any] = {}
    guesses = {}
    for name, of in seeds.items():
        say(f"{name}: accuracy on {len(tested):,} test images, distorted in {count} ways")
        runs = [study.run(name, seed) for seed in of]
        variables = [run.variables() for run in runs]
        forward = runs[0].trainer.forward
        for kind, changed in sets.items():
            logits = [[in_batches(forward, each, some) for each in variables] for some in changed]
            found[kind][name] = [
                statistic([score(each, labels).accuracy for each in of_runs]) for of_runs in logits
            ]
            if kind == "rotation":
                guesses[name] = [of_runs[0].argmax(axis=-1) for of_runs in logits]
        if (straw := study.straw(name)) and predicts_poses(straw):
            poses[name] = _poses(straw, variables, sets["rotation"], labels)
    return {
        "amounts": {kind: list(amounts) for kind, amounts in AMOUNTS.items()},
        "accuracy": found,
        "seen": poses,
        "confused": _confused(guesses, labels, dataset.class_names),
    }


def _poses(
    straw: Straw, variables: Sequence[Any], rotated: Sequence[np.ndarray], labels: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    @jax.jit
    def with_angles(variables: Any, images: jax.Array, degrees: jax.Array) -> jax.Array:
        styles = jnp.zeros((len(degrees), NUMBERS)).at[:, 1].set(degrees)
        return straw.apply_styles(variables["params"], styles, as_input(images))

    styles_of = style_function(straw)  # compiled once for all seeds, as is the other

    def of_seed(each: Any) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"median": [], "share": [], "told": []}
        for images, amount in zip(rotated, AMOUNTS["rotation"], strict=True):
            hypotheses = in_batches(styles_of, each, images).reshape(len(images), -1, NUMBERS)
            confidence, degrees = hypotheses[..., 0], hypotheses[..., 1]
            likely = confidence - np.logaddexp.reduce(confidence, axis=1, keepdims=True)
            off = np.abs(degrees - amount)
            close = (off <= _CLOSE) & (likely >= np.log(_LIKELY))
            logits = in_batches(with_angles, each, images, np.full(len(images), amount, np.float32))
            found["median"].append(float(np.median(off[:, 0])))
            found["share"].append(float(np.mean(close.any(axis=1))))
            found["told"].append(score(logits, labels).accuracy)
        return found

    return over_seeds([of_seed(each) for each in variables])


def _confused(
    guesses: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """List pairs of classes by how much more often they are confused when images are rotated.

    Args:
        guesses: classes [n] by model and rotation.
        labels: int [n].
        names: of the classes.
    """

    def at(model: str, angles: Sequence[float]) -> list[np.ndarray]:
        return [guesses[model][AMOUNTS["rotation"].index(angle)] for angle in angles]

    def shares(model: str, angles: Sequence[float]) -> Counter[tuple[int, int]]:
        """Count how often each pair is confused, as a share of all images, mean over angles."""
        pairs: Counter[tuple[int, int]] = Counter()
        for guessed in at(model, angles):
            wrong = guessed != labels
            confused = np.sort(np.stack([labels[wrong], guessed[wrong]], axis=1), axis=1)
            pairs.update(map(tuple, confused.tolist()))
        return Counter({pair: n / len(angles) / len(labels) for pair, n in pairs.items()})

    before = {model: shares(model, [0]) for model in guesses}
    after = {model: shares(model, _FAR) for model in guesses}
    best = max(guesses, key=lambda model: sum(np.mean(each == labels) for each in at(model, _FAR)))
    more = after[best] - before[best]  # Counters keep what is positive.
    return [
        {
            "pair": [names[i] for i in pair],
            "upright": {model: before[model][pair] for model in guesses},
            "turned": {model: after[model][pair] for model in guesses},
        }
        for pair, _ in more.most_common(_PAIRS)
    ]


def sheet(study: Study, name: str, seed: int, degrees: Sequence[float]) -> dict[str, Any]:
    """Return what a picture sheet of a model with a pose encoder shows.

    Args:
        study: The run's.
        name: Of the model.
        seed: Of the run.
        degrees: By which the first test images are rotated, one each.

    Returns:
        "images" uint8 [n, h, w, c], rotated; "degrees", by which; "seen", hypotheses
        [n, hypotheses, 6]; "resampled", the input of the executor's first layer for the likeliest
        of them, rounded; "before" and "after", weights [units, h, w] and [n, units, h, w]: of a
        unit of the first layer in the middle of the image, by pixel; "guesses" and "labels".
    """
    dataset, straw = study.dataset, study.straw(name)
    assert straw is not None
    count = len(degrees)
    images = rotate(dataset.test_images[:count], np.asarray(degrees, np.float64))
    run = study.run(name, seed)
    variables = run.variables()
    params, inputs = variables["params"], as_input(images)
    styles = straw.styles(params, inputs)
    (posed,) = straw.factors(params, inputs).values()
    assert isinstance(posed, Posed)
    matrices = posed.matrix
    (leaf,) = straw.spec
    kernel = params["executor"]
    for part in leaf.path.split("/"):
        kernel = kernel[part]
    loudest = np.argsort(-np.asarray(kernel).std(axis=(0, 1, 2)))[:_UNITS]
    before = _placed(np.asarray(kernel)[..., loudest].mean(axis=2), images.shape[1:3])
    columns = jnp.asarray(before).reshape(len(before), -1).T  # [h * w, units]
    after = jax.vmap(lambda matrix: composed(columns, matrix, images.shape[1:3]).T)(matrices)
    return {
        "images": images,
        "degrees": list(degrees),
        "seen": np.asarray(styles).reshape(count, -1, NUMBERS),
        "resampled": np.rint(jax.vmap(_resampled)(images, matrices)).astype(np.uint8),
        "before": before,
        "after": np.asarray(after).reshape(count, *before.shape),
        "guesses": predict(run.trainer.forward, variables, images),
        "labels": dataset.test_labels[:count],
    }


def _resampled(images: Any, matrix: jax.Array) -> jax.Array:
    return resample(jnp.asarray(images, jnp.float32), matrix)


def _placed(kernels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Put kernels `[kh, kw, units]` into the middle of images `[units, h, w]` of weights."""
    height, width, units = kernels.shape
    placed = np.zeros((units, *size), np.float32)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    for i, j in itertools.product(range(height), range(width)):
        placed[:, top + i, left + j] = kernels[i, j]
    return placed
