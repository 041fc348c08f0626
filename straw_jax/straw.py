"""The composed model: from sample and context over style vector and factors to the executor."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
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
from straw_jax.factors import Entry, FactorSpec, Rank, factor_spec, is_kernel, named_leaves
from straw_jax.generator import Heads, StartName, cast, check_start, finished, shared_init
from straw_jax.kernels import Use, uses_of_leaves
from straw_jax.kinds import Start
from straw_jax.lift import materialize, modulate, take
from straw_jax.lowrank import accumulator_dtype, formed
from straw_jax.operations import is_linear_cast

Params: TypeAlias = Any
Base: TypeAlias = Literal["none", "trained", "frozen"]
Options: TypeAlias = Mapping[str, Any] | None


@dataclass(frozen=True)
class Network:
    """A model as two pure functions.

    Attributes:
        init: `(key, x) -> params`, any tree of arrays.
        apply: `(params, x, **kwargs) -> y`, batch to batch, sample by sample. With state, it is
            `(params, x, *, state, **kwargs) -> (y, state)`.
        init_state: `(key, x) -> state`, any tree of arrays that all samples have in common, such as
            running statistics; None for a model without state.

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
    init_state: Callable[..., Any] | None = None


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
        apply: `(params, x, *, context=x, **kwargs) -> y`; one context, `[1, ...]`, is used for all
            samples. Keyword arguments are passed to the executor, with typed random keys among them
            split, one for each sample. An executor with state takes and returns it:
            `(params, x, *, state, **kwargs) -> (y, state)`, and so does `apply_styles`.
            `encoder_kwargs`, `generator_kwargs` and `executor_kwargs` are dicts of keyword
            arguments for one part; the last is for names that are taken, such as an executor's own
            `context`.
        styles: `(params, context, *, encoder_kwargs=None) -> styles`, the style vectors,
            `[batch, style]` or `[batch, tokens, d]`.
        apply_styles: `(params, styles, x, *, generator_kwargs=None, executor_kwargs=None, **kwargs)
            -> y`, as `apply` with given style vectors: those of other samples, a mean, or changed
            ones; for each sample, or, with a first axis of 1, for all.
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


def linen(module: nn.Module, *, mutable: Sequence[str] = (), **defaults: Any) -> Network:
    """Return a Linen module as a `Network` of its parameters, and of its state if it has any.

    State is apart from parameters, as it is neither generated nor trained. It goes in and out of
    each call, in training and in evaluation: `y, state = apply(params, x, state=state)`.

    Args:
        module: with the collection "params", and those in `mutable`.
        mutable: collections of state that calls read and may change, as in Linen's `apply`, such as
            `["batch_stats"]`. All samples have them in common: for statistics over the batch give
            `nn.BatchNorm(axis_name="batch")`, and `make_straw` or `modulate` the same name.
        **defaults: keyword arguments of the module's call, such as `train=False`, for `init` and,
            where it is not given others, for `apply`.

    Returns:
        Its `init` and `apply` as pure functions of the collection "params", and with `mutable` of
        `state`, a dict of these collections.

    Raises:
        ValueError: if the module needs more arguments than an input and these, or `mutable` is not
            of collections of state; by `init`, if it has other state than that; by `apply`, if
            parameters or state do not fit the module and its input.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax import linen
        >>> model = linen(nn.Dense(4))
        >>> params = model.init(jax.random.key(0), jnp.ones((8, 3)))
        >>> sorted(params)
        ['bias', 'kernel']

        With state:

        >>> norm = linen(nn.BatchNorm(use_running_average=False), mutable=["batch_stats"])
        >>> params, state = (f(jax.random.key(0), jnp.ones((8, 3))) for f in (norm.init,
        ...                                                                   norm.init_state))
        >>> y, state = norm.apply(params, jnp.ones((8, 3)), state=state)
        >>> round(float(state["batch_stats"]["mean"][0]), 6)
        0.01
    """
    name = type(module).__name__
    if not isinstance(mutable, list | tuple) or not all(isinstance(each, str) for each in mutable):
        raise ValueError(
            "linen: expected mutable to be a list of collections of state, as ['batch_stats'], got"
            f" {mutable!r}. What a call sows is asked of that call, apply(..., mutable=...)."
        )
    if "params" in mutable:
        raise ValueError(
            "linen: expected mutable to be collections of state, as ['batch_stats'], got 'params'"
            " among them, which are the parameters. Leave it out."
        )
    collections = tuple(mutable)
    try:
        inspect.signature(module.__call__).bind(None, **defaults)
    except TypeError as error:
        raise ValueError(
            f"linen: expected {name} to be called with an input and {sorted(defaults)}, got a call"
            f" that does not fit ({error}). Give its other arguments by name, as in"
            " linen(module, train=False)."
        ) from error

    def variables(key: Array, x: Any) -> Any:
        with expect.flax_errors(name):
            found = module.init(key, x, **defaults)
        if state := sorted(set(found) - {"params", *collections}):
            raise ValueError(
                f"linen: expected {name} to have parameters only"
                f"{f', and {list(collections)}' * bool(collections)}, got also {state}. Name them,"
                f" linen(module, mutable={[*collections, *state]}), or use layers without state"
                " (such as GroupNorm for BatchNorm)."
            )
        return found

    def init(key: Array, x: Any) -> Params:
        return variables(key, x).get("params", {})

    def init_state(key: Array, x: Any) -> Any:
        found = variables(key, x)
        return {each: found.get(each, {}) for each in collections}

    def apply(params: Params, x: Any, **kwargs: Any) -> Any:
        with expect.flax_errors(name, lambda: _check_parameters(module, params, x, defaults)):
            return module.apply({"params": params}, x, **(defaults | kwargs))

    def apply_with_state(params: Params, x: Any, *, state: Any = None, **kwargs: Any) -> Any:
        if "mutable" in kwargs or not isinstance(state, Mapping) or set(state) != set(collections):
            got = "mutable too" if "mutable" in kwargs else expect.describe(state)
            raise ValueError(
                f"linen: expected a call of {name} with state=..., a dict of {list(collections)}, "
                f"got {got}. The first one is that of init_state; a call returns (y, state), and"
                " which collections it may change is said once, linen(module, mutable=...)."
            )
        with expect.flax_errors(name, lambda: _check_parameters(module, params, x, defaults)):
            y, updates = module.apply(
                {"params": params, **state}, x, mutable=list(collections), **(defaults | kwargs)
            )
        updated = {**state, **updates}
        after, before = (
            {path: jnp.shape(leaf) for path, leaf in named_leaves(tree).items()}
            for tree in (updated, state)
        )
        if after != before:
            raise ValueError(
                f"linen: expected the state of {name} to be {expect.describe(updated)}, got"
                f" {expect.describe(state)}. The first state is that of init_state."
            )
        return y, updated

    if collections:
        return Network(init, apply_with_state, init_state)
    return Network(init, apply)


