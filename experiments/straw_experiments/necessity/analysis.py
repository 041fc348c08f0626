"""What the figures say: the best on each task, shares of what a context is worth, predictions.

Only figures of `summary.json` are read, so that stored results can be judged again.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

STATIC = ("static", "static_wide")
"""Methods that do not see the context."""

RIVALS = ("pooled", "attention", "gradient", "neighbours")
"""Methods that see it, and write no weights for it in one forward pass."""

Scores = dict[str, Mapping[str, Any]]
"""By method: mean, standard deviation, and seeds of a task's figure."""


class Prediction(NamedTuple):
    """A sentence that was written down before the study.

    Attributes:
        text: The sentence.
        tasks: Of which it speaks.
        methods: One of them is to be the best on each task; or, if `never`, none on any.
        never: Whether it says who is not the best.
    """

    text: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    never: bool = False


_DELTA = ("delta", "delta_gain")
PREDICTIONS = (
    Prediction("Width is best where invariance is enough.", ("signs",), ("static_wide",)),
    Prediction("A pose is best on rotated images.", ("rotation",), ("pose",)),
    Prediction("A delta rule is best on permuted labels.", ("labels",), _DELTA),
    Prediction("A delta rule is best on new classes.", ("few_shot",), _DELTA),
    Prediction("Low-rank updates are best nowhere.", (), ("low_rank",), never=True),
)
"""Made after a pilot with one seed, in which nothing was matched or tuned."""


def scores(summary: Mapping[str, Any], task: str) -> Scores:
    """Return a task's figures by method, those of own contexts: accuracy, or squared errors."""
    metric = summary["tasks"][task]["metric"]
    return {
        each["method"]: each["test"]["contexts"]["own"][metric]
        for each in summary["results"].values()
        if each["task"] == task
    }


def best(summary: Mapping[str, Any], task: str, among: Iterable[str] | None = None) -> str | None:
    """Return the method with the best mean on a task, None where there is none.

    Args:
        summary: Contents of `summary.json`.
        task: Its name.
        among: Names of methods; by default all.
    """
    found = scores(summary, task)
    names = found if among is None else [name for name in found if name in {*among}]
    sign = _sign(summary, task)
    return max(names, key=lambda name: sign * found[name]["mean"], default=None)


def by_length(cell: Mapping[str, Any]) -> dict[int, Any]:
    """Return a cell's figures by the length of the context, the shortest first.

    Args:
        cell: One of "results" of `summary.json`, whose keys are in the order of letters.
    """
    lengths = cell["test"]["lengths"]
    return {int(count): lengths[count] for count in sorted(lengths, key=int)}


def gap_share(summary: Mapping[str, Any], task: str, method: str) -> float | None:
    """Return which part of the way from the static network to the best method one goes.

    None where there is no static network, or where nothing is better than it.
    """
    found = scores(summary, task)
    if method not in found or "static" not in found:
        return None
    top = best(summary, task)
    start, sign = found["static"]["mean"], _sign(summary, task)
    way = sign * (found[top or method]["mean"] - start)
    return sign * (found[method]["mean"] - start) / way if way > 0 else None


def conclusions(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best methods of each task, and which predictions came true.

    Args:
        summary: "tasks" and "results" of `summary.json`.
    """
    written = {each["method"] for each in summary["results"].values()} - {*STATIC, *RIVALS}
    groups: Mapping[str, Iterable[str] | None] = {
        "all": None,
        "static": STATIC,
        "written": sorted(written),
    }
    return {
        "best": {
            task: {group: best(summary, task, among) for group, among in groups.items()}
            for task in summary["tasks"]
        },
        "predictions": [
            {
                "text": each.text,
                "verdict": verdict(summary, each),
                "compared": compared(summary, each),
            }
            for each in PREDICTIONS
        ],
    }


def verdict(summary: Mapping[str, Any], prediction: Prediction) -> str:
    """Judge a prediction: "right", "wrong", "undecided" within the spread, or "not tested".

    The spread of a difference is the root of the sum of both squared standard deviations. One
    seed has none, and decides nothing.
    """
    found = compared(summary, prediction)
    if not found or len(found) < len(prediction.tasks):
        return "not tested"
    leads = [each["lead"] * (-1 if prediction.never else 1) for each in found]
    if -1 in leads:
        return "wrong"
    return "undecided" if 0 in leads else "right"


def compared(summary: Mapping[str, Any], prediction: Prediction) -> list[dict[str, Any]]:
    """Compare the methods of a prediction with all others, on each of its tasks that was tested.

    Returns:
        By task: "ours" and "other", the best of either; "lead", 1 where the first is better by
        more than the spread, -1 where the second is, else 0.
    """
    found = []
    for task in prediction.tasks or summary["tasks"]:
        known = scores(summary, task) if task in summary["tasks"] else {}
        ours = best(summary, task, prediction.methods) if known else None
        other = best(summary, task, known.keys() - {*prediction.methods}) if known else None
        if ours and other:
            lead = _lead(known[ours], known[other], _sign(summary, task))
            found.append({"task": task, "ours": ours, "other": other, "lead": lead})
    return found


def _lead(a: Mapping[str, Any], b: Mapping[str, Any], sign: int) -> int:
    if a["std"] is None or b["std"] is None:
        return 0
    ahead = sign * (a["mean"] - b["mean"])
    return 0 if abs(ahead) <= math.hypot(a["std"], b["std"]) else round(math.copysign(1, ahead))


def _sign(summary: Mapping[str, Any], task: str) -> int:
    return -1 if summary["tasks"][task]["metric"] == "loss" else 1
