"""Model code with structured kernels in place of arrays: an interpreter of its program.

A model function is traced with ordinary kernels, and the resulting program is evaluated with
`Kernel` values in their place. Loops, branches and other nested programs are evaluated in the same
way; `straw_jax.operations` has what single operations do. An operation that needs a whole kernel is
an error, unless allowed.

Three sorts of values are told apart: data, computed from samples; kernels, computed from generated
leaves; and what all samples share.

Arrays here have no sample axis; `jax.vmap` adds it. What a collective over that axis returns is
what all samples share.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core, source_info_util
from jax.sharding import PartitionSpec

from straw_jax.costs import nested_jaxprs
from straw_jax.operations import RULES, Operation
from straw_jax.operators import Contraction, Kernel, refusal
from straw_jax.parts import Part
from straw_jax.program import check_program, is_merged


def apply_kernels(
    function: Callable[..., Any],
    kernels: Sequence[Kernel],
    samples: Any,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    """Call a function of kernels and samples with structured kernels in place of arrays.

    Args:
        function: `(list of arrays, samples) -> y`, traced once.
        kernels: its first argument.
        samples: any tree of arrays.
        axis_name: of the samples' axis, for collectives.

    Returns:
        What the function returns, and a tree of which of it differs from sample to sample.

    Raises:
        ValueError: if an operation needs a whole kernel, or a result mixes samples.
    """
    avals = [jax.ShapeDtypeStruct(kernel.shape, kernel.dtype) for kernel in kernels]
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(avals, samples)
    leaves = jax.tree.leaves(samples)
    data = [False] * len(kernels) + [True] * len(leaves)
    check_program(jaxpr, data, axis_name)
    values, flags = _run(jaxpr, [*kernels, *leaves], data, axis_name)
    out = [_array(value, "returning it", "the model's results") for value in values]
    own = [flag or isinstance(each, Kernel) for each, flag in zip(values, flags, strict=True)]
    structure = jax.tree.structure(shapes)
    return jax.tree.unflatten(structure, out), jax.tree.unflatten(structure, own)


def _run(
    jaxpr: Any, arguments: Sequence[Any], data: Sequence[bool], axis_name: str | None
) -> tuple[list[Any], list[bool]]:
    """Evaluate a jaxpr, closed or open without constants; return results, and which are data."""
    constants = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    of_data = {atom for atom, is_data in zip(jaxpr.invars, data, strict=True) if is_data}
    spread: dict[Any, Any] = {}  # how arrays are repeated along axes, and of which

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    def is_data(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in of_data

    def small(atom: Any) -> Part | None:
        """Return the small array of one that is repeated along axes."""
        if isinstance(atom, core.Literal) or atom not in spread:
            return None
        array, params, source = spread[atom]
        return _spread(array, params, small(source))

    around = source_info_util.current()
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        flags = [is_data(atom) for atom in equation.invars]
        info = equation.source_info
        if not source_info_util.summarize(info):  # within a function of JAX, such as jnp.pad
            info = info.replace(traceback=around.traceback)
        names = source_info_util.current_name_stack() + info.name_stack
        # As when the model was traced: source lines for errors, names, and settings by `with`.
        with (
            source_info_util.user_context(info.traceback, name_stack=names),
            equation.ctx.manager,
        ):
            if any(isinstance(operand, Kernel) for operand in operands):
                where = source_info_util.summarize(info)
                parts = [small(atom) for atom in equation.invars]
                out, out_flags = _evaluate(equation, operands, flags, parts, where, axis_name)
            else:
                out = _bind(equation, operands)
                out_flags = _flags_of(equation, flags, axis_name)
                if equation.primitive is lax.broadcast_in_dim_p and not any(flags):
                    source = equation.invars[0]
                    spread[equation.outvars[0]] = operands[0], equation.params, source
        values.update(zip(equation.outvars, out, strict=True))
        of_data.update(atom for atom, flag in zip(equation.outvars, out_flags, strict=True) if flag)
    return [read(atom) for atom in jaxpr.outvars], [is_data(atom) for atom in jaxpr.outvars]


def _spread(array: Any, params: Mapping[str, Any], small: Part | None) -> Part:
    """Return what `broadcast_in_dim` repeats along axes, of an array or of one itself repeated."""
    places, shape = params["broadcast_dimensions"], params["shape"]
    sizes = jnp.shape(array)
    kept = [axis for axis, place in enumerate(places) if sizes[axis] == shape[place] != 1]
    if small is None:
        small = Part(jnp.asarray(array), tuple(range(len(sizes))), sizes)
    small = small.without([axis for axis in small.axes if axis not in kept])
    return small.renamed(dict(enumerate(places)))


def _bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
    primitive = equation.primitive
    params = primitive.get_bind_params(equation.params)
    known = not isinstance(operands[0], jax.core.Tracer) if operands else False
    if primitive is lax.convert_element_type_p and known and not jnp.ndim(operands[0]):
        with jax.ensure_compile_time_eval():  # so that a padding's zero is known to be one
            return [primitive.bind(*operands, **params)]
    out = primitive.bind(*operands, **params)
    return list(out) if primitive.multiple_results else [out]


def _evaluate(
    equation: Any,
    operands: Sequence[Any],
    data: Sequence[bool],
    spread: Sequence[Part | None],
    where: str,
    axis_name: str | None,
) -> tuple[list[Any], list[bool]]:
    """Run an operation on kernels."""
    name = equation.primitive.name
    kernels = [operand for operand in operands if isinstance(operand, Kernel)]
    out_avals = [atom.aval for atom in equation.outvars]
    if name in _PROGRAMS:
        return _PROGRAMS[name](Nested(equation.params, operands, data, where, axis_name))
    if any(data) and name in _ELEMENTWISE and _of_one_shape(operands, data, out_avals[0]):
        # As large as what is computed from the sample here anyway.
        shape = out_avals[0].shape
        kernels = [replace(kernel.for_vectors(shape), allow_materialise=True) for kernel in kernels]
        given = iter(kernels)
        operands = [next(given) if isinstance(each, Kernel) else each for each in operands]
    elif name in RULES and not _is_free(kernels, any(data), out_avals):
        operation = Operation(
            equation.primitive, operands, equation.params, data, spread, out_avals
        )
        out = RULES[name](operation)
        if out is not None:
            out = out if isinstance(out, list) else [out]
            return out, [any(data) and not isinstance(each, Kernel) for each in out]
    whole = [_array(operand, f"the operation '{name}'", where) for operand in operands]
    out = _bind(equation, whole)
    if is_merged(equation, axis_name):
        return out, [False] * len(out)
    if any(data):
        return out, [True] * len(out)
    return [_generated(each, kernels[0]) for each in out], [False] * len(out)


def _of_one_shape(operands: Sequence[Any], data: Sequence[bool], out: Any) -> bool:
    """Return whether an operand that is data has the shape of the result."""
    return any(
        flag and not isinstance(each, Kernel) and jnp.shape(each) == out.shape
        for each, flag in zip(operands, data, strict=True)
    )


def _is_free(kernels: Sequence[Kernel], with_data: bool, out: Sequence[Any]) -> bool:
    """Return whether kernels are arrays, and stay as small: the operation is that of the model."""
    if not all(kernel.is_array for kernel in kernels):
        return False
    stored = sum(math.prod(kernel.part.shape) for kernel in kernels)
    return with_data or all(bool(math.prod(aval.shape) <= stored) for aval in out)


def _array(value: Any, operation: str, where: str) -> Any:
    """Return a kernel as an array if it is one, or may be formed."""
    if not isinstance(value, Kernel):
        return value
    if not value.is_array and not value.allow_materialise:
        raise refusal(value, operation, where)
    return value.materialise()


def _generated(array: Any, source: Kernel) -> Any:
    """Return an array computed from generated leaves alone, so that a product may not form it."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array  # random keys
    return Kernel(
        (Contraction.of(array),), array.shape, array.dtype, source.path, source.allow_materialise
    )


