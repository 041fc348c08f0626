"""How methods are trained, each step on tasks that no other step sees, and at which rate."""

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from straw_experiments.necessity import evaluate
from straw_experiments.necessity.tasks import Episodes, Task
from straw_experiments.runner import lock, records, runs
from straw_experiments.runner.runs import EpochResult, FinalResult, NonFiniteError, Run
from straw_experiments.runner.settings import listed
from straw_experiments.runner.state import (
    DeviceTrainer,
    State,
    Variables,
    repeated,
    training_key,
    updated,
)
from straw_experiments.runner.stepped import epochs

_PARTS = 3  # of training: after each its state is saved
_CHOOSING = 2**32 - 1  # seed of the runs by which rates are chosen, beyond those of all runs
_SHARE = 3  # such runs are of one in as many steps
_LOSS = "loss.json"  # of a rate that was tried
_WAIT = 0.5  # seconds, for another process that tries a rate


class Recipe(NamedTuple):
    """How every run of a study is trained.

    Attributes:
        steps: Of Adam, with gradients clipped at norm 1.
        batch_size: New tasks a step.
        rates: Learning rates, one of which is chosen.
    """

    steps: int
    batch_size: int
    rates: tuple[float, ...]


class Sampled(NamedTuple):
    """What a task's runs are trained on, validated by, and tested on."""

    training: Any
    validation: Episodes
    test: Episodes


def share_of_rate(step: Array, steps: Array) -> Array:
    """Return by what a rate is multiplied: `runner.state.cosine`, with a number of steps to come.

    Args:
        step: int32 [], from 0.
        steps: int32 [], of the whole training.
    """
    rise = (steps + 9) // 10
    # As a schedule of Optax, it is for one step more than the rise at least.
    fallen = jnp.clip((step - rise) / jnp.maximum(steps - rise, 1), 0.0, 1.0)
    return jnp.where(step < rise, step / rise, (1 + jnp.cos(math.pi * fallen)) / 2)


def _adam(rate: float | Array) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


class Trainer(DeviceTrainer):
    """A method on a task, compiled once for all seeds and rates.

    Attributes:
        task: What it is trained for.
        sampled: From the study; shared by all methods.
        trained: Whether it has parameters.
    """

    def __init__(self, name: str, task: Task, method: Any, recipe: Recipe, sampled: Sampled):
        self.task, self.method, self.recipe, self.sampled = task, method, recipe, sampled
        example = jax.tree.map(lambda array: array[:2], sampled.validation)
        shapes = jax.eval_shape(method.init, jax.random.key(0), example)
        self.trained = bool(jax.tree.leaves(shapes))

        def init(key: Array) -> Any:
            # A checkpoint holds at least one array.
            return method.init(key, example) if self.trained else {"none": jnp.zeros(1)}

        super().__init__(name, init, _adam(0.0))

    @property
    def steps(self) -> int:
        """Of the training; one, where nothing is trained."""
        return self.recipe.steps if self.trained else 1

    @functools.cached_property
    def train_steps(self) -> Callable[..., tuple[State, Array, Array]]:
        """Compiled steps: `(state, count, key, rate, steps) -> (state, mean loss, finite ones)`.

        The rate is that of `share_of_rate` 1, and the steps are those of the whole training. The
        state is donated.
        """
        task, data = self.task, self.sampled.training

        @jax.value_and_grad
        def loss(params: Any, episodes: Episodes) -> Array:
            return evaluate.loss(task, self.method.apply(params, episodes), episodes.y)

        def step(state: State, key: Array, rate: Array, steps: Array, data: Any) -> Any:
            key = jax.random.fold_in(key, state.step)
            episodes = task.draw(data, key, self.recipe.batch_size)
            params = state.variables["params"]
            found, gradient = loss(params, episodes)
            optimizer = _adam(rate * share_of_rate(state.step, steps))
            params, opt_state = updated(optimizer, gradient, state.opt_state, params)
            return State(state.step + 1, {"params": params}, opt_state), found

        def shaped(count: int, key: Array, rate: float, steps: int) -> tuple[Any, ...]:
            return jnp.int32(count), key, jnp.float32(rate), jnp.int32(steps), data

        steps_of: Any = repeated(step)
        compiled = steps_of.lower(self.state_like, *shaped(0, training_key(0), 0.0, 0)).compile()
        return lambda state, *rest: compiled(state, *shaped(*rest))

    @functools.cached_property
    def _validate(self) -> Callable[[Any, Episodes], dict[str, Array]]:
        return evaluate.make_validate(self.task, self.method.apply)

    @functools.cached_property
    def _test(self) -> Callable[[Any, Episodes], Any]:
        return evaluate.make_test(self.task, self.method.apply)

    def validate(self, params: Any) -> dict[str, float]:
        """Score parameters on the validation tasks."""
        found = self._validate(params, self.sampled.validation)
        return {name: float(value) for name, value in found.items()}

    def test(self, params: Any) -> Any:
        """Score parameters on the test tasks, as `evaluate.make_test`."""
        return jax.tree.map(float, self._test(params, self.sampled.test))


