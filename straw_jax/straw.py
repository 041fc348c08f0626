"""The composed model: from sample and context over style vector and factors to the executor."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.encoders import ConvEncoder
from straw_jax.factors import (
    Entry,
    FactorSpec,
    FactorTree,
    Rank,
    factor_spec,
    is_kernel,
    named_leaves,
)
from straw_jax.generator import Heads, writer_of
from straw_jax.kernels import Use, uses_of_leaves
from straw_jax.lift import materialize, modulate, take
from straw_jax.lowrank import factor_shape, formed
from straw_jax.network import Network, Params, as_network, linen, zeros_like
from straw_jax.operations import is_linear_cast
from straw_jax.starts import StartName, check_start

Base: TypeAlias = Literal["none", "trained", "frozen"]
Options: TypeAlias = Mapping[str, Any] | None

_INDEX = "number of a context"  # which no argument of an executor is called


@dataclass(frozen=True)
class Straw:
    """A model that generates its executor's weights for each sample, as pure functions.

    `str(straw)` is two tables: what is generated, and the numbers of parameters.

    Attributes:
        spec: which of the executor's leaves are generated.
        init: `(key) -> params`, a dict of "encoder", "generator" (not in `Geometric.straw`) and,
            for base "trained", "executor". For base "frozen" it has the modulator's parameters
            only, to be trained and saved; the functions below take them together with the
            executor's weights, `{**params, "executor": weights}`.
        apply: `(params, x, *, context=x, index=None, **kwargs) -> y`; one context, `[1, ...]`, is
            used for all samples. With `index=ids`, `[n]` whole numbers, each of n samples has the
            context of its number; factors are written once a context (`modulate` has more). Other
            keyword arguments are passed to the executor, with typed random keys among them split,
            one for each sample. An executor with state takes and returns it:
            `(params, x, *, state, **kwargs) -> (y, state)`, and so does `apply_styles`.
            `encoder_kwargs`, `generator_kwargs` and `executor_kwargs` are dicts of keyword
            arguments for one part; the last is for names that are taken, such as an executor's own
            `context`.
        styles: `(params, context, *, encoder_kwargs=None) -> styles`, the style vectors,
            `[batch, style]` or `[batch, tokens, d]`.
        apply_styles: `(params, styles, x, *, index=None, generator_kwargs=None,
            executor_kwargs=None, **kwargs) -> y`, as `apply` with given style vectors: those of
            other samples, a mean, or changed ones; for each sample, or, with a first axis of 1, for
            all.
        apply_factors: `(params, factors, x, *, index=None, executor_kwargs=None, **kwargs) -> y`,
            as `apply` with given factors, as `factors` returns them: write once, use often. One for
            each sample, or of one context, or a bank with `index`.
        factors: `(params, context, *, encoder_kwargs=None, generator_kwargs=None) -> factors`, a
            tree of factors with a sample axis, as `FactorSpec` describes.
        merge: `(params, context, *, encoder_kwargs=None, generator_kwargs=None) -> weights`, the
            executor's ordinary weights for one context (without a sample axis), exact up to
            rounding. Raises a ValueError where the update of a convolution is a pose.
        init_state: `(key) -> state`, the executor's state, which is no parameter; None where it has
            none.

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
        >>> print(straw)
        leaf    shape   rank  dense  generated  ratio
        bias    4      whole      4          4  1.000
        kernel  3x4        2     12         14  1.167
        total                    16         18  1.125
        <BLANKLINE>
        part          parameters
        encoder               20
        executor              16
        generator          3,090
          bias.whole         516
          hidden             768
          kernel.A         1,032
          kernel.B           774
        total              3,126
    """

    spec: FactorSpec
    init: Callable[[Array], Params]
    apply: Callable[..., Any]
    styles: Callable[..., Array]
    apply_styles: Callable[..., Any]
    apply_factors: Callable[..., Any]
    factors: Callable[..., dict[str, Entry]]
    merge: Callable[..., Params]
    init_state: Callable[[Array], Any] | None = None

    def __str__(self) -> str:
        params = jax.eval_shape(self.init, jax.random.key(0))
        rows = [("part", "parameters")]
        for part in params:
            rows.append((part, f"{_numbers(params[part]):,}"))
            if part == "generator":
                rows += [(f"  {name}", f"{_numbers(each):,}") for name, each in
                         params[part].items()]  # fmt: skip
        rows.append(("total", f"{_numbers(params):,}"))
        left, right = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{name.ljust(left)}  {count.rjust(right)}" for name, count in rows]
        return "\n".join([str(self.spec), "", *lines])


def make_straw(
    executor: nn.Module | Network,
    sample: Any,
    *,
    rank: int | Mapping[str, Rank] = 16,
    updates: Mapping[str, Rank] | None = None,
    axes: Mapping[str, str] | None = None,
    base: Base = "none",
    encoder: nn.Module | Network | None = None,
    context: Any = None,
    generator: Callable[..., nn.Module | Network] | nn.Module | Network | None = None,
    hidden: int | None = None,
    start: StartName | None = None,
    scale: float = 1.0,
    allow_materialise: bool = False,
    dtype: DTypeLike | None = None,
    axis_name: str | None = None,
) -> Straw:
    """Compose an encoder, a generator and an executor.

    Computes for each sample `z = encoder(context)`, `factors = generator(z)`, and `y = executor(x)`
    with the weights `W0 + scale * B @ A`, applied in factored form by `modulate`.

    Args:
        executor: an ordinary model, a Linen module or a `Network`.
        sample: an input of the executor, `[n, ...]`; only shapes and dtypes are used.
        rank: of all kernels, or path patterns to ranks, as in `factor_spec`. One rank is for the
            kernels of products, convolutions and look-ups: what the executor only adds to its data,
            such as embeddings of positions, is generated whole. With a frozen base it is for these
            kernels alone: biases and norms stay as they are.
        updates: in place of `rank`: path patterns to kinds of `straw_jax.kinds`, such as
            `{"conv*/kernel": LowRank(4), "fc/kernel": [LowRank(8), Gain()], "norm*/*": Whole()}`.
        axes: path patterns to how kernels are read as matrices, as in `factor_spec`.
        base: "none": the generated weights alone, `W = B @ A`, as in the article's released code;
            all of the executor's leaves must be generated. "trained": `W = W0 + B @ A` with `W0`
            trained too, as in the article's equation; `A` is initialised with 0, so that an
            untrained modulator does not change the executor. "frozen": the same with pretrained
            weights `W0` that the caller passes and that get no gradient: input-conditioned LoRA.
        encoder: from context to style vectors `[batch, style]`, or `[batch, tokens, d]`; by
            default `ConvEncoder()`.
        context: an input of the encoder, `[n, ...]`, if it is not the sample itself.
        generator: from style vectors to factors, by default `Heads`. A function of the
            specification, `(spec, *, start_at_base, start, dtype)`, that returns a Linen module or
            `Network` from styles to a tree of factors: `SharedHeads`, `TokenHeads`, or
            `functools.partial(SharedHeads, hidden=64)`. Or a Linen module (an instance) or
            `Network` from styles to vectors `[batch, size]` of the specification's size, as
            `FactorSpec.unpack` takes them: offsets are added, and with a base that has to be
            unchanged at the start each array that starts at 0 is multiplied by a learned number.
        hidden: length of the default generator's hidden vector; 128, if none is given.
        start: "article": that of the article's code, whatever is written. "plain", recommended for
            new models: activations have about the plain model's standard deviations at every rank,
            and a step of Adam changes weights by about its learning rate. Without a base, mean and
            deviation of each leaf are those of `executor.init`; a vector's numbers are then taken
            as of deviation 1. None: "article" for `Heads`, "plain" for other classes here; vectors
            stay as they are. With a base both leave the untrained executor as it is.
        scale: of the low-rank updates (LoRA's alpha / r).
        allow_materialise: form a sample's whole kernel for unsupported operations, as in
            `modulate`.
        dtype: in which the modulator computes, as in Flax: of style vectors (by the default
            encoder; another has its own), of hidden vectors, factors and whole leaves. Parameters
            stay float32, sums are in float32. The executor gets weights of its parameters' dtype,
            and computes in its own. So for bfloat16 say it to each:
            `make_straw(CNN(dtype=jnp.bfloat16), images, dtype=jnp.bfloat16)`. None: the dtype to
            which inputs and parameters promote.
        axis_name: of the samples' axis, for an executor with statistics over the batch, as in
            `modulate`; see also `linen`.

    Returns:
        Pure functions, see `Straw`.

    Raises:
        ValueError: if the base is unknown, the dtype is not floating, the sample or the context is
            not a batch, ranks or axes do not fit the executor, the encoder's output is not a batch
            of style vectors, a generator's vectors are not of `spec.size` numbers, or the base is
            "none" and a leaf of the executor is not generated; by the functions, if parameters,
            inputs or keys do not fit.

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
    expect.positive("make_straw", hidden=128 if hidden is None else hidden)
    check_start("make_straw", start)
    if hidden is not None and generator is not None:
        raise ValueError(
            "make_straw: expected hidden, of the default generator, or a generator, got both. Give"
            f" it to the generator, as functools.partial(SharedHeads, hidden={hidden})."
        )
    expect.compute_dtype("make_straw", dtype)
    if not expect.is_array(scale) or jnp.ndim(scale):
        expect.finite("make_straw", scale=scale)
    executor = as_network(executor)
    encoder = as_network(ConvEncoder(dtype=dtype) if encoder is None else encoder)
    sample = zeros_like(sample, "make_straw")
    seen = sample if context is None else zeros_like(context, "make_straw", "the context")
    style = _style(encoder, seen)
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), sample))
    chosen = rank if updates is None else updates
    if isinstance(chosen, Mapping):
        spec = factor_spec(shapes, chosen, axes=axes)
    else:
        uses = _uses(executor, shapes, sample, axis_name)
        added = [path for path, use in uses.items() if use.added]
        economical = {path: use.axes for path, use in uses.items() if use.axes}
        spec = factor_spec(
            shapes, chosen, axes={**(axes or {}), **economical}, added=added,
            kernels_alone=base == "frozen",
        )  # fmt: skip
    # A gain or a pose changes weights, and needs some.
    generated = {leaf.path for leaf in spec if any(kind.stands_alone for kind in leaf.kinds)}
    kept = [path for path in named_leaves(shapes) if path not in generated]
    if base == "none" and kept:
        raise ValueError(
            f"make_straw: with base 'none' every leaf must be generated, got no rank for {kept}. "
            "Add patterns for them, or use base 'trained'."
        )
    if base == "none" and start != "article" and (start or generator is not None):
        spec = _measured(spec, executor, sample)
    options: dict[str, Any] = {"start_at_base": base != "none", "start": start, "dtype": dtype}
    if generator is None:
        writer = linen(Heads(spec, 128 if hidden is None else hidden, **options))
    else:
        writer = writer_of(generator, spec, options, style)
    first_state = executor.init_state
    executor_apply = modulate(
        executor.apply,
        scale=scale,
        allow_materialise=allow_materialise,
        axis_name=axis_name,
        out_axes=0 if first_state is None else (0, None),
        index=_INDEX,
    )
    modulator = "encoder", "generator"

    def keys_of_parts(key: Array) -> dict[str, Array]:
        return dict(
            zip(("encoder", "generator", "executor"), jax.random.split(key, 3), strict=True)
        )

    def init(key: Array) -> Params:
        expect.random_key("Straw.init", key)
        keys = keys_of_parts(key)
        params = {
            "encoder": encoder.init(keys["encoder"], seen),
            "generator": writer.init(keys["generator"], zeros_like(style)),
        }
        if base == "trained":
            params["executor"] = executor.init(keys["executor"], sample)
        return params

    def init_state(key: Array) -> Any:
        expect.random_key("Straw.init_state", key)
        return first_state(keys_of_parts(key)["executor"], sample) if first_state else None

    def styles(params: Params, context: Any, *, encoder_kwargs: Options = None) -> Array:
        expect.parts("Straw", params, ("encoder",))
        expect.like("Straw", "the context", context, seen)
        return encoder.apply(params["encoder"], context, **(encoder_kwargs or {}))

    def factors(
        params: Params,
        context: Any,
        *,
        encoder_kwargs: Options = None,
        generator_kwargs: Options = None,
    ) -> dict[str, Entry]:
        expect.parts("Straw", params, modulator)
        read = styles(params, context, encoder_kwargs=encoder_kwargs)
        return formed(writer.apply(params["generator"], read, **(generator_kwargs or {})))

    def in_parameters_dtype(written: dict[str, Entry]) -> dict[str, Entry]:
        """Cast factors to the dtypes of the leaves that they are; `modulate` does, given a base."""
        if base != "none" or dtype is None:
            return written
        leaves = named_leaves(shapes)
        return {
            path: jax.tree.map(lambda part, of=leaves[path].dtype: part.astype(of), factor)
            if is_linear_cast(leaves[path].dtype)
            else factor
            for path, factor in written.items()
        }

    def weights_of(params: Params) -> Params:
        if base == "none":
            return shapes
        if "executor" not in params:
            raise ValueError(
                f"make_straw: expected params with the executor's weights, base {base!r}, got "
                f"{sorted(params)}. Give {{**params, 'executor': weights}}."
            )
        expect.fits(
            "Straw, for the executor",
            named_leaves(shapes),
            named_leaves(params["executor"]),
            "Are they another model's, or wrapped, {'params': weights}?",
        )
        return jax.lax.stop_gradient(params["executor"]) if base == "frozen" else params["executor"]

    def apply_styles(
        params: Params,
        styles: Array,
        x: Any,
        *,
        index: Any = None,
        generator_kwargs: Options = None,
        executor_kwargs: Options = None,
        **kwargs: Any,
    ) -> Any:
        expect.parts("Straw", params, modulator)
        size = expect.like("Straw", "x", x, sample)
        check_styles(styles, size if index is None else None)
        options = _joined(kwargs, executor_kwargs)
        generated = writer.apply(params["generator"], styles, **(generator_kwargs or {}))
        return with_factors(params, generated, x, index, size, options)

    def apply_factors(
        params: Params,
        factors: FactorTree,
        x: Any,
        *,
        index: Any = None,
        executor_kwargs: Options = None,
        **kwargs: Any,
    ) -> Any:
        size = expect.like("Straw", "x", x, sample)
        spec.check(factors)
        return with_factors(params, factors, x, index, size, _joined(kwargs, executor_kwargs))

    def with_factors(
        params: Params, factors: Any, x: Any, index: Any, size: Any, options: dict[str, Any]
    ) -> Any:
        weights = weights_of(params)
        if index is None and of_one(factors) and size != 1:
            factors = take(weights, formed(factors), 0)  # without a sample axis: all share them
        chosen = {} if index is None else {_INDEX: index}
        return executor_apply(weights, in_parameters_dtype(factors), x, **options, **chosen)

    def of_one(factors: Any) -> bool:
        """Return whether factors are those of one context, with an axis in front."""
        leaf = spec.leaves[0]
        name, part = next(iter(leaf.written.items()))
        shape = factor_shape(leaf.disassemble(factors[leaf.path])[name])
        return len(shape) > len(part.shape) and shape[0] == 1

    def apply(
        params: Params,
        x: Any,
        *,
        context: Any = None,
        index: Any = None,
        encoder_kwargs: Options = None,
        **kwargs: Any,
    ) -> Any:
        expect.like("Straw", "x", x, sample)
        if index is not None and context is None:
            raise ValueError(
                "Straw: expected contexts to which the numbers of index belong, got none. Give"
                " context=contexts, of which samples choose."
            )
        seen = x if context is None else context
        read = styles(params, seen, encoder_kwargs=encoder_kwargs)
        return apply_styles(params, read, x, index=index, **kwargs)

    def merge(params: Params, context: Any, **kwargs: Any) -> Params:
        expect.arrays("Straw.merge", "the context", context)
        batch_of_one = jax.tree.map(lambda leaf: leaf[None], context)
        if not expect.same_axes(batch_of_one, seen):
            raise ValueError(
                f"Straw.merge: expected one context, like one of {expect.describe(seen)}, got"
                f" {expect.describe(context)}. Take one of a batch, as context[0]."
            )
        own = take(weights_of(params), factors(params, batch_of_one, **kwargs), 0)
        return materialize(weights_of(params), in_parameters_dtype(own), scale=scale)

    return Straw(
        spec, init, apply, styles, apply_styles, apply_factors, factors, merge,
        init_state if first_state else None,
    )  # fmt: skip


