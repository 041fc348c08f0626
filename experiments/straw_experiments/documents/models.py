"""The models that `documents.py` trains: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses

from straw_experiments.runner.registry import Entry, Registry, lazily

_NETWORKS = "straw_experiments.documents.networks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(Entry):
    """A model that adapts the frozen language model.

    Attributes:
        build: `(sizes) -> networks.Model`.
        reads: Whether its weights depend on the context.
        static: Whether it is a plain adapter, with which others are compared.
    """

    reads: bool = True
    static: bool = False


MODELS: Registry[Adapter] = Registry(
    [
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
            build=lazily(_NETWORKS, "static"),
            label="static adapter",
            colour="#0077BB",
            help="one adapter of the same rank for all texts, as LoRA",
            reads=False,
            static=True,
        ),
        Adapter(
            name="static_large",
            build=lazily(_NETWORKS, "static_large"),
            label="static adapter, larger",
            colour="#33BBEE",
            help="one of at least as many trained parameters as associations",
            reads=False,
            static=True,
        ),
    ]
)
