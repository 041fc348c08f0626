"""What training carries from step to step, and the keys and rates that all studies share."""

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from straw_jax.sharding import everywhere

Variables = dict[str, Any]


class State(NamedTuple):
    """All that training carries from step to step.

    Attributes:
        step: int32 [], how many steps have been taken.
        variables: the model's, parameters and state collections.
        opt_state: the optimizer's.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState


def cosine(rate: float, steps: int) -> optax.Schedule:
    """Return a learning rate that rises in the first tenth of all steps, and falls to 0 after it.

    Args:
        rate: Its highest.
        steps: Of training. It falls along half a cosine.
    """
    rise = -(-steps // 10)
    return optax.warmup_cosine_decay_schedule(0, rate, rise, max(steps, rise + 1))


def training_key(seed: int, mesh: Mesh | None = None) -> jax.Array:
    """Make the key from which the steps of a run derive theirs; on a mesh, each device has it."""

    def key() -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), 1)

    return key() if mesh is None else jax.jit(key, out_shardings=everywhere(mesh))()
