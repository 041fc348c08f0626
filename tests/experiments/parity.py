"""Models whose outputs and gradients PyTorch computed once: `make_parity.py` wrote them.

Parameters and inputs are drawn by NumPy from a seed, in float64; a checksum of them is stored.
"""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from straw_experiments.char_lm.models import Sizes
from straw_experiments.char_lm.networks import make_model
from straw_experiments.image_classification.networks import article_straw
from straw_experiments.weight_prediction.networks import weight_predictor
from straw_experiments.weight_prediction.objectives import weights_objective
from straw_experiments.weight_prediction.targets import Pairs
from straw_jax.models import CNN
from straw_jax.network import linen

STORED = Path(__file__).with_name("data") / "parity.npz"
RANK, NETWORK, CHARACTERS, FEATURES, HYPER = 2, (4, 10, 1), 7, 6, 3
_IMAGES, _TASKS, _PAIRS, _TEXTS, _LENGTH = 3, 3, 8, 2, 5


class Case(NamedTuple):
    """A model of the library.

    Attributes:
        params: shapes of its parameters.
        inputs: shapes of what it sees, or a number for whole numbers below it, by name.
        loss: `(params, inputs) -> (loss, outputs)`.
    """

    params: Any
    inputs: dict[str, tuple[int, ...] | tuple[int, tuple[int, ...]]]
    loss: Callable[[Any, Any], tuple[Any, Any]]


def cases() -> dict[str, Case]:
    """Return the models by name."""
    return {
        "straw_none": _of_images(article_straw(classes=47, rank=RANK, base="none")),
        "straw_trained": _of_images(article_straw(classes=47, rank=RANK, base="trained")),
        "standalone": _of_images(linen(CNN(47)), jnp.zeros((1, 28, 28, 1))),
        "weight_predictor": _of_weights(),
        "lstm": _of_text("lstm"),
        "hyper_lstm": _of_text("hyper"),
    }


def draw(case: Case) -> tuple[Any, dict[str, np.ndarray]]:
    """Draw parameters and inputs, float64: uniform, of variance 1 / fan in, and of variance 1."""
    rng = np.random.default_rng(0)

    def uniform(shape: tuple[int, ...], fan_in: float) -> np.ndarray:
        return (2 * rng.random(shape) - 1) * math.sqrt(3 / fan_in)

    def parameter(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("A/kernel", "B/kernel")):  # [m, n, hidden]; products of two
            return uniform(leaf.shape, 50 * leaf.shape[-1])
        return uniform(leaf.shape, math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100)

    params = jax.tree_util.tree_map_with_path(parameter, case.params)
    inputs = {
        name: rng.integers(shape[0], size=shape[1])
        if name in ("labels", "numbers")
        else uniform(shape, 1)
        for name, shape in case.inputs.items()
    }
    return params, inputs


def checksum(drawn: Any) -> str:
    """Return a checksum of parameters and inputs."""
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(drawn))).hexdigest()


def fingerprint(tree: Any) -> dict[str, np.ndarray]:
    """Return of each leaf its norm and four products with random vectors of norm about 1."""
    rng = np.random.default_rng(1)
    marks = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf, np.float64).ravel()
        vectors = (2 * rng.random((4, leaf.size)) - 1) * math.sqrt(3)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        marks[name] = np.array([np.linalg.norm(leaf), *(vectors @ leaf)])
    return marks


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy, as in training."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _of_images(model: Any, *sample: jax.Array) -> Case:
    def loss(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, inputs["images"])
        return cross_entropy(logits, inputs["labels"]), logits

    shapes = {"images": (_IMAGES, 28, 28, 1), "labels": (47, (_IMAGES,))}
    return Case(jax.eval_shape(model.init, jax.random.key(0), *sample), shapes, loss)


def _of_weights() -> Case:
    straw = weight_predictor(NETWORK)
    objective = weights_objective(NETWORK, _PAIRS, straw=straw)

    def loss(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        drawn = (Pairs(inputs["x"], inputs["y"]), Pairs(inputs["fresh"], inputs["wanted"]))
        predicted, true = objective.outputs(params, drawn)
        return jnp.mean((predicted - true) ** 2), predicted

    shapes: dict[str, Any] = {
        "x": (_TASKS, _PAIRS, NETWORK[0]),
        "y": (_TASKS, _PAIRS, NETWORK[-1]),
        "fresh": (_TASKS, 2, NETWORK[0]),
        "wanted": (_TASKS, 2, NETWORK[-1]),
    }
    return Case(jax.eval_shape(objective.init, jax.random.key(0)), shapes, loss)


def _of_text(kind: str) -> Case:
    model = make_model(kind, FEATURES, Sizes(CHARACTERS, HYPER, 4, 1))

    def loss(params: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        carry = inputs["memory"], inputs["state"]
        if kind == "hyper":
            carry = carry, (inputs["hyper_memory"], inputs["hyper_state"])
        numbers = inputs["numbers"]
        _, logits = model.apply({"params": params}, numbers[:, :-1], carry)
        return cross_entropy(logits, numbers[:, 1:]), logits

    shapes: dict[str, Any] = {
        "numbers": (CHARACTERS, (_TEXTS, _LENGTH + 1)),
        "memory": (_TEXTS, FEATURES),
        "state": (_TEXTS, FEATURES),
        "hyper_memory": (_TEXTS, HYPER),
        "hyper_state": (_TEXTS, HYPER),
    }
    numbers = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return Case(jax.eval_shape(model.init, jax.random.key(0), numbers)["params"], shapes, loss)
