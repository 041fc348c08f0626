"""The models that `documents.py` trains: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses

from straw_experiments.runner.registry import Entry, Registry, lazily

_FOLDER = "straw_experiments.documents"
_NETWORKS, _STATIC = f"{_FOLDER}.networks", f"{_FOLDER}.static"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(Entry):
    """A model that adapts the frozen language model.

    Attributes:
        build: `(sizes) -> networks.Model`.
        reads: Whether its weights depend on the context.
        static: Whether it is a plain adapter, with which others are compared.
        rate: Of learning, as a multiple of the rate of the settings.
    """

    reads: bool = True
    static: bool = False
    rate: float = 1.0


MODELS: Registry[Adapter] = Registry(
    [
        Adapter(
            name="gradients",
            build=lazily(f"{_FOLDER}.gradients", "gradients"),
            label="written: gradients",
            colour="#AA3377",
            help="a learned step of training on the context: gradients of the frozen model, weighed"
            " and changed, in learned directions",
            rate=0.5,
        ),
        Adapter(
            name="associations",
            build=lazily(_NETWORKS, "associations"),
            label="written: associations",
            colour="#EE7733",
            help="learned queries pick, in each layer, what the frozen model computes at some"
            " places of the context, and the tokens that follow there; the adapter recalls these",
        ),
        Adapter(
            name="tokens",
            build=lazily(_NETWORKS, "tokens"),
            label="written: PerceiverEncoder, TokenHeads",
            colour="#CC3311",
            help="the library's PerceiverEncoder of hidden states, and TokenHeads; not among the"
            " defaults",
        ),
        Adapter(
            name="no_context",
            build=lazily(_NETWORKS, "without_context"),
            label="the writer without context",
            colour="#009988",
            help="the same parameters as associations, with no context: its biases alone",
            reads=False,
        ),
        Adapter(
            name="static",
            build=lazily(_STATIC, "static"),
            label="static adapter",
            colour="#0077BB",
            help="one adapter of the same rank for all texts, as LoRA",
            reads=False,
            static=True,
        ),
        Adapter(
            name="static_large",
            build=lazily(_STATIC, "static_large"),
            label="static adapter, larger",
            colour="#33BBEE",
            help="one of at least as many trained parameters as gradients and associations",
            reads=False,
            static=True,
        ),
    ]
)
