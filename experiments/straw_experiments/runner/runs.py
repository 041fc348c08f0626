"""One run: one model and one seed, from the start or its last checkpoint to a result on disk."""

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tqdm import tqdm

from straw_experiments.runner import checkpoints, metrics, records
from straw_experiments.runner.hosts import from_first, is_first
from straw_experiments.runner.state import State, Variables
from straw_jax.sharding import to_host


class NonFiniteError(FloatingPointError):
    """Training met a loss or a parameter that is not finite."""


class Trainer(Protocol):
    """A model with its optimizer: what a run trains.

    Attributes:
        name: Of the run's files, and in messages.
        state_like: Shapes and dtypes of its state.
    """

    name: str
    state_like: State

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""

    def place(self, tree: Any) -> Any:
        """Put a state, or a part of it, to where the model trains."""


class EpochResult(NamedTuple):
    """An epoch of training that is finished.

    Attributes:
        epoch: Counted from 1.
        state: At its end.
        figures: What `metrics.jsonl` records of it beside "model", "seed" and "epoch"; "seconds" of
            training among them.
        text: The same as a line to print.
    """

    epoch: int
    state: State
    figures: Mapping[str, Any]
    text: str


class FinalResult(NamedTuple):
    """The test of a trained model.

    Attributes:
        figures: What `result.json` records of it beside "seconds".
        text: The same as a line to print.
    """

    figures: Mapping[str, Any]
    text: str


T = TypeVar("T", bound=Trainer)


class Run(Generic[T]):
    """A model and a seed, and the files that training it writes.

    `runs/NAME-seedN/` is the run's alone, so that several may train at once. It holds
    `metrics.jsonl`, a line an epoch, and checkpoints of the whole state by epoch while the run
    trains; then `result.json`, and a checkpoint of the variables alone.
    """

    def __init__(self, trainer: T, seed: int, out: Path, *, tensorboard: bool = False):
        name = f"{trainer.name}-seed{seed}"
        folder = out / "runs" / name
        self.trainer, self.seed = trainer, seed
        self.tensorboard = out / "tensorboard" / name if tensorboard else None
        self.metrics = folder / "metrics.jsonl"
        self.epochs, self.final = folder / "epochs", folder / "final"
        self.result = folder / "result.json"

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.trainer.name} seed {self.seed}"

    def is_tested(self) -> bool:
        """Say whether the run has its result, whole."""
        return records.is_made(self.result)

    def history(self) -> list[dict[str, Any]]:
        """Read the figures of every epoch until the last checkpoint.

        Raises:
            RecordError: Some are lost.
        """
        last = checkpoints.latest(self.final) or checkpoints.latest(self.epochs)
        return self.history_until(int(last.name) if last else 0)

    def history_until(self, epoch: int) -> list[dict[str, Any]]:
        """Read the figures of epochs until this one; what is lost is taken from a checkpoint.

        Raises:
            RecordError: Some are lost.
        """
        expected = list(range(1, epoch + 1))
        lines = [line for line in records.read_lines(self.metrics) if line["epoch"] <= epoch]
        if [line["epoch"] for line in lines] == expected:
            return lines
        lost = f"{self.metrics}: lines of epochs are damaged or gone"
        kept = checkpoints.history(self.final) or checkpoints.history(self.epochs) or []
        lines = [line for line in kept if line["epoch"] <= epoch]
        if [line["epoch"] for line in lines] != expected:
            raise records.RecordError(f"{lost}. {self._cure}")
        warnings.warn(f"{lost}; they are taken from the last checkpoint", stacklevel=2)
        records.write_lines(self.metrics, lines)
        return lines

    @property
    def _cure(self) -> str:
        return f"Delete {self.result.parent}, and use --resume to train this model again"

    def restored(self) -> tuple[int, State] | None:
        """Return the last epoch that was saved, and its state where the model trains, or None.

        Raises:
            CheckpointError: There are checkpoints, and none is whole.
        """
        like = self.trainer.state_like
        found = checkpoints.restore(self.epochs, like) if is_first() else None
        done = int(from_first(lambda: found[0] if found else 0, like=0))
        if not done:
            return None
        return done, self.trainer.place(from_first(lambda: found and found[1], like))

    def trained(self) -> Variables | None:
        """Return the variables of a run that was trained, where the model trains, or None.

        Raises:
            CheckpointError: They are damaged, and there is no earlier checkpoint to go on from.
        """
        found = self._trained() if is_first() else None
        if not from_first(lambda: found is not None, like=False):
            return None
        return self.trainer.place(from_first(lambda: found, self.trainer.state_like.variables))

    def _trained(self) -> Variables | None:
        if checkpoints.latest(self.final) is None:
            return None
        try:
            return self.variables()
        except checkpoints.CheckpointError as error:
            if checkpoints.latest(self.epochs) is None:
                raise
            warnings.warn(f"{error}. Going on from {self.epochs}", stacklevel=2)
            return None

    def placed_variables(self) -> Variables:
        """Return the variables that a finished run ended with, where the model trains.

        Raises:
            CheckpointError: They are gone or damaged.
        """
        return self.trainer.place(
            from_first(self.variables, like=self.trainer.state_like.variables)
        )

    def variables(self) -> Variables:
        """Read the variables that a finished run ended with.

        Raises:
            CheckpointError: They are gone or damaged.
        """
        like = self.trainer.state_like.variables
        restored = checkpoints.restore(self.final, like, begin_anew=self.result.parent)
        if restored is None:
            raise checkpoints.CheckpointError(f"checkpoints: {self.final} is gone. {self._cure}")
        return restored[1]


