"""What the weight prediction post reports."""

from typing import Final

SOURCE: Final = (
    '"neural network weight prediction" (2026), https://naren219.github.io/blog/neural-pred'
)

EXPLAINED: Final = {
    (15, 20): 0.983,
    (15, 30): 0.986,
    (15, 45): 0.990,
    (50, 67): 0.917,
    (50, 100): 0.936,
    (50, 150): 0.938,
}
"""Share of the variance explained with mean pooling, by unknowns and pairs; one run each.

Those with 15 unknowns are of 2-5-1 networks; which the 50 unknowns are of is not said.
"""

OUTPUT_LOSS: Final = {"residual": 0.017}
"""Mean squared error of predicted outputs; the targets' sizes and initial weights are not said."""
