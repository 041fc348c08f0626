"""From settings to trained predictors and the files that tell of them."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from straw_experiments.runner import records
from straw_experiments.runner.environment import commit, device, versions
from straw_experiments.runner.processes import in_processes, jobs_for
from straw_experiments.runner.runs import Run
from straw_experiments.runner.tables import over_seeds
from straw_experiments.weight_prediction import figures, report
from straw_experiments.weight_prediction.analysis import examine
from straw_experiments.weight_prediction.models import OutputKind, weight_predictor
from straw_experiments.weight_prediction.objectives import (
    Params,
    Problem,
    outputs_problem,
    weights_problem,
)
from straw_experiments.weight_prediction.targets import parse_sizes, unknowns
from straw_experiments.weight_prediction.train import TESTED, Optimizer, Predictor, Recipe, finish
from straw_jax.encoders import Pooling
from straw_jax.straw import Straw

Part: TypeAlias = Literal["weights", "outputs"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a study.

    Attributes:
        predict: "weights" from pairs, or "outputs" from weights and inputs.
        networks: Sizes of the target networks, such as "2-5-1".
        pairs: Pairs for each unknown, where weights are predicted.
        predictors: "mean" and "attention" (pooling) of weights; "plain", "concat" and "residual" of
            outputs.
        embedding: Of the set encoder, as in `weight_predictor`.
        steps: As in `Recipe`, like the next three.
        batch_size: Target networks a step.
        learning_rate: Its highest.
        optimizer: "muon" or "adam".
        seed: Of each predictor's first run.
        seeds: How many runs each, with seeds that count up from `seed`.
        jobs: How many runs train at once, as in `jobs_for`.
        out: Folder for the results.
        resume: Whether to continue what lies in `out`.
    """

    predict: Part
    networks: Sequence[str]
    pairs: Sequence[float]
    predictors: Sequence[str]
    embedding: int
    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Optimizer
    seed: int
    seeds: int
    jobs: int | None
    out: str
    resume: bool


class Cell(NamedTuple):
    """A predictor of networks of one size, from sets of one size: what is trained by seed.

    Attributes:
        predictor: As in `Config.predictors`.
        network: As in `Config.networks`.
        pairs: A set; 0 where outputs are predicted.
    """

    predictor: str
    network: str
    pairs: int

    @property
    def name(self) -> str:
        """Name of its runs' files."""
        return f"{self.predictor}_{self.network}" + (f"_{self.pairs}" if self.pairs else "")


def cells(config: Config) -> Iterator[Cell]:
    """List what a study trains, networks first."""
    for network in config.networks:
        count = unknowns(parse_sizes(network))
        ratios = config.pairs if config.predict == "weights" else [0]
        for predictor in config.predictors:
            for ratio in ratios:
                yield Cell(predictor, network, math.floor(ratio * count + 0.5))


class Study:
    """All runs of a study, finished or not.

    Attributes:
        config: The settings.
        cells: What is trained, by name.
        seeds: Of each cell's runs.
    """

    def __init__(self, config: Config):
        self.config = config
        self.cells = {cell.name: cell for cell in cells(config)}
        self.seeds = range(config.seed, config.seed + config.seeds)
        self._predictors: dict[str, Predictor] = {}
        self._straws: dict[str, Straw] = {}

    def predictor(self, name: str) -> Predictor:
        """Return a cell's predictor, whose compiled programs all its runs share."""
        if name not in self._predictors:
            config = self.config
            recipe = Recipe(config.steps, config.batch_size, config.learning_rate, config.optimizer)
            self._predictors[name] = Predictor(name, self._problem(self.cells[name]), recipe)
        return self._predictors[name]

    def run(self, name: str, seed: int) -> Run[Predictor]:
        """Return a cell's run."""
        return Run(self.predictor(name), seed, Path(self.config.out))

    def finish(self, name: str, seed: int) -> dict[str, Any]:
        """Train, test and examine a run, as far as that is still to be done."""
        cell = self.cells[name]
        look = None
        if self.config.predict == "weights":
            straw = self._straw(cell)
            sizes = parse_sizes(cell.network)

            def look(params: Params) -> dict[str, Any]:
                return examine(sizes, cell.pairs, straw, params, seed)

        return finish(self.run(name, seed), look)

    def _straw(self, cell: Cell) -> Straw:
        if cell.name not in self._straws:  # One for all seeds, so that nothing is compiled twice.
            self._straws[cell.name] = weight_predictor(
                parse_sizes(cell.network),
                pooling=cast(Pooling, cell.predictor),
                embedding=self.config.embedding,
            )
        return self._straws[cell.name]

    def _problem(self, cell: Cell) -> Problem:
        sizes = parse_sizes(cell.network)
        if self.config.predict == "outputs":
            return outputs_problem(sizes, cast(OutputKind, cell.predictor))
        return weights_problem(sizes, cell.pairs, straw=self._straw(cell))


