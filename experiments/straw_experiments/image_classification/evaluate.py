"""Loss, accuracy and predictions on any number of images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from straw_experiments.image_classification.step import Model, as_input
from straw_experiments.runner.batches import batches
from straw_experiments.runner.state import Variables
from straw_jax.sharding import batch_sharding, mesh_of, place, to_host

Forward = Callable[[Variables, Any], jax.Array]


class Score(NamedTuple):
    """How a model did on a set of images.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Share classified rightly, 0 to 1.
    """

    loss: float
    accuracy: float


def make_forward(model: Model) -> Forward:
    """Build the jitted evaluation pass: no dropout, stored batch statistics.

    Args:
        model: The model.

    Returns:
        `(variables, images uint8 [b, 28, 28, 1]) -> logits float32 [b, classes]`.
    """

    @jax.jit
    def forward(variables: Variables, images: Any) -> jax.Array:
        return model.apply(variables, as_input(images), None)[0].astype(jnp.float32)

    return forward


def in_batches(
    function: Callable[..., Any],
    variables: Variables,
    *inputs: np.ndarray,
    batch_size: int = 128,
) -> Any:
    """Apply a function of samples to any number of them, in batches of one size.

    Args:
        function: `(variables, *inputs [b, ...]) -> array [b, ...]`, or a tree of them, sample by
            sample.
        variables: Its first argument. Where they lie on a mesh, batches are dealt out over it.
        inputs: Arrays [n, ...], n at least 1, such as images, uint8 [n, 28, 28, 1].
        batch_size: Samples in a batch, which decides memory, not results.

    Returns:
        Array [n, ...], or a tree of them, on the host.

    Raises:
        ValueError: There are no samples.
    """
    count = len(inputs[0])
    if not count:
        raise ValueError("in_batches: expected at least one sample, got none")
    mesh = mesh_of(variables)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
    outputs = []
    for chosen, _ in batches(np.arange(count), batch_size):
        batch = [array[chosen] for array in inputs]
        if mesh is not None:
            batch = place(batch, batch_sharding(mesh))
        outputs.append(function(variables, *batch))
    return jax.tree.map(lambda *parts: np.concatenate(to_host(parts))[:count], *outputs)


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Measure loss and accuracy of logits [n, classes] for labels int32 [n]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels)
    return Score(
        loss=float(np.asarray(losses, np.float64).mean()),
        accuracy=float(np.mean(logits.argmax(axis=-1) == labels)),
    )


def evaluate(
    forward: Forward, variables: Variables, images: np.ndarray, labels: np.ndarray
) -> Score:
    """Measure loss and accuracy.

    Args:
        forward: From `make_forward`.
        variables: The model's.
        images: uint8 [n, 28, 28, 1], any n from 1.
        labels: int32 [n].

    Returns:
        The means over exactly these n images.
    """
    return score(in_batches(forward, variables, images), labels)


def predict(forward: Forward, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Name the likeliest class of each image.

    Args:
        forward: From `make_forward`.
        variables: The model's.
        images: uint8 [n, 28, 28, 1].

    Returns:
        int64 [n], class numbers.
    """
    return in_batches(forward, variables, images).argmax(axis=-1)
