"""The least time that STRAW can take on a machine: operations and bytes that must happen.

Counted from shapes, in float32, phase by phase; a phase takes at least the longer of its operations
at the rate of a large matrix product and its bytes at the rate of a large copy:

- Parameters are read once in the forward pass and once in the backward pass, which writes their
  gradient once. Adam reads parameter, gradient and two moments, and writes all but the gradient.
- The factors of a convolution are written once and read once in the forward pass; read again, and
  their gradients written and read, in the backward pass. A layer that sees one vector a sample
  needs none in memory: `x` can be contracted with the generator's kernel first.
- An activation of a layer is written once, and read once: by the next layer or, in training, by the
  backward pass.
- A backward pass multiplies twice as often as its forward pass, once for the gradient of each of
  the two that were multiplied; the first layers need none of their input.
"""

from collections.abc import Iterable
from typing import NamedTuple

from article import (
    ENCODER,
    EXECUTOR,
    HIDDEN,
    STYLE,
    Layer,
    generated,
    generator_weights,
    parameters,
    weights,
)

_ADAM_NUMBERS = 7  # a parameter: four read, three written


class Rates(NamedTuple):
    """What the machine can do: operations a second, bytes a second."""

    flops: float
    bytes: float


class Phase(NamedTuple):
    """One part of a step: floating-point operations, and bytes to or from memory."""

    name: str
    flops: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        """Return the least time of this phase."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


def phases(work: str, batch: int, rank: int, base: str) -> list[Phase]:
    """Return what one step or one forward pass must do.

    Args:
        work: "training" (one step with Adam) or "inference" (one forward pass).
        batch: samples.
        rank: of the generated kernels.
        base: "none" or "trained".

    Returns:
        The phases in their order.
    """
    training, trained = work == "training", base == "trained"
    # Multiplications a sample, and those of them that make a first layer's gradient by its input.
    encoder, executor = _products(ENCODER.values()), _products(EXECUTOR.values())
    generator = STYLE * HIDDEN + HIDDEN * generated(rank)
    update = sum(_update_products(layer, rank) for layer in EXECUTOR.values())
    stem, first = ENCODER["conv1"], EXECUTOR["conv1"]
    first_update = first.positions * first.rows * rank
    # Numbers in memory: of all samples, and of parameters.
    factors = batch * sum(l.generated(rank) for l in EXECUTOR.values() if l.positions > 1)  # noqa: E741
    encoded = batch * sum(layer.inputs for layer in ENCODER.values())
    activations = batch * sum(layer.inputs for layer in EXECUTOR.values())
    passes = 1 if training else 2  # an activation's transfers in the forward pass
    encoder_weights, base_weights = weights(ENCODER), weights(EXECUTOR)
    generator_parameters = generator_weights(generated(rank))

    def phase(name: str, products: int, numbers: int) -> Phase:
        return Phase(name, 2 * batch * products, 4 * numbers)

    forward = [
        phase("encoder forward", encoder, encoder_weights + passes * encoded),
        phase("generator forward", generator, generator_parameters + factors),
        phase("executor forward", update, factors + passes * activations),
        phase("base forward", executor, base_weights),
    ]
    backward = [
        phase("base backward", 2 * executor - first.products, 2 * base_weights),
        phase("executor backward", 2 * update - first_update, 2 * factors + activations),
        phase("generator backward", 2 * generator, 2 * generator_parameters + factors),
        phase("encoder backward", 2 * encoder - stem.products, 2 * encoder_weights + encoded),
        phase("optimiser", 0, _ADAM_NUMBERS * parameters(rank, base)),
    ]
    both = forward + (backward if training else [])
    return [phase for phase in both if trained or not phase.name.startswith("base")]


def least_seconds(parts: Iterable[Phase], rates: Rates) -> float:
    """Return the sum of the phases' least times."""
    return sum(phase.seconds(rates) for phase in parts)


def _products(layers: Iterable[Layer]) -> int:
    return sum(layer.products for layer in layers)


def _update_products(layer: Layer, rank: int) -> int:
    """Return the multiplications of one sample's `(x @ B) @ A`.

    The generator's own, which for a layer with one vector a sample include `x @ kernel`, are not
    among them: what is then left of `x @ B` is a sum over the hidden vector.
    """
    inner = min(layer.rows, HIDDEN) if layer.positions == 1 else layer.rows
    return layer.positions * (inner + layer.columns) * rank