def execute(
    run: Run[Any],
    train: Callable[[State], Iterator[EpochResult]],
    test: Callable[[Variables], FinalResult],
) -> dict[str, Any]:
    """Train and test a run, as far as that is still to be done; every epoch is recorded and saved.

    Args:
        run: New, stopped at any point, or finished.
        train: Goes on from a state at the end of an epoch, or before the first, which it may
            donate, to the end of training; raises NonFiniteError where it diverges. A state that
            it gave is donated when it is asked for the next.
        test: Tests the trained variables.

    Returns:
        The run's result: "seconds" of training, and the figures of `test`.

    Raises:
        NonFiniteError: Training diverged; names the step and the last good checkpoint.
        CheckpointError: The run should go on but has no whole checkpoint.
    """
    if not from_first(run.is_tested, like=False):
        variables = run.trained()
        if variables is None:
            epoch, variables = _train(run, train)
            hosted = to_host(variables)
            if is_first():
                checkpoints.save(run.final, epoch, hosted, keep=1, history=run.history())
                run.variables()  # Read back before the checkpoints that it replaces go.
        tested = test(variables)
        if is_first():
            seconds = sum(line["seconds"] for line in run.history())
            records.write_json(run.result, {"seconds": seconds, **tested.figures})
            say(f"{run.title}: finished; {tested.text}")
    if not is_first():
        return {}
    shutil.rmtree(run.epochs, ignore_errors=True)  # Also of a run that was killed just before this.
    return records.read_json(run.result)


def _train(run: Run[Any], train: Callable[[State], Iterator[EpochResult]]) -> tuple[int, Variables]:
    """Train a run to its end, recording and saving every epoch; return the last, and variables."""
    done, start = run.restored() or (0, run.trainer.init_state(run.seed))
    say(f"{run.title}: {f'continuing after epoch {done}' if done else 'starting'}, compiling")
    history = run.history_until(done) if is_first() else []
    if is_first():
        records.write_lines(run.metrics, history)  # later epochs will be trained again
    state = start
    try:
        for done, state, figures, text in train(start):
            hosted = to_host(state)
            if is_first():
                line = {"model": run.trainer.name, "seed": run.seed, "epoch": done, **figures}
                records.append_line(run.metrics, line)
                history.append(line)
                if run.tensorboard:
                    metrics.write_tensorboard(run.tensorboard, line)
                checkpoints.save(run.epochs, done, hosted, history=history)
            say(f"{run.title}: {text}")
    except NonFiniteError as error:
        good = checkpoints.latest(run.epochs) or "none, as no epoch was finished"
        raise NonFiniteError(
            f"{run.title}: {error}; last good checkpoint: {good}. Try a lower --learning-rate,"
            " with another --out"
        ) from None
    return done, state.variables


def say(text: str) -> None:
    """Print a line of progress on stderr; among several processes the first alone does."""
    if not is_first():
        return
    tqdm.write(text, file=sys.stderr)  # Beside a progress bar, should there be one.
