"""Factors through unmodified model code.

A leaf of the parameters becomes a `LowRank` array, which quax carries through any JAX function:
matrix products and convolutions meet the factors, everything else meets an error.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import quax
from jax import Array, lax
from jax.typing import DTypeLike

from straw_jax.factors import FactorTree, named_leaves
from straw_jax.lowrank import (
    ConvGeometry,
    Factor,
    Factors,
    Generated,
    factor_shape,
    form,
    lowrank_conv,
    lowrank_dot,
)


class LowRank(quax.ArrayValue):
    """A kernel `base + scale * B @ A` that model code may use as an array of `kernel_shape`.

    Attributes:
        base: `[*rows, out]`, or None.
        B: `[prod(rows), r]`.
        A: `[r, out]`.
        scale: of the update.
        kernel_shape: `(*rows, out)`.
        path: the leaf's name, for errors.
        allow_materialise: whether an operation without a factored form may form the kernel.
        fused: whether to apply `Generated` factors with the kernel of `straw_jax.fused`.
    """

    base: Array | None
    B: Factor
    A: Factor
    scale: float = eqx.field(static=True)
    kernel_shape: tuple[int, ...] = eqx.field(static=True)
    path: str = eqx.field(static=True)
    allow_materialise: bool = eqx.field(static=True)
    fused: bool = eqx.field(static=True, default=False)

    def aval(self) -> jax.core.ShapedArray:
        """Return the shape and dtype that model code sees."""
        dtype = jnp.result_type(*jax.tree.leaves(self.A))
        return jax.core.ShapedArray(self.kernel_shape, dtype)

    def materialise(self) -> Array:
        """Return the kernel as an ordinary array, if that is allowed."""
        return self.materialise_for("this operation")

    def materialise_for(self, operation: str) -> Array:
        """Return the kernel as an ordinary array for an operation, if that is allowed."""
        if not self.allow_materialise:
            raise ValueError(
                f"{self.path}: {operation} has no factored form, it would need the whole kernel "
                f"{self.kernel_shape} of every sample. Use the kernel in a matrix product or an "
                "ungrouped channels-last convolution, generate no factors for this leaf, or call "
                "modulate(..., allow_materialise=True)."
            )
        update = self.scale * (form(self.B) @ form(self.A))
        return _add(self.base, update.reshape(self.kernel_shape))

    @staticmethod
    def default(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> Any:
        """Run an operation that has no rule below on whole kernels, if that is allowed."""
        arrays = [
            value.materialise_for(f"the operation '{primitive}'")
            if isinstance(value, LowRank)
            else value
            for value in values
        ]
        return primitive.bind(*arrays, **params)


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
        that all samples share; a leaf without factors keeps its weights. `x` is an array
        `[batch, ...]` or a tree of them. Keyword arguments go to `apply` as they are; typed random
        keys among them are split, so that every sample draws its own noise.

    Raises:
        ValueError: (when called) if factors do not fit the parameters, a leaf has neither weights
            nor factors, or an operation would have to form a kernel.

    References:
        The STRAW article, "The Adaptive Forward Pass".
    """

    def modulated(params: Any, factors: FactorTree, x: Any, /, **kwargs: Any) -> Any:
        axes = _sample_axes(params, factors)
        batch = jax.tree.leaves(x)[0].shape[0]  # not len: it may be symbolic, in an export
        options, treedef = jax.tree.flatten(kwargs)
        keys = {i: _split(leaf, batch) for i, leaf in enumerate(options) if _is_key(leaf)}

        def one_sample(factors: FactorTree, x: Any, keys: dict[int, Array]) -> Any:
            weights = _substitute(params, factors, scale, allow_materialise, fused)
            drawn = [keys.get(i, leaf) for i, leaf in enumerate(options)]
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], x)
            y = quax.quaxify(apply)(weights, batch_of_one, **jax.tree.unflatten(treedef, drawn))
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
        ValueError: if factors do not fit the parameters, or have a sample axis.
    """
    if jax.tree.leaves(_sample_axes(params, factors)):
        raise ValueError(
            "materialize: expected the factors of one sample, got factors with a sample axis. "
            "Take one sample of each, or map this function over the axis with jax.vmap."
        )
    weights = _substitute(params, factors, scale, allow_materialise=True)
    return jax.tree.map(
        lambda leaf: leaf.materialise() if isinstance(leaf, LowRank) else leaf,
        weights,
        is_leaf=lambda leaf: isinstance(leaf, LowRank),
    )


def _substitute(
    params: Any, factors: FactorTree, scale: float, allow_materialise: bool, fused: bool = False
) -> Any:
    """Return `params` with factors in the place of leaves; factors have no sample axis."""

    def weight(path: str, leaf: Any) -> Any:
        if path not in factors:
            return leaf
        factor, base = factors[path], None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        if not isinstance(factor, Factors):
            return _add(base, factor)
        return LowRank(base, factor.B, factor.A, scale, leaf.shape, path, allow_materialise, fused)

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
        if isinstance(leaf, jax.ShapeDtypeStruct) and path not in factors:
            raise ValueError(
                f"modulate: {path} has neither weights nor factors. Generate it, or give weights."
            )
    return {path: _axes_of(path, leaves[path].shape, factor) for path, factor in factors.items()}


def _axes_of(path: str, shape: tuple[int, ...], factor: Factors | Array) -> Any:
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

    if not isinstance(factor, Factors):
        return axis("the whole", factor, *shape)
    rank = factor_shape(factor.A)[-2]
    rows = math.prod(shape[:-1])
    return Factors(axis("B", factor.B, rows, rank), axis("A", factor.A, rank, shape[-1]))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _split(key: Array, batch: int) -> Array:
    return jax.random.split(key, batch) if key.ndim == 0 else key


def _add(base: Array | None, update: Array) -> Array:
    return update if base is None else base + update


# Rules. Inside them, arrays have no sample axis: `jax.vmap` has it.


@quax.register(lax.dot_general_p)
def _(x: Array | np.ndarray, weight: LowRank, **params: Any) -> Array:
    (x_axes, weight_axes), batch_axes = params["dimension_numbers"]
    y = None if any(batch_axes) else _contract(x, x_axes, weight, weight_axes, params)
    if y is not None:
        return y
    return lax.dot_general_p.bind(x, weight.materialise_for(_describe(weight_axes)), **params)


@quax.register(lax.dot_general_p)
def _(weight: LowRank, x: Array | np.ndarray, **params: Any) -> Array:
    (weight_axes, x_axes), batch_axes = params["dimension_numbers"]
    y = None if any(batch_axes) else _contract(x, x_axes, weight, weight_axes, params)
    if y is None:
        return lax.dot_general_p.bind(weight.materialise_for(_describe(weight_axes)), x, **params)
    free = weight.ndim - len(weight_axes)  # a product's left operand comes first in its result
    return jnp.moveaxis(y, range(y.ndim - free, y.ndim), range(free))


@quax.register(lax.conv_general_dilated_p)
def _(x: Array | np.ndarray, weight: LowRank, **params: Any) -> Array:
    layout = params["dimension_numbers"]
    last = weight.ndim - 1
    channels_last = (0, last, *range(1, last))
    kernel_layout = (last, last - 1, *range(last - 1))
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    if not plain or layout != (channels_last, kernel_layout, channels_last):
        operation = "a convolution that is grouped or not channels-last"
        return lax.conv_general_dilated_p.bind(x, weight.materialise_for(operation), **params)
    geometry = ConvGeometry(
        window=weight.shape[:-2],
        strides=params["window_strides"],
        pads=params["padding"],
        dilation=params["rhs_dilation"],
        input_dilation=params["lhs_dilation"],
    )
    y = lowrank_conv(
        jnp.asarray(x), weight.B, weight.A, weight.base, geometry,
        scale=weight.scale, precision=params["precision"], fused=weight.fused,
    )  # fmt: skip
    return y.astype(params["preferred_element_type"] or x.dtype)


@quax.register(lax.convert_element_type_p)
def _(weight: LowRank, *, new_dtype: DTypeLike, **params: Any) -> LowRank:
    return jax.tree.map(lambda part: part.astype(new_dtype), weight)


@quax.register(lax.transpose_p)
def _(weight: LowRank, *, permutation: tuple[int, ...]) -> LowRank | Array:
    if weight.ndim != 2:
        return lax.transpose(weight.materialise_for("a transposition"), permutation)
    base, B, A = _transposed(weight)
    return LowRank(
        base, B, A, weight.scale, weight.shape[::-1], weight.path, weight.allow_materialise
    )


def _contract(
    x: Array | np.ndarray,
    x_axes: Sequence[int],
    weight: LowRank,
    weight_axes: Sequence[int],
    params: dict[str, Any],
) -> Array | None:
    """Contract `x` with a kernel's rows, or columns: `[*free of x, *free of weight]`.

    None where the contraction is over neither: it has no factored form.
    """
    *rows, columns = weight.shape
    size = math.prod(rows)
    base = None if weight.base is None else weight.base.reshape(size, columns)
    if sorted(weight_axes) == list(range(len(rows))):
        B, A, free = weight.B, weight.A, [columns]
    elif tuple(weight_axes) == (len(rows),):
        (base, B, A), free = _transposed(weight), rows
    else:
        return None
    order = [axis for _, axis in sorted(zip(weight_axes, x_axes, strict=True))]
    x = jnp.moveaxis(x, order, range(-len(order), 0))
    x = x.reshape(*x.shape[: x.ndim - len(order)], math.prod(x.shape[x.ndim - len(order) :]))
    y = lowrank_dot(
        x, B, A, base, scale=weight.scale, precision=params["precision"], fused=weight.fused
    )
    y = y.astype(params["preferred_element_type"] or x.dtype)
    return y.reshape(*x.shape[:-1], *free)


def _transposed(weight: LowRank) -> tuple[Array | None, Array, Array]:
    """Return base, B and A of the transposed matrix: `(B @ A).T == A.T @ B.T`."""
    size = math.prod(weight.shape[:-1])
    base = None if weight.base is None else weight.base.reshape(size, -1).T
    return base, form(weight.A).T, form(weight.B).T


def _describe(weight_axes: Sequence[int]) -> str:
    return f"a contraction with axes {tuple(weight_axes)} of it alone"
