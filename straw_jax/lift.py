"""Factors through unmodified model code: `modulate`, and what factors stand for, `materialize`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax.factors import FactorTree, all_axes, matrix_axes, matrix_shape, named_leaves
from straw_jax.geometry import Posed
from straw_jax.lowrank import Factor, Factors, FusedApply, Generated, factor_shape
from straw_jax.rules import LowRank, PosedKernel, apply_generated_kernels, is_generated


def modulate(
    apply: Callable[..., Any],
    *,
    scale: float = 1.0,
    allow_materialise: bool = False,
    fused: bool = False,
) -> Callable[..., Any]:
    """Turn a model function into one whose weights differ from sample to sample.

    The function is not changed: where it uses a generated kernel, `x @ W` becomes
    `x @ W0 + scale * (x @ B) @ A` of that sample. Nothing of a kernel's size is formed per sample.
    Where a kernel is `Posed`, its layer sees `x` resampled first. The function is traced, as by
    `jax.jit`; `straw_jax.rules` has what it may do with a kernel.

    Args:
        apply: `(params, x, **kwargs) -> y`, any JAX function that maps a batch to a batch sample by
            sample; each sample is handed to it as a batch of one.
        scale: of the low-rank updates (LoRA's alpha / r).
        allow_materialise: form a sample's whole kernel for operations without a factored form,
            where otherwise an error names the layer.
        fused: apply `Generated` factors with the Pallas kernel of `straw_jax.fused`; off by default
            since it has not been timed on a GPU or TPU. Such a model has no `save_exported`.

    Returns:
        `modulated(params, factors, x, **kwargs) -> y`. `params` is what `apply` takes; a leaf given
        as `jax.ShapeDtypeStruct` has no base weights: its factors alone are the weights. `factors`
        maps paths to factors, as `FactorSpec` says, with a sample axis in front of each or of none
        that all samples share, or to `Posed` updates; a leaf without factors keeps its weights. `x`
        is an array
        `[batch, ...]` or a tree of them. Keyword arguments go to `apply` as they are; typed random
        keys among them are split, so that every sample draws its own noise.

    Raises:
        ValueError: (when called) if factors do not fit the parameters, a leaf has neither weights
            nor factors, or an operation would have to form a kernel.

    References:
        The STRAW article, "The Adaptive Forward Pass".
    """
    kernel: FusedApply | None = None
    if fused:
        # Only here, so that users of plain products do not wait for Pallas to be imported.
        from straw_jax.fused import apply_generated as kernel

    def modulated(params: Any, factors: FactorTree, x: Any, /, **kwargs: Any) -> Any:
        axes = _sample_axes(params, factors)
        batch = jax.tree.leaves(x)[0].shape[0]  # not len: it may be symbolic, in an export
        options, treedef = jax.tree.flatten(kwargs)
        keys = {i: _split(leaf, batch) for i, leaf in enumerate(options) if _is_key(leaf)}

        def one_sample(factors: FactorTree, x: Any, keys: dict[int, Array]) -> Any:
            weights = _substitute(params, factors, scale, allow_materialise, kernel)
            leaves, structure = jax.tree.flatten(weights, is_leaf=is_generated)
            drawn = [keys.get(i, leaf) for i, leaf in enumerate(options)]
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], x)

            def model(kernels: list[Array]) -> Any:
                substitutes = iter(kernels)
                params = [next(substitutes) if is_generated(leaf) else leaf for leaf in leaves]
                return apply(
                    jax.tree.unflatten(structure, params),
                    batch_of_one,
                    **jax.tree.unflatten(treedef, drawn),
                )

            y = apply_generated_kernels(model, [leaf for leaf in leaves if is_generated(leaf)])
            return jax.tree.map(lambda leaf: leaf[0], y)

        return jax.vmap(one_sample, in_axes=(axes, 0, 0))(dict(factors), x, keys)

    return modulated


def materialize(params: Any, factors: FactorTree, *, scale: float = 1.0) -> Any:
    """Return the ordinary weights that factors stand for.

    For looking at what a modulator wrote, and for fixing one context's weights for good.

    Args:
        params: as for `modulate`.
        factors: as for `modulate`, all without a sample axis.
        scale: of the low-rank updates.

    Returns:
        The parameter tree with every update added; exact to rounding.

    Raises:
        ValueError: if factors do not fit the parameters, or have a sample axis, or a convolution is
            `Posed`: no kernel of a convolution computes what it does.
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


def _substitute(
    params: Any,
    factors: FactorTree,
    scale: float,
    allow_materialise: bool,
    fused: FusedApply | None = None,
) -> Any:
    """Return `params` with factors in the place of leaves; factors have no sample axis."""

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
        if not isinstance(factor, Factors):
            return _add(base, factor)
        rows, columns = matrix_axes(_axes_of_factors(leaf.shape, factor))
        return LowRank(
            base, factor.B, factor.A, leaf.shape, rows, columns,
            scale, path, allow_materialise, fused,
        )  # fmt: skip

    leaves = [weight(path, leaf) for path, leaf in named_leaves(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _sample_axes(params: Any, factors: FactorTree) -> dict[str, Any]:
    """Return vmap's in_axes for a tree of factors that fits `params`, or raise a ValueError."""
    leaves = named_leaves(params)
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
    return {path: _axes_of(path, leaves[path].shape, factor) for path, factor in factors.items()}


def _axes_of(path: str, shape: tuple[int, ...], factor: Factors | Posed | Array) -> Any:
    def axis(name: str, part: Factor, *expected: int) -> Any:
        got = factor_shape(part)
        extra = len(got) - len(expected)
        if extra not in (0, 1) or got[extra:] != expected:
            raise ValueError(
                f"modulate: expected {name} of {path} to be of shape {expected}, or with a sample "
                f"axis in front, got {got}. Was it generated for another layer?"
            )
        sample_axis: Any = 0 if extra else None
        shared: Any = None
        return (
            Generated(sample_axis, shared, shared) if isinstance(part, Generated) else sample_axis
        )

    if isinstance(factor, Posed):
        update = None if factor.update is None else _axes_of(path, shape, factor.update)
        return Posed(axis("the pose", factor.matrix, 2, 3), update, factor.grid)
    if not isinstance(factor, Factors):
        return axis("the whole", factor, *shape)
    rank = factor_shape(factor.A)[-2]
    rows, columns = matrix_shape(shape, _axes_of_factors(shape, factor))
    return Factors(axis("B", factor.B, rows, rank), axis("A", factor.A, rank, columns))


def _axes_of_factors(shape: tuple[int, ...], factors: Factors) -> str:
    """Return which of a kernel's axes are whose, as the sizes of its factors tell."""
    sizes = factor_shape(factors.B)[-2], factor_shape(factors.A)[-1]
    readings = all_axes(len(shape))
    fitting = (axes for axes in readings if matrix_shape(shape, axes) == sizes)
    return next(fitting, readings[0])


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _split(key: Array, batch: int) -> Array:
    return jax.random.split(key, batch) if key.ndim == 0 else key


def _add(base: Array | None, update: Array) -> Array:
    return update if base is None else base + update
