"""How predictors are trained, each step on tasks that no other step sees."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib

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
from straw_experiments.weight_prediction.config import Optimizer
from straw_experiments.weight_prediction.evaluate import LOOKING, TESTED, Score, make_test, score
from straw_experiments.weight_prediction.objectives import Objective, Params

_EPOCHS = 20  # parts of training: after each its state is saved
_TESTED_EACH_EPOCH = 1_024  # tasks
_CACHED = 2_048  # vectors whose activations a CPU's cache holds


class Recipe(NamedTuple):
    """How every run of a study is trained.

    Attributes:
        steps: Of the optimizer.
        batch_size: Target networks a step.
        learning_rate: It rises to this in the first tenth of all steps, and falls to 0 along half a
            cosine.
        optimizer: "muon" for the kernels, with Adam for biases at the same rate; or "adam".

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Optimizer

    def make_optimizer(self) -> optax.GradientTransformation:
        """Make the optimizer.

        Raises:
            ValueError: if it is unknown.
        """
        rate = cosine(self.learning_rate, self.steps)
        if self.optimizer == "muon":
            return contrib.muon(rate)
        if self.optimizer == "adam":
            return optax.adam(rate)
        raise ValueError(
            f"Recipe: expected an optimizer of {get_args(Optimizer)}, got {self.optimizer!r}."
        )


class Trainer(DeviceTrainer):
    """A predictor with its objective and optimizer, compiled once, on first use."""

    def __init__(self, name: str, objective: Objective, recipe: Recipe):
        self.objective, self.recipe = objective, recipe
        super().__init__(name, objective.init, recipe.make_optimizer())

    @functools.cached_property
    def train_steps(self) -> Callable[[State, Array, int], tuple[State, Array, Array]]:
        """Compiled steps: `(state, key, steps) -> (state, mean loss, steps with a finite one)`.

        Tasks are drawn on the device, for `fold_in(key, state.step)`. The state is donated.
        """
        return self.compiled(
            make_train_steps(self.objective, self.optimizer, self.recipe.batch_size)
        )

    @functools.cached_property
    def test(self) -> Callable[..., Score]:
        """Return what scores parameters, see `make_test`."""
        return make_test(self.objective)


def make_train_steps(
    objective: Objective, optimizer: optax.GradientTransformation, batch_size: int
) -> Callable[..., tuple[State, Array, Array]]:
    """Build many training steps as one jitted function: `(state, steps, key)`, see `repeated`."""
    differentiate = _in_parts(objective, _parts(objective, batch_size))

    def step(state: State, key: Array) -> tuple[State, Array]:
        params = state.variables["params"]
        drawn = objective.draw(jax.random.fold_in(key, state.step), batch_size)
        loss, gradient = differentiate(params, drawn)
        params, opt_state = updated(optimizer, gradient, state.opt_state, params)
        return State(state.step + 1, {"params": params}, opt_state), loss

    return repeated(step)


def _parts(objective: Objective, batch_size: int) -> int:
    """Return in how many equal parts a batch is differentiated.

    On CPU so that a part's activations stay in the cache, if those of the batch would not; but a
    part has some tens of tasks, since a product of few rows is slow by itself.
    """
    if jax.default_backend() != "cpu" or batch_size * objective.vectors <= 4 * _CACHED:
        return 1
    most = min(max(_CACHED // objective.vectors, 32), batch_size)
    return next((batch_size // n for n in range(most, 15, -1) if batch_size % n == 0), 1)


def _in_parts(objective: Objective, parts: int) -> Callable[[Params, Any], tuple[Array, Params]]:
    """Return `(params, drawn) -> (loss, gradient)`, means over parts that are taken in turn."""

    @jax.value_and_grad
    def of_part(params: Params, drawn: Any) -> Array:
        return score(*objective.outputs(params, drawn)).loss

    def of_all(params: Params, drawn: Any) -> tuple[Array, Params]:
        if parts == 1:
            return of_part(params, drawn)
        drawn = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), drawn)

        def add(total: tuple[Array, Params], part: Any) -> tuple[tuple[Array, Params], None]:
            return jax.tree.map(jnp.add, total, of_part(params, part)), None

        zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
        total, _ = jax.lax.scan(add, zeros, drawn)
        return jax.tree.map(lambda x: x / parts, total)

    return of_all


def train_and_test(
    run: Run[Trainer], analyse: Callable[[Params], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        analyse: Measures more of the trained parameters; its figures are "examined".

    Returns:
        As `runs.execute`; of the test there are "loss" and "explained", as in `Score`.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer, recipe = run.trainer, run.trainer.recipe

    def look(params: Params) -> dict[str, float]:
        # On other tasks than in the end: who chooses by these figures has not seen those.
        return _plain(trainer.test(params, run.seed, _TESTED_EACH_EPOCH, LOOKING))

    def train(state: State) -> Iterator[EpochResult]:
        return epochs(
            state,
            steps=recipe.steps,
            parts=_EPOCHS,
            ready=of_key(trainer, run.seed),
            look=look,
            text=_text,
            at="test",
        )

    def test(variables: Variables) -> FinalResult:
        params = variables["params"]
        figures = _plain(trainer.test(params, run.seed, TESTED))
        text = f"{figures['explained']:.2%} of the variance explained"
        examined = {"examined": analyse(params)} if analyse else {}
        return FinalResult({**figures, **examined}, text)

    return runs.execute(run, train, test)


def _plain(found: Score) -> dict[str, float]:
    return {name: float(value) for name, value in found._asdict().items()}


def _text(found: Mapping[str, float]) -> str:
    return f"test loss {found['loss']:.5f} explained {found['explained']:6.2%}"
