"""From settings to trained models of text and the files that tell of them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.char_lm import figures, report
from straw_experiments.char_lm.analysis import CONTROLS, examine
from straw_experiments.char_lm.models import (
    KINDS,
    Sizes,
    breakdown,
    features_for,
    make_model,
    multiply_adds,
)
from straw_experiments.char_lm.train import Learner, Recipe, finish
from straw_experiments.data import text
from straw_experiments.data.text import Text
from straw_experiments.runner import records
from straw_experiments.runner.environment import commit, device, versions
from straw_experiments.runner.processes import in_processes, jobs_for
from straw_experiments.runner.runs import Run
from straw_experiments.runner.tables import over_seeds


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a study.

    Attributes:
        text: Path of a text file, or None for Penn Treebank, as in `text.load`.
        data_dir: Where Penn Treebank lies, or None for the default folder.
        models: Kinds by name, as in `KINDS`.
        parameters: Each model has as many as it can without having more.
        hyper_features: As in `Sizes`, like the next two.
        embedding: Of each gate.
        rank: Of the low-rank update.
        epochs: As in `Recipe`, like the next three.
        batch_size: Pieces of text side by side.
        length: Characters of each that a step reads.
        learning_rate: Its highest, of all models or of each.
        dropout: As in `make_model`.
        sample_length: Characters to draw from each trained model.
        seed: Of each model's first run.
        seeds: How many runs each, with seeds that count up from `seed`.
        jobs: How many runs train at once, as in `jobs_for`.
        out: Folder for the results.
        resume: Whether to continue what lies in `out`.
    """

    text: str | None
    data_dir: str | None
    models: Sequence[str]
    parameters: int
    hyper_features: int
    embedding: int
    rank: int
    epochs: int
    batch_size: int
    length: int
    learning_rate: float | Sequence[float]
    dropout: float
    sample_length: int
    seed: int
    seeds: int
    jobs: int | None
    out: str
    resume: bool


def load_text(config: Config) -> Text:
    """Read the text of a study, and check that it is long enough.

    Raises:
        ValueError: It cannot be had, is too short, or is not the one that `config.out` has results
            of.
    """
    found = text.load(config.text, config.data_dir)
    text.check_length(found, config.batch_size, config.length)
    path = Path(config.out, "config.json")
    if path.exists():
        now = _description(found)
        earlier = records.read_json(path).get("data", now)  # an earlier version told of none
        if earlier != now:
            raise ValueError(
                f"--resume: the results in {config.out} are from {earlier}, but the text is now"
                f" {now}. Give the earlier text, or choose another --out"
            )
    return found


class Study:
    """All runs of a study, finished or not.

    Attributes:
        config: The settings.
        text: What is modelled.
        sizes: Of all models.
        features: Length of the main state, by name of the model.
        seeds: Of each model's runs.

    Raises:
        ValueError: A model has more parameters than it may, however short its state.
    """

    def __init__(self, config: Config, text: Text):
        self.config, self.text = config, text
        self.sizes = Sizes(
            len(text.characters), config.hyper_features, config.embedding, config.rank
        )
        self.features = {
            name: features_for(name, config.parameters, self.sizes) for name in config.models
        }
        self.seeds = range(config.seed, config.seed + config.seeds)
        self._learners: dict[str, Learner] = {}

    def learner(self, name: str) -> Learner:
        """Return a model with all that trains it, whose compiled programs its runs share."""
        if name not in self._learners:
            config, features = self.config, self.features[name]
            model = make_model(name, features, self.sizes)
            training_model = make_model(
                name, features, self.sizes, dropout=config.dropout, train=True
            )
            rate = config.learning_rate
            if isinstance(rate, Sequence):
                rate = rate[config.models.index(name)]
            recipe = Recipe(config.epochs, config.batch_size, config.length, rate)
            self._learners[name] = Learner(name, model, training_model, self.text, recipe)
        return self._learners[name]

    def run(self, name: str, seed: int) -> Run[Learner]:
        """Return a model's run."""
        return Run(self.learner(name), seed, Path(self.config.out))

    def is_finished(self, name: str, seed: int) -> bool:
        """Tell whether `finish` has nothing to do."""
        run = self.run(name, seed)
        return run.result.exists() and (not KINDS[name].modulated or _is_examined(run))

    def finish(self, name: str, seed: int) -> dict[str, Any]:
        """Train, test and examine a run, as far as that is still to be done."""
        run = self.run(name, seed)
        result = finish(run, self.config.sample_length)
        if not KINDS[name].modulated:
            return result
        # In a file of its own: to be done again, it needs no training.
        if not _is_examined(run):
            params = run.placed_variables()["params"]
            records.write_json(_examined(run), examine(run.trainee, params, seed))
        return {**result, "examined": records.read_json(_examined(run))}


