"""Models of the next character: one of several cells, of the size that a number of parameters buys.

Models are compared at the same number of trained parameters. Each parameter but biases and
norms is multiplied once a character, so that they then cost the same, too, see `multiply_adds`.
"""

import bisect
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_experiments.char_lm.models import MODELS, Sizes
from straw_experiments.runner.precision import module_dtype
from straw_jax import costs
from straw_jax.lowrank import accumulator_dtype
from straw_jax.recurrent import Carry

Params = Mapping[str, Any]


class CharacterModel(nn.Module):
    """A recurrent network that predicts each next character of a text.

    Attributes:
        cell: What is applied to one character after the other.
        characters: That there are.
        dropout: Share of inputs and of outputs of the cell that is dropped in training.
        deterministic: Do not drop any, else an rng "dropout" is needed. The cell has its own.
        dtype: Of computation, as in Flax: parameters are float32, and so are logits. The cell has
            its own.
    """

    cell: nn.RNNCellBase
    characters: int
    dropout: float = 0.0
    deterministic: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, numbers: Array, carry: Carry | None = None) -> tuple[Carry, Array]:
        """Read pieces of text.

        Args:
            numbers: of characters, integers `[batch, time]`.
            carry: from the characters before; zeros if omitted.

        Returns:
            The carry after the last character, and after each one the logits of the next, float32
            `[batch, time, characters]`.
        """

        def drop(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=self.deterministic)(x)

        rnn = nn.RNN(
            self.cell,
            return_carry=True,
            split_rngs={"params": False, "dropout": True},
            variable_axes={"intermediates": 1, "replaced": 1},  # see `straw_jax.recurrent`
        )
        # Of mean square 1, as initialisers take inputs to be: an LSTM then learns much sooner.
        read = math.sqrt(self.characters) * jax.nn.one_hot(numbers, self.characters)
        carry, states = rnn(drop(read), initial_carry=carry)
        logits = nn.Dense(self.characters, dtype=self.dtype, name="output")(drop(states))
        return carry, logits.astype(accumulator_dtype(logits.dtype))

    @nn.nowrap
    def initial_carry(self, batch_size: int) -> Carry:
        """Return a carry of zeros for so many pieces of text."""
        shape = batch_size, self.characters
        return self.cell.initialize_carry(jax.random.key(0), shape)


def make_model(
    name: str, features: int, sizes: Sizes, *, dropout: float = 0.0, train: bool = False
) -> CharacterModel:
    """Make a model.

    Args:
        name: in `MODELS`.
        features: length of the main state.
        sizes: the rest.
        dropout: share that is dropped of inputs, of outputs, and of candidates in the cell.
        train: whether it is.

    Returns:
        The model; with or without `train`, and with any `dropout`, its parameters are the same.
    """
    cell = MODELS[name].build(features, sizes, dropout, train)
    dtype = module_dtype(sizes.precision)
    return CharacterModel(cell, sizes.characters, dropout, not train, dtype)


def features_for(name: str, parameters: int, sizes: Sizes) -> int:
    """Find the longest state with which a model has no more than a number of parameters.

    Raises:
        ValueError: it has more with any.
    """

    def count(features: int) -> int:
        shapes = _shapes(make_model(name, features, sizes))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    most = math.isqrt(parameters) // 2 + 1  # gates alone have `4 * features ** 2`
    found = bisect.bisect_right(range(1, most + 1), parameters, key=count)
    if not found:
        raise ValueError(
            f"argument --parameters: {name} has at least {count(1):,} of this text's"
            f" {sizes.characters} characters and --hyper-features {sizes.hyper_features}, got"
            f" {parameters:,}; give more, or fewer --hyper-features"
        )
    return found


def breakdown(params: Params) -> dict[str, int]:
    """Count a model's parameters by what they belong to.

    Args:
        params: of a `CharacterModel`, or their shapes.

    Returns:
        "main cell", "hyper cell", "projections" (from the hyper cell's state to what it writes),
        "output", and "all".
    """
    counts = dict.fromkeys(("main cell", "hyper cell", "projections", "output"), 0)
    for path, leaf in jax.tree.leaves_with_path(params):
        module, part = path[0].key, path[1].key
        if module == "output":
            counts["output"] += leaf.size
        elif part == "hyper":
            counts["hyper cell"] += leaf.size
        elif part in _PROJECTIONS:
            counts["projections"] += leaf.size
        else:
            counts["main cell"] += leaf.size
    return {**counts, "all": sum(counts.values())}


_PROJECTIONS = (
    *(f"{name}_embeddings" for name in ("input", "state", "bias")),
    *("input_factors", "state_factors", "bias_change"),
    *("B", "A"),
)


def multiply_adds(model: CharacterModel) -> int:
    """Count the multiply-adds of a model's matrix products for one character.

    A character's row of the input weights counts as a product with all rows.
    """
    params = _shapes(model)
    character = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return costs.multiply_adds(lambda p, x: model.apply({"params": p}, x), params, character)


@functools.cache
def _shapes(model: CharacterModel) -> Params:
    """Give the shapes of a model's parameters."""
    character = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), character)["params"]
