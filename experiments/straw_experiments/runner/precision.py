"""The precision in which models compute: what `--precision` means in every study.

Only the standard library is imported, so that a command line answers at once.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Precision: TypeAlias = Literal["float32", "bfloat16"]

USUAL: Precision = "float32"
"""That of runs of earlier versions, which had no choice."""

BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2}
"""Of a number that a model computes."""


def module_dtype(precision: Precision) -> "np.dtype[Any] | None":
    """Return the `dtype` of a model's modules; None, that of their parameters, is float32."""
    import jax.numpy as jnp

    return None if precision == USUAL else jnp.dtype(precision)


def recorded(summary: Mapping[str, Any]) -> str:
    """Return the precision of a study.

    Args:
        summary: Contents of `summary.json`.
    """
    return str(summary["config"].get("precision", USUAL))


def named(summary: Mapping[str, Any]) -> list[str]:
    """Return the precision of a study as a list of words: none for the usual one."""
    return [word for word in [recorded(summary)] if word != USUAL]
