"""Per-sample low-rank weights for JAX and Flax.

For each sample a modulator (an encoder and a generator) generates low-rank updates of an executor's
weights. The executor applies them in factored form, `x @ W0 + scale * (x @ B) @ A`, where `B` is
`[in, r]` and `A` is `[r, out]`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from straw_jax.adapters import load_peft, save_peft
    from straw_jax.bank import stack_adapters
    from straw_jax.costs import multiply_adds
    from straw_jax.encoders import (
        ConvEncoder,
        NormEncoder,
        PerceiverEncoder,
        RecursiveEncoder,
        SetEncoder,
    )
    from straw_jax.factors import FactorSpec, GeneratedLeaf, factor_spec
    from straw_jax.fast_weights import delta_rule, delta_rule_outputs, hebb
    from straw_jax.functional import hyperlora, hyperlora_conv
    from straw_jax.generator import Heads, SharedHeads, TokenHeads
    from straw_jax.geometry import affine, invert, resample
    from straw_jax.inference import load_exported, predictor, save_exported
    from straw_jax.kinds import (
        DoRA,
        Factors,
        Gain,
        LowRank,
        Mixture,
        Pose,
        Posed,
        SharedLowRank,
        Whole,
    )
    from straw_jax.lift import materialize, modulate
    from straw_jax.lowrank import Generated, form
    from straw_jax.models import CNN, CompactCNN, ResNet34, ViT
    from straw_jax.network import Network, linen
    from straw_jax.pose import Geometric, PoseEncoder, PoseEstimate, PoseRange, make_geometric
    from straw_jax.quantised import Quantised, dequantise, quantise
    from straw_jax.straw import Straw, make_straw

__all__ = [
    "CNN",
    "CompactCNN",
    "ConvEncoder",
    "DoRA",
    "FactorSpec",
    "Factors",
    "Gain",
    "Generated",
    "GeneratedLeaf",
    "Geometric",
    "Heads",
    "LowRank",
    "Mixture",
    "Network",
    "NormEncoder",
    "PerceiverEncoder",
    "Pose",
    "PoseEncoder",
    "PoseEstimate",
    "PoseRange",
    "Posed",
    "Quantised",
    "RecursiveEncoder",
    "ResNet34",
    "SetEncoder",
    "SharedHeads",
    "SharedLowRank",
    "Straw",
    "TokenHeads",
    "ViT",
    "Whole",
    "affine",
    "delta_rule",
    "delta_rule_outputs",
    "dequantise",
    "factor_spec",
    "form",
    "hebb",
    "hyperlora",
    "hyperlora_conv",
    "invert",
    "linen",
    "load_exported",
    "load_peft",
    "make_geometric",
    "make_straw",
    "materialize",
    "modulate",
    "multiply_adds",
    "predictor",
    "quantise",
    "resample",
    "save_exported",
    "save_peft",
    "stack_adapters",
]

_MODULES = {
    "adapters": ["load_peft", "save_peft"],
    "bank": ["stack_adapters"],
    "costs": ["multiply_adds"],
    "encoders": [
        "ConvEncoder",
        "NormEncoder",
        "PerceiverEncoder",
        "RecursiveEncoder",
        "SetEncoder",
    ],
    "factors": ["FactorSpec", "GeneratedLeaf", "factor_spec"],
    "fast_weights": ["delta_rule", "delta_rule_outputs", "hebb"],
    "functional": ["hyperlora", "hyperlora_conv"],
    "generator": ["Heads", "SharedHeads", "TokenHeads"],
    "geometry": ["affine", "invert", "resample"],
    "inference": ["load_exported", "predictor", "save_exported"],
    "lift": ["materialize", "modulate"],
    "kinds": [
        "DoRA",
        "Factors",
        "Gain",
        "LowRank",
        "Mixture",
        "Pose",
        "Posed",
        "SharedLowRank",
        "Whole",
    ],
    "lowrank": ["Generated", "form"],
    "models": ["CNN", "CompactCNN", "ResNet34", "ViT"],
    "pose": ["Geometric", "PoseEncoder", "PoseEstimate", "PoseRange", "make_geometric"],
    "quantised": ["Quantised", "dequantise", "quantise"],
    "network": ["Network", "linen"],
    "straw": ["Straw", "make_straw"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Modules are imported at first use, so that `import straw_jax` does not wait for JAX.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
