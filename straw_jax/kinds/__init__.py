"""Kinds of updates: what is generated for a leaf, and how it changes the leaf's kernel.

    W_s = M_s (W0 + sum_j D_j) L_s

A kind is a value in `make_straw(..., updates={"*/kernel": LowRank(4)})`; several in a list are
applied in its order. Each is one module here, with the update that it makes for a sample.
"""

from straw_jax.kinds.base import Kind, Shared, Start, Update, Written
from straw_jax.kinds.dora import Decomposed, DoRA
from straw_jax.kinds.gain import Gain, Gains
from straw_jax.kinds.lowrank import Factors, LowRank
from straw_jax.kinds.mixture import Mixed, Mixture
from straw_jax.kinds.pose import Pose, Posed
from straw_jax.kinds.shared_lowrank import InBasis, SharedLowRank
from straw_jax.kinds.whole import Whole

UPDATES = (Factors, InBasis, Gains, Mixed, Decomposed, Posed)
"""What the kinds make for a sample; a whole leaf is an array."""

__all__ = [
    "UPDATES",
    "Decomposed",
    "DoRA",
    "Factors",
    "Gain",
    "Gains",
    "InBasis",
    "Kind",
    "LowRank",
    "Mixed",
    "Mixture",
    "Pose",
    "Posed",
    "Shared",
    "SharedLowRank",
    "Start",
    "Update",
    "Whole",
    "Written",
]
