"""From settings to trained writers of fields and the files that report them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from straw_experiments import data
from straw_experiments.fields import figures, fitting, report
from straw_experiments.fields.config import Config
from straw_experiments.fields.evaluate import components
from straw_experiments.fields.models import MODELS
from straw_experiments.fields.train import Recipe, Trainer, train_and_test
from straw_experiments.runner import study as studies
from straw_experiments.runner.settings import check_same_data
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds

_VALIDATION = 1_024  # of the training images, at most; a tenth if there are fewer than ten times it
_SHOWN = 4  # images of each test set in the picture


class Images(NamedTuple):
    """Grey images, uint8 `[n, h, w]`.

    Attributes:
        name: The data set's true name.
        training: To train on.
        validation: Scored during training, never trained on.
        tested: Test images by the true name of their data set, its own first.
    """

    name: str
    training: np.ndarray
    validation: np.ndarray
    tested: Mapping[str, np.ndarray]


def load_images(config: Config) -> Images:
    """Load what the settings name.

    Raises:
        ValueError: It cannot be had, or is not the one that `config.out` has results of.
    """
    options: dict[str, Any] = {"data_dir": config.data_dir}
    with_archive = {**options, "archive": config.archive}
    if config.dataset == "auto":
        dataset = data.load_mnist(config.data_dir)
    else:
        archived = config.dataset == "emnist"
        dataset = data.load(config.dataset, **(with_archive if archived else options))
    other = None
    if config.held_out == "auto":
        other = _emnist(with_archive)
    elif config.held_out != "none":
        archived = config.held_out == "emnist"
        other = data.load(config.held_out, **(with_archive if archived else options))
    training = _grey(dataset.name, dataset.train_images)[: config.limit]
    tested = {dataset.name: _grey(dataset.name, dataset.test_images)[: config.limit]}
    if other is not None and other.name != dataset.name:
        tested[other.name] = _grey(other.name, other.test_images)[: config.limit]
        if tested[other.name].shape[1:] != training.shape[1:]:
            raise ValueError(
                f"argument --held-out: expected images of {training.shape[1:]} pixels, as those of"
                f" {dataset.name}, got {tested[other.name].shape[1:]}"
            )
    kept = max(1, min(_VALIDATION, len(training) // 10))
    images = Images(dataset.name, training[:-kept], training[-kept:], tested)
    check_same_data(config, _description(images))
    return images


def _emnist(options: Mapping[str, Any]) -> data.Dataset | None:
    try:
        return data.load("emnist", **options)
    except ValueError as error:
        warnings.warn(f"NO HELD-OUT DATA SET: EMNIST cannot be had. {error}", stacklevel=2)
        return None


def _grey(name: str, images: np.ndarray) -> np.ndarray:
    if images.shape[-1] != 1:
        raise ValueError(f"data set {name}: expected grey images, got {images.shape[-1]} channels")
    return images[..., 0]


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not.

    Attributes:
        images: From `load_images`.
        sizes: Of the hidden layers of a field.
    """

    config: Config
    report = report

    def __init__(self, config: Config, images: Images):
        super().__init__(config, config.models)
        self.images = images
        self.sizes = tuple(map(int, config.sizes.split("-")))

    @property
    def arguments(self) -> tuple[Config, Images]:
        """What another process makes the same study from."""
        return self.config, self.images

    def data(self) -> Mapping[str, Any]:
        """Describe the data."""
        return _description(self.images)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a writer."""
        config = self.config
        straw = MODELS[name].build(
            self.sizes,
            style=config.style,
            hidden=config.hidden,
            rank=config.rank,
            image=self.images.training.shape[1:],
        )
        recipe = Recipe(
            config.steps,
            config.batch_size,
            config.pixels,
            config.learning_rate,
            config.base_rate,
            None if MODELS[name].linear else config.generator_rate,
        )
        return Trainer(name, straw, recipe, self.images.training)

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train, test and examine a run, as far as that is still to be done."""
        del bar
        trainer, images = self.trainer(name), self.images

        def examine(params: Any) -> dict[str, Any]:
            controls = {
                which: trainer.reader.controls(params, tested, images.training)
                for which, tested in images.tested.items()
            }
            found: dict[str, Any] = {"controls": controls}
            if count := self._fitted():
                fitted = fitting.Images(images.validation[:count], self._tested()[:count])
                found["fitting"] = fitting.measure(trainer.straw, self.sizes, params, fitted, seed)
            return found

        return train_and_test(self.run(name, seed), images.validation, images.tested, examine)

    def _tested(self) -> np.ndarray:
        return self.images.tested[self.images.name]

    def _fitted(self) -> int:
        return min(self.config.fitted, len(self.images.validation), len(self._tested()))

    def cost(self, name: str) -> float:
        """Return the parameters of a writer."""
        return self.trainer(name).parameters()

    def description(self) -> Iterable[str]:
        """Describe data and models, line by line."""
        images, config = self.images, self.config
        yield (
            f"data     {images.name}, {len(images.training):,} training images,"
            f" {len(images.validation):,} for validation"
        )
        for which, tested in images.tested.items():
            yield f"tested   {which}, {len(tested):,} test images"
        yield f"fields   hidden layers {config.sizes}; a style of {config.style} numbers"
        for name in self.names:
            trainer = self.trainer(name)
            yield (
                f"writer   {name}: {trainer.straw.spec.size:,} numbers an image,"
                f" {trainer.parameters():,} trained parameters"
            )

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        images = self.images
        return {
            "study": "fields",
            "dataset": images.name,
            "tested": {name: len(tested) for name, tested in images.tested.items()},
            "training images": len(images.training),
            "steps of fitting": list(fitting.STEPS),
        }

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each writer, and of principal components."""
        written = {name: self.trainer(name).straw.spec.size for name in results}
        counts = sorted({0, 64, 128, 256, self.config.style, *written.values()})
        pixels = int(np.prod(self.images.training.shape[1:]))
        return {
            "results": {name: self._figures(name, group) for name, group in results.items()},
            "components": components(
                self.images.training,
                self.images.tested,
                [count for count in counts if count <= pixels],
            ),
        }

    def _figures(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seconds = sum(result["seconds"] for result in results)
        trainer = self.trainer(name)
        left_out = ("seconds", "fitting")
        found: dict[str, Any] = {
            "written": trainer.straw.spec.size,
            "parameters": trainer.parameters(),
            "seconds": seconds,
            "steps_per_second": self.config.steps * len(results) / seconds,
            **over_seeds(
                [{k: v for k, v in each.items() if k not in left_out} for each in results]
            ),
        }
        if "fitting" in results[0]:
            fits = [result["fitting"] for result in results]
            found["fitting"] = {
                "images": fits[0]["images"],
                **over_seeds([{k: fit[k] for k in ("curves", "seconds")} for fit in fits]),
                # A start may never reach the level: then there is no number to take a mean of.
                "reached": {
                    start: [fit["reached"][start] for fit in fits] for start in fits[0]["reached"]
                },
            }
        return found

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw curves, and images beside their fields; return files by what they show."""
        out = Path(self.config.out)
        drawn = dict(figures.draw(summary, history, out))
        name, seed = self.names[0], self.seeds[0]
        params = self.run(name, seed).variables()["params"]
        chosen = {which: tested[:_SHOWN] for which, tested in self.images.tested.items()}
        figures.plot_images(
            fitting.pictures(self.trainer(name).straw, self.sizes, params, chosen),
            out / "images.png",
            title=f"Fields that {MODELS.label(name)} writes, seed {seed}",
        )
        drawn["Images and fields, at their own and at four times the resolution"] = "images.png"
        return drawn


def _description(images: Images) -> dict[str, Any]:
    return {
        "dataset": images.name,
        "training": len(images.training),
        "validation": len(images.validation),
        "tested": {name: len(tested) for name, tested in images.tested.items()},
    }
