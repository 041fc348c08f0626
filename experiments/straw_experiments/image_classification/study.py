"""From settings to trained contenders and the files that tell of them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from straw_experiments import data
from straw_experiments.image_classification import figures, report
from straw_experiments.image_classification import models as contenders
from straw_experiments.image_classification.controls import control_scores, sample, style_function
from straw_experiments.image_classification.evaluate import in_batches, predict
from straw_experiments.image_classification.train import Contender, Recipe, Schedule, finish
from straw_experiments.runner import records
from straw_experiments.runner.environment import commit, device, versions
from straw_experiments.runner.hosts import from_first, is_first
from straw_experiments.runner.processes import in_processes, jobs_for
from straw_experiments.runner.runs import Run
from straw_experiments.runner.tables import over_seeds
from straw_jax.sharding import make_mesh
from straw_jax.straw import Base, Straw

_SHEET = 8  # Test images on the sheet of samples.


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of an experiment.

    Attributes:
        dataset: As `straw_experiments.data.load` takes it, like the next three.
        data_dir: Folder of data, or None for the default one.
        archive: EMNIST's `gzip.zip`, or None.
        fraction: Share of the training set, in (0, 1].
        limit: At most so many training and so many test images, 2 or more; None for all.
        validation: Share of these training images, below 1, that is held out of training and takes
            the place of the test images; None for the test images.
        rank: Of STRAW's factors.
        executor: "cnn" or "vit", as in `contender`.
        encoder: STRAW's, "conv" or "trm", as in `contender`.
        base: STRAW's base weights, "none" or "trained".
        models: Contenders by name.
        epochs: Passes over the training images.
        batch_size: Samples a step.
        learning_rate: Adam's.
        schedule: Of the learning rate, as in `Recipe`.
        seed: Of each model's first run.
        seeds: How many runs a model, with seeds that count up from `seed`.
        jobs: How many runs train at once, as in `jobs_for`.
        mesh: The devices that train each run together, "data" and "model" as in `make_mesh`, or
            None for one.
        experiment: Which of the article's three sets these settings are, or None.
        preset: Which named recipe these settings are, or None.
        out: Folder for the results.
        resume: Whether to continue what lies in `out`.
    """

    dataset: str
    data_dir: str | None
    archive: str | None
    fraction: float
    limit: int | None
    validation: float | None
    rank: int
    executor: contenders.Executor
    encoder: contenders.Encoder
    base: Base
    models: Sequence[str]
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule
    seed: int
    seeds: int
    jobs: int | None
    mesh: dict[str, int] | None
    experiment: str | None
    preset: str | None
    out: str
    resume: bool


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
    path = Path(config.out, "config.json")
    if path.exists() and (earlier := records.read_json(path)["data"]) != _description(dataset):
        raise ValueError(
            f"--resume: the results in {config.out} are from {earlier}, but the data are now"
            f" {_description(dataset)}. Give the earlier data, or choose another --out"
        )
    return dataset


