"""How models of images are trained and tested, compiled once for all runs."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from straw_experiments.data import Dataset
from straw_experiments.image_classification.config import Schedule
from straw_experiments.image_classification.evaluate import Forward, Score, evaluate, make_forward
from straw_experiments.image_classification.loop import Epoch, train, train_on_device
from straw_experiments.image_classification.step import (
    Model,
    TrainStep,
    TrainSteps,
    initializer,
    lower_train_step,
    make_train_steps,
)
from straw_experiments.runner import runs
from straw_experiments.runner.batches import on_device, steps_per_epoch
from straw_experiments.runner.environment import return_freed_memory
from straw_experiments.runner.hosts import is_first
from straw_experiments.runner.runs import EpochResult, FinalResult, Run
from straw_experiments.runner.state import State, Variables, cosine, parameters
from straw_jax.sharding import place, shardings

_TESTED_EACH_EPOCH = 4_000  # test images at most, evenly strided


class Recipe(NamedTuple):
    """How every run of a study is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Samples a step.
        learning_rate: Adam's.
        schedule: "constant", or "cosine": linear warm-up to `learning_rate` over the first tenth of
            all steps, then cosine decay to 0.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule

    def optimizer(self, images: int) -> optax.GradientTransformation:
        """Make the optimizer for a number of training images."""
        if self.schedule == "constant":
            return optax.adam(self.learning_rate)
        steps = self.epochs * steps_per_epoch(images, self.batch_size)
        return optax.adam(cosine(self.learning_rate, steps))


class Trainer:
    """A model and its optimizer, compiled once, on first use, for training images of one shape.

    It trains on one device, or on a mesh of them.

    Attributes:
        on_device: Whether many steps are one program; by default as `batches.on_device` says.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        recipe: Recipe,
        images_shape: tuple[int, ...],
        mesh: Mesh | None = None,
    ):
        self.name, self.model, self.recipe, self.mesh = name, model, recipe, mesh
        count, *image_shape = images_shape
        self.image_shape = tuple(image_shape)
        self.optimizer = recipe.optimizer(count)
        self.on_device = on_device()
        self._init = initializer(model, self.optimizer, self.image_shape, mesh)
        self.state_like: State = jax.eval_shape(functools.partial(self._init, 0))

    def parameters(self) -> int:
        """Count the trained parameters."""
        return parameters(self.state_like.variables)

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """The compiled training step."""
        lowered = lower_train_step(
            self.model,
            self.optimizer,
            self.image_shape,
            batch_size=self.recipe.batch_size,
            mesh=self.mesh,
            like=self.state_like,
        )
        train_step = lowered.compile()
        return_freed_memory()
        return train_step

    @functools.cached_property
    def train_steps(self) -> TrainSteps:
        """Many training steps as one program."""
        return make_train_steps(self.model, self.optimizer, self.mesh)

    def train(self, *arguments: Any, **options: Any) -> Iterator[tuple[State, Epoch]]:
        """Train step by step, or on the device, see `loop.train` and `loop.train_on_device`."""
        if self.on_device:
            return train_on_device(self.train_steps, *arguments, **options)
        return train(self.train_step, *arguments, **options)

    @functools.cached_property
    def forward(self) -> Forward:
        """The evaluation pass."""
        return make_forward(self.model)

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""
        return self._init(seed)

    def place(self, tree: Any) -> Any:
        """Put a state, or a part of it, to where the model trains."""
        return tree if self.mesh is None else place(tree, shardings(tree, self.mesh))


def train_and_test(
    run: Run[Trainer],
    dataset: Dataset,
    variants: Mapping[str, np.ndarray],
    *,
    bar: bool = True,
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        dataset: What to train on; after each epoch a sample of its test images is tested.
        variants: Test images, uint8 [n, 28, 28, 1] by name, all with `dataset.test_labels`.
        bar: Whether to show a progress bar, where stderr is a terminal.

    Returns:
        As `runs.execute`; of the test there are "variants", loss and accuracy by name.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    trainer, recipe = run.trainer, run.trainer.recipe
    # A sample shows how training goes; all images are tested at its end.
    stride = -(-len(dataset.test_labels) // _TESTED_EACH_EPOCH)
    sample = dataset.test_images[::stride], dataset.test_labels[::stride]

    def train_on(start: State) -> Iterator[EpochResult]:
        for state, epoch in trainer.train(
            start,
            dataset.train_images,
            dataset.train_labels,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            seed=run.seed,
            title=run.title if bar and is_first() else None,
        ):
            score = evaluate(trainer.forward, state.variables, *sample)
            yield EpochResult(epoch.epoch, state, *_reported(epoch, recipe.epochs, score))

    def test(variables: Variables) -> FinalResult:
        scores = {
            name: evaluate(trainer.forward, variables, images, dataset.test_labels)
            for name, images in variants.items()
        }
        text = ", ".join(f"{name} {score.accuracy:.2%}" for name, score in scores.items())
        return FinalResult({"variants": {name: s._asdict() for name, s in scores.items()}}, text)

    return runs.execute(run, train_on, test)


def _reported(epoch: Epoch, epochs: int, score: Score) -> tuple[dict[str, Any], str]:
    """Return the figures of an epoch and of the test after it, and the same as a line to print."""
    figures = {
        "step": epoch.step,
        "train": {"loss": epoch.loss, "accuracy": epoch.accuracy},
        "test": score._asdict(),
        "images_per_second": epoch.images_per_second,
        "seconds": epoch.seconds,
    }
    left = tqdm.format_interval((epochs - epoch.epoch) * epoch.seconds)
    text = (
        f"epoch {epoch.epoch}/{epochs}"
        f"  train loss {epoch.loss:.4f} accuracy {epoch.accuracy:6.2%}"
        f"  test loss {score.loss:.4f} accuracy {score.accuracy:6.2%}"
        f"  {epoch.images_per_second:,.0f} images/s  {left} left"
    )
    return figures, text
