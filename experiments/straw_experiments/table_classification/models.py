"""The models that `tables.py` trains: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses
from functools import partial
from typing import Any

from straw_experiments.runner.registry import Entry, Registry, lazily


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Entry):
    """What writes a classifier from labelled rows.

    Attributes:
        build: `(rows, *, width, units) -> Straw`, from packed rows to `networks.classifier`.
    """


def _network(**options: Any) -> Any:
    return partial(
        lazily("straw_experiments.table_classification.networks", "table_straw"), **options
    )


MODELS: Registry[Model] = Registry(
    [
        Model(
            name="straw",
            build=_network(),
            label="STRAW",
            colour="#0077BB",
            help="rows write the hidden layer, and a last layer that is fitted to them",
        ),
        Model(
            name="shared",
            build=_network(written=False),
            label="shared hidden layer",
            colour="#EE7733",
            help="static: all tables share a trained hidden layer; the last is fitted alike",
        ),
    ]
)