def chosen_rate(trainer: Trainer, folder: Path, seed: int) -> tuple[float, dict[str, float | None]]:
    """Choose the rate with which a method is trained on a task.

    Each rate is tried once, for a third of the steps, with a seed that no run has. What it gave is
    stored, so that other runs of the cell, now or later, in this process or in another, read it.

    Args:
        trainer: Of the method on the task.
        folder: For the record of each rate.
        seed: Of the run, which gets no rate with which it diverged before.

    Returns:
        The rate, and the validation loss of each one that was tried, None where it diverged.

    Raises:
        NonFiniteError: All diverged.
    """
    rates = trainer.recipe.rates
    if len(rates) == 1 or not trainer.trained:
        return rates[0], {}
    paths = {rate: _folder(trainer, folder, rate) / _LOSS for rate in rates}
    waiting = list(rates)
    while waiting:
        for rate in list(waiting):
            try:
                with lock.held(paths[rate].parent):
                    if not records.is_made(paths[rate]):
                        records.write_json(paths[rate], {"loss": _tried(trainer, rate)})
            except lock.LockedError:
                continue
            waiting.remove(rate)
        if waiting:
            time.sleep(_WAIT)
    found = {rate: records.read_json(path)["loss"] for rate, path in paths.items()}
    finite = {
        rate: value
        for rate, value in found.items()
        if value is not None and not records.is_made(_failure(trainer, folder, rate, seed))
    }
    if not finite:
        raise NonFiniteError(
            f"{trainer.name}: training diverges at each rate of {listed(list(rates))}; give lower"
            " --rates, with another --out"
        )
    by_name = {f"{rate:g}": value for rate, value in found.items()}
    return min(finite, key=lambda rate: finite[rate]), by_name


def _folder(trainer: Trainer, folder: Path, rate: float) -> Path:
    return folder / f"{trainer.name}-{rate:g}"


def _failure(trainer: Trainer, folder: Path, rate: float, seed: int) -> Path:
    """Return the record of a run that diverged later than its rate was tried."""
    return _folder(trainer, folder, rate) / f"diverged-seed{seed}.json"


def _tried(trainer: Trainer, rate: float) -> float | None:
    """Return the validation loss after a third of the steps, None where training diverges."""
    runs.say(f"{trainer.name}: trying the rate {rate:g}, compiling")
    steps = -(-trainer.steps // _SHARE)
    state, key = trainer.init_state(_CHOOSING), training_key(_CHOOSING)
    state, _, finite = trainer.train_steps(state, steps, key, rate, steps)
    loss = trainer.validate(state.variables["params"])["loss"]
    sound = int(finite) == steps and math.isfinite(loss)
    runs.say(f"{trainer.name}: rate {rate:g}: {f'loss {loss:.4f}' if sound else 'diverged'}")
    return loss if sound else None


def train_and_test(run: Run[Trainer], folder: Path) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done; where it diverges, at a next rate.

    Args:
        run: New, stopped at any point, or finished.
        folder: For the records of rates.

    Returns:
        As `runs.execute`; "rate", "rates" that were tried, and "test".

    Raises:
        NonFiniteError: Training diverged at each rate.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer = run.trainer
    while True:
        rate, tried = (0.0, {}) if run.is_tested() else chosen_rate(trainer, folder, run.seed)
        try:
            return _at_rate(run, rate, tried)
        except NonFiniteError as error:
            if not tried:
                raise
            runs.say(f"{error.args[0].partition(';')[0]}: taking another rate")
            shutil.rmtree(run.epochs, ignore_errors=True)
            records.write_json(_failure(trainer, folder, rate, run.seed), {"rate": rate})


def _at_rate(run: Run[Trainer], rate: float, tried: dict[str, float | None]) -> dict[str, Any]:
    trainer = run.trainer

    def ready() -> Callable[[State, int], tuple[State, Any, Any]]:
        train_steps, key = trainer.train_steps, training_key(run.seed)
        return lambda state, count: train_steps(state, count, key, rate, trainer.steps)

    def train(state: State) -> Iterator[EpochResult]:
        return epochs(
            state, steps=trainer.steps, parts=_PARTS, ready=ready, look=trainer.validate, text=_text
        )

    def test(variables: Variables) -> FinalResult:
        found = trainer.test(variables["params"])
        text = f"test {_text(found['contexts']['own'])}"
        return FinalResult({"rate": rate, "rates": tried, "test": found}, text)

    return runs.execute(run, train, test)


def _text(found: Any) -> str:
    accuracy = f" accuracy {found['accuracy']:6.2%}" if "accuracy" in found else ""
    return f"loss {found['loss']:.4f}{accuracy}"
