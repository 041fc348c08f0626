"""A check of a model's program, before it runs with each sample as a batch of one.

Statistics over such a batch are those of the sample, which does not fail by itself. Each value of
the program is followed from the samples to the results. A sum over the batch may be completed by a
collective over the samples' named axis, such as `jax.lax.pmean`. Not seen: a sum over the batch to
a single number, or within a product, and what a `while` loop does inside.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax import lax
from jax.extend import core, source_info_util
from jax.extend.core import primitives


@dataclass(frozen=True)
class Origin:
    """What a value of a program is computed from.

    Attributes:
        batch: which of its axes is the samples' batch axis, where it is known to have one.
        fault: why it must not be among the results.
        partial: the collective that mends the fault: the value is linear in a sum over the batch,
            or a maximum or minimum itself. Empty where none does.
    """

    batch: int | None = None
    fault: str = ""
    partial: str = ""


SHARED = Origin()
SAMPLES = Origin(batch=0)


def check_program(jaxpr: Any, data: Sequence[bool], axis_name: str | None = None) -> None:
    """Raise a ValueError unless every result is that of its own sample, or of all samples.

    Args:
        jaxpr: of the model, closed.
        data: which of its arguments are samples, each a batch of one.
        axis_name: of the samples' axis, for collectives.

    Raises:
        ValueError: if a result depends on a sum (or mean, maximum, ...) over the batch axis that no
            collective over the samples completes.
    """
    origins = [SAMPLES if is_data else SHARED for is_data in data]
    for result in _follow(jaxpr.jaxpr, origins, "", axis_name):
        if result.fault:
            raise ValueError(result.fault)


def is_merged(equation: Any, axis_name: str | None) -> bool:
    """Return whether an operation's results are the same for all samples, by a collective."""
    if axis_name is None or equation.primitive.name not in _MERGING:
        return False
    axes = equation.params.get("axes", equation.params.get("axis_name"))
    return axis_name in (axes if isinstance(axes, tuple) else (axes,))


def _follow(
    jaxpr: Any, origins: Iterable[Origin], around: str, axis_name: str | None
) -> list[Origin]:
    """Return the origins of a program's results; `around` is where the program is called."""
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def read(atom: Any) -> Origin:
        return SHARED if isinstance(atom, core.Literal) else known.get(atom, SHARED)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        if any(operand != SHARED for operand in operands):
            where = source_info_util.summarize(equation.source_info) or around
            follow = _follow_nested if equation.primitive in _PROGRAMS else _follow_operation
            results = follow(equation, operands, where, axis_name)
            known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


_PROGRAMS = (
    primitives.jit_p, primitives.remat_p, primitives.custom_jvp_call_p,
    primitives.custom_vjp_call_p, lax.cond_p, lax.scan_p,
)  # fmt: skip


def _follow_nested(
    equation: Any, operands: list[Origin], where: str, axis_name: str | None
) -> list[Origin]:
    params, atoms = equation.params, equation.invars
    if equation.primitive is lax.cond_p:
        programs, operands, atoms = params["branches"], operands[1:], atoms[1:]
    else:
        programs = [params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]]
    results = []
    for program in programs:
        inner = getattr(program, "jaxpr", program)
        out = _follow(inner, _scanned(operands, atoms, inner.invars), where, axis_name)
        results.append(_scanned(out, inner.outvars, equation.outvars))
    return [_joined(each) for each in zip(*results, strict=True)]


def _scanned(origins: list[Origin], atoms: Sequence[Any], others: Sequence[Any]) -> list[Origin]:
    """Return origins on the other side of a program, where a scan adds or removes an axis."""

    def across(origin: Origin, added: int) -> Origin:
        if origin.batch is None or not added:
            return origin
        return replace(origin, batch=origin.batch + added if origin.batch + added >= 0 else None)

    return [
        across(origin, other.aval.ndim - atom.aval.ndim)
        for origin, atom, other in zip(origins, atoms, others, strict=True)
    ]


def _joined(origins: Iterable[Origin]) -> Origin:
    origins = list(origins)
    partial = {origin.partial for origin in origins}
    return Origin(
        next((origin.batch for origin in origins if origin.batch is not None), None),
        next((origin.fault for origin in origins if origin.fault), ""),
        partial.pop() if len(partial) == 1 else "",
    )


def _follow_operation(
    equation: Any, operands: list[Origin], where: str, axis_name: str | None
) -> list[Origin]:
    if is_merged(equation, axis_name):
        return [_merged(equation, operand) for operand in operands]
    fault, partial = _joined(operands).fault, _partial(equation, operands)
    if not fault:
        fault, partial = _statistics(equation, operands, where, axis_name)
    axes = [_batch_axis(equation, operands, out) for out in equation.outvars]
    return [Origin(axis, fault, partial) for axis in axes]


def _merged(equation: Any, operand: Origin) -> Origin:
    """Return the origin of what a collective over the samples makes of an operand."""
    mended = not operand.fault or operand.partial == equation.primitive.name
    return SHARED if mended else Origin(fault=operand.fault)


