"""From settings to trained methods and the files that report them."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.necessity import analysis, evaluate, figures, report, sizes, sources
from straw_experiments.necessity.config import Config
from straw_experiments.necessity.models import METHODS
from straw_experiments.necessity.sources import Sources
from straw_experiments.necessity.tasks import TASKS
from straw_experiments.necessity.train import Recipe, Sampled, Trainer, train_and_test
from straw_experiments.runner import lock, records
from straw_experiments.runner import study as studies
from straw_experiments.runner.settings import check_same_data
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds

_RATES = "rates"  # folder for the records of rates that were tried


def load_sources(config: Config) -> Sources:
    """Load what the tasks of a study are drawn from.

    Raises:
        ValueError: It cannot be had, or is not what `config.out` has results of.
    """
    found = sources.load(
        config.tasks,
        dataset=config.dataset,
        data_dir=config.data_dir,
        archive=config.archive,
        text=config.text,
    )
    check_same_data(config, dict(found.names))
    return found


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not.

    Attributes:
        cells: Task and method, by the name of their runs.
        sources: From `load_sources`.
    """

    config: Config
    report = report

    def __init__(self, config: Config, sources: Sources):
        self.cells = {f"{task}-{method}": (task, method) for task, method in config.cells}
        super().__init__(config, list(self.cells))
        self.sources = sources
        self._sampled: dict[str, Sampled] = {}

    @property
    def arguments(self) -> tuple[Config, Sources]:
        """What another process makes the same study from."""
        return self.config, self.sources

    def data(self) -> Mapping[str, Any]:
        """Name the data; empty where tasks need none."""
        return dict(self.sources.names)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a method on a task."""
        config, (task, method) = self.config, self.cells[name]
        built = METHODS[method].build(TASKS[task], self._sizes(name))
        recipe = Recipe(config.steps, config.batch_size, tuple(config.rates))
        return Trainer(name, TASKS[task], built, recipe, self._sample(task))

    def _sizes(self, name: str) -> sizes.Sizes:
        task, method = self.cells[name]
        return sizes.sized(method, TASKS[task], self.config.size)

    def _sample(self, name: str) -> Sampled:
        """Return what a task's runs share; drawn once."""
        if name not in self._sampled:
            task, parts = TASKS[name], self.sources.parts[name]
            self._sampled[name] = Sampled(
                parts["train"],
                evaluate.validation_tasks(task, parts["validation"]),
                evaluate.test_tasks(task, parts["test"]),
            )
        return self._sampled[name]

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train and test a run, as far as that is still to be done; renew `progress.md`."""
        del bar
        out, known = Path(self.config.out), self.is_finished(name, seed)
        found = train_and_test(self.run(name, seed), out / _RATES)
        if not known:
            with (
                contextlib.suppress(lock.LockedError),
                lock.held(out / "runs"),
            ):  # the next one will
                records.write(out / "progress.md", report.progress(self._finished()))
        return found

    def _finished(self) -> dict[str, Any]:
        """Return what can be said of the runs that are finished."""
        results = {}
        for name in self.cells:
            paths = [self._result(name, seed) for seed in self.seeds]
            if done := [records.read_json(path) for path in paths if records.is_whole(path)]:
                results[name] = self._scores(name, done)
        return {**self.facts(), "seeds": list(self.seeds), "results": results}

    def _result(self, name: str, seed: int) -> Path:
        return Path(self.config.out, "runs", f"{name}-seed{seed}", "result.json")

    def cost(self, name: str) -> float:
        """Return about how long a run takes beside others, by the context that it reads."""
        task, method = self.cells[name]
        return 0.0 if not METHODS[method].matched else TASKS[task].length * TASKS[task].inputs

    def description(self) -> Iterable[str]:
        """Describe data and methods, line by line."""
        drawn = "; ".join(f"{what} {name}" for what, name in self.data().items())
        yield f"data     {drawn or 'none is needed'}"
        budget = sizes.BUDGETS[self.config.size]
        yield (
            f"budget   {budget.parameters:,} parameters, {budget.multiply_adds:,} multiply-adds a"
            " query"
        )
        for task in self.config.tasks:
            methods = [method for of, method in self.cells.values() if of == task]
            yield f"task     {task}: {', '.join(methods)}"

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {
            "study": "necessity",
            "data": self.data(),
            "budget": sizes.BUDGETS[self.config.size]._asdict(),
            "tasks": self._tasks,
            "methods": self.config.methods,
            "tested": evaluate.TESTED,
            "unseen": sources.unseen(),
        }

    @functools.cached_property
    def _tasks(self) -> dict[str, Any]:
        return {
            name: {
                "metric": "loss" if TASKS[name].regression else "accuracy",
                "labelled": TASKS[name].labelled,
                "length": TASKS[name].length,
                "queries": TASKS[name].queries,
                "without context": sources.without_context(name, parts["test"]),
            }
            for name, parts in self.sources.parts.items()
        }

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each method on each task, and of the predictions."""
        found = {name: self._figures(name, group) for name, group in results.items()}
        summary = {"tasks": self._tasks, "results": found}
        return {"results": found, **analysis.conclusions(summary)}

    def _figures(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        task, method = self.cells[name]
        chosen = self._sizes(name)
        return {
            **self._scores(name, results),
            "sizes": chosen._asdict(),
            **sizes.counts(method, TASKS[task], chosen)._asdict(),
            "seconds": sum(result["seconds"] for result in results),
            "rate": results[0]["rate"],
            "rates": results[0]["rates"],
        }

    def _scores(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        task, method = self.cells[name]
        tested = over_seeds([result["test"] for result in results])
        return {"task": task, "method": method, "test": tested}

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw methods by tasks, and curves; return files by what they show."""
        del history
        return figures.draw(summary, Path(self.config.out))