# Nested programs.


@dataclass(frozen=True)
class Nested:
    """A nested program's parameters, operands, which are data, where it is, and samples' axis."""

    params: Mapping[str, Any]
    operands: Sequence[Any]
    data: Sequence[bool]
    where: str
    axis_name: str | None

    def results(
        self, out: Sequence[Any], flags: list[bool], generated: Sequence[bool]
    ) -> tuple[list[Any], list[bool]]:
        """Return arrays as kernels where they are computed from generated leaves alone."""
        kernel = next(each for each in self.operands if isinstance(each, Kernel))
        return [
            _generated(each, kernel) if made and not flag else each
            for each, flag, made in zip(out, flags, generated, strict=True)
        ], flags


def _jit(nested: Nested) -> tuple[list[Any], list[bool]]:
    return _run(nested.params["jaxpr"], nested.operands, nested.data, nested.axis_name)


def _remat(nested: Nested) -> tuple[list[Any], list[bool]]:
    jaxpr = nested.params["jaxpr"]
    flags: list[bool] = []

    def run(*operands: Any) -> list[Any]:
        out, flags[:] = _run(jaxpr, operands, nested.data, nested.axis_name)
        return out

    options = {name: nested.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(run, **options)(*nested.operands), flags


def _cond(nested: Nested) -> tuple[list[Any], list[bool]]:
    index, *operands = nested.operands
    flags: list[bool] = [nested.data[0]] * len(nested.params["branches"][0].out_avals)
    generated = [isinstance(index, Kernel)] * len(flags)

    def branch(jaxpr: Any) -> Callable[..., list[Any]]:
        def run(*operands: Any) -> list[Any]:
            out, of_branch = _run(jaxpr, operands, nested.data[1:], nested.axis_name)
            flags[:] = [a or b for a, b in zip(flags, of_branch, strict=True)]
            generated[:] = [a or isinstance(b, Kernel) for a, b in zip(generated, out, strict=True)]
            return [_array(each, "returning it from a branch", nested.where) for each in out]

        return run

    out = lax.switch(index, [branch(jaxpr) for jaxpr in nested.params["branches"]], *operands)
    return nested.results(out, flags, generated)


def _while(nested: Nested) -> tuple[list[Any], list[bool]]:
    params = nested.params
    of_condition, of_body = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    condition, body = nested.operands[:of_condition], nested.operands[of_condition:of_body]
    initial = [_array(each, "carrying it through a loop", nested.where)
               for each in nested.operands[of_body:]]  # fmt: skip
    of_consts = list(nested.data[of_condition:of_body])
    axis_name = nested.axis_name
    flags = _carried(params["body_jaxpr"], of_consts, list(nested.data[of_body:]), [], axis_name)

    def run(jaxpr: Any, consts: Sequence[Any], data: Sequence[bool], carry: Any) -> list[Any]:
        out, _ = _run(jaxpr, [*consts, *carry], [*data, *flags], axis_name)
        return [_array(each, "carrying it through a loop", nested.where) for each in out]

    out = lax.while_loop(
        lambda carry: run(params["cond_jaxpr"], condition, nested.data[:of_condition], carry)[0],
        lambda carry: run(params["body_jaxpr"], body, of_consts, carry),
        initial,
    )
    return nested.results(out, flags, [True] * len(flags))


def _scan(nested: Nested) -> tuple[list[Any], list[bool]]:
    params, operands, jaxpr = nested.params, nested.operands, nested.params["jaxpr"]
    avals, length = jaxpr.in_avals, params["length"]
    layered = [jnp.ndim(each) > aval.ndim if not isinstance(each, Kernel) else each.ndim > aval.ndim
               for each, aval in zip(operands, avals, strict=True)]  # fmt: skip
    # The parameter with the number of carried results differs between versions of JAX; use shapes.
    whole = [
        jax.ShapeDtypeStruct((length, *aval.shape) if each else aval.shape, aval.dtype)
        for each, aval in zip(layered, avals, strict=True)
    ]
    results = jax.eval_shape(lambda *arrays: lax.scan_p.bind(*arrays, **params), *whole)
    carried = sum(
        result.ndim == aval.ndim for result, aval in zip(results, jaxpr.out_avals, strict=True)
    )
    first = len(operands) - sum(layered)  # of those that a step takes one layer of
    start = first - carried
    layers = [_layers(each, nested.where) for each in operands[first:]]
    consts, initial = operands[:start], operands[start:first]
    from_carry = any(isinstance(each, Kernel) for each in initial)
    initial = [_array(each, "carrying it through a loop", nested.where) for each in initial]
    flags = _carried(jaxpr, list(nested.data[:start]), list(nested.data[start:first]),
                     list(nested.data[first:]), nested.axis_name)  # fmt: skip
    data = [*nested.data[:start], *flags, *nested.data[first:]]
    out_flags: list[bool] = []
    generated: list[bool] = []

    def step(carry: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        own = [rebuild(each) for (_, rebuild), each in zip(layers, arrays, strict=True)]
        out, out_flags[:] = _run(jaxpr, [*consts, *carry, *own], data, nested.axis_name)
        generated[:] = [isinstance(each, Kernel) for each in out]
        out = [_array(each, "returning it from a loop", nested.where) for each in out]
        return out[:carried], out[carried:]

    arrays = [arrays for arrays, _ in layers]
    carry, out = lax.scan(
        step, initial, arrays, length, params["reverse"], params["unroll"],
    )  # fmt: skip
    from_carry = from_carry or any(generated[:carried])  # of which steps make more
    generated = [from_carry] * carried + [from_carry or each for each in generated[carried:]]
    return nested.results([*carry, *out], [*flags, *out_flags[carried:]], generated)


def _layers(value: Any, where: str) -> tuple[Any, Callable[[Any], Any]]:
    """Return arrays with the axis of layers in front, and a function from one layer's to a value.

    Of a kernel, parts that all layers have in common stay outside.
    """
    if not isinstance(value, Kernel):
        return value, lambda array: array
    parts = [part.for_layers() for part in _parts(value, "a loop over its layers", where)]
    arrays = [part.layers() for part in parts if 0 in part.axes]

    def one_layer(arrays: Sequence[Any]) -> Kernel:
        given = iter(arrays)
        names = {axis: axis - 1 for axis in range(1, value.ndim)}
        inner = (part.of_layer(next(given)) if 0 in part.axes else part for part in parts)
        return _rebuilt(value, (part.renamed(names) for part in inner), value.shape[1:])

    return arrays, one_layer


def _shard_map(nested: Nested) -> tuple[list[Any], list[bool]]:
    """Run a program on pieces of arrays: of a kernel's, the pieces along the axes that each has."""
    params, jaxpr = nested.params, nested.params["jaxpr"]
    arrays: list[Any] = []
    specs: list[PartitionSpec] = []
    for value, spec in zip(nested.operands, params["in_specs"], strict=True):
        if not isinstance(value, Kernel):
            arrays.append(value)
            specs.append(spec)
            continue
        names = dict(enumerate(spec))
        for part in _parts(value, "shard_map", nested.where):
            arrays.append(part.array)
            specs.append(PartitionSpec(*(names.get(axis) for axis in part.axes)))
    flags: list[bool] = []
    generated: list[bool] = []

    def run(*pieces: Any) -> list[Any]:
        given = iter(pieces)
        operands = []
        for value, inner in zip(nested.operands, jaxpr.invars, strict=True):
            if isinstance(value, Kernel):
                parts = [
                    Part(piece := next(given), part.axes, piece.shape)
                    for part in _parts(value, "shard_map", nested.where)
                ]
                operands.append(_rebuilt(value, parts, inner.aval.shape))
            else:
                operands.append(next(given))
        out, flags[:] = _run(jaxpr, operands, nested.data, nested.axis_name)
        generated[:] = [isinstance(each, Kernel) for each in out]
        return [_array(each, "returning it from shard_map", nested.where) for each in out]

    out = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=tuple(specs),
        out_specs=list(params["out_specs"]),
        axis_names=set(params.get("newly_manual_axes", params.get("manual_axes", ()))),
        check_vma=params["check_vma"],
    )(*arrays)
    return nested.results(out, flags, generated)


def _parts(kernel: Kernel, operation: str, where: str) -> list[Part]:
    """Return all arrays of a kernel, if it has nothing else."""
    terms = [term for term in kernel.terms if isinstance(term, Contraction)]
    if len(terms) < len(kernel.terms):
        raise refusal(kernel, operation, where)
    return [part for term in terms for part in term.parts]


def _rebuilt(kernel: Kernel, parts: Iterable[Part], shape: tuple[int, ...]) -> Kernel:
    """Return a kernel with other arrays in place of its own."""
    given = iter(parts)
    terms = tuple(
        replace(term, parts=tuple(next(given) for _ in term.parts))
        for term in kernel.terms
        if isinstance(term, Contraction)
    )
    return replace(kernel, terms=terms, shape=tuple(shape))


def _carried(
    jaxpr: Any,
    consts: list[bool],
    carry: list[bool],
    layers: list[bool],
    axis_name: str | None,
) -> list[bool]:
    """Return which carried values of a loop are data."""
    while True:
        after = _data_of(jaxpr, [*consts, *carry, *layers], axis_name)[: len(carry)]
        joined = [a or b for a, b in zip(carry, after, strict=True)]
        if joined == carry:
            return carry
        carry = joined


def _data_of(jaxpr: Any, data: Sequence[bool], axis_name: str | None) -> list[bool]:
    """Return which results of a program are computed from data."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known = {atom for atom, flag in zip(jaxpr.invars, data, strict=True) if flag}

    def is_data(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in known

    for equation in jaxpr.eqns:
        flags = [is_data(atom) for atom in equation.invars]
        inner = list(nested_jaxprs(equation.params))
        out = _flags_of(equation, flags, axis_name)
        if equation.primitive.name in _CALLS and len(inner) == 1:
            out = _data_of(inner[0], flags, axis_name)
        known.update(atom for atom, flag in zip(equation.outvars, out, strict=True) if flag)
    return [is_data(atom) for atom in jaxpr.outvars]


def _flags_of(equation: Any, flags: list[bool], axis_name: str | None) -> list[bool]:
    """Return which results of an operation without kernels are computed from data."""
    name, params, count = equation.primitive.name, equation.params, len(equation.outvars)
    if axis_name is None or not any(flags):  # without collectives
        return [any(flags)] * count
    if name == "scan":
        return _flags_of_scan(equation, flags, axis_name)
    if name == "cond":
        branches = [_data_of(jaxpr, flags[1:], axis_name) for jaxpr in params["branches"]]
        return [flags[0] or any(each) for each in zip(*branches, strict=True)]
    inner = list(nested_jaxprs(params))
    if name in (*_CALLS, "custom_jvp_call", "custom_vjp_call") and len(inner) == 1:
        return _data_of(inner[0], flags, axis_name)
    return [not is_merged(equation, axis_name)] * count


def _flags_of_scan(equation: Any, flags: list[bool], axis_name: str | None) -> list[bool]:
    jaxpr = equation.params["jaxpr"]

    def unlayered(atoms: Sequence[Any], avals: Sequence[Any]) -> int:
        pairs = zip(atoms, avals, strict=True)
        return sum(bool(atom.aval.ndim == aval.ndim) for atom, aval in pairs)

    carried = unlayered(equation.outvars, jaxpr.out_avals)
    first = unlayered(equation.invars, jaxpr.in_avals)  # after constants and what is carried
    consts, carry, layers = flags[: first - carried], flags[first - carried : first], flags[first:]
    carry = _carried(jaxpr, consts, carry, layers, axis_name)
    return [*carry, *_data_of(jaxpr, [*consts, *carry, *layers], axis_name)[carried:]]


_ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "max", "min", "select_n", "rem", "pow", "atan2", "eq",
    "ne", "lt", "le", "gt", "ge", "nextafter", "clamp",
}  # fmt: skip

_CALLS = "jit", "pjit", "checkpoint", "remat2"

_PROGRAMS: dict[str, Callable[[Nested], tuple[list[Any], list[bool]]]] = {
    "jit": _jit,
    "pjit": _jit,
    "checkpoint": _remat,
    "remat2": _remat,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "shard_map": _shard_map,
}
