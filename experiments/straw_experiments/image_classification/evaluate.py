"""Loss, accuracy and predictions on any number of images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from straw_experiments.image_classification.step import Model, as_input
from straw_experiments.runner.batches import batches, cut, on_device
from straw_experiments.runner.state import Variables
from straw_jax.sharding import batch_sharding, mesh_of, place, to_host

Forward = Callable[[Variables, Any], jax.Array]
_MOST = 32  # batches that a device takes by itself


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
    if on_device():
        outputs = _by_device(function, variables, inputs, batch_size, mesh)
    else:
        outputs = []
        for chosen, _ in batches(np.arange(count), batch_size):
            batch = [array[chosen] for array in inputs]
            if mesh is not None:
                batch = place(batch, batch_sharding(mesh))
            outputs.append(function(variables, *batch))
    return jax.tree.map(lambda *parts: np.concatenate(to_host(parts))[:count], *outputs)


def _by_device(
    function: Callable[..., Any],
    variables: Variables,
    inputs: Sequence[np.ndarray],
    batch_size: int,
    mesh: Mesh | None,
) -> list[Any]:
    """Return outputs [m, ...] of many batches at a time: one program for sets of any size.

    Only after the last sample they may hold others.
    """
    chosen, _ = cut(np.arange(len(inputs[0])), batch_size)
    outputs = []
    for first in range(0, len(chosen), _MOST):
        rows = chosen[first : first + _MOST]
        some = [array[np.resize(rows, (_MOST, batch_size))] for array in inputs]
        if mesh is not None:
            some = place(some, NamedSharding(mesh, PartitionSpec(None, "data")))
        outputs.append(_of_batches(function, variables, some, np.int32(len(rows))))
    # All are queued before the first is read, for which the device would wait.
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), to_host(outputs))


@partial(jax.jit, static_argnums=0)
def _of_batches(
    function: Callable[..., Any], variables: Variables, inputs: Sequence[jax.Array], count: Any
) -> Any:
    """Apply a function to the first `count` of batches [most, b, ...]; return outputs, as many."""

    def batch(i: Any) -> list[jax.Array]:
        return [array[i] for array in inputs]

    def body(i: jax.Array, outputs: Any) -> Any:
        found = function(variables, *batch(i))
        return jax.tree.map(lambda each, one: each.at[i].set(one), outputs, found)

    like = jax.eval_shape(lambda: function(variables, *batch(0)))
    zeros = jax.tree.map(lambda one: jnp.zeros((len(inputs[0]), *one.shape), one.dtype), like)
    return jax.lax.fori_loop(0, count, body, zeros)


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Measure loss and accuracy of logits [n, classes] for labels int32 [n]."""
    losses = _cross_entropy(logits, labels)
    return Score(
        loss=float(np.asarray(losses, np.float64).mean()),
        accuracy=float(np.mean(logits.argmax(axis=-1) == labels)),
    )


# As one program: outside of jit each of its operations is one.
_cross_entropy = jax.jit(optax.softmax_cross_entropy_with_integer_labels)


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
