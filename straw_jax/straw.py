"""The composed model: from sample and context over style vector and factors to the executor."""

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

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import Network
        >>> model = Network(
        ...     init=lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], 4))},
        ...     apply=lambda params, x: x @ params["W"],
        ... )
        >>> x = jnp.ones((8, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (8, 4)
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class Straw(NamedTuple):
    """A model that generates its executor's weights for each sample, as pure functions.

    Attributes:
        spec: which of the executor's leaves are generated.
        init: `(key) -> params`, a dict of "encoder", "generator" (not in `Geometric.straw`) and,
            for base "trained", "executor". For base "frozen" it has the modulator's parameters
            only, to be trained and saved; the functions below take them together with the
            executor's weights, `{**params, "executor": weights}`.
        apply: `(params, x, *, context=x, **kwargs) -> y`; keyword arguments are passed to the
            executor, with typed random keys among them split, one for each sample.
        styles: `(params, context) -> [batch, style]`, the style vectors.
        apply_styles: `(params, styles, x, **kwargs) -> y`, as `apply` with given style vectors:
            those of other samples, a mean, or changed ones.
        factors: `(params, context) -> factors`, a tree of factors with a sample axis, as
            `FactorSpec` describes.
        merge: `(params, context) -> weights`, the executor's ordinary weights for one context
            (without a sample axis), exact up to rounding. Raises a ValueError where the update of a
            convolution is a pose.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax import make_straw
        >>> x = jnp.ones((8, 3))
        >>> straw = make_straw(nn.Dense(4), x, rank=2, base="trained", encoder=nn.Dense(5))
        >>> params = jax.jit(straw.init)(jax.random.key(0))
        >>> straw.styles(params, x).shape, straw.factors(params, x)["kernel"].B.shape
        ((8, 5), (8, 3, 2))
        >>> straw.merge(params, x[0])["kernel"].shape
        (3, 4)
    """

    spec: FactorSpec
    init: Callable[[Array], Params]
    apply: Callable[..., Any]
    styles: Callable[[Params, Any], Array]
    apply_styles: Callable[..., Any]
    factors: Callable[[Params, Any], dict[str, Update]]
    merge: Callable[[Params, Any], Params]


def linen(module: nn.Module) -> Network:
    """Return a Linen module as a `Network` of its parameters.

    Args:
        module: without state besides parameters.

    Returns:
        Its `init` and `apply` as pure functions of the collection "params".

    Raises:
        ValueError: (by `init`) if the module has other state, such as batch statistics: state
            cannot differ from sample to sample.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax import linen
        >>> model = linen(nn.Dense(4))
        >>> params = model.init(jax.random.key(0), jnp.ones((8, 3)))
        >>> sorted(params)
        ['bias', 'kernel']
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

    Computes for each sample `z = encoder(context)`, `factors = generator(z)`, and `y = executor(x)`
    with the weights `W0 + scale * B @ A`, applied in factored form by `modulate`.

    Args:
        executor: an ordinary model, a Linen module or a `Network`.
        sample: an input of the executor, `[n, ...]`; only shapes and dtypes are used.
        rank: of all kernels, or path patterns to ranks, as in `factor_spec`.
        axes: path patterns to how kernels are read as matrices, as in `factor_spec`.
        base: "none": the generated weights alone, `W = B @ A`, as in the article's released code;
            all of the executor's leaves must be generated. "trained": `W = W0 + B @ A` with `W0`
            trained too, as in the article's equation; `A` is initialised with 0, so that an
            untrained modulator does not change the executor. "frozen": the same with pretrained
            weights `W0` that the caller passes and that get no gradient: input-conditioned LoRA.
        encoder: from context to style vectors `[batch, style]`; by default `ConvEncoder()`.
        context: an input of the encoder, `[n, ...]`, if it is not the sample itself.
        hidden: length of the generator's hidden vector.
        scale: of the low-rank updates (LoRA's alpha / r).
        fused: apply generated factors with the Pallas kernel of `straw_jax.fused`; off by default
            since it has not been timed on a GPU or TPU. `save_exported` cannot export such a model.

    Returns:
        Pure functions, see `Straw`.

    Raises:
        ValueError: if the base is unknown, ranks or axes do not fit the executor, or the base is
            "none" and a leaf of the executor is not generated.

    References:
        The STRAW article, "The Pipeline"; Hu et al., "LoRA" (2021), for the frozen base.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import CompactCNN, NormEncoder, make_straw
        >>> images = jnp.ones((2, 8, 8, 1))
        >>> executor = CompactCNN(classes=10, stages=((8,),))
        >>> straw = make_straw(executor, images, rank=4, base="trained", encoder=NormEncoder())
        >>> params = jax.jit(straw.init)(jax.random.key(0))
        >>> jax.jit(straw.apply)(params, images).shape
        (2, 10)
    """
    if base not in get_args(Base):
        raise ValueError(f"make_straw: expected a base of {get_args(Base)}, got {base!r}.")
    executor = as_network(executor)
    encoder = as_network(ConvEncoder() if encoder is None else encoder)
    sample = zeros_like(sample)
    context = sample if context is None else zeros_like(context)
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    spec = factor_spec(shapes, rank, axes=axes)
    generated = {leaf.path for leaf in spec if leaf.rank != "pose"}  # a pose needs base weights
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
        batch_of_one = factors(params, jax.tree.map(lambda leaf: leaf[None], context))
        own = jax.tree.map(lambda leaf: leaf[0], batch_of_one)
        return materialize(weights_of(params), own, scale=scale)

    return Straw(spec, init, apply, styles, apply_styles, factors, merge)


def as_network(model: nn.Module | Network) -> Network:
    """Return a model as a `Network`.

    Args:
        model: a Linen module, or a `Network`, which is returned as it is.

    Returns:
        The model's pure functions.

    Example:
        >>> from flax import linen as nn
        >>> from straw_jax.straw import as_network
        >>> as_network(nn.Dense(4))._fields
        ('init', 'apply')
    """
    return linen(model) if isinstance(model, nn.Module) else model


def zeros_like(tree: Any) -> Any:
    """Return a tree of zeros.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Zeros of the same shapes and dtypes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.straw import zeros_like
        >>> zeros_like({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})["x"].tolist()
        [0.0, 0.0]
    """
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
