"""Training that is counted in steps, not in passes over data: parts of it are its epochs."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from straw_experiments.runner.runs import EpochResult, NonFiniteError
from straw_experiments.runner.state import State, Variables, training_key


def epochs(
    state: State,
    *,
    steps: int,
    parts: int,
    ready: Callable[[], Callable[[State, int], tuple[State, Any, Any]]],
    look: Callable[[Variables], Mapping[str, float]],
    text: Callable[[Mapping[str, Any]], str],
    at: str = "validation",
) -> Iterator[EpochResult]:
    """Train to the end, in parts of equal length, and yield after each.

    Args:
        state: At the end of a part, or before the first; it is donated.
        steps: Of the whole training.
        parts: How many there are.
        ready: Returns compiled steps, before the clock starts: `(state, steps) -> (state, mean
            loss, steps with a finite one)`; see `of_key`.
        look: Measures parameters after each part.
        text: Says in a line what its figures are.
        at: What records call these figures.

    Raises:
        NonFiniteError: Training diverged; names the step.
    """
    each = math.ceil(steps / parts)
    while (done := int(state.step)) < steps:
        train_steps = ready()
        start = time.perf_counter()
        count = min(each, steps - done)
        state, loss, finite = train_steps(state, count)
        if int(finite) < count:
            raise NonFiniteError(f"the loss is not finite at step {done + int(finite) + 1}")
        seconds = time.perf_counter() - start
        found = look(state.variables["params"])
        if not all(map(math.isfinite, found.values())):
            raise NonFiniteError(f"the parameters are not finite after step {done + count}")
        figures: dict[str, Any] = {
            "step": done + count,
            "train": {"loss": float(loss)},
            at: dict(found),
            "steps_per_second": count / seconds,
            "seconds": seconds,
        }
        left = tqdm.format_interval((steps - figures["step"]) / figures["steps_per_second"])
        line = (
            f"step {figures['step']:,}/{steps:,}  train loss {figures['train']['loss']:.5f}"
            f"  {text(found)}  {figures['steps_per_second']:,.1f} steps/s  {left} left"
        )
        yield EpochResult(math.ceil((done + count) / each), state, figures, line)


def of_key(trainer: Any, seed: int) -> Callable[[], Callable[[State, int], tuple[State, Any, Any]]]:
    """Return what `epochs` takes as `ready`, of a trainer that draws on the device.

    Args:
        trainer: Its `train_steps` are `(state, key, steps) -> (state, mean loss, steps with a
            finite one)`, compiled on first use.
        seed: Of the run.
    """

    def ready() -> Callable[[State, int], tuple[State, Any, Any]]:
        key, train_steps = training_key(seed), trainer.train_steps
        return lambda state, steps: train_steps(state, key, steps)

    return ready
