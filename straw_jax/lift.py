"""Per-sample weights for unmodified model code: `modulate`, and their dense form, `materialize`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax import expect
from straw_jax.bank import of_samples
from straw_jax.factors import Entry, FactorTree, as_updates, named_leaves
from straw_jax.interpreter import apply_kernels
from straw_jax.kinds import Update
from straw_jax.lowrank import Generated, Indexed, factor_shape
from straw_jax.operations import is_linear_cast
from straw_jax.operators import Contraction, Kernel
from straw_jax.quantised import Quantised, is_quantised


def modulate(
    apply: Callable[..., Any],
    *,
    scale: float = 1.0,
    allow_materialise: bool = False,
    per_sample: str | Iterable[str] | Mapping[str, Any] = (),
    axis_name: str | None = None,
    out_axes: Any = 0,
    index: str = "index",
) -> Callable[..., Any]:
    """Return a version of a model function that takes per-sample weights.

    The model code does not change: where it computes `x @ W` with a generated kernel, the result is
    `x @ W0 + scale * (x @ B) @ A` with the factors of that sample. No array of a kernel's size is
    formed per sample. Where a kernel is `Posed`, the layer's input is resampled first. The function
    is traced, as by `jax.jit`; `straw_jax.operations` lists the supported operations. Weights keep
    the dtypes of `params`, to which factors are cast; integers and 8-bit floats get the factors'.

    Args:
        apply: `(params, x, **kwargs) -> y`, any JAX function that maps a batch to a batch, sample
            by sample; it is called with each sample as a batch of one. Every output has the batch
            axis in front, unless `out_axes` says that all samples have it in common.
        scale: of the low-rank updates (LoRA's alpha / r).
        allow_materialise: form a sample's whole kernel for unsupported operations. By default they
            raise an error that names the leaf.
        per_sample: the names of keyword arguments that have a sample axis in front, as `x` has; or
            a dict from names to 0, None, or a tree of them as `in_axes` of `jax.vmap` has: None for
            what all samples have in common.
        axis_name: of the samples' axis, as in `jax.vmap`. A model that has its name may compute
            over the batch: `jax.lax.pmean(y.mean(0), axis_name)`, or
            `nn.BatchNorm(axis_name=axis_name)`.
        out_axes: as in `jax.vmap`, 0 or None for all outputs, or a tree of them: 0 for an output
            with the batch axis, None for one that all samples have in common and that has no batch
            axis, such as updated statistics. A model that takes and returns state has `(0, None)`.
        index: the name of the keyword argument that chooses adapters of a bank; another one where
            the model has an argument of this name.

    Returns:
        `modulated(params, factors, x, *more, **kwargs) -> y`. `params` is the argument of `apply`;
        where a leaf is a `jax.ShapeDtypeStruct`, the factors alone are the weights. `factors` is a
        tree of factors as `FactorSpec` describes, each with a sample axis in front or, if shared,
        without; a leaf without factors keeps its weights. `x` is an array `[batch, ...]` or a tree
        of them, and so is each further input. Keyword arguments are passed to `apply`, the same for
        every sample unless `per_sample` names them; typed random keys among them are split, one for
        each sample. A scalar within a tree that `per_sample` names, such as the position of a
        key-value cache, is what all samples have in common, and so is the one that comes out.

        With `index=ids`, `factors` is a bank: its arrays have an axis of adapters in front in place
        of the sample axis (`stack_adapters`), and ids `[batch]` are whole numbers that say which
        one each sample has, -1 for none. Factors are not repeated for each sample in memory where
        there are many more samples than adapters. `index=(ids, weights)`, both `[batch, k]`, is a
        weighted sum of several: of low-rank updates the sum of their products, of gains the sum of
        their differences from 1. In a traced function ids are not known: rows of ids that are out
        of range are NaN. A sample has one choice for all its positions.

    Raises:
        ValueError: (when called) if factors do not fit the parameters or the samples, a leaf has
            neither weights nor factors, an operation is not supported, a random key is not typed,
            an output has no batch axis, one without differs from sample to sample, or ids are known
            to be out of range, or are -1 where an update cannot be left out.

    References:
        The STRAW article, "The Adaptive Forward Pass".

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, modulate
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> factors = {"W": Factors(B=jnp.ones((8, 3, 2)), A=jnp.ones((8, 2, 4)))}
        >>> layer({"W": jnp.ones((3, 4))}, factors, jnp.ones((8, 3))).shape
        (8, 4)
    """
    if not callable(apply):
        raise ValueError(
            f"modulate: expected a function apply(params, x), got {expect.describe(apply)}. That of"
            " a Linen module is linen(module).apply."
        )
    if not isinstance(axis_name, str | None):
        raise ValueError(
            f"modulate: expected axis_name to be a string or None, got {axis_name!r}. It is the"
            " name that the model gives to its collectives, such as 'batch'."
        )
    axes_of_outputs = jax.tree.leaves(out_axes, is_leaf=lambda axis: axis is None)
    if not all(axis is None or axis == 0 for axis in axes_of_outputs):
        raise ValueError(
            f"modulate: expected out_axes of 0 and None, got {out_axes!r}. Move the axis of samples"
            " to the front, or that of the result with jnp.moveaxis."
        )
    mapped_axes = _mapped_axes(per_sample)
    if not isinstance(index, str):
        raise ValueError(
            f"modulate: expected index to be the name of a keyword argument, got {index!r}. The"
            " numbers of adapters are given to the function that it returns, as index=ids."
        )

    def modulated(params: Any, factors: FactorTree, x: Any, /, *more: Any, **kwargs: Any) -> Any:
        chosen = kwargs.pop(index) if kwargs.get(index) is not None else None
        if chosen is not None and (index in _parameters(apply) or index in mapped_axes):
            raise ValueError(
                f"modulate: expected an argument {index!r} of the adapters alone, got a model that"
                f" has one, too. Name that of the adapters, modulate(apply, index='adapter')."
            )
        inputs = {"x" if i == 1 else f"x ({i})": each for i, each in enumerate((x, *more), 1)}
        own_axes = {name: axis for name, axis in mapped_axes.items() if name in kwargs}
        arguments = inputs | {name: kwargs.pop(name) for name in own_axes}
        every, tree = jax.tree.flatten(arguments)
        is_own = _is_own(dict.fromkeys(inputs, 0) | own_axes, arguments)
        of_arrays = _share_scalars(arguments, inputs, is_own)
        has_scalars, is_own = of_arrays != is_own, of_arrays
        mapped = [leaf for leaf, own in zip(every, is_own, strict=True) if own]
        batch = _batch_size(arguments, is_own)
        if chosen is None:
            updates, axes = _checked(params, factors, batch)
        else:
            updates, axes = _checked(params, factors)
            shape = jnp.shape(jax.tree.leaves(x)[0])
            updates, axes = of_samples(named_leaves(params), updates, axes, chosen, shape)
        options, treedef = jax.tree.flatten(kwargs)
        keys = _keys_of_samples(kwargs, batch)

        paths = list(named_leaves(params))

        def one_sample(updates: _Updates, samples: Any, keys: dict[int, Array]) -> Any:
            weights = _substitute(params, updates, scale, allow_materialise)
            leaves, structure = jax.tree.flatten(weights, is_leaf=_is_kernel)
            # A whole leaf that all samples have in common is a weight like others.
            shared = [not jax.tree.leaves(axes.get(path, ())) for path in paths]
            leaves = [
                leaf.materialise() if of_all and _is_kernel(leaf) and leaf.is_array else leaf
                for leaf, of_all in zip(leaves, shared, strict=True)
            ]
            places = [i for i, leaf in enumerate(leaves) if _is_kernel(leaf)]
            drawn = [keys.get(i, leaf) for i, leaf in enumerate(options)]

            def model(kernels: list[Array], samples: list[Array]) -> Any:
                weights = dict(enumerate(leaves)) | dict(zip(places, kernels, strict=True))
                of_sample = iter(samples)
                own = (
                    next(of_sample) if own else leaf
                    for leaf, own in zip(every, is_own, strict=True)
                )
                given = jax.tree.unflatten(tree, own)
                return apply(
                    jax.tree.unflatten(structure, weights.values()),
                    *(given.pop(name) for name in inputs),
                    **jax.tree.unflatten(treedef, drawn),
                    **given,
                )

            batch_of_one = jax.tree.map(lambda leaf: leaf[None], samples)
            y, own = apply_kernels(model, [leaves[i] for i in places], batch_of_one, axis_name)
            has_batch = _axes_of_outputs(out_axes, y)
            if has_scalars:
                has_batch = jax.tree.map(_has_batch, y, own, has_batch)
            results = jax.tree.map_with_path(_result, y, own, has_batch)
            outputs[:] = jax.tree.structure(results), jax.tree.leaves(has_batch)
            pairs = list(zip(jax.tree.leaves(results), outputs[1], strict=True))
            return [leaf for leaf, has in pairs if has], [leaf for leaf, has in pairs if not has]

        outputs: list[Any] = []
        own_outputs, common_outputs = map(
            iter,
            jax.vmap(one_sample, in_axes=(axes, 0, 0), out_axes=(0, None), axis_name=axis_name)(
                updates, mapped, keys
            ),
        )
        structure, has_batch = outputs
        return jax.tree.unflatten(
            structure, [next(own_outputs if has else common_outputs) for has in has_batch]
        )

    return modulated


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the parameters of a function, none where they are not known."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def materialize(params: Any, factors: FactorTree, *, scale: float = 1.0) -> Any:
    """Return ordinary weights with the updates of one sample added.

    Use it to inspect generated weights, or to keep the weights of one context.

    Args:
        params: as for `modulate`.
        factors: as for `modulate`, all without a sample axis.
        scale: of the low-rank updates.

    Returns:
        The parameter tree with every update added; exact up to rounding.

    Raises:
        ValueError: if factors do not fit the parameters or have a sample axis, or a convolution is
            `Posed`, which has no equivalent kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors, materialize
        >>> factors = {"W": Factors(B=jnp.ones((3, 2)), A=jnp.ones((2, 4)))}
        >>> materialize({"W": jnp.ones((3, 4))}, factors)["W"][0].tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    updates, axes = _checked(params, factors)
    if jax.tree.leaves(axes):
        raise ValueError(
            "materialize: expected the factors of one sample, got factors with a sample axis. "
            "Take one sample of each, or map this function over the axis with jax.vmap."
        )
    weights = _substitute(params, updates, scale, allow_materialise=True)
    return jax.tree.map(
        lambda leaf: leaf.materialise() if _is_kernel(leaf) else leaf, weights, is_leaf=_is_kernel
    )


def take(params: Any, factors: FactorTree, index: Any) -> dict[str, Entry]:
    """Return the factors of one sample, or of some.

    What all samples share, such as the templates of a mixture, stays as it is.

    Args:
        params: as for `modulate`.
        factors: as for `modulate`.
        index: of the sample axis, as of an array: a number, a slice, or indices.

    Returns:
        A tree of factors.

    Raises:
        ValueError: if factors do not fit the parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors
        >>> from straw_jax.lift import take
        >>> factors = {"W": Factors(B=jnp.ones((8, 3, 2)), A=jnp.ones((2, 4)))}
        >>> one = take({"W": jnp.ones((3, 4))}, factors, 0)["W"]
        >>> one.B.shape, one.A.shape
        ((3, 2), (2, 4))
    """
    updates, axes = _checked(params, factors)

    def of_update(update: Update, axes: Update) -> Update:
        fields = {}
        for name in vars(axes):
            part, axis = getattr(update, name), getattr(axes, name)
            if isinstance(part, Generated) and axis.hidden == 0:
                fields[name] = part._replace(hidden=part.hidden[index])
            elif axis == 0 and not isinstance(axis, bool):
                fields[name] = part[index]
        return _replaced(update, fields)

    taken = {
        path: tuple(of_update(*pair) for pair in zip(each, axes[path], strict=True))
        for path, each in updates.items()
    }
    return {
        path: each if len(each) > 1 else getattr(each[0], "whole", each[0])
        for path, each in taken.items()
    }


_Updates: TypeAlias = dict[str, tuple[Update, ...]]


def _is_kernel(value: Any) -> bool:
    return isinstance(value, Kernel)


def _substitute(params: Any, updates: _Updates, scale: float, allow_materialise: bool) -> Any:
    """Return `params` with generated kernels in place of leaves; updates have no sample axis."""
    if jnp.ndim(scale):
        raise ValueError(
            f"modulate: expected a scalar scale, got shape {jnp.shape(scale)}. For a scale of each "
            "sample or layer, multiply its A."
        )

    def weight(path: str, leaf: Any) -> Any:
        if path not in updates:
            if isinstance(leaf, Quantised):  # the same for all samples: formed where need be
                return Kernel((Contraction.of(leaf),), leaf.shape, leaf.dtype, path, True)
            return leaf
        parts = [part.dtype for part in _arrays(updates[path])]
        given = not isinstance(leaf, jax.ShapeDtypeStruct)
        linear = given and is_linear_cast(leaf.dtype)
        dtype = leaf.dtype if linear else jnp.result_type(*parts)
        terms = (Contraction.of(leaf.astype(dtype)),) if given else ()
        kernel = Kernel(terms, leaf.shape, jnp.dtype(dtype), path, allow_materialise)
        for update in updates[path]:
            kernel = update.change(kernel, scale)
        return kernel

    leaves = [weight(path, leaf) for path, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_quantised), leaves)


