"""Training by truncated backpropagation, a test in bits a character, and samples."""

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

from straw_experiments.char_lm.models import CharacterModel, Params
from straw_experiments.data.text import Text
from straw_experiments.runner.runs import NonFiniteError, Passed, Run, Tested, complete, say
from straw_experiments.runner.state import State, Variables, cosine, training_key
from straw_jax.recurrent import Carry

_CLIP = 1.0  # the gradient's norm is at most this
_PARTS = 20  # of an epoch, after each of which progress may be told
_QUIET = 20.0  # seconds at least between two lines of progress
_STREAMS = 64  # pieces of a test text at most, read side by side
_STREAM = 1_000  # characters of such a piece at least
_CHUNK = 100  # characters of it at a time


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


class Learner:
    """A model, its optimizer, and the text that it is trained on, compiled once, on first use.

    Attributes:
        name: Of the model.
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
        self.name, self.model, self.training_model = name, model, training_model
        self.text, self.recipe = text, recipe
        self.steps_per_epoch = recipe.steps_per_epoch(len(text.train))
        rate = cosine(recipe.learning_rate, recipe.epochs * self.steps_per_epoch)
        self.optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))
        self.state_like: State = jax.eval_shape(functools.partial(self.init_state, 0))

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""

        def init(key: Array) -> State:
            params = self.model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
            return State(jnp.int32(0), {"params": params}, self.optimizer.init(params))

        return jax.jit(init)(jax.random.fold_in(jax.random.key(seed), 0))

    def place(self, tree: Any) -> Any:
        """Leave a state where it is: a model trains on one device."""
        return tree

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
        compiled = jitted.lower(self.state_like, carry, self.streams, key, steps).compile()
        return lambda state, carry, key, steps: compiled(
            state, carry, self.streams, key, jnp.int32(steps)
        )

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
) -> Callable[[State, Carry, Array, Array, int], tuple[State, Carry, Array, Array]]:
    """Build many training steps as one jitted function, see `Learner.train_steps`.

    It takes the streams after the carry. The loop stops after a loss that is not finite.
    """

    def loss_of(params: Params, carry: Carry, numbers: Array, key: Array) -> tuple[Array, Carry]:
        read, said = numbers[:, :-1], numbers[:, 1:]
        variables, rngs = {"params": params}, {"dropout": key}
        surprise, carry = _surprise(model, variables, read, said, carry, rngs=rngs)
        return jnp.mean(surprise), carry

    def step(state: State, carry: Carry, streams: Array, key: Array) -> tuple[State, Carry, Array]:
        params = state.variables["params"]
        start = length * (state.step % ((streams.shape[1] - 1) // length))
        numbers = jax.lax.dynamic_slice_in_dim(streams, start, length + 1, axis=1)
        (loss, carry), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            params, carry, numbers, jax.random.fold_in(key, state.step)
        )
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integers.
            changes, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, changes)
        return State(state.step + 1, {"params": params}, opt_state), carry, loss

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_steps(
        state: State, carry: Carry, streams: Array, key: Array, steps: int
    ) -> tuple[State, Carry, Array, Array]:
        def goes_on(looped: tuple[State, Carry, Array, Array]) -> Array:
            _, _, total, done = looped
            return (done < steps) & jnp.isfinite(total)

        def body(
            looped: tuple[State, Carry, Array, Array],
        ) -> tuple[State, Carry, Array, Array]:
            state, carry, total, done = looped
            state, carry, loss = step(state, carry, streams, key)
            return state, carry, total + loss, done + 1

        start = state, carry, jnp.float32(0), jnp.int32(0)
        state, carry, total, done = jax.lax.while_loop(goes_on, body, start)
        mean = total / jnp.asarray(steps, jnp.float32)
        return state, carry, mean, jnp.where(jnp.isfinite(total), done, done - 1)

    return train_steps


def make_bits(model: CharacterModel) -> Callable[..., float]:
    """Build the test of parameters on a text.

    Args:
        model: As it is tested.

    Returns:
        `(params, numbers [n], seen=None) -> bits`: the mean over all characters but the first. The
        text is read as `in_chunks` cuts it, each piece with its carry from beginning to end: the
        first characters of a piece are predicted without those before them. `seen` stands in the
        place of what the smaller LSTM saw, `[chunks, pieces, 100, hyper_features]`.
    """

    @jax.jit
    def surprises(
        params: Params, inputs: Array, targets: Array, real: Array, seen: Array | None
    ) -> Array:
        def chunk(carry: Carry, part: tuple[Any, ...]) -> tuple[Carry, Array]:
            inputs, targets, real, seen = part
            variables = {"params": params}
            if seen is not None:
                variables["replaced"] = {"cell": {"seen": seen}}
            surprise, carry = _surprise(model, variables, inputs, targets, carry)
            return carry, jnp.sum(surprise, where=real)

        parts: tuple[Any, ...] = inputs, targets, real, seen
        _, sums = jax.lax.scan(chunk, model.initial_carry(inputs.shape[1]), parts)
        return sums

    def bits(params: Params, numbers: np.ndarray, seen: Array | None = None) -> float:
        sums = surprises(params, *in_chunks(numbers), seen)
        nats = np.sum(np.asarray(sums, np.float64))
        return float(nats / (len(numbers) - 1) / math.log(2))

    return bits


def in_chunks(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a test text into pieces that are read side by side, and these into chunks.

    Args:
        numbers: Of the text's characters, `[n]`.

    Returns:
        Each character but the last, the one after it, and whether it is one: the last piece, and
        the last chunk of all, are filled up. `[chunks, pieces, 100]` each.
    """
    count = len(numbers) - 1
    pieces = min(_STREAMS, max(count // _STREAM, 1))
    each = -(-count // pieces)
    chunks = -(-each // _CHUNK)

    def cut(values: np.ndarray) -> np.ndarray:
        values = np.pad(values, (0, pieces * each - count)).reshape(pieces, each)
        values = np.pad(values, ((0, 0), (0, chunks * _CHUNK - each)))
        return values.reshape(pieces, chunks, _CHUNK).swapaxes(0, 1)

    return cut(numbers[:-1]), cut(numbers[1:]), cut(np.ones(count, bool))


def make_sample(model: CharacterModel, first: int) -> Callable[[Params, Array, int], np.ndarray]:
    """Build what draws texts.

    Args:
        model: As it is tested.
        first: Number of the character that stands before a text.

    Returns:
        `(params, key, length) -> numbers [length]`, each drawn from the model's distribution after
        those before it.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def sample(params: Params, key: Array, length: int) -> Array:
        def draw(looped: tuple[Carry, Array], key: Array) -> tuple[tuple[Carry, Array], Array]:
            carry, number = looped
            outputs: Any = model.apply({"params": params}, number[None, None], carry)
            carry, logits = outputs
            number = jax.random.categorical(key, logits[0, 0]).astype(jnp.int32)
            return (carry, number), number

        start = model.initial_carry(1), jnp.int32(first)
        return jax.lax.scan(draw, start, jax.random.split(key, length))[1]

    return lambda params, key, length: np.asarray(sample(params, key, length))


def finish(run: Run[Learner], sample_length: int) -> dict[str, Any]:
    """Train and test a model's run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        sample_length: Characters to draw from the trained model.

    Returns:
        As `complete`; of the test there are "bits" a character on "validation" and "test", and
        "sample", a text.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    learner, recipe, text = run.trainee, run.trainee.recipe, run.trainee.text

    def train(state: State) -> Iterator[Passed]:
        key = training_key(run.seed)
        train_steps = learner.train_steps  # compiled before the clock starts
        while (done := int(state.step) // learner.steps_per_epoch) < recipe.epochs:
            progress = _Progress(run.title, learner, done)
            carry = learner.initial_carry()
            each = math.ceil(learner.steps_per_epoch / _PARTS)
            while left := learner.steps_per_epoch - progress.steps:
                first, steps = int(state.step), min(each, left)
                state, carry, loss, finite = train_steps(state, carry, key, steps)
                progress.add(steps, float(loss))
                if int(finite) < steps:
                    step = first + int(finite) + 1
                    raise NonFiniteError(f"the loss is not finite at step {step}")
            found = learner.bits(state.variables["params"], text.validation)
            if not math.isfinite(found):
                raise NonFiniteError(f"the parameters are not finite after step {state.step}")
            figures = {**progress.figures(), "validation": {"bits": found}}
            yield Passed(done + 1, state, figures, progress.told(f"  validation {found:.4f}"))

    def test(variables: Variables) -> Tested:
        params = variables["params"]
        parts = {"validation": text.validation, "test": text.test}
        bits = {name: learner.bits(params, numbers) for name, numbers in parts.items()}
        key = jax.random.fold_in(jax.random.key(run.seed), 2)
        sample = text.decode(learner.sample(params, key, sample_length))
        told = ", ".join(f"{name} {found:.4f}" for name, found in bits.items())
        return Tested({"bits": bits, "sample": sample}, f"bits a character: {told}")

    return complete(run, train, test)


class _Progress:
    """What an epoch has shown so far, told now and then."""

    def __init__(self, title: str, learner: Learner, done: int):
        self.title, self.learner, self.done = title, learner, done
        self.steps, self._loss = 0, 0.0
        self._start = self._told = time.perf_counter()
        self._seconds = 0.0

    def add(self, steps: int, loss: float) -> None:
        """Count steps with their mean loss in nats; tell of them if nothing was told for long."""
        self.steps += steps
        self._loss += steps * loss
        now = time.perf_counter()
        self._seconds = now - self._start
        if now - self._told > _QUIET and self.steps < self.learner.steps_per_epoch:
            self._told = now
            say(f"{self.title}: {self.told()}")

    def figures(self) -> dict[str, Any]:
        recipe = self.learner.recipe
        step = self.done * self.learner.steps_per_epoch + self.steps
        return {
            "step": step,
            "characters": step * recipe.batch_size * recipe.length,
            "train": {"bits": self._loss / self.steps / math.log(2)},
            "characters_per_second": self._speed(),
            "seconds": self._seconds,
        }

    def told(self, more: str = "") -> str:
        per_epoch, epochs = self.learner.steps_per_epoch, self.learner.recipe.epochs
        left = (epochs - self.done) * per_epoch - self.steps
        return (
            f"epoch {self.done + 1}/{epochs} {self.steps / per_epoch:4.0%}"
            f"  bits a character: train {self._loss / self.steps / math.log(2):.4f}{more}"
            f"  {self._speed():,.0f} characters/s"
            f"  {tqdm.format_interval(left * self._seconds / self.steps)} left"
        )

    def _speed(self) -> float:
        recipe = self.learner.recipe
        return self.steps * recipe.batch_size * recipe.length / self._seconds


def _surprise(
    model: CharacterModel,
    variables: Variables,
    inputs: Array,
    targets: Array,
    carry: Carry,
    **kwargs: Any,
) -> tuple[Array, Carry]:
    """Return the loss in nats of each character, `[batch, time]`, and the carry after the last."""
    outputs: Any = model.apply(variables, inputs.astype(jnp.int32), carry, **kwargs)
    carry, logits = outputs
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.astype(jnp.int32))
    return losses, carry
