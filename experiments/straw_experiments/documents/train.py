"""Training: the language model stays as it is, what writes its adapters learns."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from tqdm import tqdm

from straw_experiments.documents.networks import Model, Params, Sizes, trained
from straw_experiments.documents.tasks import SHARED, Batch, Task
from straw_experiments.runner.runs import EpochResult, say
from straw_experiments.runner.state import DeviceTrainer, State, cosine, updated
from straw_experiments.runner.stepped import epochs

_CLIP = 1.0  # the gradient's norm is at most this
_QUIET = 20.0  # seconds at least between two lines of progress
_MEASURED = 16  # texts, from which is measured what ordinary texts look like


class Recipe(NamedTuple):
    """How every model of a study is trained.

    Attributes:
        steps: Of Adam, with gradients of norm 1 at most.
        parts: After each of them the state is saved.
        batch_size: Contexts a step.
        learning_rate: It rises to this in the first tenth of all steps, and falls to 0 along half
            a cosine.
    """

    steps: int
    parts: int
    batch_size: int
    learning_rate: float


class Losses(NamedTuple):
    """What is measured of a batch.

    Attributes:
        nats: Mean of all tokens that are asked for, negative log-likelihood.
        exact: Share of queries of which every token is the most likely one. That is the share
            that greedy generation answers rightly.
    """

    nats: Array
    exact: Array

    def plain(self) -> dict[str, float]:
        """Return them as numbers for JSON."""
        return {name: float(value) for name, value in self._asdict().items()}


def losses(logits: Array, query: Array, asked: Array) -> Losses:
    """Measure logits `[n, time, vocabulary]` of queries, by the tokens that are asked for."""
    logits, targets, asked = logits[:, :-1], query[:, 1:], asked[:, 1:]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (jnp.argmax(logits, axis=-1) == targets) | ~asked
    count = jnp.sum(asked, dtype=nats.dtype)
    exact = jnp.mean(jnp.all(right, axis=1), dtype=jnp.float32)
    return Losses(jnp.sum(nats, where=asked) / count, exact)


def places(adapters: Any, ids: Array, shift: ArrayLike = 0) -> Array:
    """Return the number of each query's adapter.

    Args:
        adapters: One for each context, or one for all.
        ids: Numbers of contexts.
        shift: How many contexts further on, around the end.
    """
    return (ids + shift) % jax.tree.leaves(adapters)[0].shape[0]


class Trainer(DeviceTrainer):
    """A model of adapters, its optimizer, and the frozen language model; compiled on first use.

    Attributes:
        model: What is trained.
        sizes: Of it.
        weights: Those of the language model.
        task: What it is trained for.
        recipe: How.
    """

    def __init__(
        self, name: str, model: Model, sizes: Sizes, weights: Params, task: Task, recipe: Recipe
    ):
        self.model, self.sizes, self.weights = model, sizes, weights
        self.task, self.recipe = task, recipe
        rng = np.random.default_rng([SHARED, 0])
        self._texts = task.draw(rng, _MEASURED, "train", length=task.length).context
        rate = cosine(recipe.learning_rate, recipe.steps)
        optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))
        super().__init__(name, model.init, optimizer)

    def parameters(self) -> int:
        """Count the trained parameters."""
        return trained(self.state_like.variables["params"])

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""
        state = super().init_state(seed)
        # Jitted: each result is an array of its own, which can be donated.
        measure = jax.jit(self.model.measured)
        params = measure(state.variables["params"], self.weights, self._texts)
        return state._replace(variables={"params": params})

    @functools.cached_property
    def step(self) -> Callable[..., tuple[State, Array]]:
        """Compiled step, `(state, weights, batch, ids) -> (state, nats)`; the state is donated."""

        def loss_of(params: Params, weights: Params, batch: Batch, ids: Array) -> Array:
            adapters = self.write(params, weights, batch)
            logits = self.model.apply(weights, adapters, batch.query, places(adapters, ids))
            return losses(logits, batch.query, batch.asked).nats

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: State, weights: Params, batch: Batch, ids: Array) -> tuple[State, Array]:
            params = state.variables["params"]
            loss, gradient = jax.value_and_grad(loss_of)(params, weights, batch, ids)
            params, opt_state = updated(self.optimizer, gradient, state.opt_state, params)
            return State(state.step + 1, {"params": params}, opt_state), loss

        return step

    def write(self, params: Params, weights: Params, batch: Batch) -> Any:
        """Return the adapters of a batch's contexts."""
        context = self.model.read(self.sizes, weights, batch.context, batch.mask)
        return self.model.write(params, context)

    def draw(self, seed: int, step: int) -> Batch:
        """Draw the batch of a step: the same for all models of a study."""
        rng = np.random.default_rng([seed, 1, step])
        return self.task.draw(rng, self.recipe.batch_size, "train")


def train(
    trainer: Trainer, seed: int, title: str, validate: Callable[[Params], Losses]
) -> Callable[[State], Iterator[EpochResult]]:
    """Return what trains a run, as `runs.execute` takes it.

    Args:
        trainer: Of the run.
        seed: Of the run.
        title: Of the run, in messages.
        validate: Measures parameters on validation data.
    """
    recipe = trainer.recipe

    def steps_of(state: State, steps: int) -> tuple[State, float, int]:
        """Take steps one by one, as batches are drawn on the host; say now and then how far."""
        begun = printed = time.perf_counter()
        total, first = 0.0, int(state.step)
        for done in range(1, steps + 1):
            batch = trainer.draw(seed, first + done - 1)
            state, loss = trainer.step(state, trainer.weights, batch, batch.ids)
            if not np.isfinite(nats := float(loss)):
                return state, total / done, done - 1
            total += nats
            if (now := time.perf_counter()) - printed > _QUIET:
                printed = now
                left = (recipe.steps - first - done) * (now - begun) / done
                say(
                    f"{title}: step {first + done}/{recipe.steps}  nats {total / done:.4f}"
                    f"  {tqdm.format_interval(left)} left"
                )
        return state, total / steps, steps

    def from_state(state: State) -> Iterator[EpochResult]:
        return epochs(
            state,
            steps=recipe.steps,
            parts=recipe.parts,
            ready=lambda: steps_of,
            look=lambda params: validate(params).plain(),
            text=lambda found: "validation nats {nats:.4f} exact {exact:.1%}".format(**found),
        )

    return from_state