def _arrays(updates: Any) -> list[Array]:
    """Return arrays of updates; of a bank, not those that choose in it."""
    leaves = jax.tree.leaves(updates, is_leaf=lambda leaf: isinstance(leaf, Indexed))
    return [leaf.bank if isinstance(leaf, Indexed) else leaf for leaf in leaves]


def _mapped_axes(per_sample: Any) -> dict[str, Any]:
    """Return which keyword arguments differ between samples: names to trees of 0 and None."""
    if isinstance(per_sample, str):
        return {per_sample: 0}
    if not isinstance(per_sample, Mapping):
        return dict.fromkeys(per_sample, 0)
    axes = jax.tree.leaves(dict(per_sample), is_leaf=lambda axis: axis is None)
    if not all(axis is None or (axis == 0 and not isinstance(axis, bool)) for axis in axes):
        raise ValueError(
            f"modulate: expected per_sample to be names, or a dict from names to 0, None or trees"
            f" of them, got {per_sample!r}. Move the axis of samples to the front."
        )
    return dict(per_sample)


def _is_own(axes: dict[str, Any], arguments: dict[str, Any]) -> list[bool]:
    """Return for each array of some arguments whether it has a sample axis."""
    flags = jax.tree.map(lambda axis: axis == 0, axes, is_leaf=lambda axis: axis is None)
    try:
        return jax.tree.leaves(jax.tree.broadcast(flags, arguments))
    except ValueError as error:
        raise ValueError(
            "modulate: expected per_sample to be trees like the arguments"
            f" {expect.describe(arguments)}, got {axes!r}. One 0 stands for all arrays of an"
            " argument."
        ) from error


