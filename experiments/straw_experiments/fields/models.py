"""What of a coordinate network is written for each image: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses
from functools import partial

from straw_experiments.runner.registry import Entry, Registry, lazily


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer(Entry):
    """A model that writes fields.

    Attributes:
        build: `(sizes, style=..., hidden=..., rank=..., image=...) -> Straw`, see
            `networks.writer`.
        linear: Whether its generator is linear. Others are trained at a rate of their own.
    """

    linear: bool = True


def _writer(
    name: str, colour: str, help: str, *, written: str, generator: str = "Linear"
) -> Writer:
    build = lazily("straw_experiments.fields.networks", "writer")
    return Writer(
        name=name,
        build=partial(build, written=written, generator=generator),
        colour=colour,
        help=help,
        linear=generator == "Linear",
    )


MODELS: Registry[Writer] = Registry(
    [
        _writer(
            "last",
            "#0077BB",
            "the last layer whole: images are sums of trained fields",
            written="last",
        ),
        _writer(
            "last_heads",
            "#EE3377",
            "as last, by the generator Heads, which is not linear",
            written="last",
            generator="Heads",
        ),
        _writer(
            "top",
            "#EE7733",
            "the last layer whole, and the biases of the hidden layer before it",
            written="top",
        ),
        _writer(
            "biases",
            "#009988",
            "all biases, as functa's shifts",
            written="biases",
        ),
        _writer(
            "ends",
            "#AA3377",
            "the first and the last layer whole, and all biases",
            written="ends",
        ),
        _writer(
            "lowrank",
            "#CC3311",
            "low-rank updates of all hidden layers' kernels, the last layer whole, all biases",
            written="lowrank",
        ),
        _writer(
            "lowrank_shared",
            "#33BBEE",
            "as lowrank, by the generator SharedHeads",
            written="lowrank",
            generator="SharedHeads",
        ),
        _writer(
            "lowrank_tokens",
            "#997700",
            "as lowrank, by the generator TokenHeads",
            written="lowrank",
            generator="TokenHeads",
        ),
        _writer(
            "whole",
            "#555555",
            "all weights whole",
            written="whole",
        ),
    ]
)
