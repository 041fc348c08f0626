"""Per-sample low-rank weights for JAX and Flax.

A modulator looks at one sample and writes, for this sample alone, low-rank updates of an
executor's weights; the executor applies them in factored form,
`x @ W0 + scale * (x @ B) @ A`, where `B` is `[in, r]` and `A` is `[r, out]`.
"""

from straw_jax.encoders import ConvEye
from straw_jax.factors import FactorSpec, GeneratedLeaf, factor_spec
from straw_jax.functional import hyperlora, hyperlora_conv
from straw_jax.generator import Generator
from straw_jax.lift import materialize, modulate
from straw_jax.lowrank import Factors, Generated, form
from straw_jax.models import CNN, ResNet34
from straw_jax.straw import Network, Straw, linen, make_straw

__all__ = [
    "CNN",
    "ConvEye",
    "FactorSpec",
    "Factors",
    "Generated",
    "GeneratedLeaf",
    "Generator",
    "Network",
    "ResNet34",
    "Straw",
    "factor_spec",
    "form",
    "hyperlora",
    "hyperlora_conv",
    "linen",
    "make_straw",
    "materialize",
    "modulate",
]