def _check_parameters(module: nn.Module, params: Any, x: Any, defaults: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the first leaf that does not fit a module and its input."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with expect.flax_errors(type(module).__name__):
        variables = jax.eval_shape(lambda x: module.init(keys, x, **defaults), x)
    expect.fits(
        f"{type(module).__name__}, for an input {expect.describe(x)}",
        named_leaves(variables.get("params", {})),
        named_leaves(params),
        "Were they made for another size of input, rank or model, or wrapped in 'params'?",
    )


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
        writer = _writer(generator, spec, options, style)
    first_state = executor.init_state
    executor_apply = modulate(
        executor.apply,
        scale=scale,
        allow_materialise=allow_materialise,
        axis_name=axis_name,
        out_axes=0 if first_state is None else (0, None),
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
        generator_kwargs: Options = None,
        executor_kwargs: Options = None,
        **kwargs: Any,
    ) -> Any:
        expect.parts("Straw", params, modulator)
        size = expect.like("Straw", "x", x, sample)
        options = _joined(kwargs, executor_kwargs)
        given = for_each_sample(styles, size)
        generated = writer.apply(params["generator"], given, **(generator_kwargs or {}))
        return executor_apply(weights_of(params), in_parameters_dtype(generated), x, **options)

    def apply(
        params: Params,
        x: Any,
        *,
        context: Any = None,
        encoder_kwargs: Options = None,
        **kwargs: Any,
    ) -> Any:
        expect.like("Straw", "x", x, sample)
        seen = x if context is None else context
        read = styles(params, seen, encoder_kwargs=encoder_kwargs)
        return apply_styles(params, read, x, **kwargs)

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
        spec, init, apply, styles, apply_styles, factors, merge, init_state if first_state else None
    )


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


def _writer(
    generator: Any, spec: FactorSpec, options: dict[str, Any], style: jax.ShapeDtypeStruct
) -> Network:
    """Return a generator as a `Network` from styles to a tree of factors."""
    if isinstance(generator, nn.Module | Network):
        return _of_vectors(as_network(generator), spec, style, **options)
    if not callable(generator):
        raise ValueError(
            "make_straw: expected a generator, a function of the specification such as SharedHeads,"
            f" a Linen module (an instance) or a Network, got {expect.describe(generator)}."
        )
    writer = as_network(generator(spec, **options))
    written = jax.eval_shape(
        lambda: writer.apply(writer.init(jax.random.key(0), zeros_like(style)), zeros_like(style))
    )
    spec.check(written)
    return writer


