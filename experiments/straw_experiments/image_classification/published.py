"""What the article reports, and how far a run's figures may be set beside it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# By test variant and model: test accuracy in per cent and test loss, each of one run.
PublishedResults = dict[str, dict[str, tuple[float, float]]]


def _row(
    standalone: tuple[float, float], resnet34: tuple[float, float], straw: tuple[float, float]
) -> dict[str, tuple[float, float]]:
    return {"standalone": standalone, "resnet34": resnet34, "straw": straw}


PUBLISHED: dict[str, PublishedResults] = {
    "full_rank16": {  # 100 % of the training images, rank 16, 10 epochs
        "standard": _row((85.64, 0.4253), (88.10, 0.4229), (86.71, 0.4351)),
        "rotated": _row((46.22, 2.7142), (49.29, 3.2246), (45.42, 3.8830)),
        "blurred": _row((83.57, 0.5055), (87.04, 0.4742), (85.05, 0.4512)),
    },
    "10pct_rank16": {  # 10 % of the training images, rank 16, 5 epochs
        "standard": _row((68.37, 1.1738), (81.91, 0.5921), (71.87, 0.9378)),
        "rotated": _row((29.22, 3.0280), (40.06, 2.5397), (31.90, 3.3891)),
        "blurred": _row((67.22, 1.2908), (79.36, 0.6730), (70.95, 1.0134)),
    },
    "20pct_rank32": {  # 20 % of the training images, rank 32, 5 epochs
        "standard": _row((76.89, 0.7993), (83.62, 0.5126), (81.55, 0.5696)),
        "rotated": _row((36.13, 2.8075), (44.56, 2.5405), (40.73, 2.7891)),
        "blurred": _row((76.11, 0.8964), (80.92, 0.6044), (80.20, 0.6977)),
    },
}
"""The figures published in `SOURCE`, by experiment."""

SOURCE = (
    '"Sample-Tuned Rank-Augmented Weights", the article that introduces STRAW, '
    "with code at https://github.com/REDDITARUN/STRAW"
)
# In all three sets; the published figures come from the code without base weights.
PUBLISHED_SETTINGS = {
    "base": "none",
    "batch_size": 128,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "precision": "float32",
}
_NEAR = {"base", "precision"}  # STRAW's alone: the others are as published; and rounding alone

OFFICIAL = "EMNIST balanced"
UNOFFICIAL = "EMNIST (unofficial archive"


class Comparison(NamedTuple):
    """How far the article's figures may be set beside a run's.

    `verdict` is "comparable", "nearly comparable" or "not comparable"; `results` is as in
    `PUBLISHED`.
    """

    verdict: str
    reason: str
    results: PublishedResults

    @property
    def fair(self) -> bool:
        """Whether the article's figures may stand on one scale with the run's."""
        return self.verdict != "not comparable"


def compare(summary: Mapping[str, Any]) -> Comparison | None:
    """Say how a run compares with the article.

    Args:
        summary: contents of `summary.json`.

    Returns:
        The published figures and how comparable they are, or None where the run is none of the
        article's three sets.
    """
    published = PUBLISHED.get(summary["experiment"])
    if published is None:
        return None
    dataset = summary["dataset"]
    if dataset == OFFICIAL:
        verdict = "comparable"
        reason = (
            f"the same data and the same split ({OFFICIAL}); "
            "only the angles and blurs of the test variants are drawn anew."
        )
    elif dataset.startswith(UNOFFICIAL):
        verdict = "nearly comparable"
        reason = (
            "the same task, but another split of EMNIST than the official one. "
            "Compare differences between models rather than levels."
        )
    else:
        verdict = "not comparable"
        reason = f"the article's figures are for {OFFICIAL}, these are for {dataset}."
    departures = _departures(summary["config"])
    if departures:
        reason += (
            f" This run departs from the article's settings: {', '.join(departures.values())}."
        )
    if departures.keys() - _NEAR:
        verdict = "not comparable"
    elif departures and verdict == "comparable":
        verdict = "nearly comparable"
    return Comparison(verdict, reason, published)


def _departures(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{name} {config[name]} (article: {value})"
        for name, value in PUBLISHED_SETTINGS.items()
        if name in config and config[name] != value
    }
