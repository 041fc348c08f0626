"""The test: tables that scikit-learn ships, and its classifiers. Nothing is chosen by it.

scikit-learn is imported where it is used: the extra "tables".
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from straw_experiments.table_classification.config import SETS
from straw_experiments.table_classification.evaluate import QUERIES, Classified, Split
from straw_experiments.table_classification.prior import FEATURES


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Load rows and classes of a data set; "diabetes" is a regression, cut at its median.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SETS:
        raise ValueError(f"load: expected one of {', '.join(SETS)}, got {name!r}")
    from sklearn import datasets

    found: Any = getattr(datasets, f"load_{name}")()
    y = found.target
    if name == "diabetes":
        y = y > np.median(y)
    return np.asarray(found.data, np.float64), np.asarray(y, np.int64)


def splits(name: str, rows: int, seed: int, count: int) -> Iterator[Split]:
    """Yield random splits into as many training rows, and at most 512 of the others.

    Args:
        name: Of the data set.
        rows: To train on, as many of each class as there are of it in all rows, by its share.
        seed: Decides the splits.
        count: How many.
    """
    from sklearn.model_selection import train_test_split

    x, y = load(name)
    for number in range(count):
        shown, asked, known, answers = train_test_split(
            x, y, train_size=rows, stratify=y, random_state=1_000 * seed + number
        )
        yield Split(shown, known, asked[:QUERIES], answers[:QUERIES])


def reduced(split: Split) -> Split:
    """Return a split of at most 32 features: principal components of its standardised rows."""
    if split.x.shape[1] <= FEATURES:
        return split
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = min(FEATURES, len(split.x) - 1)
    maps = make_pipeline(StandardScaler(), PCA(count, svd_solver="full")).fit(split.x)
    return split._replace(x=maps.transform(split.x), asked=maps.transform(split.asked))


def _rivals() -> Mapping[str, Callable[[], Any]]:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier

    return {
        "logistic": lambda: LogisticRegression(max_iter=1_000),
        "boosting": lambda: GradientBoostingClassifier(n_estimators=50, random_state=0),
        "mlp": lambda: MLPClassifier((64, 64), max_iter=300, random_state=0),
        "neighbours": lambda: KNeighborsClassifier(5),
        "majority": lambda: DummyClassifier(),
    }


def rivals(split: Split, only: tuple[str, ...] = ()) -> dict[str, Classified]:
    """Fit scikit-learn's classifiers, with its settings, to standardised rows of a split.

    Args:
        split: With all its features.
        only: Names of those that are wanted; by default all.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = {}
    for name, make in _rivals().items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of iterations that did not converge
            if len(np.unique(split.y)) == 1:  # which some refuse
                answers = np.full(len(split.asked), split.y[0])
            else:
                answers = (
                    make_pipeline(StandardScaler(), make())
                    .fit(split.x, split.y)
                    .predict(split.asked)
                )
        seconds = time.perf_counter() - start
        found[name] = Classified(float(np.mean(answers == split.answers)), seconds)
    return found
