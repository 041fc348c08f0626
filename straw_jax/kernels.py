"""Which leaves of a parameter tree a model adds to its data, and multiplies with nothing."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend import core

from straw_jax.costs import nested_jaxprs

# Element by element, or side by side: a whole leaf does, and factors are of no use.
_ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "max", "min", "concatenate", "select_n"}
_PRODUCTS = {"dot_general", "conv_general_dilated", "gather"}

_Leaves: TypeAlias = frozenset[int]  # that a value is made of; None where it depends on data, too


def added_leaves(apply: Callable[..., Any], params: Any, x: Any) -> list[bool]:
    """Return for each leaf whether a model only adds it to data, as a table of positions.

    The model is traced. Leaves are followed through what is computed from parameters alone, such as
    slices, to where data comes in. A leaf counts as added if it meets data, and always element by
    element.

    Args:
        apply: `(params, x) -> y`, any JAX function.
        params: any tree of arrays or `jax.ShapeDtypeStruct`.
        x: its input, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        One entry for each leaf, in the tree's order.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.kernels import added_leaves
        >>> params = {"positions": jnp.ones((9, 4)), "W": jnp.ones((4, 5))}
        >>> def model(params, x):
        ...     return (x + params["positions"][None, : x.shape[1]]) @ params["W"]
        >>> dict(zip(sorted(params), added_leaves(model, params, jnp.ones((2, 3, 4)))))
        {'W': False, 'positions': True}
    """
    jaxpr = jax.make_jaxpr(apply)(params, x).jaxpr
    count = len(jax.tree.leaves(params))
    added: set[int] = set()
    used: set[int] = set()
    of_params = [frozenset([i]) for i in range(count)]
    of_data = [None] * (len(jaxpr.invars) - count)
    _follow(jaxpr, [*of_params, *of_data], added, used)
    return [i in added and i not in used for i in range(count)]


def _follow(
    jaxpr: core.Jaxpr, inputs: Sequence[_Leaves | None], added: set[int], used: set[int]
) -> list[_Leaves | None]:
    """Return what the outputs are made of; note the leaves that are added, or used otherwise."""
    values: dict[Any, _Leaves | None] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Leaves | None:
        constant: _Leaves = frozenset()
        return constant if isinstance(atom, core.Literal) else values.get(atom, constant)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        leaves: _Leaves = frozenset().union(*(operand for operand in operands if operand))
        with_data = None in operands
        out: list[_Leaves | None] = [None if with_data else leaves] * len(equation.outvars)
        if nested := list(nested_jaxprs(equation.params)):
            made = [_nested(inner, operands, leaves, added, used) for inner in nested]
            if fitting := [outputs for outputs in made if len(outputs) == len(out)]:
                out = [_joined(column) for column in zip(*fitting, strict=True)]
        elif with_data and equation.primitive.name in _ELEMENTWISE:
            added |= leaves
        elif with_data or equation.primitive.name in _PRODUCTS:
            used |= leaves
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _nested(
    jaxpr: core.Jaxpr,
    operands: Sequence[_Leaves | None],
    leaves: _Leaves,
    added: set[int],
    used: set[int],
) -> list[_Leaves | None]:
    """Follow a loop's, branch's or call's operands, which are the last ones of the operation's."""
    given = operands[len(operands) - len(jaxpr.invars) :]
    if len(given) == len(jaxpr.invars):
        return _follow(jaxpr, given, added, used)
    used |= leaves
    return []


def _joined(values: Sequence[_Leaves | None]) -> _Leaves | None:
    """Return what a value is made of that is one of several, or None if any depends on data."""
    known = [value for value in values if value is not None]
    return frozenset().union(*known) if len(known) == len(values) else None
