"""From settings to trained models and the files that report them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments import data
from straw_experiments.image_classification import figures, report
from straw_experiments.image_classification.config import Config
from straw_experiments.image_classification.controls import control_scores, sample, style_function
from straw_experiments.image_classification.evaluate import in_batches, predict
from straw_experiments.image_classification.models import build_model, straw_of
from straw_experiments.image_classification.networks import sample_cost
from straw_experiments.image_classification.train import Recipe, Trainer, train_and_test
from straw_experiments.runner import records
from straw_experiments.runner import study as studies
from straw_experiments.runner.hosts import from_first, is_first
from straw_experiments.runner.settings import check_same_data
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds
from straw_jax.sharding import make_mesh
from straw_jax.straw import Straw

_SHEET = 8  # Test images on the sheet of samples.


def load_dataset(config: Config) -> data.Dataset:
    """Load what the settings name.

    Args:
        config: The experiment's settings.

    Returns:
        The data set, cut to `config.limit`. With `config.validation`, its test images are training
        images that were held out, and its name says so.

    Raises:
        ValueError: It cannot be had, or is not the one that `config.out` has results of.
    """
    dataset = data.load(
        config.dataset, fraction=config.fraction, data_dir=config.data_dir, archive=config.archive
    )
    dataset = dataset._replace(
        train_images=dataset.train_images[: config.limit],
        train_labels=dataset.train_labels[: config.limit],
        test_images=dataset.test_images[: config.limit],
        test_labels=dataset.test_labels[: config.limit],
    )
    if config.validation:
        dataset = _held_out(dataset, config.validation)
    check_same_data(config, _description(dataset))
    return dataset


class Study(studies.Study[Trainer]):
    """Models of images and their seeds on one data set: all runs, finished or not.

    Attributes:
        dataset: From `load_dataset`.
        variants: Its test images by variant.
    """

    config: Config
    report = report

    def __init__(self, config: Config, dataset: data.Dataset):
        super().__init__(config, config.models)
        self.dataset = dataset
        self.variants = data.variants(dataset.test_images)
        self.mesh = make_mesh(**config.mesh) if config.mesh else None

    @property
    def arguments(self) -> tuple[Config, data.Dataset]:
        """What another process makes the same study from."""
        return self.config, self.dataset

    def data(self) -> Mapping[str, Any]:
        """Describe the data."""
        return _description(self.dataset)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a model."""
        config = self.config
        recipe = Recipe(config.epochs, config.batch_size, config.learning_rate, config.schedule)
        model = build_model(name, **self.sizes())
        return Trainer(name, model, recipe, self.dataset.train_images.shape, self.mesh)

    def straw(self, name: str) -> Straw | None:
        """Return the STRAW that a model is, or None where it is none."""
        return straw_of(name, **self.sizes())

    def sizes(self) -> dict[str, Any]:
        """Return what models are built for, see `models.Sizes`."""
        config = self.config
        return {
            "classes": len(self.dataset.class_names),
            "rank": config.rank,
            "base": config.base,
            "executor": config.executor,
            "encoder": config.encoder,
            "image": self.dataset.train_images.shape[1:],
            "precision": config.precision,
        }

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train and test a run and its controls, as far as that is still to be done.

        Args:
            name: The model's.
            seed: The run's.
            bar: Whether to show a progress bar, where stderr is a terminal.

        Returns:
            The run's result, as from `train_and_test`; of a STRAW also "controls", scores by
            control and variant.
        """
        run = self.run(name, seed)
        result = train_and_test(run, self.dataset, self.variants, bar=bar)
        if straw := self.straw(name):
            path = run.result.with_name("controls.json")
            if not from_first(partial(records.is_made, path), like=False):
                scores = control_scores(
                    straw,
                    run.placed_variables(),
                    self.dataset.train_images,
                    self.variants,
                    self.dataset.test_labels,
                )
                if is_first():
                    records.write_json(path, scores)
            if is_first():
                result["controls"] = records.read_json(path)
        return result

    def cost(self, name: str) -> int:
        """Return the multiply-adds of an image."""
        trainer = self.trainer(name)
        return sample_cost(trainer.model, trainer.image_shape)

    def description(self) -> Iterable[str]:
        """Describe data and models, line by line."""
        found = self.data()
        yield (
            f"data     {found['name']}\n"
            f"         {found['train']:,} training images, {found['test']:,} test images,"
            f" {found['classes']} classes"
        )
        for name in self.names:
            yield f"model    {name}, {self.trainer(name).parameters():,} trained parameters"
        for name in self.names:
            if straw := self.straw(name):
                yield f"\nGenerated by {name} for each sample:\n{straw.spec}\n"

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {"dataset": self.dataset.name, "experiment": self.config.experiment}

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each model."""
        labels = self.dataset.test_labels
        return {
            "seconds": {
                name: sum(result["seconds"] for result in group) for name, group in results.items()
            },
            "parameters": {name: self.trainer(name).parameters() for name in results},
            "multiply_adds": {name: self.cost(name) for name in results},
            "results": {
                name: over_seeds([result["variants"] for result in group])
                for name, group in results.items()
            },
            "control_images": len(labels[sample(len(labels))]),
            "controls": {
                name: over_seeds([result["controls"] for result in group])
                for name, group in results.items()
                if "controls" in group[0]
            },
        }

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw curves, accuracies, samples, and style vectors; return files by what they show."""
        out, dataset = Path(self.config.out), self.dataset
        figures.plot_curves(history, out / "curves.png", dataset=dataset.name)
        figures.plot_variants(summary, out / "variants.png")
        _draw_samples(self)
        pictures = {
            "Accuracy and loss by epoch": "curves.png",
            "Accuracy by test variant": "variants.png",
            "Test samples and their predicted classes": "samples.png",
        }
        if _draw_styles(self):
            pictures["Style vectors of test images, coloured by class"] = "styles.png"
        return pictures

    def closing(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """Estimate the time of the missing ResNet-34, from that of a model that ran."""
        if "resnet34" in self.names:
            return
        sizes = {**self.sizes(), "executor": "cnn"}
        cost = sample_cost(build_model("resnet34", **sizes), sizes["image"])
        first = self.names[0]
        ratio = cost / summary["multiply_adds"][first]
        minutes = summary["seconds"][first] * ratio / summary["jobs"] / 60
        yield (
            f"ResNet-34 (--models resnet34, with another --out) would take about {minutes:,.0f}"
            f" minutes on this device: an estimate, since a sample takes it {ratio:,.0f} times the"
            f" multiply-adds of {first}."
        )


def _held_out(dataset: data.Dataset, share: float) -> data.Dataset:
    """Put an evenly strided share of the training images in the place of the test images."""
    count = len(dataset.train_labels)
    held = np.diff(np.floor(share * np.arange(count + 1))) > 0
    if held.sum() < 2 or held.all():
        raise ValueError(
            f"--validation: expected a share that parts {count} training images in two, got"
            f" {share:g}. Choose another, or a larger --fraction or --limit"
        )
    return dataset._replace(
        name=f"{dataset.name}, validation images held out of its training set",
        train_images=dataset.train_images[~held],
        train_labels=dataset.train_labels[~held],
        test_images=dataset.train_images[held],
        test_labels=dataset.train_labels[held],
    )


def _description(dataset: data.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "classes": len(dataset.class_names),
    }


def _draw_samples(study: Study) -> None:
    """Draw test images with the classes that each model's first run predicts."""
    dataset = study.dataset
    sheet = {variant: images[:_SHEET] for variant, images in study.variants.items()}
    predictions = {}
    for name in study.names:
        run = study.run(name, study.seeds[0])
        forward, variables = run.trainer.forward, run.variables()
        predictions[name] = {
            variant: predict(forward, variables, images) for variant, images in sheet.items()
        }
    figures.plot_samples(
        sheet,
        dataset.test_labels[:_SHEET],
        predictions,
        dataset.class_names,
        Path(study.config.out, "samples.png"),
        dataset=dataset.name,
    )


def _draw_styles(study: Study) -> bool:
    """Draw style vectors of the test images, of the first STRAW's first run, if there is one."""
    dataset = study.dataset
    for name in study.names:
        if straw := study.straw(name):
            variables = study.run(name, study.seeds[0]).variables()
            figures.plot_styles(
                in_batches(style_function(straw), variables, dataset.test_images),
                dataset.test_labels,
                dataset.class_names,
                Path(study.config.out, "styles.png"),
                dataset=dataset.name,
            )
            return True
    return False
