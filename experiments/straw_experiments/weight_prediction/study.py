"""From settings to trained predictors and the files that report them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from straw_experiments.runner import study as studies
from straw_experiments.runner.precision import module_dtype
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds
from straw_experiments.weight_prediction import figures, report
from straw_experiments.weight_prediction.analysis import analyse
from straw_experiments.weight_prediction.config import Config
from straw_experiments.weight_prediction.evaluate import TESTED
from straw_experiments.weight_prediction.models import MODELS
from straw_experiments.weight_prediction.objectives import (
    Objective,
    Params,
    outputs_objective,
    weights_objective,
)
from straw_experiments.weight_prediction.targets import parse_sizes, unknowns
from straw_experiments.weight_prediction.train import Recipe, Trainer, train_and_test
from straw_jax.straw import Straw


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


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not.

    Attributes:
        cells: What is trained, by name.
    """

    config: Config
    report = report

    def __init__(self, config: Config):
        self.cells = {cell.name: cell for cell in cells(config)}
        self._straws: dict[str, Straw] = {}
        self._dtype = module_dtype(config.precision)
        super().__init__(config, list(self.cells))

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a cell's predictor."""
        config = self.config
        recipe = Recipe(config.steps, config.batch_size, config.learning_rate, config.optimizer)
        return Trainer(name, self._objective(self.cells[name]), recipe)

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train, test and analyse a run, as far as that is still to be done."""
        del bar
        cell = self.cells[name]
        measure = None
        if self.config.predict == "weights":
            straw = self._straw(cell)
            sizes = parse_sizes(cell.network)

            def measure(params: Params) -> dict[str, Any]:
                return analyse(sizes, cell.pairs, straw, params, seed)

        return train_and_test(self.run(name, seed), measure)

    def cost(self, name: str) -> float:
        """Return the numbers that a predictor reads and writes for a network."""
        cell = self.cells[name]
        return unknowns(parse_sizes(cell.network)) * (cell.pairs + 1)

    def description(self) -> Iterable[str]:
        """Describe the study and its cells, line by line."""
        config = self.config
        yield f"study    prediction of {config.predict}; {config.batch_size:,} new networks a step"
        for name, cell in self.cells.items():
            shown = f" from {cell.pairs} pairs" if cell.pairs else ""
            yield (
                f"predict  {name}: {unknowns(parse_sizes(cell.network))} weights{shown},"
                f" {self.trainer(name).parameters():,} trained parameters"
            )

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {"study": f"prediction of {self.config.predict}", "tasks": TESTED}

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each cell."""
        return {"results": {name: self._figures(name, group) for name, group in results.items()}}

    def _figures(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        cell, steps = self.cells[name], self.config.steps
        seconds = sum(result["seconds"] for result in results)
        measured = [{k: v for k, v in result.items() if k != "seconds"} for result in results]
        return {
            **cell._asdict(),
            "unknowns": unknowns(parse_sizes(cell.network)),
            "parameters": self.trainer(name).parameters(),
            "seconds": seconds,
            "steps_per_second": steps * len(results) / seconds,
            **over_seeds(measured),
        }

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw what remains unexplained; return files by what they show."""
        return figures.draw(summary, history, Path(self.config.out))

    def _straw(self, cell: Cell) -> Straw:
        if cell.name not in self._straws:  # One for all seeds, so that nothing is compiled twice.
            build = MODELS[cell.predictor].build
            sizes = parse_sizes(cell.network)
            self._straws[cell.name] = build(
                sizes, embedding=self.config.embedding, dtype=self._dtype
            )
        return self._straws[cell.name]

    def _objective(self, cell: Cell) -> Objective:
        sizes = parse_sizes(cell.network)
        if self.config.predict == "outputs":
            return outputs_objective(sizes, MODELS[cell.predictor].build(sizes, dtype=self._dtype))
        return weights_objective(sizes, cell.pairs, straw=self._straw(cell))