def run(study: Study, command: str) -> None:
    """Train, test and write all files; continue where an earlier call was stopped.

    Args:
        study: What is to be trained.
        command: The command line, for the record.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: A run should continue but has no whole checkpoint.
        ProcessError: A process that trained was ended from outside.
    """
    config, out = study.config, Path(study.config.out)
    records.write_json(
        out / "config.json",
        {**dataclasses.asdict(config), "data": _description(study.text), "command": command},
    )
    made = {"commit": commit(), "versions": versions()}  # before the checkout may move on
    tasks = [(name, seed) for name in config.models for seed in study.seeds]
    jobs = jobs_for(len(tasks), config.jobs)
    _print_start(study, jobs)
    if jobs > 1:
        waiting = [task for task in tasks if not study.is_finished(*task)]
        slowest_first = sorted(waiting, key=lambda task: not KINDS[task[0]].modulated)
        in_processes(_finisher, (config,), slowest_first, jobs)
    results = {name: [study.finish(name, seed) for seed in study.seeds] for name in config.models}
    summary = {
        "study": "character-level language modelling",
        "text": study.text.name,
        "characters": {
            "different": len(study.text.characters),
            "train": len(study.text.train),
            "validation": len(study.text.validation),
            "test": len(study.text.test),
        },
        "device": device(),
        "jobs": jobs,
        "command": command,
        **made,
        "config": dataclasses.asdict(config),
        "seeds": list(study.seeds),
        "results": {name: _figures(study, name, results[name]) for name in config.models},
    }
    history = [line for task in tasks for line in study.run(*task).history()]
    records.write_lines(out / "metrics.jsonl", history)
    pictures = figures.draw(summary, history, out)
    records.write(out / "report.md", report.markdown(summary, pictures))
    records.write_json(out / "summary.json", summary)  # Last: it marks the study as finished.
    print(f"\n{report.table(summary)}\n")
    print(f"Report, figures and all numbers: {out}")


def _description(text: Text) -> dict[str, Any]:
    return {
        "name": text.name,
        "train": len(text.train),
        "validation": len(text.validation),
        "test": len(text.test),
        "sha256": text.sha256(),
    }


def _figures(study: Study, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the summary says of a model."""
    learner = study.learner(name)
    seconds = sum(result["seconds"] for result in results)
    recipe = learner.recipe
    characters = recipe.epochs * learner.steps_per_epoch * recipe.batch_size * recipe.length
    examined = [result["examined"] for result in results if "examined" in result]
    found = {}
    if examined:
        measures = [{key: each[key] for key in ("controls", "movement")} for each in examined]
        found = {"examined": {**over_seeds(measures), "stretch": examined[0]["stretch"]}}
    return {
        "features": study.features[name],
        "parameters": breakdown(learner.state_like.variables["params"]),
        "multiply_adds": multiply_adds(learner.model),
        "characters": characters,
        "characters_per_second": characters * len(results) / seconds,
        "seconds": seconds,
        "bits": over_seeds([result["bits"] for result in results]),
        "samples": [result["sample"] for result in results],
        **found,
    }


def _examined(run: Run[Learner]) -> Path:
    """Name the file of what was examined, beside the run's result."""
    return run.result.with_name("examined.json")


def _is_examined(run: Run[Learner]) -> bool:
    """Tell whether a run has been examined, with all controls: an earlier version had fewer."""
    path = _examined(run)
    return path.exists() and set(CONTROLS) <= set(records.read_json(path)["controls"])


def _finisher(config: Config) -> Callable[[tuple[str, int]], None]:
    study = Study(config, load_text(config))

    def finish_one(task: tuple[str, int]) -> None:
        study.finish(*task)

    return finish_one


def _print_start(study: Study, jobs: int) -> None:
    config = study.config
    read = study.text
    print(
        f"text     {read.name}: {len(read.train):,} characters of training,"
        f" {len(read.validation):,} of validation, {len(read.test):,} of test,"
        f" {len(read.characters)} different ones"
    )
    print(f"device   {device()}" + (f", {jobs} runs at a time" if jobs > 1 else ""))
    print(f"results  {config.out}")
    for name, features in study.features.items():
        learner = study.learner(name)
        print(
            f"model    {name}: {features} units,"
            f" {breakdown(learner.state_like.variables['params'])['all']:,} trained parameters,"
            f" {multiply_adds(learner.model):,} multiply-adds a character"
        )
    sys.stdout.flush()  # Before the minutes of training, even if stdout is a file.
