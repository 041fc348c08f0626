"""Models as pure functions: `Network`, and Linen modules as one."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from straw_jax import expect
from straw_jax.factors import named_leaves

Params: TypeAlias = Any


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
        >>> from straw_jax.network import as_network
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
        >>> from straw_jax.network import zeros_like
        >>> zeros_like({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})["x"].tolist()
        [0.0, 0.0]
    """
    expect.sample(where, name, tree)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
