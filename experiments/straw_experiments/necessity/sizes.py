"""How large methods are made, so that parameters and multiply-adds are the same for all."""

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from straw_experiments.necessity.tasks import Task


class Sizes(NamedTuple):
    """The whole numbers that a method is built of.

    Attributes:
        hidden: Of the executor's two hidden layers.
        encoder: Width of what reads the items of a context.
        style: Length of a style vector, and of the generator's hidden vector.
        rank: Of updates; or the number of templates, of attention's keys, or of gradient steps.
    """

    hidden: int
    encoder: int
    style: int
    rank: int


class Budget(NamedTuple):
    """What methods may use.

    Attributes:
        parameters: That are trained.
        multiply_adds: Of a query, when its context has been read.
    """

    parameters: int
    multiply_adds: int


class Costs(NamedTuple):
    """What a method uses.

    Attributes:
        parameters: That are trained.
        multiply_adds: Of one query more.
        context: Multiply-adds of a context of the usual length.
    """

    parameters: int
    multiply_adds: int
    context: int


BUDGETS = {"small": Budget(60_000, 17_500), "large": Budget(600_000, 175_000)}
"""By size."""

_STYLES = (64, 32, 16, 8)  # lengths to choose from
_READERS = 2  # units of an encoder for each number of a style, at least
_RANKS: dict[str, tuple[int, int]] = {  # of the small size, and of the large one
    "low_rank": (2, 4),
    "shared_low_rank": (16, 32),
    "mixture": (2, 2),
    "weight_rnn": (2, 4),
    "attention": (16, 32),
    "gradient": (3, 3),
}
_WIDEST = 4_096


def multiply_adds_of(name: str, task: "Task", sizes: Sizes) -> int:
    """Return the multiply-adds of a query, from a formula; `counts` counts them.

    Args:
        name: Of a method, not "neighbours".
        task: What it is for.
        sizes: Of the method.
    """
    hidden = sizes.hidden
    own = {
        "pooled": sizes.style * hidden,
        "attention": 2 * sizes.rank * (hidden + task.length),
    }
    return hidden * (task.inputs + hidden + task.outputs) + own.get(name, 0)


@functools.cache
def sized(name: str, task: "Task", size: str) -> Sizes:
    """Return sizes with which a method has the parameters and multiply-adds of a budget.

    First the hidden layers, by multiply-adds of a query; then what reads the context, by
    parameters, with the longest style that leaves an encoder of twice its width.

    Args:
        name: Of a method that applies to the task.
        task: What it is for.
        size: "small" or "large".

    Raises:
        ValueError: The executor alone is larger than the budget.
    """
    budget = BUDGETS[size]
    rank = _RANKS.get(name, (0, 0))[size == "large"]
    if name == "neighbours":
        return Sizes(0, 0, 0, 0)
    if name == "static_wide":
        return _nearest(
            [Sizes(hidden, 0, 0, 0) for hidden in range(1, _WIDEST)],
            lambda sizes: parameters_of_static(task, sizes.hidden) - budget.parameters,
        )
    found = None
    for style in _STYLES:
        sizes = _nearest(
            [Sizes(hidden, 0, style, rank) for hidden in range(1, _WIDEST)],
            lambda sizes: multiply_adds_of(name, task, sizes) - budget.multiply_adds,
        )
        if name in ("static", "gradient"):
            return sizes._replace(style=0)
        found = _with_encoder(name, task, sizes, budget.parameters)
        if found and found.encoder >= _READERS * style:
            return found
        if name in ("delta", "attention"):  # without a style
            break
    if found is None:
        raise ValueError(
            f"sized: expected {name} to fit into {budget.parameters:,} parameters on {task.name},"
            " got more without an encoder. Give it a lower rank."
        )
    return found


def parameters_of_static(task: "Task", hidden: int) -> int:
    """Return the parameters of the executor."""
    return hidden * (task.inputs + hidden + task.outputs + 2) + task.outputs


def _nearest(choices: list[Sizes], excess: Any) -> Sizes:
    return min(choices, key=lambda sizes: abs(excess(sizes)))


def _with_encoder(name: str, task: "Task", sizes: Sizes, parameters: int) -> Sizes | None:
    """Return sizes with the encoder that fits best, or None if there is no room for any."""
    # A polynomial of the width, of degree 2.
    one, two, three = (_parameters(name, task, sizes._replace(encoder=n)) for n in (1, 2, 3))
    if one > parameters:
        return None
    steady, curved = two - one, three - 2 * two + one

    def at(width: int) -> int:
        return one + (width - 1) * steady + (width - 1) * (width - 2) // 2 * curved

    return _nearest(
        [sizes._replace(encoder=n) for n in range(1, _WIDEST)],
        lambda sizes: at(sizes.encoder) - parameters,
    )


def counts(name: str, task: "Task", sizes: Sizes) -> Costs:
    """Count what a method uses; nothing is computed.

    Args:
        name: Of a method.
        task: What it is for.
        sizes: Of the method.
    """
    from straw_jax.costs import multiply_adds

    method = _built(name, task, sizes)
    some, more = (_example(task, queries) for queries in (task.queries, 2 * task.queries))
    params = _params(method, some)
    few, many = (multiply_adds(method.apply, params, episodes) for episodes in (some, more))
    query = (many - few) // task.queries
    return Costs(_numbers(params), query, few - task.queries * query)


def _parameters(name: str, task: "Task", sizes: Sizes) -> int:
    return _numbers(_params(_built(name, task, sizes), _example(task, task.queries)))


def _built(name: str, task: "Task", sizes: Sizes) -> Any:
    from straw_experiments.necessity.models import METHODS

    return METHODS[name].build(task, sizes)


def _params(method: Any, episodes: Any) -> Any:
    import jax

    return jax.eval_shape(method.init, jax.random.key(0), episodes)


def _numbers(params: Any) -> int:
    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _example(task: "Task", queries: int) -> Any:
    """Return the shapes of one task."""
    import jax
    import jax.numpy as jnp

    from straw_experiments.necessity.tasks import Episodes

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    y = array(1, queries, 1) if task.regression else array(1, queries, dtype=jnp.int32)
    return Episodes(
        array(1, task.length, task.inputs), array(1, task.length, task.outputs),
        array(1, queries, task.inputs), y,
    )  # fmt: skip