def _of_vectors(
    network: Network,
    spec: FactorSpec,
    style: jax.ShapeDtypeStruct,
    *,
    start_at_base: bool,
    start: StartName | None,
    dtype: DTypeLike | None,
) -> Network:
    """Return a network from styles to vectors as one to a tree of factors."""
    vectors = jax.eval_shape(
        lambda: network.apply(network.init(jax.random.key(0), zeros_like(style)), zeros_like(style))
    )
    if not expect.is_array(vectors) or vectors.shape != (style.shape[0], spec.size):
        raise ValueError(
            f"make_straw: expected a generator from styles {expect.describe(style)} to vectors"
            f" [{style.shape[0]}, {spec.size}], got {expect.describe(vectors)}. Its last layer has"
            " spec.size outputs, factor_spec(params, ranks).size; a class that takes the"
            " specification is given as it is, generator=SharedHeads."
        )
    starts = {
        f"{leaf.path}/{name}": each
        if start == "plain"
        else Start(1.0, zero=part.always_zero or (start_at_base and part.zero))
        for leaf in spec
        for own in (leaf.starts(start_at_base),)
        for name, part in leaf.written.items()
        for each in (own[name],)
    }
    shared = {f"{leaf.path}/{name}": (leaf, name, part) for leaf in spec
              for name, part in leaf.shared.items()}  # fmt: skip

    def init(key: Array, z: Any) -> Params:
        keys = jax.random.split(key, len(shared) + 1)
        return {
            "network": network.init(keys[0], z),
            # What starts at 0 is multiplied by a number that does: a network's first vectors may
            # not all be 0, or nothing would learn.
            "gates": {path: jnp.zeros(()) for path, each in starts.items() if each.zero},
            "shared": {
                path: shared_init(
                    part, leaf.starts(start_at_base)[name] if start == "plain" else None,
                    start_at_base,
                )(own, part.shape)
                for own, (path, (leaf, name, part)) in zip(keys[1:], shared.items(), strict=True)
            },
        }  # fmt: skip

    def apply(params: Params, z: Array, **kwargs: Any) -> dict[str, Entry]:
        vector = network.apply(params["network"], z, **kwargs)
        entries, end = {}, 0
        for leaf in spec:
            parts = {name: cast(params["shared"][f"{leaf.path}/{name}"], dtype) for name in
                     leaf.shared}  # fmt: skip
            for name, part in leaf.written.items():
                path = f"{leaf.path}/{name}"
                numbers = vector[:, end : (end := end + math.prod(part.shape))]
                own = numbers.dtype if dtype is None else dtype
                numbers = numbers.astype(accumulator_dtype(own) if part.exact else own)
                if path in params["gates"]:
                    numbers = numbers * params["gates"][path].astype(numbers.dtype)
                parts[name] = finished(numbers, part, starts[path])
            entries[leaf.path] = leaf.assemble(parts)
        return entries

    return Network(init, apply)


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
    expect.arrays("Straw", "style vectors", styles)
    if styles.ndim not in (2, 3) or styles.shape[0] not in (1, count):
        raise ValueError(
            "Straw: expected a context or style vector for each sample of x, or one for all,"
            f" [{count}, ...] or [1, ...], got style vectors {expect.describe(styles)}. For the"
            " weights of one context, use merge."
        )
    if styles.shape[0] == count:
        return styles
    return jnp.broadcast_to(styles, (count, *styles.shape[1:]))


def as_network(model: nn.Module | Network) -> Network:
    """Return a model as a `Network`.

    Args:
        model: a Linen module, or a `Network`, which is returned as it is.

    Returns:
        The model's pure functions.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.straw import as_network
        >>> params = as_network(nn.Dense(4)).init(jax.random.key(0), jnp.ones((8, 3)))
        >>> params["kernel"].shape
        (3, 4)
    """
    if isinstance(model, nn.Module):
        return linen(model)
    if not isinstance(model, Network):
        raise ValueError(
            "Network: expected a Linen module (an instance) or a Network, got"
            f" {expect.describe(model)}. Any other model is Network(init, apply)."
        )
    return model


def zeros_like(tree: Any, where: str = "zeros_like", name: str = "the sample") -> Any:
    """Return a batch of zeros.

    Args:
        tree: of arrays or `jax.ShapeDtypeStruct`, `[n, ...]` each.
        where: the function, for errors.
        name: of its argument, for errors.

    Returns:
        Zeros of the same shapes and dtypes.

    Raises:
        ValueError: if it is not a batch of at least one sample.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.straw import zeros_like
        >>> zeros_like({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})["x"].tolist()
        [0.0, 0.0]
    """
    expect.sample(where, name, tree)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