def run(config: Config, command: str) -> None:
    """Train, test and write all files; continue where an earlier call was stopped.

    Args:
        config: The study's settings.
        command: The command line, for the record.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: A run should continue but has no whole checkpoint.
        ProcessError: A process that trained was ended from outside.
    """
    out = Path(config.out)
    study = Study(config)
    records.write_json(out / "config.json", {**dataclasses.asdict(config), "command": command})
    made = {"commit": commit(), "versions": versions()}  # before the checkout may move on
    tasks = [(name, seed) for name in study.cells for seed in study.seeds]
    jobs = jobs_for(len(tasks), config.jobs)
    _print_start(study, jobs)
    if jobs > 1:
        waiting = [task for task in tasks if not study.run(*task).result.exists()]
        costs = {
            cell.name: unknowns(parse_sizes(cell.network)) * (cell.pairs + 1)
            for cell in study.cells.values()
        }
        longest_first = sorted(waiting, key=lambda task: -costs[task[0]])
        in_processes(_finisher, (config,), longest_first, jobs)
    results = {name: [study.finish(name, seed) for seed in study.seeds] for name in study.cells}
    summary = {
        "study": f"prediction of {config.predict}",
        "device": device(),
        "jobs": jobs,
        "command": command,
        **made,
        "config": dataclasses.asdict(config),
        "seeds": list(study.seeds),
        "tasks": TESTED,
        "results": {name: _figures(study, name, results[name]) for name in study.cells},
    }
    history = [line for task in tasks for line in study.run(*task).history()]
    records.write_lines(out / "metrics.jsonl", history)
    pictures = figures.draw(summary, history, out)
    records.write(out / "report.md", report.markdown(summary, pictures))
    records.write_json(out / "summary.json", summary)  # Last: it marks the study as finished.
    print(f"\n{report.table(summary)}\n")
    print(f"Report, figures and all numbers: {out}")


def _figures(study: Study, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the summary says of a cell."""
    cell = study.cells[name]
    steps = study.config.steps
    return {
        **cell._asdict(),
        "unknowns": unknowns(parse_sizes(cell.network)),
        "parameters": study.predictor(name).parameters(),
        "seconds": sum(result["seconds"] for result in results),
        "steps_per_second": steps * len(results) / sum(result["seconds"] for result in results),
        **over_seeds([{k: v for k, v in result.items() if k != "seconds"} for result in results]),
    }


def _finisher(config: Config) -> Callable[[tuple[str, int]], None]:
    study = Study(config)

    def finish_one(task: tuple[str, int]) -> None:
        study.finish(*task)

    return finish_one


def _print_start(study: Study, jobs: int) -> None:
    config = study.config
    print(f"study    prediction of {config.predict}; {config.batch_size:,} new networks a step")
    print(f"device   {device()}" + (f", {jobs} runs at a time" if jobs > 1 else ""))
    print(f"results  {config.out}")
    for name, cell in study.cells.items():
        shown = f" from {cell.pairs} pairs" if cell.pairs else ""
        print(
            f"predict  {name}: {unknowns(parse_sizes(cell.network))} weights{shown},"
            f" {study.predictor(name).parameters():,} trained parameters"
        )
    sys.stdout.flush()  # Before the minutes of training, even if stdout is a file.
