"""How a model uses the leaves of its parameters: which it adds, and over which axes it sums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend import core

from straw_jax.costs import nested_jaxprs
from straw_jax.operators import groups_of_axes
from straw_jax.readings import all_axes

# Element by element, or side by side: a whole leaf does, and factors are of no use.
_ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "max", "min", "concatenate", "select_n"}
_PRODUCTS = {"dot_general", "conv_general_dilated", "gather"}
_SAME = {"convert_element_type", "copy", "stop_gradient", "name", "reduce_precision"}

_Axes: TypeAlias = tuple[tuple[int, ...], ...]  # of a leaf, for each axis of a value


class Use(NamedTuple):
    """How a model uses one leaf.

    Attributes:
        added: whether it only adds it to data, element by element, as a table of positions.
        axes: how products with data read it as a matrix, as in `factor_spec`; if empty, as usual,
            or in different ways.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.kernels import Use, uses_of_leaves
        >>> W, x = jnp.ones((3, 4)), jnp.ones((2, 3))
        >>> uses_of_leaves(lambda params, x: x @ params, W, x) == [Use(added=False, axes="")]
        True
    """

    added: bool
    axes: str


@dataclass(frozen=True)
class _Value:
    """What a value is made of.

    Attributes:
        leaves: numbers of the leaves; None where it depends on data, too.
        leaf: the one leaf that it is a rearrangement of, if so.
        axes: that leaf's axes in each of its own.
    """

    leaves: frozenset[int] | None = frozenset()
    leaf: int | None = None
    axes: _Axes = ()


_CONSTANT, _DATA = _Value(), _Value(None)


class _Seen:
    """What was found: leaves that are added, or used otherwise; and the axes that products sum."""

    def __init__(self) -> None:
        self.added: set[int] = set()
        self.used: set[int] = set()
        self.readings: dict[int, set[str | None]] = {}


def uses_of_leaves(apply: Callable[..., Any], params: Any, x: Any) -> list[Use]:
    """Return how a model uses each leaf of its parameters.

    The model is traced. Leaves are followed through what is computed from parameters alone, such as
    slices, to where data comes in.

    Args:
        apply: `(params, x) -> y`, any JAX function.
        params: any tree of arrays or `jax.ShapeDtypeStruct`.
        x: its input, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        One entry for each leaf, in the tree's order.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.kernels import uses_of_leaves
        >>> params = {"positions": jnp.ones((9, 4)), "query": jnp.ones((4, 2, 5))}
        >>> def model(params, x):
        ...     x = x + params["positions"][None, : x.shape[1]]
        ...     return jnp.tensordot(x, params["query"], 1)
        >>> uses = uses_of_leaves(model, params, jnp.ones((2, 3, 4)))  # positions, query
        >>> uses
        [Use(added=True, axes=''), Use(added=False, axes='rcc')]
    """
    jaxpr = jax.make_jaxpr(apply)(params, x).jaxpr
    leaves = jax.tree.leaves(params)
    seen = _Seen()
    of_params = [
        _Value(frozenset([i]), i, tuple((axis,) for axis in range(len(leaf.shape))))
        for i, leaf in enumerate(leaves)
    ]
    of_data = [_DATA] * (len(jaxpr.invars) - len(leaves))
    _follow(jaxpr, [*of_params, *of_data], seen)
    uses = []
    for i, leaf in enumerate(leaves):
        readings = seen.readings.get(i, set())
        axes = next(iter(readings)) if len(readings) == 1 else None
        usual = not axes or axes not in all_axes(len(leaf.shape))[1:]
        uses.append(Use(i in seen.added and i not in seen.used, "" if usual or not axes else axes))
    return uses


def _follow(jaxpr: core.Jaxpr, inputs: Sequence[_Value], seen: _Seen) -> list[_Value]:
    """Return what the outputs are made of; note how leaves are used."""
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Value:
        return _CONSTANT if isinstance(atom, core.Literal) else values.get(atom, _CONSTANT)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        leaves: frozenset[int] = frozenset().union(
            *(operand.leaves for operand in operands if operand.leaves)
        )
        with_data = any(operand.leaves is None for operand in operands)
        name = equation.primitive.name
        made = _DATA if with_data else _rearranged(equation, operands, leaves)
        out = [made] * len(equation.outvars)
        if nested := list(nested_jaxprs(equation.params)):
            results = [_nested(equation, inner, operands, leaves, seen) for inner in nested]
            if fitting := [each for each in results if len(each) == len(out)]:
                out = [_joined(column) for column in zip(*fitting, strict=True)]
        elif with_data and name in _ELEMENTWISE:
            seen.added |= leaves
        elif with_data or name in _PRODUCTS:
            seen.used |= leaves
            for operand, letters in _readings(equation, operands):
                seen.readings.setdefault(operand, set()).add(letters)
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rearranged(equation: Any, operands: Sequence[_Value], leaves: frozenset[int]) -> _Value:
    """Return what the result is made of, with the axes of its leaf where it is one rearranged."""
    name, params = equation.primitive.name, equation.params
    source = operands[0] if operands else _CONSTANT
    if source.leaf is None or len(leaves) != 1:
        return _Value(leaves)
    axes: _Axes | None = None
    if name in _SAME:
        axes = source.axes
    elif name == "transpose":
        axes = tuple(source.axes[axis] for axis in params["permutation"])
    elif name == "squeeze":
        axes = tuple(
            each for axis, each in enumerate(source.axes) if axis not in params["dimensions"]
        )
    elif name == "reshape":
        axes = _reshaped(source.axes, equation.invars[0].aval.shape, params["new_sizes"])
    return _Value(leaves) if axes is None else _Value(leaves, source.leaf, axes)


def _reshaped(axes: _Axes, old: Sequence[int], new: Sequence[int]) -> _Axes | None:
    """Return the axes of a leaf after a reshape that joins axes; None if it splits any."""
    joined: dict[int, tuple[int, ...]] = {}
    for olds, news in groups_of_axes(old, new):
        large = [axis for axis in news if new[axis] > 1] or news[:1]
        if len(large) > 1:
            return None
        joined.update(dict.fromkeys(news, ()))
        if large:
            joined[large[0]] = tuple(each for axis in olds for each in axes[axis])
    return tuple(joined[axis] for axis in range(len(new)))


def _readings(equation: Any, operands: Sequence[_Value]) -> list[tuple[int, str | None]]:
    """Return letters for the axes of each leaf in a product, or None where it is used otherwise."""
    found: list[tuple[int, str | None]] = []
    for side, operand in enumerate(operands):
        if operand.leaves is None or not operand.leaves:
            continue
        if operand.leaf is None or equation.primitive.name != "dot_general":
            found += [(leaf, None) for leaf in operand.leaves]
            continue
        contracted, batch = (pair[side] for pair in equation.params["dimension_numbers"])
        letters: dict[int, str] = {}
        for place, own in enumerate(operand.axes):
            letter = "r" if place in contracted else "s" if place in batch else "c"
            letters.update(dict.fromkeys(own, letter))
        known = sorted(letters)
        first = known[0] if known else 0  # axes before it are layers of a loop
        found.append((operand.leaf, "s" * first + "".join(letters[axis] for axis in known)))
    return found


def _nested(
    equation: Any,
    jaxpr: core.Jaxpr,
    operands: Sequence[_Value],
    leaves: frozenset[int],
    seen: _Seen,
) -> list[_Value]:
    """Follow a loop's, branch's or call's operands, which are the last ones of the operation's."""
    start = len(operands) - len(jaxpr.invars)
    if start < 0:
        seen.used |= leaves
        return []
    given = [
        # A loop over layers takes off the first axis.
        _Value(value.leaves, value.leaf, value.axes[1:])
        if value.leaf is not None and inner == len(value.axes) - 1
        else value
        for value, inner in zip(operands[start:], _ndims(jaxpr), strict=True)
    ]
    return _follow(jaxpr, given, seen)


def _ndims(jaxpr: Any) -> list[int]:
    return [len(getattr(atom.aval, "shape", ())) for atom in jaxpr.invars]


def _joined(values: Sequence[_Value]) -> _Value:
    """Return what a value is made of that is one of several, or data if any depends on data."""
    if len(set(values)) == 1:
        return values[0]
    known = [value.leaves for value in values if value.leaves is not None]
    return _Value(frozenset().union(*known)) if len(known) == len(values) else _DATA
