"""Tests: with the own context, with controls in its place, and beside reading the context."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.documents.networks import Params
from straw_experiments.documents.tasks import SHARED, Batch, Needles, Task
from straw_experiments.documents.train import Losses, Trainer, losses, places
from straw_experiments.runner.timing import fastest
from straw_experiments.smollm.model import LlamaConfig, llama
from straw_jax import Factors

CONTROLS = ("own", "other", "mean")
"""Whose weights a query gets: its own context's, another one's, the mean of many contexts'."""

_MEAN = 16  # contexts of training, whose weights are averaged
_TOKENS = 2_048  # that are read at once


class Condition(NamedTuple):
    """A test.

    Attributes:
        length: Tokens of a context.
        facts: In it, of needles.
    """

    length: int
    facts: int | None = None

    @property
    def name(self) -> str:
        """Its key in files of results."""
        return str(self.length) if self.facts is None else f"{self.length}/{self.facts}"

    def draw(self, task: Task, rng: np.random.Generator, n: int, part: str) -> Batch:
        """Draw contexts of this length, and of as many facts, with their queries."""
        facts = {} if self.facts is None else {"facts": self.facts}
        return task.draw(rng, n, part, length=self.length, **facts)


def conditions(task: Task, lengths: Sequence[int], facts: Sequence[int]) -> list[Condition]:
    """List the tests of a task; the first is at the length of training."""
    if not isinstance(task, Needles):
        return [Condition(length) for length in dict.fromkeys([task.length, *lengths])]
    found = [Condition(length, min(facts)) for length in dict.fromkeys([task.length, *lengths])]
    for count in sorted(facts)[1:]:
        if fitting := [length for length in sorted(lengths) if length >= task.least(count)]:
            found.append(Condition(fitting[0], count))
    return [each for each in found if each.facts is None or each.length >= task.least(each.facts)]


