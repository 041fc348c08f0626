"""Networks that compute the same with other weights: how near one is to another unit by unit.

Hidden units of a ReLU network may stand in any order, and a unit's incoming weights may be
multiplied by a positive number if its outgoing ones are divided by it. All here is of networks with
one hidden layer, in numpy, on the host.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Numbers: TypeAlias = NDArray[np.floating[Any]]
Networks: TypeAlias = Mapping[str, Any]


class Matched(NamedTuple):
    """Hidden units of some networks, each paired with one of another's.

    Attributes:
        share: what the paired units have in common, of what the first networks' units amount to: 1
            where they are the same but for order and scale, 0 where silent units would do as well.
        order: `[tasks, hidden]`, by unit of the first network, which of the second it is paired
            with.
    """

    share: float
    order: NDArray[np.intp]


def rescaled(weights: Networks, rng: np.random.Generator) -> dict[str, Numbers]:
    """Return networks that compute the same, units reordered and rescaled by 1/4 to 4 at random.

    Args:
        weights: `[tasks, in, hidden]` and `[tasks, hidden, out]`, "layer1" and "layer2".
        rng: decides order and scale.
    """
    first, second = _layers(weights)
    tasks, _, hidden = first.shape
    order = rng.permuted(np.tile(np.arange(hidden), (tasks, 1)), axis=1)
    scale = 4 ** rng.uniform(-1, 1, (tasks, hidden))
    first, second = first * scale[:, None, :], second / scale[:, :, None]
    return {
        "layer1": np.take_along_axis(first, order[:, None, :], axis=2),
        "layer2": np.take_along_axis(second, order[:, :, None], axis=1),
    }


def match(weights: Networks, others: Networks) -> Matched:
    """Pair the units of networks with those of others, so that they differ least in all.

    How far two units differ is the mean square of the difference of what they add to the output,
    over standard normal inputs; neither order nor scale count.

    Args:
        weights: `[tasks, in, hidden]` and `[tasks, hidden, out]`, "layer1" and "layer2".
        others: as many, of the same sizes.

    References:
        Cho and Saul, "Kernel Methods for Deep Learning" (2009), equation 6, for that mean in closed
        form.
    """
    ours, theirs = _inner(weights, weights), _inner(others, others)
    own, other = (np.diagonal(each, axis1=1, axis2=2) for each in (ours, theirs))
    apart = own[:, :, None] + other[:, None, :] - 2 * _inner(weights, others)
    order = np.stack([linear_sum_assignment(each)[1] for each in apart])
    least = np.take_along_axis(apart, order[:, :, None], axis=2)
    return Matched(float(1 - least.sum() / own.sum()), order)


def agreement(weights: Networks, again: Networks) -> float:
    """Return how far two predictions of the same networks are the same numbers in the same places.

    Args:
        weights: by layer, `[tasks, ...]`.
        again: the same networks', predicted from other pairs.

    Returns:
        1 less the mean squared difference over twice the variance between tasks: 1 where they are
        the same, 0 where they are no nearer than predictions of different networks.
    """
    flat, other = (
        np.concatenate([np.reshape(each[name], (len(each[name]), -1)) for name in sorted(each)], 1)
        for each in (weights, again)
    )
    variance = np.concatenate([flat, other]).var(axis=0).sum()
    return float(1 - ((flat - other) ** 2).sum(axis=1).mean() / (2 * variance))


def preference(weights: Networks) -> float:
    """Return how far each hidden unit keeps to one direction of input over all networks.

    Returns:
        Mean over units of the length of the mean direction of their incoming weights: 1 where a
        unit always has the same direction, near 0 where its place says nothing, as in random
        networks.
    """
    first, _ = _layers(weights)
    directions = first / np.linalg.norm(first, axis=1, keepdims=True)
    return float(np.linalg.norm(directions.mean(axis=0), axis=0).mean())


def _layers(weights: Networks) -> tuple[Numbers, Numbers]:
    if set(weights) != {"layer1", "layer2"}:
        raise ValueError(
            f"expected weights of one hidden layer, 'layer1' and 'layer2', got {sorted(weights)}"
        )
    first, second = (np.asarray(weights[name], np.float64) for name in ("layer1", "layer2"))
    return first, second


def _inner(weights: Networks, others: Networks) -> Numbers:
    """Mean product of what each two units add to the output, `[tasks, hidden, hidden]`."""
    (first, second), (other_first, other_second) = _layers(weights), _layers(others)
    length, other_length = (np.linalg.norm(each, axis=1) for each in (first, other_first))
    lengths = length[:, :, None] * other_length[:, None, :]
    cosine = np.einsum("tif,tig->tfg", first, other_first) / np.maximum(lengths, 1e-30)
    angle = np.arccos(np.clip(cosine, -1, 1))
    kernel = lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return kernel * np.einsum("tfo,tgo->tfg", second, other_second)