def _share_scalars(arguments: dict[str, Any], inputs: Any, is_own: list[bool]) -> list[bool]:
    """Return `is_own` without scalars in trees of keyword arguments.

    They are as the position of a key-value cache, which all samples have in common.
    """
    shared = (
        (path, jnp.ndim(leaf) == 0 and len(path) > 1 and path[0].key not in inputs)
        for path, leaf in jax.tree.leaves_with_path(arguments)
    )
    return [own and not scalar for own, (_, scalar) in zip(is_own, shared, strict=True)]


def _has_batch(output: Any, own: bool, has_batch: bool) -> bool:
    """Return whether an output has a batch axis: no scalar that all samples have in common has."""
    return has_batch and (own or jnp.ndim(output) > 0)


def _batch_size(arguments: dict[str, Any], is_own: list[bool]) -> int:  # or symbolic, in an export
    """Return the number of samples; raise a ValueError unless all arrays have as many."""
    leaves = zip(jax.tree.leaves_with_path(arguments), is_own, strict=True)
    shapes = {_name(path): jnp.shape(leaf) for (path, leaf), own in leaves if own}
    batch = next(iter(shapes.values()), ())[:1]
    if not batch or any(shape[:1] != batch for shape in shapes.values()):
        raise ValueError(
            "modulate: expected x, and what per_sample names, as arrays [batch, ...] of the same "
            f"samples, got {shapes}. Give each array the sample axis in front."
        )
    return batch[0]