def _numbers(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _joined(kwargs: dict[str, Any], own: Options) -> dict[str, Any]:
    """Return an executor's keyword arguments, given in two ways."""
    if twice := sorted(set(kwargs) & set(own or {})):
        raise ValueError(
            f"Straw: expected each keyword argument of the executor once, got {twice} by name and"
            " in executor_kwargs. Leave one out."
        )
    return kwargs | dict(own or {})


def _measured(spec: FactorSpec, executor: Network, sample: Any) -> FactorSpec:
    """Return a specification with mean and deviation of each leaf in the untrained plain model."""

    def moments(key: Array) -> dict[str, tuple[Array, Array]]:
        leaves = named_leaves(executor.init(key, sample))
        wide = {leaf.path: leaves[leaf.path].astype(jnp.float32) for leaf in spec}
        return {path: (jnp.mean(leaf), jnp.mean(leaf**2)) for path, leaf in wide.items()}

    with jax.ensure_compile_time_eval():  # also where a model is made within jax.jit
        keys = jax.random.split(jax.random.key(0), 4)  # small leaves have few numbers
        found = jax.jit(lambda: jax.lax.map(moments, keys))()
    plain = {}
    for path, (means, squares) in found.items():
        mean = float(means.mean())
        plain[path] = mean, max(float(squares.mean()) - mean**2, 0.0) ** 0.5
    return FactorSpec(tuple(replace(leaf, plain=plain[leaf.path]) for leaf in spec))


def _style(encoder: Network, context: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an encoder's style vectors; raise a `ValueError` if it returns others."""
    styles = jax.eval_shape(
        lambda: encoder.apply(encoder.init(jax.random.key(0), context), context)
    )
    count = jax.tree.leaves(context)[0].shape[0]
    shape: tuple[int, ...] = styles.shape if expect.is_array(styles) else ()
    if len(shape) not in (2, 3) or shape[0] != count or 0 in shape:
        raise ValueError(
            "make_straw: expected an encoder from contexts [n, ...] to style vectors [n, style] or"
            f" [n, tokens, d], got {expect.describe(styles)} for {expect.describe(context)}. If the"
            " sample is one without a batch axis, give sample[None]."
        )
    return styles


def _uses(executor: Network, shapes: Params, sample: Any, axis_name: str | None) -> dict[str, Use]:
    """Return how an executor uses its leaves, by path."""
    leaves = named_leaves(shapes)
    kernels = {path: leaf for path, leaf in leaves.items() if is_kernel(path, leaf)}
    matrices = all(len(leaf.shape) in (2, 4) for leaf in kernels.values())
    if matrices and all(path.split("/")[-1] == "kernel" for path in kernels):
        return {}  # as in most Linen modules: no need to trace them
    try:
        uses = uses_of_leaves(_without_state(executor, sample, axis_name), shapes, sample)
    except Exception:
        # A model may need arguments that only its calls have, and then raises anything. Its kernels
        # are those of `factor_spec`, by name and axes; the call tells what does not fit.
        return {}
    return dict(zip(leaves, uses, strict=True))


def _without_state(executor: Network, sample: Any, axis_name: str | None) -> Callable[..., Any]:
    """Return a model's function with its first state, and a name for its samples' axis."""
    first = executor.init_state
    state = jax.eval_shape(lambda: first(jax.random.key(0), sample)) if first else None
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    apply = partial(executor.apply, state=zeros) if first else executor.apply
    if axis_name is None:
        return apply
    one = partial(jax.vmap, in_axes=(None, 0), axis_name=axis_name)
    return lambda params, x: one(apply)(params, jax.tree.map(lambda leaf: leaf[None], x))


def check_styles(styles: Array, count: Any) -> None:
    """Raise a ValueError unless style vectors are one for each sample, or one for all.

    Args:
        styles: `[count, style]`, or `[1, style]` for all samples.
        count: number of samples; None where samples choose among any number.

    Raises:
        ValueError: if there are others.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.straw import check_styles
        >>> check_styles(jnp.ones((1, 5)), 3)
    """
    expect.arrays("Straw", "style vectors", styles)
    fits = styles.ndim in (2, 3) and (count is None or styles.shape[0] in (1, count))
    if not fits:
        raise ValueError(
            "Straw: expected a context or style vector for each sample of x, or one for all,"
            f" [{count}, ...] or [1, ...], got style vectors {expect.describe(styles)}. For several"
            " samples of each of several contexts give index=ids; for the weights of one context,"
            " use merge."
        )


def for_each_sample(styles: Array, count: Any) -> Array:
    """Return style vectors with one for each sample.

    Args:
        styles: `[count, style]`, or `[1, style]` for all samples; or `[..., tokens, d]`.
        count: number of samples.

    Returns:
        `[count, style]`, or `[count, tokens, d]`.

    Raises:
        ValueError: if there are others.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.straw import for_each_sample
        >>> for_each_sample(jnp.ones((1, 5)), 3).shape
        (3, 5)
    """
    check_styles(styles, count)
    if styles.shape[0] == count:
        return styles
    return jnp.broadcast_to(styles, (count, *styles.shape[1:]))
