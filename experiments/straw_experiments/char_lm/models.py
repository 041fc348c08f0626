"""The recurrent models that `char_lm.py` trains: one entry each.

To add one, add its entry to `MODELS`. JAX is imported when a model is built.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

from straw_experiments.runner.precision import USUAL, Precision, module_dtype
from straw_experiments.runner.registry import Entry, Registry


class Sizes(NamedTuple):
    """What all models of a study share, whatever their length of state.

    Attributes:
        characters: Number of different characters.
        hyper_features: As in `HyperLSTMCell`, like the next.
        embedding: Of each gate.
        rank: As in `LowRankLSTMCell`.
        precision: Dtype in which the models compute, as Flax means it: parameters are float32.
    """

    characters: int
    hyper_features: int
    embedding: int
    rank: int
    precision: Precision = USUAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(Entry):
    """A recurrent cell.

    Attributes:
        build: `(features, sizes, dropout, train) -> flax.linen.RNNCellBase`, with a state of
            `features` numbers.
        modulated: Whether a smaller LSTM writes weights of it.
        baseline: The cell that it is compared with.
    """

    modulated: bool = True
    baseline: str


def _lstm(features: int, sizes: Sizes, dropout: float, train: bool, *, layer_norm: bool) -> Any:
    from straw_jax.recurrent import LSTMCell

    dtype = module_dtype(sizes.precision)
    return LSTMCell(features, layer_norm, dropout, not train, dtype=dtype)


def _hyper(features: int, sizes: Sizes, dropout: float, train: bool, *, layer_norm: bool) -> Any:
    from straw_jax.recurrent import HyperLSTMCell

    return HyperLSTMCell(
        features,
        layer_norm,
        dropout,
        not train,
        dtype=module_dtype(sizes.precision),
        hyper_features=sizes.hyper_features,
        embedding=sizes.embedding,
    )


def _lowrank(features: int, sizes: Sizes, dropout: float, train: bool, *, layer_norm: bool) -> Any:
    from straw_jax.recurrent import LowRankLSTMCell

    return LowRankLSTMCell(
        features,
        layer_norm,
        dropout,
        not train,
        dtype=module_dtype(sizes.precision),
        hyper_features=sizes.hyper_features,
        rank=sizes.rank,
    )


def _entry(name: str, label: str, colour: str, help: str) -> Cell:
    kind = name.removeprefix("ln_")
    layer_norm = name != kind
    build = {"lstm": _lstm, "hyper": _hyper, "lowrank": _lowrank}[kind]
    return Cell(
        name=name,
        build=partial(build, layer_norm=layer_norm),
        label=label,
        colour=colour,
        help=help,
        modulated=kind != "lstm",
        baseline="ln_lstm" if layer_norm else "lstm",
    )


MODELS: Registry[Cell] = Registry(
    [
        _entry("lstm", "LSTM", "#0077BB", "an LSTM"),
        _entry("ln_lstm", "layer-norm LSTM", "#33BBEE", "an LSTM with layer norm"),
        _entry("hyper", "HyperLSTM", "#EE7733", "HyperLSTM"),
        _entry("ln_hyper", "layer-norm HyperLSTM", "#CC3311", "HyperLSTM with layer norm"),
        _entry("lowrank", "low-rank LSTM", "#009988", "an LSTM with a low-rank update"),
        _entry(
            "ln_lowrank",
            "layer-norm low-rank LSTM",
            "#AA3377",
            "the same with layer norm; not among the defaults",
        ),
    ]
)
