"""Predictors and how they are trained, each on tasks that no other step sees."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import contrib
from tqdm import tqdm

from straw_experiments.runner.runs import NonFiniteError, Passed, Run, Tested, complete
from straw_experiments.runner.state import State, Variables, cosine, training_key
from straw_experiments.weight_prediction.objectives import Params, Problem, Score, score

Optimizer: TypeAlias = Literal["muon", "adam"]

_EPOCHS = 20  # parts of training: after each its state is saved
_TESTED_EACH_EPOCH = 1_024  # tasks
TESTED = 8_192  # tasks in the end
_BATCH = 512  # of these at a time
_TESTING, _LOOKING = 2, 4  # of a seed's keys: the tasks of the final test, and of those before it
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


class Predictor:
    """A problem's predictor and its optimizer, compiled once, on first use."""

    def __init__(self, name: str, problem: Problem, recipe: Recipe):
        self.name, self.problem, self.recipe = name, problem, recipe
        self.optimizer = recipe.make_optimizer()
        self.state_like: State = jax.eval_shape(functools.partial(self.init_state, 0))

    def parameters(self) -> int:
        """Count the trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state_like.variables))

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""

        def init(key: Array) -> State:
            params = self.problem.init(key)
            return State(jnp.int32(0), {"params": params}, self.optimizer.init(params))

        return jax.jit(init)(jax.random.fold_in(jax.random.key(seed), 0))

    def place(self, tree: Any) -> Any:
        """Leave a state where it is: a predictor trains on one device."""
        return tree

    @functools.cached_property
    def train_steps(self) -> Callable[[State, Array, int], tuple[State, Array, Array]]:
        """Compiled steps: `(state, key, steps) -> (state, mean loss, steps with a finite one)`.

        Tasks are drawn on the device, for `fold_in(key, state.step)`. The state is donated.
        """
        jitted: Any = make_train_steps(self.problem, self.optimizer, self.recipe.batch_size)
        key = jax.eval_shape(functools.partial(training_key, 0))
        compiled = jitted.lower(self.state_like, key, jax.ShapeDtypeStruct((), jnp.int32)).compile()
        return lambda state, key, steps: compiled(state, key, jnp.int32(steps))

    @functools.cached_property
    def test(self) -> Callable[..., Score]:
        """Return what scores parameters, see `make_test`."""
        return make_test(self.problem)


def make_train_steps(
    problem: Problem, optimizer: optax.GradientTransformation, batch_size: int
) -> Callable[[State, Array, int], tuple[State, Array, Array]]:
    """Build many training steps as one jitted function, see `Predictor.train_steps`.

    The loop stops after a loss that is not finite.
    """
    differentiate = _in_parts(problem, _parts(problem, batch_size))

    def step(state: State, key: Array) -> tuple[State, Array]:
        params = state.variables["params"]
        drawn = problem.draw(jax.random.fold_in(key, state.step), batch_size)
        loss, gradient = differentiate(params, drawn)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integers.
            changes, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, changes)
        return State(state.step + 1, {"params": params}, opt_state), loss

    @functools.partial(jax.jit, donate_argnums=0)
    def train_steps(state: State, key: Array, steps: int) -> tuple[State, Array, Array]:
        def goes_on(carry: tuple[State, Array, Array]) -> Array:
            _, total, done = carry
            return (done < steps) & jnp.isfinite(total)

        def body(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            state, total, done = carry
            state, loss = step(state, key)
            return state, total + loss, done + 1

        start = state, jnp.float32(0), jnp.int32(0)
        state, total, done = jax.lax.while_loop(goes_on, body, start)
        mean = total / jnp.asarray(steps, jnp.float32)
        return state, mean, jnp.where(jnp.isfinite(total), done, done - 1)

    return train_steps


def _parts(problem: Problem, batch_size: int) -> int:
    """Return in how many equal parts a batch is differentiated.

    On CPU so that a part's activations stay in the cache, if those of the batch would not; but a
    part has some tens of tasks, since a product of few rows is slow by itself.
    """
    if jax.default_backend() != "cpu" or batch_size * problem.vectors <= 4 * _CACHED:
        return 1
    most = min(max(_CACHED // problem.vectors, 32), batch_size)
    return next((batch_size // n for n in range(most, 15, -1) if batch_size % n == 0), 1)


def _in_parts(problem: Problem, parts: int) -> Callable[[Params, Any], tuple[Array, Params]]:
    """Return `(params, drawn) -> (loss, gradient)`, means over parts that are taken in turn."""

    @jax.value_and_grad
    def of_part(params: Params, drawn: Any) -> Array:
        return score(*problem.outputs(params, drawn)).loss

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


def make_test(problem: Problem) -> Callable[..., Score]:
    """Build the jitted test of parameters on tasks that no training step draws.

    Returns:
        `(params, seed, tasks, number=2) -> Score`; tasks are taken 512 at a time, and are others
        for another number of the seed's key.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def test(params: Params, seed: int, tasks: int, number: int = _TESTING) -> Score:
        batches = max(tasks // _BATCH, 1)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), batches)

        def outputs(key: Array) -> tuple[Array, Array]:
            return problem.outputs(params, problem.draw(key, min(tasks, _BATCH)))

        return score(*jax.lax.map(outputs, keys))

    return test


def finish(
    run: Run[Predictor], examine: Callable[[Params], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Train and test a predictor's run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        examine: Looks further at the parameters in the end; its figures are "examined".

    Returns:
        As `complete`; of the test there are "loss" and "explained", as in `Score`.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    predictor, recipe = run.trainee, run.trainee.recipe

    def train(state: State) -> Iterator[Passed]:
        key = training_key(run.seed)
        each = math.ceil(recipe.steps / _EPOCHS)
        while (done := int(state.step)) < recipe.steps:
            train_steps = predictor.train_steps  # compiled before the clock starts
            start = time.perf_counter()
            steps = min(each, recipe.steps - done)
            state, loss, finite = train_steps(state, key, steps)
            if int(finite) < steps:
                raise NonFiniteError(f"the loss is not finite at step {done + int(finite) + 1}")
            seconds = time.perf_counter() - start
            # On other tasks than in the end: who chooses by these figures has not seen those.
            found = predictor.test(
                state.variables["params"], run.seed, _TESTED_EACH_EPOCH, _LOOKING
            )
            if not math.isfinite(found.loss):
                raise NonFiniteError(f"the parameters are not finite after step {done + steps}")
            figures = {
                "step": done + steps,
                "train": {"loss": float(loss)},
                "test": _plain(found),
                "steps_per_second": steps / seconds,
                "seconds": seconds,
            }
            yield Passed(math.ceil((done + steps) / each), state, figures, _told(figures, recipe))

    def test(variables: Variables) -> Tested:
        params = variables["params"]
        figures = _plain(predictor.test(params, run.seed, TESTED))
        text = f"{figures['explained']:.2%} of the variance explained"
        if examine:
            figures = {**figures, "examined": examine(params)}
        return Tested(figures, text)

    return complete(run, train, test)


def _plain(found: Score) -> dict[str, Any]:
    return {name: float(value) for name, value in found._asdict().items()}


def _told(figures: Mapping[str, Any], recipe: Recipe) -> str:
    left = (recipe.steps - figures["step"]) / figures["steps_per_second"]
    return (
        f"step {figures['step']:,}/{recipe.steps:,}"
        f"  train loss {figures['train']['loss']:.5f}"
        f"  test loss {figures['test']['loss']:.5f}"
        f" explained {figures['test']['explained']:6.2%}"
        f"  {figures['steps_per_second']:,.1f} steps/s  {tqdm.format_interval(left)} left"
    )
