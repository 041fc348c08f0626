"""How methods are scored: with their own context, wrong ones, and shorter and longer ones."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from straw_experiments.necessity.tasks import Episodes, Task

Params = Any
Apply = Callable[[Params, Episodes], Array]
"""`(params, episodes) -> predictions [tasks, q, outputs]`."""

TESTED, VALIDATED = 400, 200
"""Tasks of the test, the same for all, and those by which rates are chosen."""

_TESTING, _VALIDATING, _SHUFFLING = 1_000_000_007, 1_000_000_009, 3  # seeds, no run's
_AT_ONCE = 50  # tasks


def validation_tasks(task: Task, data: Any) -> Episodes:
    """Draw the tasks by which rates are chosen."""
    return _drawn(task, data, _VALIDATING, VALIDATED, task.length)


def test_tasks(task: Task, data: Any) -> Episodes:
    """Draw the tasks of the test, with contexts as long as the longest that is tried."""
    return _drawn(task, data, _TESTING, TESTED, lengths(task)[-1])


def lengths(task: Task) -> list[int]:
    """Return the lengths of contexts in the test: parts and twice those of training."""
    parts = (task.length // 8, task.length // 4, task.length // 2)
    return [*(max(1, part) for part in parts), task.length, 2 * task.length]


def _drawn(task: Task, data: Any, seed: int, tasks: int, length: int) -> Episodes:
    draw = jax.jit(partial(task.draw, tasks=tasks, length=length))
    found: Episodes = draw(data, jax.random.key(seed))
    return found


def loss(task: Task, predictions: Array, y: Array) -> Array:
    """Return what is trained for: cross entropy in nats, or the squared error.

    Args:
        task: Says which.
        predictions: `[tasks, q, outputs]`.
        y: Answers, `[tasks, q]` classes or `[tasks, q, 1]` values.
    """
    if task.regression:
        return jnp.mean((predictions - y) ** 2)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(predictions, y))


def figures(task: Task, predictions: Array, y: Array) -> dict[str, Array]:
    """Return "loss", and of classes "accuracy", too."""
    found = {"loss": loss(task, predictions, y)}
    if not task.regression:
        found["accuracy"] = jnp.mean(predictions.argmax(-1) == y, dtype=jnp.float32)
    return found


def contexts(task: Task, episodes: Episodes) -> dict[str, Episodes]:
    """Return the same queries with their own and with wrong contexts.

    Args:
        task: Of the episodes.
        episodes: With contexts of one length.

    Returns:
        "own"; "another task", the next one's; "mixed", each item from another task and none from
        its own: what all tasks share is left; where contexts are labelled "shuffled", labels
        permuted among the items.
    """
    tasks, m = episodes.context_x.shape[:2]
    item = jnp.broadcast_to(jnp.arange(m), (tasks, m))
    own = jnp.broadcast_to(jnp.arange(tasks)[:, None], (tasks, m))

    def taken(rows: Array, labels: Array) -> Episodes:
        """Take item i of task t from task `rows[t, i]`, with the label of item `labels[t, i]`."""
        return episodes._replace(
            context_x=episodes.context_x[rows, item], context_y=episodes.context_y[rows, labels]
        )

    others = (own + 1 + item % max(tasks - 1, 1)) % tasks
    found = {
        "own": episodes,
        "another task": taken((own + 1) % tasks, item),
        "mixed": taken(others, item),
    }
    if task.labelled:
        order = jax.random.uniform(jax.random.key(_SHUFFLING), (tasks, m)).argsort(-1)
        found["shuffled"] = taken(own, order)
    return found


def make_validate(task: Task, apply: Apply) -> Callable[[Params, Episodes], dict[str, Array]]:
    """Make the compiled score of parameters with own contexts: `figures` of some tasks."""

    @jax.jit
    def validate(params: Params, episodes: Episodes) -> dict[str, Array]:
        return figures(task, _predictions(apply, params, episodes), episodes.y)

    return validate


def make_test(task: Task, apply: Apply) -> Callable[[Params, Episodes], Mapping[str, Any]]:
    """Make the compiled test: `(params, test_tasks) -> figures` by context, and by its length.

    All of it is one program. Shorter contexts are the first items of longer ones, with the same
    queries.
    """

    @jax.jit
    def test(params: Params, episodes: Episodes) -> dict[str, Any]:
        def first(count: int) -> Episodes:
            return episodes._replace(
                context_x=episodes.context_x[:, :count], context_y=episodes.context_y[:, :count]
            )

        shown = contexts(task, first(task.length))
        together: Episodes = jax.tree.map(lambda *each: jnp.concatenate(each), *shown.values())
        predictions = jnp.split(_predictions(apply, params, together), len(shown))
        by_context = {
            name: figures(task, of_context, episodes.y)
            for name, of_context in zip(shown, predictions, strict=True)
        }
        by_length = {
            str(count): figures(task, _predictions(apply, params, first(count)), episodes.y)
            if count != task.length
            else by_context["own"]
            for count in lengths(task)
        }
        return {"contexts": by_context, "lengths": by_length}

    return test


def _predictions(apply: Apply, params: Params, episodes: Episodes) -> Array:
    """Return predictions of many tasks, some at a time."""
    tasks = len(episodes.x)
    each = _AT_ONCE if tasks % _AT_ONCE == 0 else tasks
    cut = jax.tree.map(lambda array: array.reshape(-1, each, *array.shape[1:]), episodes)
    found = jax.lax.map(partial(apply, params), cut)
    return found.reshape(tasks, *found.shape[2:])
