"""The composition: sample, context, style, factors, executor."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_jax.encoders import ConvEncoder
from straw_jax.factors import FactorSpec, Rank, Update, factor_spec, named_leaves
from straw_jax.generator import Generator
from straw_jax.lift import materialize, modulate
from straw_jax.lowrank import Factors, form

Params: TypeAlias = Any
Base: TypeAlias = Literal["none", "trained", "frozen"]


class Network(NamedTuple):
    """A model as two pure functions.

    Attributes:
        init: `(key, x) -> params`, any tree of arrays.
        apply: `(params, x, **kwargs) -> y`, batch to batch, sample by sample.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class Straw(NamedTuple):
    """A model that writes its executor's weights anew for every sample: pure functions.

    Attributes:
        spec: which of the executor's leaves are generated.
        init: `(key) -> params`, a dict of "encoder", "generator" (none in `Geometric.straw`) and,
            where the base is "trained", "executor". Where it is "frozen", these are the
            modulator's alone, to be trained and saved; the functions below take them with the
            executor's weights, `{**params, "executor": weights}`.
        apply: `(params, x, *, context=x, **kwargs) -> y`; keyword arguments go to the executor,
            typed random keys among them split over the samples.
        styles: `(params, context) -> [batch, style]`, the style vectors.
        apply_styles: `(params, styles, x, **kwargs) -> y`, as `apply` with style vectors that the
            caller gives: another sample's, a mean, or changed ones.
        factors: `(params, context) -> factors` by path, each with a sample axis, as `FactorSpec`
            describes.
        merge: `(params, context) -> weights`, the executor's ordinary weights for one context,
            given without an axis of samples; exact to rounding. Refused where a convolution is
            posed.
    """

    spec: FactorSpec
    init: Callable[[Array], Params]
    apply: Callable[..., Any]
    styles: Callable[[Params, Any], Array]
    apply_styles: Callable[..., Any]
    factors: Callable[[Params, Any], dict[str, Update]]
    merge: Callable[[Params, Any], Params]


def linen(module: nn.Module) -> Network:
    """Return a Linen module as a `Network` of its parameters alone.

    Raises:
        ValueError: (by `init`) if the module has state besides parameters, such as batch
            statistics: state cannot differ from sample to sample.
    """

    def init(key: Array, x: Any) -> Params:
        variables = module.init(key, x)
        if state := sorted(set(variables) - {"params"}):
            raise ValueError(
                f"linen: expected {type(module).__name__} to have parameters only, got also "
                f"{state}. Use layers without state (such as GroupNorm for BatchNorm)."
            )
        return variables["params"]

    def apply(params: Params, x: Any, **kwargs: Any) -> Any:
        return module.apply({"params": params}, x, **kwargs)

    return Network(init, apply)


