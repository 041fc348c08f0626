"""Sizes of the article's system, as numbers: what counts and estimates are made of.

Nothing is imported here, so that the process that directs the timings stays small; a test compares
these numbers with the library's own.
"""

from typing import NamedTuple

CLASSES, IMAGE, STYLE, HIDDEN = 47, (28, 28, 1), 64, 128
LEARNING_RATE = 1e-4


class Layer(NamedTuple):
    """A dense layer or convolution; its kernel is read as a matrix `[rows, columns]`.

    Attributes:
        positions: vectors a sample that the kernel is multiplied with (1 in a dense layer here).
        rows: window positions times input channels.
        columns: output channels.
        inputs: numbers a sample in the layer's input.
    """

    positions: int
    rows: int
    columns: int
    inputs: int

    @property
    def weights(self) -> int:
        """Numbers in kernel and bias."""
        return (self.rows + 1) * self.columns

    @property
    def products(self) -> int:
        """Multiplications a sample with the whole kernel."""
        return self.positions * self.rows * self.columns

    def generated(self, rank: int) -> int:
        """Numbers that are generated for one sample: `B`, `A` and the bias."""
        return (self.rows + self.columns) * rank + self.columns


EXECUTOR = {
    "conv1": Layer(26 * 26, 9 * 1, 32, 28 * 28),
    "conv2": Layer(24 * 24, 9 * 32, 64, 26 * 26 * 32),
    "fc1": Layer(1, 12 * 12 * 64, 128, 12 * 12 * 64),
    "fc2": Layer(1, 128, CLASSES, 128),
}
ENCODER = {
    "conv1": Layer(14 * 14, 9 * 1, 16, 28 * 28),
    "conv2": Layer(7 * 7, 9 * 16, 32, 14 * 14 * 16),
    "style": Layer(1, 7 * 7 * 32, STYLE, 7 * 7 * 32),
}


def weights(layers: dict[str, Layer]) -> int:
    """Return how many weights layers have."""
    return sum(layer.weights for layer in layers.values())


def generated(rank: int) -> int:
    """Return how many numbers the generator writes for one sample."""
    return sum(layer.generated(rank) for layer in EXECUTOR.values())


def generator_weights(numbers: int) -> int:
    """Return how many weights a generator of so many numbers a sample has."""
    return (STYLE + 1) * HIDDEN + (HIDDEN + 1) * numbers


def parameters(rank: int, base: str) -> int:
    """Return how many parameters STRAW trains."""
    modulator = weights(ENCODER) + generator_weights(generated(rank))
    return modulator + (weights(EXECUTOR) if base == "trained" else 0)
