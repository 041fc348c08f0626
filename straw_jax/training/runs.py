"""One run: one contender, one seed, from its first or last checkpoint to a result on disk."""

import functools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from straw_jax.data import Dataset
from straw_jax.sharding import place, shardings, to_host
from straw_jax.training import checkpoints, records
from straw_jax.training.batches import steps_per_epoch
from straw_jax.training.environment import return_freed_memory
from straw_jax.training.evaluate import Forward, Score, evaluate, make_forward
from straw_jax.training.hosts import from_first, is_first
from straw_jax.training.loop import Epoch, NonFiniteError, train
from straw_jax.training.step import (
    Model,
    State,
    TrainStep,
    Variables,
    init_state,
    lower_train_step,
    state_like,
)

Schedule: TypeAlias = Literal["constant", "cosine"]

_TESTED_EACH_EPOCH = 4_000  # test images at most, evenly strided


class Recipe(NamedTuple):
    """How every run of an experiment is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Samples a step.
        learning_rate: Adam's.
        schedule: "constant", or "cosine": up to `learning_rate` in the first tenth of all steps,
            and down to 0 along half a cosine.
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
        rise = -(-steps // 10)
        return optax.adam(
            optax.warmup_cosine_decay_schedule(0, self.learning_rate, rise, max(steps, rise + 1))
        )


class Contender:
    """A model and its optimizer, compiled once, on first use, for training images of one shape.

    It trains on one device, or on a mesh of them.
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
        self.state_like: State = state_like(model, self.optimizer, self.image_shape)

    def parameters(self) -> int:
        """Count the trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state_like.variables["params"]))

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """The compiled training step."""
        lowered = lower_train_step(
            self.model,
            self.optimizer,
            self.image_shape,
            batch_size=self.recipe.batch_size,
            mesh=self.mesh,
        )
        train_step = lowered.compile()
        return_freed_memory()
        return train_step

    @functools.cached_property
    def forward(self) -> Forward:
        """The evaluation pass."""
        return make_forward(self.model)

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""
        return init_state(self.model, self.optimizer, self.image_shape, seed=seed, mesh=self.mesh)

    def place(self, tree: Any) -> Any:
        """Put a state, or a part of it, to where the model trains."""
        return tree if self.mesh is None else place(tree, shardings(tree, self.mesh))


class Run:
    """A contender and a seed, and the files they write.

    `runs/NAME-seedN/` is the run's alone, so that several may train at once. It holds
    `metrics.jsonl`, a line an epoch, and checkpoints of the whole state by epoch while the run
    trains; then `result.json`, and a checkpoint of the variables alone.
    """

    def __init__(self, contender: Contender, seed: int, out: Path):
        folder = out / "runs" / f"{contender.name}-seed{seed}"
        self.contender, self.seed = contender, seed
        self.metrics = folder / "metrics.jsonl"
        self.epochs, self.final = folder / "epochs", folder / "final"
        self.result = folder / "result.json"

    @property
    def title(self) -> str:
        """Name the run to a reader."""
        return f"{self.contender.name} seed {self.seed}"

    def history(self) -> list[dict[str, Any]]:
        """Read the run's `metrics.jsonl`."""
        return records.read_lines(self.metrics)

    def forget_after(self, epoch: int) -> None:
        """Drop the lines of later epochs, which are to be trained again."""
        records.write_lines(self.metrics, [x for x in self.history() if x["epoch"] <= epoch])

    def restored(self) -> tuple[int, State] | None:
        """Return the last epoch that was saved, and its state where the model trains, or None.

        Raises:
            CheckpointError: There are checkpoints, and none is whole.
        """
        like = self.contender.state_like
        found = checkpoints.restore(self.epochs, like) if is_first() else None
        done = int(from_first(lambda: found[0] if found else 0, like=0))
        if not done:
            return None
        return done, self.contender.place(from_first(lambda: found and found[1], like))

    def placed_variables(self) -> Variables:
        """Return the variables that a finished run ended with, where the model trains.

        Raises:
            CheckpointError: They are gone or damaged.
        """
        return self.contender.place(
            from_first(self.variables, like=self.contender.state_like.variables)
        )

    def variables(self) -> Variables:
        """Read the variables that a finished run ended with.

        Raises:
            CheckpointError: They are gone or damaged.
        """
        restored = checkpoints.restore(self.final, self.contender.state_like.variables)
        if restored is None:
            raise checkpoints.CheckpointError(
                f"checkpoints: {self.final} is gone. Delete {self.final.parent} and use --resume"
                " to train this model again"
            )
        return restored[1]


