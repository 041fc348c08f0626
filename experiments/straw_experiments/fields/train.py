"""How writers are trained: each step on some images, at some of their pixels."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax import contrib

from straw_experiments.fields.evaluate import Params, Reader, fields, scaled
from straw_experiments.fields.networks import grid
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
from straw_jax import Straw

_EPOCHS = 12  # parts of training: after each its state is saved


class Recipe(NamedTuple):
    """How every run of a study is trained.

    Attributes:
        steps: Of Muon.
        batch_size: Images a step.
        pixels: Of each image in a step, the same of all, or 0 for all pixels.
        learning_rate: Of encoder and generator. It rises to this in the first tenth of all steps,
            and falls to 0 along half a cosine.
        base_rate: The same of the base. A SIREN multiplies angles by its frequency, and so changes.
        generator_rate: The same of a generator that is not linear, trained by Adam; None if it is
            linear. With the start "plain" a step of Adam changes what it writes by about the rate,
            whatever its width, and all must be written anew.

    References:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    steps: int
    batch_size: int
    pixels: int
    learning_rate: float
    base_rate: float
    generator_rate: float | None = None

    def make_optimizer(self) -> optax.GradientTransformation:
        """Make the optimizer: Muon for kernels, with Adam for the rest at the same rate.

        Few directions have most of the images' variance. Adam takes long for the others; Muon
        changes all alike.
        """
        of_part = {
            "encoder": contrib.muon(cosine(self.learning_rate, self.steps)),
            "generator": contrib.muon(cosine(self.learning_rate, self.steps)),
            "executor": contrib.muon(cosine(self.base_rate, self.steps)),
        }
        if self.generator_rate is not None:
            of_part["generator"] = optax.adam(cosine(self.generator_rate, self.steps))
        return optax.partition(of_part, lambda params: {name: name for name in params})


class Trainer(DeviceTrainer):
    """A writer with its optimizer, compiled once, on first use.

    Attributes:
        images: uint8 `[n, h, w]`, of which each step draws some.
        reader: what scores its fields.
    """

    def __init__(self, name: str, straw: Straw, recipe: Recipe, images: np.ndarray):
        self.straw, self.recipe = straw, recipe
        self.images = jnp.asarray(images)
        self.reader = Reader.of(straw, (images.shape[1], images.shape[2]))
        super().__init__(name, straw.init, recipe.make_optimizer())

    @functools.cached_property
    def train_steps(self) -> Callable[[State, Array, int], tuple[State, Array, Array]]:
        """Compiled steps: `(state, key, steps) -> (state, mean loss, steps with a finite one)`.

        Images and pixels are drawn for `fold_in(key, state.step)`. The state is donated.
        """
        image = self.images.shape[1], self.images.shape[2]
        steps = make_train_steps(self.straw, self.optimizer, self.recipe, image)
        return self.compiled(steps, self.images)


def make_train_steps(
    straw: Straw, optimizer: optax.GradientTransformation, recipe: Recipe, image: tuple[int, int]
) -> Callable[..., tuple[State, Array, Array]]:
    """Build many steps as one jitted function: `(state, steps, key, images)`, see `repeated`."""
    points = jnp.asarray(grid(*image))

    def loss(params: Params, images: Array, chosen: Array) -> Array:
        read = fields(straw, params, straw.styles(params, images), points[chosen])
        return jnp.mean((read - images.reshape(len(images), -1)[:, chosen]) ** 2)

    def step(state: State, key: Array, images: Array) -> tuple[State, Array]:
        params = state.variables["params"]
        of_images, of_pixels = jax.random.split(jax.random.fold_in(key, state.step))
        drawn = jax.random.randint(of_images, (recipe.batch_size,), 0, len(images))
        chosen = jnp.arange(len(points))
        if 0 < recipe.pixels < len(points):
            chosen = jax.random.permutation(of_pixels, len(points))[: recipe.pixels]
        error, gradient = jax.value_and_grad(loss)(params, scaled(images[drawn]), chosen)
        params, opt_state = updated(optimizer, gradient, state.opt_state, params)
        return State(state.step + 1, {"params": params}, opt_state), error

    return repeated(step)


def train_and_test(
    run: Run[Trainer],
    validation: np.ndarray,
    tested: Mapping[str, np.ndarray],
    examine: Callable[[Params], Mapping[str, Any]],
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        validation: images uint8, scored after each part of training.
        tested: images by name, scored in the end.
        examine: Measures more of the trained parameters.

    Returns:
        As `runs.execute`; of the test there are "psnr" by name of images, and what `examine` found.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer = run.trainer

    def look(params: Params) -> dict[str, float]:
        return {"psnr": float(trainer.reader.own(params, validation).mean())}

    def train(state: State) -> Iterator[EpochResult]:
        steps, ready = trainer.recipe.steps, of_key(trainer, run.seed)
        return epochs(state, steps=steps, parts=_EPOCHS, ready=ready, look=look, text=_text)

    def test(variables: Variables) -> FinalResult:
        params = variables["params"]
        scores = {
            name: float(trainer.reader.own(params, images).mean())
            for name, images in tested.items()
        }
        text = ", ".join(f"{name} {score:.2f} dB" for name, score in scores.items())
        return FinalResult({"psnr": scores, **examine(params)}, text)

    return runs.execute(run, train, test)


def _text(found: Mapping[str, float]) -> str:
    return f"validation {found['psnr']:.2f} dB"
