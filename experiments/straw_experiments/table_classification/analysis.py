"""The test: scikit-learn's data sets, a model beside scikit-learn's classifiers, and ranks."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from straw_experiments.table_classification import evaluate, real
from straw_experiments.table_classification.config import Config
from straw_experiments.table_classification.evaluate import Classified
from straw_experiments.table_classification.objective import Params
from straw_jax.straw import Straw

VALIDATED = 64  # synthetic tables on which rivals are fitted, too
Figures = dict[str, Any]


def test(straw: Straw, params: Params, config: Config, seed: int) -> Figures:
    """Test a trained model.

    Returns:
        "members", the orders of features over which answers are averaged, chosen on synthetic
        tables. By data set and number of rows, means over splits: "accuracy", and "seconds" to
        write and answer. "controls" by data set, with most rows.
    """
    members = evaluate.chosen_members(straw, params, seed, config.rows)
    accuracy: Figures = {}
    seconds: Figures = {}
    controls: Figures = {}
    for name in config.tested_sets:
        accuracy[name], seconds[name] = {}, {}
        for rows in config.shown_rows:  # controls are of the last ones
            splits = [real.reduced(split) for split in real.splits(name, rows, seed, config.splits)]
            found = [
                evaluate.classify(straw, params, split, members, config.rows) for split in splits
            ]
            _add(accuracy[name], seconds[name], rows, found)
        measured = [evaluate.controls(straw, params, split, config.rows, seed) for split in splits]
        controls[name] = {key: fmean(each[key] for each in measured) for key in measured[0]}
    return {"members": members, "accuracy": accuracy, "fit seconds": seconds, "controls": controls}


def test_rivals(config: Config, seed: int) -> Figures:
    """Test scikit-learn's classifiers on the same splits, and on synthetic tables.

    Returns:
        By classifier "accuracy" and "seconds" as `test`; and "validation", accuracy on tables by
        which models are chosen.
    """
    if not config.tested_sets:
        return {}
    found: Figures = {}
    for name in config.tested_sets:
        for rows in config.shown_rows:
            of_splits = [
                real.rivals(split) for split in real.splits(name, rows, seed, config.splits)
            ]
            for rival in of_splits[0]:
                into = found.setdefault(rival, {"accuracy": {}, "fit seconds": {}})
                accuracy = into["accuracy"].setdefault(name, {})
                seconds = into["fit seconds"].setdefault(name, {})
                _add(accuracy, seconds, rows, [each[rival] for each in of_splits])
    tables = evaluate.validation_splits(seed, config.rows, VALIDATED)
    on_synthetic = [real.rivals(split, only=("logistic", "neighbours")) for split in tables]
    for rival in on_synthetic[0]:
        found[rival]["validation"] = fmean(each[rival].accuracy for each in on_synthetic)
    return found


def _add(accuracy: Figures, seconds: Figures, rows: int, found: Sequence[Classified]) -> None:
    accuracy[str(rows)] = fmean(each.accuracy for each in found)
    seconds[str(rows)] = fmean(each.seconds for each in found)


def mean_ranks(accuracies: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Figures]:
    """Rank classifiers on each data set, 1 is best; return mean ranks by classifier and rows.

    Args:
        accuracies: By classifier, data set and number of rows.

    Returns:
        By classifier: mean ranks over data sets by number of rows, and "all" over these.
    """
    first = next(iter(accuracies.values()))
    ranks: dict[str, Figures] = {name: {} for name in accuracies}
    for rows in next(iter(first.values())):
        of_sets = [_ranks({n: a[each][rows] for n, a in accuracies.items()}) for each in first]
        for name in accuracies:
            ranks[name][rows] = fmean(each[name] for each in of_sets)
    return {name: {**each, "all": fmean(each.values())} for name, each in ranks.items()}


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Ranks of the greatest first; the level share the mean of theirs."""

    def rank(value: float) -> float:
        return (
            1
            + _count(value < v for v in values.values())
            + (_count(value == v for v in values.values()) - 1) / 2
        )

    return {name: rank(value) for name, value in values.items()}


def _count(of: Iterable[bool]) -> int:
    return sum(of)
