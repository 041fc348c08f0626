"""A study: several models, several seeds each, and the files that report them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from jax.sharding import Mesh

from straw_experiments.runner import metrics, records, settings
from straw_experiments.runner.command import collect_rarely, show_warnings
from straw_experiments.runner.environment import commit, device, versions
from straw_experiments.runner.hosts import is_first
from straw_experiments.runner.processes import in_processes, jobs_for
from straw_experiments.runner.runs import Run, Trainer
from straw_experiments.runner.settings import RunConfig

T = TypeVar("T", bound=Trainer)

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of every model, what `Study.execute` returned for each seed."""

_FILES = ("metrics.jsonl", "metrics.csv", "report.md")  # beside pictures and summary


class Study(ABC, Generic[T]):
    """All runs of a study, finished or not.

    Attributes:
        config: The settings.
        names: What is trained, in the order of the tables.
        report: The module whose `table` and `markdown` lay out `summary.json`.
        mesh: The devices that train each run together, or None for one.
    """

    report: ModuleType
    mesh: Mesh | None = None

    def __init__(self, config: RunConfig, names: Sequence[str]):
        self.config, self.names = config, list(names)
        self.seeds = range(config.seed, config.seed + config.seeds)
        self._trainers: dict[str, T] = {}

    def trainer(self, name: str) -> T:
        """Return what trains a model; all its runs share the compiled programs."""
        if name not in self._trainers:
            self._trainers[name] = self.make_trainer(name)
        return self._trainers[name]

    def run(self, name: str, seed: int) -> Run[T]:
        """Return a model's run."""
        return Run(
            self.trainer(name), seed, Path(self.config.out), tensorboard=self.config.tensorboard
        )

    def is_finished(self, name: str, seed: int) -> bool:
        """Say whether `execute` has nothing to do."""
        return self.run(name, seed).is_tested()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What another process makes the same study from; pickled."""
        return (self.config,)

    def data(self) -> Mapping[str, Any]:
        """Describe the data, so that a resumed run can compare them; empty where they are drawn."""
        return {}

    @abstractmethod
    def make_trainer(self, name: str) -> T:
        """Make what trains a model."""

    @abstractmethod
    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train, test and analyse a run, as far as that is still to be done.

        Args:
            name: The model's.
            seed: The run's.
            bar: Whether to show a progress bar, where stderr is a terminal.

        Returns:
            The run's result.
        """

    @abstractmethod
    def cost(self, name: str) -> float:
        """Return about how long a run takes beside others, in any unit."""

    @abstractmethod
    def description(self) -> Iterable[str]:
        """Describe data and models, line by line, before training."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first: of which data, and of which experiment."""

    @abstractmethod
    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of the results."""

    @abstractmethod
    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw pictures into `config.out`; return their file names by what they show."""

    def closing(self, summary: Mapping[str, Any]) -> Iterable[str]:
        """Return lines to print below the table."""
        del summary
        return ()


def conduct(study: Study[Any], command: str) -> None:
    """Train, test and write all files; continue where an earlier call was stopped.

    Args:
        study: What is to be trained.
        command: The command line, for the record.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: A run should continue but has no whole checkpoint.
        RecordError: A record is damaged, and cannot be made again.
        ProcessError: A process that trained was ended from outside.
        OSError: A file cannot be read or written.
    """
    tasks = [(name, seed) for name in study.names for seed in study.seeds]
    if not is_first():  # the first process alone writes results
        for task in tasks:
            study.execute(*task)
        return
    config, out = study.config, Path(study.config.out)
    data = study.data()
    described = {"data": data} if data else {}
    records.write_settings(out, {**settings.stored(config), **described, "command": command})
    made = {"commit": commit(), "versions": versions()}  # before the checkout may move on
    jobs = 1 if study.mesh else jobs_for(len(tasks), config.jobs)
    _print_start(study, jobs)
    waiting = [task for task in tasks if not study.is_finished(*task)]
    for name, seed in tasks:
        if (name, seed) not in waiting:
            study.run(name, seed).variables()  # damage is told now, not after hours of training
    if jobs > 1:
        costs = {name: study.cost(name) for name in dict(waiting)}
        longest_first = sorted(waiting, key=lambda task: -costs[task[0]])
        shared = type(study), study.arguments
        in_processes(_executor, shared, longest_first, jobs, title=_title)
    results = {name: [study.execute(name, seed) for seed in study.seeds] for name in study.names}
    summary = {
        **study.facts(),
        "device": _device(study),
        "jobs": jobs,
        "command": command,
        **made,
        "config": settings.stored(config),
        "seeds": list(study.seeds),
        **study.figures(results),
    }
    history = [line for task in tasks for line in study.run(*task).history()]
    records.write_lines(out / "metrics.jsonl", history)
    records.write(out / "metrics.csv", metrics.csv_table(history))
    pictures = study.draw(summary, history)
    records.write(out / "report.md", study.report.markdown(summary, pictures))
    records.write_summary(out, summary, [*_FILES, *pictures.values()])
    print(f"\n{study.report.table(summary)}\n")
    for line in study.closing(summary):
        print(line)
    print(f"Report, figures and all numbers: {out}")


def _executor(
    kind: type[Study[Any]], arguments: tuple[Any, ...]
) -> Callable[[tuple[str, int]], None]:
    show_warnings()
    collect_rarely()
    study = kind(*arguments)

    def execute(task: tuple[str, int]) -> None:
        study.execute(*task, bar=False)  # several bars would overwrite each other

    return execute


def _title(task: tuple[str, int]) -> str:
    return "{} seed {}".format(*task)


def _device(study: Study[Any]) -> str:
    return device(dict(study.mesh.shape) if study.mesh else None)


def _print_start(study: Study[Any], jobs: int) -> None:
    first, *rest = study.description()
    at_once = f", {jobs} runs at a time" if jobs > 1 else ""
    lines = [first, f"device   {_device(study)}{at_once}", f"results  {study.config.out}", *rest]
    print("\n".join(lines), flush=True)  # before the hours of training, even if stdout is a file