class Experiment:
    """Contenders and seeds on one data set: all runs, finished or not.

    Attributes:
        config: The settings.
        dataset: From `load_dataset`.
        variants: Its test images by variant.
        seeds: Of each model's runs.
        mesh: The devices, or None for one.
    """

    def __init__(self, config: Config, dataset: data.Dataset):
        self.config, self.dataset = config, dataset
        self.variants = data.variants(dataset.test_images)
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.mesh = make_mesh(**config.mesh) if config.mesh else None
        self._contenders: dict[str, Contender] = {}

    def contender(self, name: str) -> Contender:
        """Return a contender, whose compiled programs all its runs share."""
        if name not in self._contenders:
            config = self.config
            recipe = Recipe(config.epochs, config.batch_size, config.learning_rate, config.schedule)
            model = contenders.contender(name, **self._sizes())
            images_shape = self.dataset.train_images.shape
            self._contenders[name] = Contender(name, model, recipe, images_shape, self.mesh)
        return self._contenders[name]

    def straw(self, name: str) -> Straw | None:
        """Return the STRAW that a contender is, or None where it is none."""
        return contenders.straw_of(name, **self._sizes())

    def run(self, name: str, seed: int) -> Run[Contender]:
        """Return a contender's run."""
        return Run(self.contender(name), seed, Path(self.config.out))

    def finish(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train and test a run and its controls, as far as that is still to be done.

        Args:
            name: The contender's.
            seed: The run's.
            bar: Whether to show a progress bar, where stderr is a terminal.

        Returns:
            The run's result, as from `runs.finish`; of a STRAW also "controls", scores by control
            and variant.
        """
        run = self.run(name, seed)
        result = finish(run, self.dataset, self.variants, bar=bar)
        if straw := self.straw(name):
            path = run.result.with_name("controls.json")
            if not from_first(path.exists, like=False):
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

    def _sizes(self) -> dict[str, Any]:
        config = self.config
        classes = len(self.dataset.class_names)
        return {
            "classes": classes,
            "rank": config.rank,
            "base": config.base,
            "executor": config.executor,
            "encoder": config.encoder,
            "image": self.dataset.train_images.shape[1:],
        }


def run(config: Config, dataset: data.Dataset, command: str) -> None:
    """Train, test and write all files; continue where an earlier call was stopped.

    Args:
        config: The experiment's settings.
        dataset: From `load_dataset`.
        command: The command line, for the record.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: A run should continue but has no whole checkpoint.
        ProcessError: A process that trained was ended from outside.
    """
    out = Path(config.out)
    experiment = Experiment(config, dataset)
    if not is_first():
        for name in config.models:
            for seed in experiment.seeds:
                experiment.finish(name, seed)
        return
    records.write_json(
        out / "config.json",
        {**dataclasses.asdict(config), "data": _description(dataset), "command": command},
    )
    made = {"commit": commit(), "versions": versions()}  # before the checkout may move on
    tasks = [(name, seed) for name in config.models for seed in experiment.seeds]
    jobs = 1 if config.mesh else jobs_for(len(tasks), config.jobs)
    _print_start(experiment, jobs)
    if jobs > 1:
        _finish_in_processes(experiment, tasks, jobs)
    results = {
        name: [experiment.finish(name, seed) for seed in experiment.seeds] for name in config.models
    }
    summary = {
        "dataset": dataset.name,
        "experiment": config.experiment,
        "device": device(config.mesh),
        "jobs": jobs,
        "command": command,
        **made,
        "config": dataclasses.asdict(config),
        "seeds": list(experiment.seeds),
        **_figures_of(experiment, results),
    }
    history = [line for task in tasks for line in experiment.run(*task).history()]
    records.write_lines(out / "metrics.jsonl", history)
    figures.plot_curves(history, out / "curves.png", dataset=dataset.name)
    figures.plot_variants(summary, out / "variants.png")
    _draw_samples(experiment)
    _draw_styles(experiment)
    records.write(out / "report.md", report.markdown(summary))
    records.write_json(out / "summary.json", summary)  # Last: it marks the experiment as finished.

    print(f"\n{report.table(summary)}\n")
    if "resnet34" not in config.models:
        print(_cost_of_resnet(experiment, summary))
    print(f"Report, figures and all numbers: {out}")


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


def _finish_in_processes(
    experiment: Experiment, tasks: Sequence[tuple[str, int]], jobs: int
) -> None:
    unfinished = [task for task in tasks if not experiment.run(*task).result.exists()]
    cost = {
        name: contenders.sample_cost(each.model, each.image_shape)
        for name, each in ((name, experiment.contender(name)) for name in experiment.config.models)
    }
    longest_first = sorted(unfinished, key=lambda task: -cost[task[0]])
    in_processes(_finisher, (experiment.config, experiment.dataset), longest_first, jobs)


def _finisher(config: Config, dataset: data.Dataset) -> Callable[[tuple[str, int]], None]:
    experiment = Experiment(config, dataset)

    def finish_one(task: tuple[str, int]) -> None:
        experiment.finish(*task, bar=False)  # several bars would overwrite each other

    return finish_one


def _figures_of(
    experiment: Experiment, results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """What the summary says of each model."""
    models = {name: experiment.contender(name) for name in results}
    labels = experiment.dataset.test_labels
    return {
        "seconds": {
            name: sum(result["seconds"] for result in group) for name, group in results.items()
        },
        "parameters": {name: each.parameters() for name, each in models.items()},
        "multiply_adds": {
            name: contenders.sample_cost(each.model, each.image_shape)
            for name, each in models.items()
        },
        "results": {
            name: over_seeds([result["variants"] for result in group])
            for name, group in results.items()
        },
        "control_images": len(labels[sample(len(labels))]),
        "controls": {
            name: {
                control: over_seeds([result["controls"][control] for result in group])
                for control in group[0]["controls"]
            }
            for name, group in results.items()
            if "controls" in group[0]
        },
    }


def _print_start(experiment: Experiment, jobs: int) -> None:
    config, found = experiment.config, _description(experiment.dataset)
    print(f"data     {found['name']}")
    print(f"         {found['train']:,} training images, {found['test']:,} test images", end="")
    print(f", {found['classes']} classes")
    print(f"device   {device(config.mesh)}" + (f", {jobs} runs at a time" if jobs > 1 else ""))
    print(f"results  {config.out}")
    for name in config.models:
        print(f"model    {name}, {experiment.contender(name).parameters():,} trained parameters")
    for name in config.models:
        if straw := experiment.straw(name):
            print(f"\nWhat the generator of {name} writes for each sample:\n{straw.spec}\n")
    sys.stdout.flush()  # Before the hours of training, even if stdout is a file.


def _draw_samples(experiment: Experiment) -> None:
    """Draw a sheet of test images with what each model's first run takes them for."""
    dataset = experiment.dataset
    sheet = {variant: images[:_SHEET] for variant, images in experiment.variants.items()}
    predictions = {}
    for name in experiment.config.models:
        run = experiment.run(name, experiment.seeds[0])
        forward, variables = run.trainee.forward, run.variables()
        predictions[name] = {
            variant: predict(forward, variables, images) for variant, images in sheet.items()
        }
    figures.plot_samples(
        sheet,
        dataset.test_labels[:_SHEET],
        predictions,
        dataset.class_names,
        Path(experiment.config.out, "samples.png"),
        dataset=dataset.name,
    )


def _draw_styles(experiment: Experiment) -> None:
    """Draw the style vectors of the test images, of the first STRAW's first run."""
    dataset = experiment.dataset
    for name in experiment.config.models:
        if straw := experiment.straw(name):
            variables = experiment.run(name, experiment.seeds[0]).variables()
            figures.plot_styles(
                in_batches(style_function(straw), variables, dataset.test_images),
                dataset.test_labels,
                dataset.class_names,
                Path(experiment.config.out, "styles.png"),
                dataset=dataset.name,
            )
            return


def _cost_of_resnet(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """Estimate what the missing baseline would take here, from the time of a model that ran."""
    models = experiment.config.models
    resnet = experiment.contender("resnet34")
    cost = contenders.sample_cost(resnet.model, resnet.image_shape)
    ratio = cost / summary["multiply_adds"][models[0]]
    minutes = summary["seconds"][models[0]] * ratio / summary["jobs"] / 60
    return (
        f"ResNet-34 (--models resnet34, with another --out) would take about {minutes:,.0f} minutes"
        f" on this device: an estimate, since a sample takes it {ratio:,.0f} times the"
        f" multiply-adds of {models[0]}."
    )
