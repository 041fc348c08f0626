"""Per-sample weights for unmodified model code: `modulate`, and their dense form, `materialize`."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax import expect
from straw_jax.factors import FactorTree, all_axes, matrix_axes, matrix_shape, named_leaves
from straw_jax.geometry import Posed
from straw_jax.lowrank import Factor, Factors, Generated, factor_shape
from straw_jax.program import SAMPLES, SHARED, Origin
from straw_jax.rules import (
    LowRank,
    PosedKernel,
    apply_generated_kernels,
    is_generated,
    is_linear_cast,
)


def modulate(
    apply: Callable[..., Any],
    *,
    scale: float = 1.0,
    allow_materialise: bool = False,
    per_sample: str | Iterable[str] = (),
) -> Callable[..., Any]:
    """Return a version of a model function that takes per-sample weights.

    The model code does not change: where it computes `x @ W` with a generated kernel, the result is
    `x @ W0 + scale * (x @ B) @ A` with the factors of that sample. No array of a kernel's size is
    formed per sample. Where a kernel is `Posed`, the layer's input is resampled first. The function
    is traced, as by `jax.jit`; `straw_jax.rules` lists the supported operations. Weights keep the
    dtypes of `params`, to which factors are cast; integers and 8-bit floats get the factors' dtype.

    Args:
        apply: `(params, x, **kwargs) -> y`, any JAX function that maps a batch to a batch, sample
            by sample; it is called with each sample as a batch of one. Every output has the batch
            axis in front.
        scale: of the low-rank updates (LoRA's alpha / r).
        allow_materialise: form a sample's whole kernel for unsupported operations. By default they
            raise an error that names the leaf.
        per_sample: the names of keyword arguments that have a sample axis in front, as `x` has.

    Returns:
        `modulated(params, factors, x, **kwargs) -> y`. `params` is the argument of `apply`; where a
        leaf is a `jax.ShapeDtypeStruct`, the factors alone are the weights. `factors` is a tree of
        factors as `FactorSpec` describes, each with a sample axis in front or, if shared, without;
        a leaf without factors keeps its weights. `x` is an array `[batch, ...]` or a tree of them.
        Keyword arguments are passed to `apply`, the same for every sample unless `per_sample` names
        them; typed random keys among them are split, one for each sample.

    Raises:
        ValueError: (when called) if factors do not fit the parameters or the samples, a leaf has
            neither weights nor factors, an operation is not supported, a random key is not typed,
            or an output has no batch axis.

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
    names = (per_sample,) if isinstance(per_sample, str) else tuple(per_sample)

    def modulated(params: Any, factors: FactorTree, x: Any, /, **kwargs: Any) -> Any:
        mapped = {name: kwargs.pop(name) for name in names if name in kwargs}
        batch = _batch_size({"x": x, **mapped})
        axes = _sample_axes(params, factors, batch)
        options, treedef = jax.tree.flatten(kwargs)
        keys = _keys_of_samples(kwargs, batch)

        paths = list(named_leaves(params))
        places = [i for i, path in enumerate(paths) if path in factors]

        def one_sample(factors: FactorTree, samples: Any, keys: dict[int, Array]) -> Any:
            weights = _substitute(params, factors, scale, allow_materialise)
            leaves, structure = jax.tree.flatten(weights, is_leaf=is_generated)
            generated = [leaves[i] for i in places]
            drawn = [keys.get(i, leaf) for i, leaf in enumerate(options)]

            def model(generated: list[Array], samples: Any) -> Any:
                every = dict(enumerate(leaves)) | dict(zip(places, generated, strict=True))
                x, own = samples
                return apply(
                    jax.tree.unflatten(structure, every.values()),
                    x,
                    **jax.tree.unflatten(treedef, drawn),
                    **own,
                )

            origins = [
                Origin(path=paths[i], size=math.prod(leaf.shape))
                if jax.tree.leaves(axes[paths[i]]) and not allow_materialise
                else SHARED
                for i, leaf in zip(places, generated, strict=True)
            ]
            origins += [SAMPLES] * len(jax.tree.leaves(samples))
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], samples)
            y = apply_generated_kernels(model, generated, batch_of_one, origins)
            return jax.tree.map_with_path(_only_row, y)

        return jax.vmap(one_sample, in_axes=(axes, 0, 0))(dict(factors), (x, mapped), keys)

    return modulated


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
    if jax.tree.leaves(_sample_axes(params, factors)):
        raise ValueError(
            "materialize: expected the factors of one sample, got factors with a sample axis. "
            "Take one sample of each, or map this function over the axis with jax.vmap."
        )
    weights = _substitute(params, factors, scale, allow_materialise=True)
    return jax.tree.map(
        lambda leaf: leaf.materialise() if is_generated(leaf) else leaf,
        weights,
        is_leaf=is_generated,
    )


