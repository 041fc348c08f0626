"""What of a coordinate network is written for each image: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses
from functools import partial
from typing import Any

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


def _writer(written: str, generator: str = "Linear") -> Any:
    build = lazily("straw_experiments.fields.networks", "writer")
    return partial(build, written=written, generator=generator)


MODELS: Registry[Writer] = Registry(
    [
        Writer(
            name="last",
            build=_writer("last"),
            colour="#0077BB",
            help="the last layer whole: images are sums of trained fields",
        ),
        Writer(
            name="last_heads",
            build=_writer("last", "Heads"),
            linear=False,
            colour="#EE3377",
            help="as last, by the generator Heads, which is not linear",
        ),
        Writer(
            name="top",
            build=_writer("top"),
            colour="#EE7733",
            help="the last layer whole, and the biases of the hidden layer before it",
        ),
        Writer(
            name="biases",
            build=_writer("biases"),
            colour="#009988",
            help="all biases, as functa's shifts",
        ),
        Writer(
            name="ends",
            build=_writer("ends"),
            colour="#AA3377",
            help="the first and the last layer whole, and all biases",
        ),
        Writer(
            name="lowrank",
            build=_writer("lowrank"),
            colour="#CC3311",
            help="low-rank updates of all hidden layers' kernels, the last layer whole, all biases",
        ),
        Writer(
            name="lowrank_shared",
            build=_writer("lowrank", "SharedHeads"),
            linear=False,
            colour="#33BBEE",
            help="as lowrank, by the generator SharedHeads",
        ),
        Writer(
            name="lowrank_tokens",
            build=_writer("lowrank", "TokenHeads"),
            linear=False,
            colour="#997700",
            help="as lowrank, by the generator TokenHeads",
        ),
        Writer(
            name="whole",
            build=_writer("whole"),
            colour="#555555",
            help="all weights whole",
        ),
    ]
)