def finish(
    run: Run, dataset: Dataset, variants: Mapping[str, np.ndarray], *, bar: bool = True
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done.

    Args:
        run: New, stopped at any point, or finished.
        dataset: What to train on; after each epoch a sample of its test images is tested.
        variants: Test images, uint8 [n, 28, 28, 1] by name, all with `dataset.test_labels`.
        bar: Whether to show a progress bar, where stderr is a terminal.

    Returns:
        The run's result: "seconds" of training, and "variants", loss and accuracy by name.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    if not from_first(run.result.exists, like=False):
        forward, variables = run.contender.forward, _train(run, dataset, bar)
        scores = {
            name: evaluate(forward, variables, images, dataset.test_labels)._asdict()
            for name, images in variants.items()
        }
        variables = to_host(variables)
        if is_first():
            checkpoints.save(run.final, run.contender.recipe.epochs, variables, keep=1)
            run.variables()  # Read back before the checkpoints that it replaces go.
            seconds = sum(line["seconds"] for line in run.history())
            records.write_json(run.result, {"seconds": seconds, "variants": scores})
            _say(
                f"{run.title}: finished; "
                + ", ".join(f"{name} {score['accuracy']:.2%}" for name, score in scores.items())
            )
    if not is_first():
        return {}
    shutil.rmtree(run.epochs, ignore_errors=True)  # Also of a run that was killed just before this.
    return records.read_json(run.result)


def _train(run: Run, dataset: Dataset, bar: bool) -> Variables:
    """Train a run to its end, noting and saving every epoch."""
    contender, recipe = run.contender, run.contender.recipe
    done, state = run.restored() or (0, contender.init_state(run.seed))
    _say(f"{run.title}: {f'continuing after epoch {done}' if done else 'starting'}, compiling")
    if is_first():
        run.forget_after(done)
    # A sample will do to see how training goes: all images are tested at its end.
    stride = -(-len(dataset.test_labels) // _TESTED_EACH_EPOCH)
    labels = dataset.test_labels[::stride]
    training = train(
        contender.train_step,
        state,
        dataset.train_images,
        dataset.train_labels,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=run.seed,
        title=run.title if bar and is_first() else None,
    )
    try:
        for state, epoch in training:
            score = evaluate(
                contender.forward, state.variables, dataset.test_images[::stride], labels
            )
            hosted = to_host(state)
            if is_first():
                records.append_line(run.metrics, _line(run, epoch, score))
                checkpoints.save(run.epochs, epoch.epoch, hosted)
            _say(_progress(run, epoch, score))
    except NonFiniteError as error:
        good = checkpoints.latest(run.epochs) or "none, as no epoch was finished"
        raise NonFiniteError(
            f"{run.title}: {error}; last good checkpoint: {good}. Try a lower --learning-rate,"
            " with another --out"
        ) from None
    return state.variables


def _line(run: Run, epoch: Epoch, score: Score) -> dict[str, Any]:
    return {
        "model": run.contender.name,
        "seed": run.seed,
        "epoch": epoch.epoch,
        "step": epoch.step,
        "train": {"loss": epoch.loss, "accuracy": epoch.accuracy},
        "test": score._asdict(),
        "images_per_second": epoch.images_per_second,
        "seconds": epoch.seconds,
    }


def _progress(run: Run, epoch: Epoch, score: Score) -> str:
    epochs = run.contender.recipe.epochs
    left = tqdm.format_interval((epochs - epoch.epoch) * epoch.seconds)
    return (
        f"{run.title}: epoch {epoch.epoch}/{epochs}"
        f"  train loss {epoch.loss:.4f} accuracy {epoch.accuracy:6.2%}"
        f"  test loss {score.loss:.4f} accuracy {score.accuracy:6.2%}"
        f"  {epoch.images_per_second:,.0f} images/s  {left} left"
    )


def _say(text: str) -> None:
    if not is_first():
        return
    tqdm.write(text, file=sys.stderr)  # Beside a progress bar, should there be one.
