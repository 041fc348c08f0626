"""How models are trained, each step on synthetic tables that no other step sees."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from straw_experiments.runner import runs
from straw_experiments.runner.runs import EpochResult, FinalResult, Run
from straw_experiments.runner.state import (
    DeviceTrainer,
    State,
    Variables,
    cosine,
    repeated,
    updated,
)
from straw_experiments.runner.stepped import epochs, of_key
from straw_experiments.table_classification.evaluate import LOOKING, TESTING, validated
from straw_experiments.table_classification.objective import Params, logits_of, score
from straw_experiments.table_classification.prior import draw
from straw_jax.straw import Straw

_EPOCHS = 20  # parts of training: after each its state is saved
QUERIES = 64  # rows of each table that are not shown
_LOOKED_AT, _TESTED = 256, 1_024  # tables after each epoch, and in the end


class Recipe(NamedTuple):
    """How every run of a study is trained.

    Attributes:
        steps: Of Adam.
        batch_size: New tables a step.
        rows: That are shown of a table at most.
        learning_rate: It rises to this in the first tenth of all steps, and falls to 0 along half a
            cosine.
    """

    steps: int
    batch_size: int
    rows: int
    learning_rate: float


class Trainer(DeviceTrainer):
    """A model with its optimizer, compiled once, on first use."""

    def __init__(self, name: str, straw: Straw, recipe: Recipe):
        self.straw, self.recipe = straw, recipe
        rate = cosine(recipe.learning_rate, recipe.steps)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        super().__init__(name, straw.init, optimizer)

    @functools.cached_property
    def train_steps(self) -> Callable[..., tuple[State, Array, Array]]:
        """Compiled steps: `(state, key, steps) -> (state, mean loss, steps with a finite one)`."""
        recipe = self.recipe

        @jax.value_and_grad
        def loss(params: Params, key: Array) -> Array:
            tables = draw(key, recipe.batch_size, rows=recipe.rows, queries=QUERIES)
            return score(logits_of(self.straw, params, tables), tables.answers).loss

        def step(state: State, key: Array) -> tuple[State, Array]:
            params = state.variables["params"]
            found, gradient = loss(params, jax.random.fold_in(key, state.step))
            params, opt_state = updated(self.optimizer, gradient, state.opt_state, params)
            return State(state.step + 1, {"params": params}, opt_state), found

        return self.compiled(repeated(step))


def train_and_test(
    run: Run[Trainer], analyse: Callable[[Params], Mapping[str, Any]]
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        analyse: Measures more of the trained parameters.

    Returns:
        As `runs.execute`; "validation" is of synthetic tables.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer, recipe = run.trainer, run.trainer.recipe

    def checked(params: Params, number: int, tables: int) -> dict[str, float]:
        found = validated(trainer.straw, params, run.seed, number, tables, recipe.rows)
        return {name: float(value) for name, value in found._asdict().items()}

    def look(params: Params) -> dict[str, float]:
        return checked(params, LOOKING, _LOOKED_AT)

    def train(state: State) -> Iterator[EpochResult]:
        steps, ready = recipe.steps, of_key(trainer, run.seed)
        return epochs(state, steps=steps, parts=_EPOCHS, ready=ready, look=look, text=_text)

    def test(variables: Variables) -> FinalResult:
        params = variables["params"]
        found = checked(params, TESTING, _TESTED)
        text = f"accuracy {found['accuracy']:.2%} on synthetic tables"
        return FinalResult({"validation": found, **analyse(params)}, text)

    return runs.execute(run, train, test)


def _text(found: Mapping[str, float]) -> str:
    return f"validation loss {found['loss']:.5f} accuracy {found['accuracy']:6.2%}"