def _partial(equation: Any, operands: list[Origin]) -> str:
    """Return the collective that completes a result of partial sums, maxima or minima."""
    name = equation.primitive.name
    found = {operand.partial for operand in operands if operand != SHARED}
    if len(found) != 1:
        return ""
    (partial,) = found
    if name in _REARRANGED or partial in (name, _COMPLETED.get(name)):
        return partial
    linear = partial == "psum" and (
        (name in ("add", "add_any", "sub", "concatenate", "stack") and SHARED not in operands)
        or (name in ("mul", "dot_general") and SHARED in operands)
        or (name == "div" and operands[1] == SHARED)
        or name == "neg"
    )
    return partial if linear else ""


def _batch_axis(equation: Any, operands: list[Origin], out: Any) -> int | None:
    """Return which axis of a result is the batch axis, as far as that is known."""
    rule = _AXES.get(equation.primitive, lambda axis, *_: _shifted(axis, _reduced(equation)))
    for place, operand in enumerate(operands):
        axis = None if operand.batch is None else rule(operand.batch, place, equation)
        if axis is not None and out.aval.shape[axis : axis + 1] == (1,):
            return axis
    return None


def _reduced(equation: Any) -> tuple[int, ...]:
    """Return the axes over which an operation reduces its operand."""
    is_reduction = equation.primitive.name.startswith(("reduce_", "arg", *_COMPLETED.values()))
    axes = equation.params.get("axes", ()) if is_reduction else ()
    return tuple(axis for axis in axes if isinstance(axis, int))  # others are named


def _shifted(axis: int, removed: Sequence[int]) -> int | None:
    return None if axis in removed else axis - sum(each < axis for each in removed)


def _reshaped(axis: int, _: int, equation: Any) -> int | None:
    shape, new = equation.invars[0].aval.shape, equation.params["new_sizes"]
    before = math.prod(shape[:axis])
    places = [i for i in range(len(new)) if new[i] == 1 and math.prod(new[:i]) == before]
    return axis if axis in places else next(iter(places), None)


def _in_product(axis: int, place: int, equation: Any) -> int | None:
    contracted, batch = (pair[place] for pair in equation.params["dimension_numbers"])
    if axis in batch:
        return batch.index(axis)
    free = [each for each in range(equation.invars[place].aval.ndim)
            if each not in (*contracted, *batch)]  # fmt: skip
    first = equation.outvars[0].aval.ndim - len(free) if place else len(batch)
    return first + free.index(axis) if axis in free else None


def _in_convolution(axis: int, place: int, equation: Any) -> int | None:
    layout = equation.params["dimension_numbers"]
    return layout.out_spec[0] if place == 0 and axis == layout.lhs_spec[0] else None


# From the batch axis of an operand, and the operand's place, to that of the result.
_AXES: dict[Any, Callable[[int, int, Any], int | None]] = {
    lax.dot_general_p: _in_product,
    lax.conv_general_dilated_p: _in_convolution,
    lax.reshape_p: _reshaped,
    lax.squeeze_p: lambda axis, _, equation: _shifted(axis, equation.params["dimensions"]),
    getattr(lax, "stack_p", None): lambda axis, _, equation: (  # not in every version of JAX
        axis + (equation.params["axis"] <= axis)
    ),
    lax.transpose_p: lambda axis, _, equation: equation.params["permutation"].index(axis),
    lax.broadcast_in_dim_p: lambda axis, _, equation: equation.params["broadcast_dimensions"][axis],
}


# What completes a reduction of each sample to one of all samples; of a nested `vmap`, too.
_COMPLETED = {"reduce_sum": "psum", "reduce_max": "pmax", "reduce_min": "pmin"}
_MERGING = {*_COMPLETED.values(), "all_gather"}
_REARRANGED = {
    "broadcast_in_dim", "convert_element_type", "copy", "dynamic_slice", "gather", "name",
    "optimization_barrier", "reshape", "rev", "sharding_constraint", "slice", "split", "squeeze",
    "transpose", "unstack",
}  # fmt: skip


def _statistics(
    equation: Any, operands: list[Origin], where: str, axis_name: str | None
) -> tuple[str, str]:
    """Return why a result must not be used as it is, and the collective that completes it."""
    axes, name = _reduced(equation), equation.primitive.name
    if operands[0].batch not in axes or len(axes) == equation.invars[0].aval.ndim:
        return "", ""
    way_out = (
        "name the samples' axis, as in BatchNorm(axis_name='batch') and modulate or make_straw(...,"
        " axis_name='batch')"
        if axis_name is None
        else "complete the sum, before more is computed from it, by a collective over the samples, "
        f"as jax.lax.pmean(..., {axis_name!r}) or BatchNorm(axis_name={axis_name!r}) without a mask"
    )
    return (
        "modulate: expected a model that treats each sample by itself, got "
        f"'{equation.primitive}' over the batch axis (in {where}): with own weights each sample is "
        "a batch of one, and statistics over the batch would be its own. Use running averages, or "
        f"a normalisation within the sample, such as GroupNorm for BatchNorm; or {way_out}."
    ), _COMPLETED.get(name, name if name in _MERGING else "")