def make_straw(
    executor: nn.Module | Network,
    sample: Any,
    *,
    rank: int | Mapping[str, Rank] = 16,
    axes: Mapping[str, str] | None = None,
    base: Base = "none",
    encoder: nn.Module | Network | None = None,
    context: Any = None,
    hidden: int = 128,
    scale: float = 1.0,
    fused: bool = False,
) -> Straw:
    """Compose an encoder, a generator and an executor.

    For each sample, `z = encoder(context)`, `factors = generator(z)`, and `y = executor(x)` with
    weights `W0 + scale * B @ A`, applied in factored form by `modulate`.

    Args:
        executor: an ordinary model that knows nothing of this.
        sample: an input of the executor, `[n, ...]`; only shapes and dtypes are used.
        rank: of all kernels, or path patterns to ranks, as in `factor_spec`.
        axes: path patterns to how kernels are read as matrices, as in `factor_spec`.
        base: "none": weights are the generated ones alone, `W = B @ A`, as in the article's
            released code; all of the executor's leaves must be generated. "trained":
            `W = W0 + B @ A` with `W0` trained too, as in the article's equation; the untrained
            modulator starts with `A = 0` and leaves the executor as it is. "frozen": the same
            with weights `W0` that the caller brings, of a pretrained executor, and no gradient
            reaches them: LoRA, conditioned on the input.
        encoder: from context to style vectors `[batch, style]`; by default `ConvEncoder()`.
        context: what the encoder looks at, `[n, ...]`, if not the sample itself.
        hidden: length of the generator's hidden vector.
        scale: of the low-rank updates (LoRA's alpha / r).
        fused: apply generated factors with the Pallas kernel of `straw_jax.fused`; off by default
            since it has not been timed on a GPU or TPU. Such a model has no `save_exported`.

    Returns:
        Pure functions, see `Straw`.

    Raises:
        ValueError: if the base is unknown, ranks or axes do not fit the executor, or the base is
            "none" and a leaf of the executor is not generated.

    References:
        The STRAW article, "The Pipeline"; Hu et al., "LoRA" (2021), for the frozen base.
    """
    if base not in get_args(Base):
        raise ValueError(f"make_straw: expected a base of {get_args(Base)}, got {base!r}.")
    executor = as_network(executor)
    encoder = as_network(ConvEncoder() if encoder is None else encoder)
    sample = zeros_like(sample)
    context = sample if context is None else zeros_like(context)
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    spec = factor_spec(shapes, rank, axes=axes)
    generated = {leaf.path for leaf in spec if leaf.rank != "pose"}  # a pose keeps the weights
    kept = [path for path in named_leaves(shapes) if path not in generated]
    if base == "none" and kept:
        raise ValueError(
            f"make_straw: with base 'none' every leaf must be generated, got no rank for {kept}. "
            "Add patterns for them, or use base 'trained'."
        )
    generator = linen(Generator(spec, hidden=hidden, start_at_base=base != "none"))
    executor_apply = modulate(executor.apply, scale=scale, fused=fused)

    def init(key: Array) -> Params:
        keys = dict(
            zip(("encoder", "generator", "executor"), jax.random.split(key, 3), strict=True)
        )
        params = {"encoder": encoder.init(keys["encoder"], context)}
        style = encoder.apply(params["encoder"], context)
        params["generator"] = generator.init(keys["generator"], style)
        if base == "trained":
            params["executor"] = executor.init(keys["executor"], sample)
        return params

    def styles(params: Params, context: Any) -> Array:
        return encoder.apply(params["encoder"], context)

    def factors(params: Params, context: Any) -> dict[str, Update]:
        generated = generator.apply(params["generator"], styles(params, context))
        return {
            path: Factors(form(factor.B), form(factor.A)) if isinstance(factor, Factors) else factor
            for path, factor in generated.items()
        }

    def weights_of(params: Params) -> Params:
        if base == "none":
            return shapes
        if "executor" not in params:
            raise ValueError(
                f"make_straw: expected params with the executor's weights, base {base!r}, got "
                f"{sorted(params)}. Give {{**params, 'executor': weights}}."
            )
        return jax.lax.stop_gradient(params["executor"]) if base == "frozen" else params["executor"]

    def apply_styles(params: Params, styles: Array, x: Any, **kwargs: Any) -> Any:
        generated = generator.apply(params["generator"], styles)
        return executor_apply(weights_of(params), generated, x, **kwargs)

    def apply(params: Params, x: Any, *, context: Any = None, **kwargs: Any) -> Any:
        return apply_styles(params, styles(params, x if context is None else context), x, **kwargs)

    def merge(params: Params, context: Any) -> Params:
        written = factors(params, jax.tree.map(lambda leaf: leaf[None], context))
        own = jax.tree.map(lambda leaf: leaf[0], written)
        return materialize(weights_of(params), own, scale=scale)

    return Straw(spec, init, apply, styles, apply_styles, factors, merge)


def as_network(model: nn.Module | Network) -> Network:
    """Return a Linen module as a `Network`, and a `Network` as it is."""
    return linen(model) if isinstance(model, nn.Module) else model


def zeros_like(tree: Any) -> Any:
    """Return a tree of zeros for one of arrays or their shapes."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
