"""The results page's section on weight prediction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from straw_experiments.weight_prediction.figures import plot_pairs
from straw_experiments.weight_prediction.published import SOURCE
from straw_experiments.weight_prediction.report import Results, examined, results_table

Summaries: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By study, what its `summary.json` holds."""

_USUAL = {"embedding": 128, "optimizer": "muon"}


def prediction_parts(studies: Summaries) -> list[str]:
    """Tell what the studies of weight_prediction.py found, in Markdown.

    Args:
        studies: Those that have been run.
    """
    weights = _merged(studies, "weights")
    outputs = _merged(studies, "outputs")
    parts = []
    if weights:
        text = (
            "How much of the variance of the true networks' outputs, on inputs that were not shown,"
            " do the weights explain that a predictor reads from pairs of input and output? mean"
            " and attention say how a set of pairs is pooled. Beside it the post's figure, and in"
            " brackets ours less it, in percentage points (of its networks with 50 unknowns it does"
            f" not tell the sizes). Source: {SOURCE}."
        )
        parts += ["### Weights from pairs", text, _recipe(studies, "weights")]
        parts += [results_table(weights), *examined(_usual(studies))]
    if outputs:
        text = (
            "Predicted from a network's weights and one input, joined in one vector. The post's"
            " loss is that of targets whose sizes and initial weights it does not tell: the share"
            " explained is what may be compared between predictors here."
        )
        parts += ["### Outputs from weights", text, _recipe(studies, "outputs")]
        parts.append(results_table(outputs))
    return parts


def draw(studies: Summaries, path: Path) -> list[str]:
    """Draw what weights explain by pairs, if that has been run.

    Args:
        studies: Those that have been run.
        path: The PNG to write.

    Returns:
        "weights" if it was drawn.
    """
    results = _merged(studies, "weights", unusual=False)
    if not results:
        return []
    plot_pairs(results, path, title="Weights predicted from pairs")
    return ["weights"]


def _merged(studies: Summaries, predict: str, *, unusual: bool = True) -> Results:
    """Put the cells of several studies together: by network and predictor, unusual ones last."""
    found = []
    for study, summary in studies.items():
        config = summary["config"]
        differs = [
            f"{name} {config[name]}" if isinstance(config[name], int) else config[name]
            for name, usual in _USUAL.items()
            if config[name] != usual
        ]
        if config["predict"] != predict or (differs and not unusual):
            continue
        for name, each in summary["results"].items():
            label = ", ".join([each["predictor"], *differs])
            attention = each["predictor"] == "attention"
            order = each["unknowns"], bool(differs), attention, config["embedding"]
            found.append((order, f"{study}/{name}", {**each, "predictor": label}))
    return {name: each for _, name, each in sorted(found, key=lambda cell: cell[0])}


def _usual(studies: Summaries) -> Results:
    """Return the cells with mean pooling and the usual embedding, which are looked at closely."""
    merged = _merged(studies, "weights", unusual=False)
    return {name: each for name, each in merged.items() if each["predictor"] == "mean"}


def _recipe(studies: Summaries, predict: str) -> str:
    """Tell how they were trained, once if all were trained alike."""
    told = dict.fromkeys(
        f"{config['steps']:,} steps of {config['optimizer']} with a rate of"
        f" {config['learning_rate']:g} that rises and falls along a cosine,"
        f" {config['batch_size']:,} new networks each"
        for summary in studies.values()
        if (config := summary["config"])["predict"] == predict
    )
    return f"Recipe: {'; '.join(told)}."
