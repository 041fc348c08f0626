"""Training by truncated backpropagation through time."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

from straw_experiments.char_lm.evaluate import cross_entropy, make_bits, make_sample
from straw_experiments.char_lm.networks import CharacterModel, Params
from straw_experiments.data.text import Text
from straw_experiments.runner import runs
from straw_experiments.runner.runs import EpochResult, FinalResult, NonFiniteError, Run, say
from straw_experiments.runner.state import (
    DeviceTrainer,
    State,
    Variables,
    cosine,
    repeated,
    training_key,
    updated,
)
from straw_jax.recurrent import Carry

_CLIP = 1.0  # the gradient's norm is at most this
_PARTS = 20  # of an epoch, after each of which progress may be printed
_QUIET = 20.0  # seconds at least between two lines of progress


class Recipe(NamedTuple):
    """How every run of a study is trained: with Adam, and gradients of norm 1 at most.

    Attributes:
        epochs: Passes over the training text.
        batch_size: Pieces of the text that are read side by side.
        length: Characters of each that a step reads, and back through which gradients go.
        learning_rate: It rises to this in the first tenth of all steps, and falls to 0 along half a
            cosine.
    """

    epochs: int
    batch_size: int
    length: int
    learning_rate: float

    def steps_per_epoch(self, characters: int) -> int:
        """Count the whole steps that a text of so many characters has."""
        return (characters - 1) // self.batch_size // self.length


class Trainer(DeviceTrainer):
    """A model, its optimizer, and the text that it is trained on, compiled once, on first use.

    Attributes:
        model: As it is tested.
        training_model: As it is trained: with dropout.
        text: What it reads.
        recipe: How it is trained.
    """

    def __init__(
        self,
        name: str,
        model: CharacterModel,
        training_model: CharacterModel,
        text: Text,
        recipe: Recipe,
    ):
        self.model, self.training_model = model, training_model
        self.text, self.recipe = text, recipe
        self.steps_per_epoch = recipe.steps_per_epoch(len(text.train))
        rate = cosine(recipe.learning_rate, recipe.epochs * self.steps_per_epoch)

        def init(key: Array) -> Params:
            params: Params = model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
            return params

        optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))
        super().__init__(name, init, optimizer)

    @functools.cached_property
    def streams(self) -> Array:
        """The training text in pieces, see `streams`."""
        recipe = self.recipe
        return jnp.asarray(streams(self.text.train, recipe.batch_size, recipe.length))

    @functools.cached_property
    def train_steps(
        self,
    ) -> Callable[[State, Carry, Array, int], tuple[State, Carry, Array, Array]]:
        """Compiled steps: `(state, carry, key, steps) -> (state, carry, loss, finite steps)`.

        The loss is the mean in nats. A step reads what comes after what the last one read, and
        draws dropout for `fold_in(key, state.step)`. State and carry are donated.
        """
        jitted: Any = make_train_steps(self.training_model, self.optimizer, self.recipe.length)
        carry = jax.eval_shape(self.initial_carry)
        key = jax.eval_shape(functools.partial(training_key, 0))
        steps = jax.ShapeDtypeStruct((), jnp.int32)
        compiled = jitted.lower((self.state_like, carry), steps, self.streams, key).compile()

        def train_steps(
            state: State, carry: Carry, key: Array, steps: int
        ) -> tuple[State, Carry, Array, Array]:
            carried = state, carry
            (state, carry), *rest = compiled(carried, jnp.int32(steps), self.streams, key)
            return state, carry, *rest

        return train_steps

    def initial_carry(self) -> Carry:
        """Return the carry at the start of an epoch."""
        # As many arrays as leaves: one in two places could not be donated.
        carry = jax.eval_shape(lambda: self.model.initial_carry(self.recipe.batch_size))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), carry)

    @functools.cached_property
    def bits(self) -> Callable[..., float]:
        """Return what tests parameters on a text: bits a character, see `make_bits`."""
        return make_bits(self.model)

    @functools.cached_property
    def sample(self) -> Callable[[Params, Array, int], np.ndarray]:
        """Return what draws a text from parameters, see `make_sample`."""
        return make_sample(self.model, max(self.text.characters.find("\n"), 0))


def streams(numbers: np.ndarray, batch_size: int, length: int) -> np.ndarray:
    """Cut a text into pieces that are read side by side, in steps of so many characters.

    Args:
        numbers: Of the text's characters, `[n]`.
        batch_size: How many pieces.
        length: Characters of each that a step reads.

    Returns:
        `[batch_size, steps * length + 1]`: each step also sees the character after its last, which
        it predicts. What is too little for another step is left out.
    """
    each = (len(numbers) - 1) // batch_size
    used = each // length * length
    starts = each * np.arange(batch_size)
    return numbers[starts[:, None] + np.arange(used + 1)]


def make_train_steps(
    model: CharacterModel, optimizer: optax.GradientTransformation, length: int
) -> Callable[..., tuple[tuple[State, Carry], Array, Array]]:
    """Build many training steps as one jitted function.

    It takes `((state, carry), steps, streams, key)`, see `repeated`.
    """

    def loss_of(params: Params, carry: Carry, numbers: Array, key: Array) -> tuple[Array, Carry]:
        read, targets = numbers[:, :-1], numbers[:, 1:]
        variables, rngs = {"params": params}, {"dropout": key}
        losses, carry = cross_entropy(model, variables, read, targets, carry, rngs=rngs)
        return jnp.mean(losses), carry

    def step(
        carried: tuple[State, Carry], streams: Array, key: Array
    ) -> tuple[tuple[State, Carry], Array]:
        state, carry = carried
        params = state.variables["params"]
        start = length * (state.step % ((streams.shape[1] - 1) // length))
        numbers = jax.lax.dynamic_slice_in_dim(streams, start, length + 1, axis=1)
        (loss, carry), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            params, carry, numbers, jax.random.fold_in(key, state.step)
        )
        params, opt_state = updated(optimizer, gradient, state.opt_state, params)
        return (State(state.step + 1, {"params": params}, opt_state), carry), loss

    return repeated(step)


def train_and_test(run: Run[Trainer], sample_length: int) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        sample_length: Characters to draw from the trained model.

    Returns:
        As `runs.execute`; of the test there are "bits" a character on "validation" and "test", and
        "sample", a text.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer, recipe, text = run.trainer, run.trainer.recipe, run.trainer.text

    def train(state: State) -> Iterator[EpochResult]:
        key = training_key(run.seed)
        train_steps = trainer.train_steps  # compiled before the clock starts
        while (done := int(state.step) // trainer.steps_per_epoch) < recipe.epochs:
            progress = _Progress(run.title, trainer, done)
            carry = trainer.initial_carry()
            each = math.ceil(trainer.steps_per_epoch / _PARTS)
            while left := trainer.steps_per_epoch - progress.steps:
                first, steps = int(state.step), min(each, left)
                state, carry, loss, finite = train_steps(state, carry, key, steps)
                progress.add(steps, float(loss))
                if int(finite) < steps:
                    step = first + int(finite) + 1
                    raise NonFiniteError(f"the loss is not finite at step {step}")
            found = trainer.bits(state.variables["params"], text.validation)
            if not math.isfinite(found):
                raise NonFiniteError(f"the parameters are not finite after step {state.step}")
            figures = {**progress.figures(), "validation": {"bits": found}}
            yield EpochResult(done + 1, state, figures, progress.line(f"  validation {found:.4f}"))

    def test(variables: Variables) -> FinalResult:
        params = variables["params"]
        parts = {"validation": text.validation, "test": text.test}
        bits = {name: trainer.bits(params, numbers) for name, numbers in parts.items()}
        key = jax.random.fold_in(jax.random.key(run.seed), 2)
        sample = text.decode(trainer.sample(params, key, sample_length))
        line = ", ".join(f"{name} {found:.4f}" for name, found in bits.items())
        return FinalResult({"bits": bits, "sample": sample}, f"bits a character: {line}")

    return runs.execute(run, train, test)


class _Progress:
    """The figures of an epoch so far, printed from time to time."""

    def __init__(self, title: str, trainer: Trainer, done: int):
        self.title, self.trainer, self.done = title, trainer, done
        self.steps, self._loss = 0, 0.0
        self._start = self._printed = time.perf_counter()
        self._seconds = 0.0

    def add(self, steps: int, loss: float) -> None:
        """Count steps with their mean loss in nats; print them if nothing was printed for long."""
        self.steps += steps
        self._loss += steps * loss
        now = time.perf_counter()
        self._seconds = now - self._start
        if now - self._printed > _QUIET and self.steps < self.trainer.steps_per_epoch:
            self._printed = now
            say(f"{self.title}: {self.line()}")

    def figures(self) -> dict[str, Any]:
        recipe = self.trainer.recipe
        step = self.done * self.trainer.steps_per_epoch + self.steps
        return {
            "step": step,
            "characters": step * recipe.batch_size * recipe.length,
            "train": {"bits": self._loss / self.steps / math.log(2)},
            "characters_per_second": self._speed(),
            "seconds": self._seconds,
        }

    def line(self, more: str = "") -> str:
        per_epoch, epochs = self.trainer.steps_per_epoch, self.trainer.recipe.epochs
        left = (epochs - self.done) * per_epoch - self.steps
        return (
            f"epoch {self.done + 1}/{epochs} {self.steps / per_epoch:4.0%}"
            f"  bits a character: train {self._loss / self.steps / math.log(2):.4f}{more}"
            f"  {self._speed():,.0f} characters/s"
            f"  {tqdm.format_interval(left * self._seconds / self.steps)} left"
        )

    def _speed(self) -> float:
        recipe = self.trainer.recipe
        return self.steps * recipe.batch_size * recipe.length / self._seconds