def batches(task: Task, condition: Condition, part: str, count: int) -> Iterator[Batch]:
    """Draw the contexts and queries of a test, in batches; always the same ones."""
    rng = np.random.default_rng([SHARED, 1 + (part == "test"), condition.length])
    at_once = max(2, min(16, _TOKENS // condition.length, count))  # two: one has another's weights
    for _ in range(-(-count // at_once)):  # all of one shape, which is compiled once
        yield condition.draw(task, rng, at_once, part)


class Tests:
    """Everything that a trained model is tested for, compiled once for each shape."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

        @jax.jit
        def measured(
            params: Params, weights: Params, batch: Batch, ids: Array, shift: Array
        ) -> Losses:
            adapters = trainer.write(params, weights, batch)
            index = places(adapters, ids, shift)
            logits = trainer.model.apply(weights, adapters, batch.query, index)
            return losses(logits, batch.query, batch.asked)

        @jax.jit
        def with_adapters(weights: Params, adapters: Any, batch: Batch) -> Losses:
            index = jnp.zeros(len(batch.query), jnp.int32)
            logits = trainer.model.apply(weights, adapters, batch.query, index)
            return losses(logits, batch.query, batch.asked)

        self._measured, self._with_adapters = measured, with_adapters
        self._write = jax.jit(trainer.write)

    def own(self, params: Params, drawn: Iterator[Batch], shift: int = 0) -> Losses:
        """Measure with the own context's weights, or those of one `shift` places further on."""
        weights = self.trainer.weights
        return _mean(
            (self._measured(params, weights, batch, batch.ids, jnp.int32(shift)), len(batch.query))
            for batch in drawn
        )

    def mean(self, params: Params, drawn: Iterator[Batch]) -> Losses:
        """Measure with the mean weights of contexts of training."""
        weights, task = self.trainer.weights, self.trainer.task
        rng = np.random.default_rng([SHARED, 3])
        adapters = mean_adapter(
            self._write(params, weights, task.draw(rng, _MEAN, "train", length=task.length))
        )
        return _mean(
            (self._with_adapters(weights, adapters, batch), len(batch.query)) for batch in drawn
        )


def mean_adapter(adapters: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return one adapter whose update is the mean of those of many: their ranks side by side.

    Args:
        adapters: Trees of `Factors`, `B [n, in, r]` and `A [n, r, out]`.

    Returns:
        The same with a first axis of 1, `B [1, in, n * r]` and `A [1, n * r, out]`.
    """

    def mean(each: Any) -> Factors:
        n, rows, rank = each.B.shape
        b = jnp.moveaxis(each.B, 0, 1).reshape(1, rows, n * rank)
        a = each.A.reshape(1, n * rank, each.A.shape[-1]) / n
        return Factors(b, a, each.axes)

    return {path: mean(each) for path, each in adapters.items()}


@functools.cache
def _reader(config: LlamaConfig) -> Callable[..., tuple[Losses, Losses]]:
    @jax.jit
    def measured(weights: Params, batch: Batch, ids: Array) -> tuple[Losses, Losses]:
        alone = llama(config, weights, batch.query)
        whole = jnp.concatenate([batch.context[ids], batch.query], axis=1)
        read = llama(config, weights, whole)[:, batch.context.shape[1] :]
        return losses(alone, batch.query, batch.asked), losses(read, batch.query, batch.asked)

    return measured


def frozen(config: LlamaConfig, weights: Params, drawn: Iterator[Batch]) -> dict[str, Losses]:
    """Measure the language model as it is: without contexts, and with each in its window."""
    found = [(_reader(config)(weights, batch, batch.ids), len(batch.query)) for batch in drawn]
    return {
        way: _mean((measured[place], n) for measured, n in found)
        for place, way in enumerate(("without", "in context"))
    }


def costs(trainer: Trainer, params: Params, condition: Condition) -> dict[str, float]:
    """Measure what writing an adapter costs, and what it saves, for one context of a length.

    Returns:
        Seconds, the least of five: "write" an adapter from a context, a "query" with the adapter,
        one "in context", which reads the context again, and one "without" it. Bytes: "adapter",
        and "cache", the keys and values of the context, which would have to be kept in its place.
    """
    rng = np.random.default_rng([SHARED, 4])
    batch = condition.draw(trainer.task, rng, 2, "test")
    one = Batch(*(each[:1] for each in batch))
    weights, config = trainer.weights, trainer.sizes.llama
    write = jax.jit(trainer.write)
    adapters = jax.block_until_ready(write(params, weights, one))
    apply = jax.jit(trainer.model.apply)
    plain = jax.jit(functools.partial(llama, config))
    whole = np.concatenate([one.context, one.query], axis=1)
    seconds = {
        "write": fastest(lambda: write(params, weights, one)),
        "query": fastest(lambda: apply(weights, adapters, one.query, np.zeros(1, np.int32))),
        "in context": fastest(lambda: plain(weights, whole)),
        "without": fastest(lambda: plain(weights, one.query)),
    }
    kept = jnp.dtype(trainer.sizes.dtype).itemsize
    cache = 2 * config.layers * condition.length * config.kv_heads * config.head * kept
    written = sum(each.nbytes for each in jax.tree.leaves(adapters))
    return {**seconds, "adapter": float(written), "cache": float(cache)}


def test(
    tests: Tests, params: Params, wanted: Sequence[Condition], count: int, reads: bool
) -> dict[str, Any]:
    """Test a trained model.

    Args:
        tests: Of its trainer.
        params: Its parameters.
        wanted: The tests; controls are for the first.
        count: Contexts of each.
        reads: Whether its weights depend on the context.

    Returns:
        By control and test, "nats" and "exact".
    """

    def drawn(condition: Condition) -> Iterator[Batch]:
        return batches(tests.trainer.task, condition, "test", count)

    found = {"own": {each.name: tests.own(params, drawn(each)).plain() for each in wanted}}
    if reads:
        first = wanted[0]
        found["other"] = {first.name: tests.own(params, drawn(first), shift=1).plain()}
        found["mean"] = {first.name: tests.mean(params, drawn(first)).plain()}
    return found


def _mean(parts: Any) -> Losses:
    """Return the mean of measures over batches, weighted by numbers of queries."""
    found = [(np.array(each, np.float64), n) for each, n in parts]
    total = sum(n for _, n in found)
    nats, exact = sum(each * n for each, n in found) / total
    return Losses(nats, exact)
