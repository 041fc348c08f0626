"""The library's training of weight predictors, as `experiments/weight_prediction.py` has it."""

from collections.abc import Callable, Sequence

import jax

from straw_experiments.runner.state import training_key
from straw_experiments.weight_prediction.networks import weight_predictor
from straw_experiments.weight_prediction.objectives import weights_objective
from straw_experiments.weight_prediction.train import Recipe, Trainer


def build(
    name: str, sizes: Sequence[int], pairs: int, batch: int, steps: int
) -> Callable[[], object]:
    """Return what takes training steps.

    Args:
        name: "straw" trains as the post does, by Adam, one fresh input a network; "straw_muon"
            as the library does.
        sizes: inputs, hidden units and outputs of the networks.
        pairs: shown of each.
        batch: networks a step.
        steps: a call.
    """
    networks = tuple(sizes)
    posts = name == "straw"
    objective = weights_objective(
        networks, pairs, straw=weight_predictor(networks), fresh=1 if posts else 64
    )
    recipe = Recipe(10_000, batch, 1e-3 if posts else 1e-2, "adam" if posts else "muon")
    trainer = Trainer(name, objective, recipe)
    key = training_key(0)
    state = trainer.init_state(0)

    def take_steps() -> int:
        nonlocal state
        state, loss, _ = trainer.train_steps(state, key, steps)
        jax.block_until_ready((state, loss))
        return trainer.parameters()

    return take_steps
