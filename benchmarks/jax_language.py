"""The library's training of character models, as `experiments/char_lm.py` has it."""

from collections.abc import Callable

import jax
import numpy as np

from straw_experiments.char_lm.models import Sizes
from straw_experiments.char_lm.networks import make_model
from straw_experiments.char_lm.train import Recipe, Trainer
from straw_experiments.data.text import Text
from straw_experiments.runner.state import training_key


def build(
    name: str,
    features: int,
    hyper: int,
    characters: int,
    batch: int,
    length: int,
    steps: int = 1,
) -> Callable[[], object]:
    """Return what takes training steps.

    Args:
        name: a kind of model.
        features: length of its state.
        hyper: of its smaller LSTM's state, if it has one.
        characters: different ones.
        batch: pieces of text side by side.
        length: characters of each.
        steps: a call, as one program.
    """
    sizes = Sizes(characters, hyper, 4, 1)
    model, training_model = (
        make_model(name, features, sizes, dropout=0.1, train=train) for train in (False, True)
    )
    numbers = np.random.default_rng(0).integers(0, characters, batch * length + 1, dtype=np.uint8)
    text = Text("random", "?" * characters, numbers, numbers, numbers)
    trainer = Trainer(name, model, training_model, text, Recipe(1, batch, length, 1e-3))
    key = training_key(0)
    state, carry = trainer.init_state(0), trainer.initial_carry()

    def take_steps() -> int:
        nonlocal state, carry
        state, carry, loss, _ = trainer.train_steps(state, carry, key, steps)
        jax.block_until_ready((state, loss))
        return sum(leaf.size for leaf in jax.tree.leaves(state.variables))

    return take_steps
