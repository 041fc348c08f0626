"""From settings to trained contenders and the files that tell of them."""

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from straw_jax import data
from straw_jax.straw import Base
from straw_jax.training import contenders, figures, records, report
from straw_jax.training.environment import commit, device, versions
from straw_jax.training.evaluate import Score, in_batches, predict
from straw_jax.training.runs import Contender, Recipe, Run, finish
from straw_jax.training.step import as_input

_SHEET = 8  # Test images on the sheet of samples.


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of an experiment.

    Attributes:
        dataset: As `straw_jax.data.load` takes it, like the next three.
        data_dir: Folder of data, or None for the default one.
        archive: EMNIST's `gzip.zip`, or None.
        fraction: Share of the training set, in (0, 1].
        limit: At most so many training and so many test images, 2 or more; None for all.
        rank: Of STRAW's factors.
        base: STRAW's base weights, "none" or "trained".
        models: Contenders by name.
        epochs: Passes over the training images.
        batch_size: Samples a step.
        learning_rate: Adam's.
        seed: Of each model's first run.
        seeds: How many runs a model, with seeds that count up from `seed`.
        experiment: Which of the article's three sets these settings are, or None.
        out: Folder for the results.
        resume: Whether to continue what lies in `out`.
    """

    dataset: str
    data_dir: str | None
    archive: str | None
    fraction: float
    limit: int | None
    rank: int
    base: Base
    models: Sequence[str]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    seeds: int
    experiment: str | None
    out: str
    resume: bool


def load_dataset(config: Config) -> data.Dataset:
    """Load what the settings name.

    Args:
        config: The experiment's settings.

    Returns:
        The data set, cut to `config.limit`.

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
    path = Path(config.out, "config.json")
    if path.exists() and (earlier := records.read_json(path)["data"]) != _description(dataset):
        raise ValueError(
            f"--resume: the results in {config.out} are from {earlier}, but the data are now"
            f" {_description(dataset)}. Give the earlier data, or choose another --out"
        )
    return dataset


def run(config: Config, dataset: data.Dataset, command: str) -> None:
    """Train, test and write all files; continue where an earlier call was stopped.

    Args:
        config: The experiment's settings.
        dataset: From `load_dataset`.
        command: The command line, for the record.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: A run should continue but has no whole checkpoint.
    """
    out = Path(config.out)
    settings = dataclasses.asdict(config)
    records.write_json(
        out / "config.json", {**settings, "data": _description(dataset), "command": command}
    )
    seeds = range(config.seed, config.seed + config.seeds)
    runs = {
        name: [Run(contender, seed, out) for seed in seeds]
        for name in config.models
        for contender in [_contender(name, config, dataset)]
    }
    parameters = {name: group[0].contender.parameters() for name, group in runs.items()}
    _print_start(config, dataset, parameters)

    variants = data.variants(dataset.test_images)
    results = {
        name: [finish(each, dataset, variants) for each in group] for name, group in runs.items()
    }

    summary = {
        "dataset": dataset.name,
        "experiment": config.experiment,
        "device": device(),
        "commit": commit(),
        "command": command,
        "versions": versions(),
        "config": settings,
        "seeds": list(seeds),
        "seconds": {
            name: sum(result["seconds"] for result in group) for name, group in results.items()
        },
        "parameters": parameters,
        "results": {name: over_seeds(group) for name, group in results.items()},
    }
    first_runs = {name: group[0] for name, group in runs.items()}
    history = [line for group in runs.values() for run in group for line in run.history()]
    records.write_lines(out / "metrics.jsonl", history)
    figures.plot_curves(history, out / "curves.png", dataset=dataset.name)
    _draw(config, dataset, variants, first_runs, summary)
    records.write(out / "report.md", report.markdown(summary))
    records.write_json(out / "summary.json", summary)  # Last: it marks the experiment as finished.

    print(f"\n{report.table(summary)}\n")
    if "resnet34" not in runs:
        print(_cost_of_resnet(config, dataset, next(iter(first_runs.values())), summary))
    print(f"Report, figures and all numbers: {out}")


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn results by seed into figures by variant.

    Args:
        results: One for each seed, from `finish`.

    Returns:
        For each variant, and of it for "loss" and "accuracy": "mean", "std" (sample standard
        deviation; None with one seed) and "seeds", the values themselves.
    """

    def spread(values: list[float]) -> dict[str, Any]:
        std = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": std, "seeds": values}

    return {
        variant: {
            measure: spread([result["variants"][variant][measure] for result in results])
            for measure in Score._fields
        }
        for variant in results[0]["variants"]
    }


def _description(dataset: data.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "classes": len(dataset.class_names),
    }


def _contender(name: str, config: Config, dataset: data.Dataset) -> Contender:
    model = contenders.contender(
        name, classes=len(dataset.class_names), rank=config.rank, base=config.base
    )
    recipe = Recipe(config.epochs, config.batch_size, config.learning_rate)
    return Contender(name, model, recipe, dataset.train_images.shape[1:])


def _straw(config: Config, dataset: data.Dataset) -> Any:
    return contenders.article_straw(
        classes=len(dataset.class_names), rank=config.rank, base=config.base
    )


def _print_start(config: Config, dataset: data.Dataset, parameters: Mapping[str, int]) -> None:
    found = _description(dataset)
    print(f"data     {found['name']}")
    print(f"         {found['train']:,} training images, {found['test']:,} test images", end="")
    print(f", {found['classes']} classes")
    print(f"device   {device()}")
    print(f"results  {config.out}")
    for name, count in parameters.items():
        print(f"model    {name}, {count:,} trained parameters")
    if "straw" in parameters:
        print(f"\nWhat STRAW's generator writes for each sample:\n{_straw(config, dataset).spec}\n")
    sys.stdout.flush()  # Before the hours of training, even if stdout is a file.


def _draw(
    config: Config,
    dataset: data.Dataset,
    variants: Mapping[str, np.ndarray],
    runs: Mapping[str, Run],
    summary: Mapping[str, Any],
) -> None:
    """Draw all figures, those of single images from one run a model."""
    out, name = Path(config.out), dataset.name
    labels, class_names = dataset.test_labels, dataset.class_names
    figures.plot_variants(summary, out / "variants.png")

    sheet = {variant: images[:_SHEET] for variant, images in variants.items()}
    predictions = {}
    for model, run in runs.items():
        forward, variables = run.contender.forward, run.variables()
        predictions[model] = {
            variant: predict(forward, variables, images) for variant, images in sheet.items()
        }
    figures.plot_samples(
        sheet, labels[:_SHEET], predictions, class_names, out / "samples.png", dataset=name
    )

    if "straw" in runs:
        style = contenders.style_function(_straw(config, dataset))
        vectors = in_batches(
            jax.jit(lambda variables, images: style(variables, as_input(images))),
            runs["straw"].variables(),
            dataset.test_images,
        )
        figures.plot_styles(vectors, labels, class_names, out / "styles.png", dataset=name)


def _cost_of_resnet(
    config: Config, dataset: data.Dataset, measured: Run, summary: Mapping[str, Any]
) -> str:
    """Estimate what the missing baseline would take here, from the time of a model that ran."""
    name = measured.contender.name
    resnet = _contender("resnet34", config, dataset)
    ratio = resnet.step_flops / measured.contender.step_flops
    minutes = summary["seconds"][name] * ratio / 60
    return (
        f"Adding ResNet-34 (--models {' '.join(config.models)} resnet34) would take about"
        f" {minutes:,.0f} minutes more on this device: an estimate, since a step of it has"
        f" {ratio:,.0f} times the multiply-adds of one of {name}."
    )