def _keys_of_samples(kwargs: dict[str, Any], batch: int) -> dict[int, Array]:
    """Return a key for each sample in place of every random key, by its place in `kwargs`."""
    keys = {}
    for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(kwargs)):
        shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
        if dtype == jnp.uint32 and shape == _legacy_shape():
            raise ValueError(
                f"modulate: expected random keys of jax.random.key, got {_name(path)} of shape "
                f"{shape} and dtype {dtype}, as jax.random.PRNGKey returns: all samples would draw "
                "the same numbers. Use jax.random.key; if it is data, give it another dtype."
            )
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            if shape and shape[0] != batch:
                raise ValueError(
                    f"modulate: expected {_name(path)} as one random key, or one for each of "
                    f"{batch} samples, got {shape}. Give one key, and it is split."
                )
            keys[i] = leaf if shape else jax.random.split(leaf, batch)
    return keys


def _legacy_shape() -> tuple[int, ...]:
    """Return the shape of a random key that is an ordinary array of uint32."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def _axes_of_outputs(out_axes: Any, y: Any) -> Any:
    """Return, for each output, whether it has a batch axis."""
    has_batch = jax.tree.map(lambda axis: axis == 0, out_axes, is_leaf=lambda axis: axis is None)
    try:
        return jax.tree.broadcast(has_batch, y)
    except ValueError as error:
        raise ValueError(
            "modulate: expected out_axes to be a tree like the outputs of the model,"
            f" {expect.describe(y)}, got {out_axes!r}. A model with state returns (y, state)."
        ) from error


def _result(path: Any, output: Any, own: bool, has_batch: bool) -> Any:
    """Return an output of a batch of one as one for `jax.vmap`."""
    if not has_batch and own:
        raise ValueError(
            f"modulate: expected {_name(path) or 'the output'} to be the same for all samples, as"
            " out_axes says, got one that is computed from each sample or its weights. Take a mean"
            " (or sum, maximum) over samples with jax.lax.pmean and the axis_name of modulate, as"
            " nn.BatchNorm(axis_name=...) does, or return it with a batch axis."
        )
    return _only_row(path, output) if has_batch else output


def _only_row(path: Any, output: Any) -> Any:
    """Return an output of a batch of one without its batch axis."""
    shape = jnp.shape(output)
    if shape[:1] != (1,):
        raise ValueError(
            "modulate: expected every output of the model to have the batch axis in front, "
            f"[1, ...] for a batch of one sample, got {_name(path) or 'one'} of shape {shape}. "
            "A keyword argument that differs between samples belongs in x, or in "
            "modulate(..., per_sample=...). What all samples have in common, such as batch "
            "statistics or a mean over axis_name, has None in modulate(..., out_axes=...)."
        )
    return output[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _checked(
    params: Any, factors: FactorTree, batch: int | None = None
) -> tuple[_Updates, dict[str, Any]]:
    """Return updates, and vmap's in_axes for them; raise a ValueError unless they fit `params`.

    And unless they are for `batch` samples, if that is given.
    """
    leaves = named_leaves(params)
    expect.factors("modulate", factors)
    if unknown := sorted(set(factors) - set(leaves)):
        raise ValueError(
            f"modulate: expected factors for leaves of the parameters, {list(leaves)}, got also "
            f"{unknown}. Was the specification computed from another tree?"
        )
    updates = {path: as_updates(entry) for path, entry in factors.items()}
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct) and not any(
            update.stands_alone for update in updates.get(path, ())
        ):
            raise ValueError(
                f"modulate: {path} has neither weights nor factors. Generate it, or give weights."
            )
    axes = {
        path: tuple(_axes_of(path, leaves[path].shape, update, batch) for update in each)
        for path, each in updates.items()
    }
    return updates, axes


def _axes_of(path: str, shape: tuple[int, ...], update: Update, batch: int | None) -> Any:
    def axis(name: str, part: Any, expected: tuple[int, ...]) -> Any:
        got = factor_shape(part)
        extra = len(got) - len(expected)
        if extra not in (0, 1) or got[extra:] != expected:
            raise ValueError(
                f"modulate: expected {name} of {path} to be of shape {expected}, or with a sample "
                f"axis in front, got {got}. Was it generated for another layer?"
            )
        if extra and batch is not None and got[0] != batch:
            raise ValueError(
                f"modulate: expected {name} of {path} for {batch} samples, as x has, got "
                f"{got[0]}. Leave out the sample axis of factors that all samples share."
            )
        sample_axis: Any = 0 if extra else None
        shared: Any = None
        return (
            Generated(sample_axis, shared, shared) if isinstance(part, Generated) else sample_axis
        )

    return _replaced(
        update,
        {
            name: axis(update.labels.get(name, name), getattr(update, name), expected)
            for name, expected in update.given_shapes(shape).items()
        },
    )


def _replaced(update: Any, fields: dict[str, Any]) -> Any:
    return replace(update, **fields)