def _substitute(params: Any, factors: FactorTree, scale: float, allow_materialise: bool) -> Any:
    """Return `params` with generated kernels in place of leaves; factors have no sample axis."""
    if jnp.ndim(scale):
        raise ValueError(
            f"modulate: expected a scalar scale, got shape {jnp.shape(scale)}. For a scale of each "
            "sample or layer, multiply its A."
        )

    def weight(path: str, leaf: Any) -> Any:
        factor = factors.get(path)
        if isinstance(factor, Posed):
            kernel = updated(path, leaf, factor.update)
            return PosedKernel(kernel, factor.matrix, factor.grid, path, allow_materialise)
        return updated(path, leaf, factor)

    def updated(path: str, leaf: Any, factor: Factors | Array | None) -> Any:
        if factor is None:
            return leaf
        base = None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        if base is not None:
            parts = jax.tree.leaves(factor)
            dtype = base.dtype if is_linear_cast(base.dtype) else jnp.result_type(*parts)
            base, factor = jax.tree.map(lambda part: part.astype(dtype), (base, factor))
        if not isinstance(factor, Factors):
            return _add(base, factor)
        rows, columns = matrix_axes(_axes_of_factors(leaf.shape, factor))
        return LowRank(
            base, factor.B, factor.A, leaf.shape, rows, columns,
            scale, path, allow_materialise,
        )  # fmt: skip

    leaves = [weight(path, leaf) for path, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _batch_size(samples: dict[str, Any]) -> int:  # or symbolic, in an export
    """Return the number of samples; raise a ValueError unless all arrays have as many."""
    shapes = {_name(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(samples)}
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


def _only_row(path: Any, output: Any) -> Any:
    """Return an output of a batch of one without its batch axis."""
    shape = jnp.shape(output)
    if shape[:1] != (1,):
        raise ValueError(
            "modulate: expected every output of the model to have the batch axis in front, "
            f"[1, ...] for a batch of one sample, got {_name(path) or 'one'} of shape {shape}. "
            "A keyword argument that differs between samples belongs in x, or in "
            "modulate(..., per_sample=...); what all samples have in common, such as a mean loss "
            "or batch statistics, is not for one sample to return."
        )
    return output[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _sample_axes(params: Any, factors: FactorTree, batch: int | None = None) -> dict[str, Any]:
    """Return vmap's in_axes for a tree of factors; raise a ValueError unless it fits `params`.

    And unless it is for `batch` samples, if that is given.
    """
    leaves = named_leaves(params)
    expect.factors("modulate", factors)
    if unknown := sorted(set(factors) - set(leaves)):
        raise ValueError(
            f"modulate: expected factors for leaves of the parameters, {list(leaves)}, got also "
            f"{unknown}. Was the specification computed from another tree?"
        )
    for path, leaf in leaves.items():
        factor = factors.get(path)
        written = factor.update if isinstance(factor, Posed) else factor
        if isinstance(leaf, jax.ShapeDtypeStruct) and written is None:
            raise ValueError(
                f"modulate: {path} has neither weights nor factors. Generate it, or give weights."
            )
    return {
        path: _axes_of(path, leaves[path].shape, factor, batch) for path, factor in factors.items()
    }


def _axes_of(
    path: str, shape: tuple[int, ...], factor: Factors | Posed | Array, batch: int | None
) -> Any:
    def axis(name: str, part: Factor, *expected: int) -> Any:
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

    if isinstance(factor, Posed):
        update = None if factor.update is None else _axes_of(path, shape, factor.update, batch)
        return Posed(axis("the pose", factor.matrix, 2, 3), update, factor.grid)
    if not isinstance(factor, Factors):
        return axis("the whole", factor, *shape)
    rank = factor_shape(factor.A)[-2]
    rows, columns = matrix_shape(shape, _axes_of_factors(shape, factor))
    return Factors(axis("B", factor.B, rows, rank), axis("A", factor.A, rank, columns))


def _axes_of_factors(shape: tuple[int, ...], factors: Factors) -> str:
    """Return how a kernel is read as a matrix, inferred from the sizes of its factors."""
    sizes = factor_shape(factors.B)[-2], factor_shape(factors.A)[-1]
    readings = all_axes(len(shape))
    fitting = (axes for axes in readings if matrix_shape(shape, axes) == sizes)
    return next(fitting, readings[0])


def _add(base: Array | None, update: Array) -> Array:
    return update if base is None else base + update
