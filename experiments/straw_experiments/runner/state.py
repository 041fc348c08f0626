"""What training carries from step to step, and the steps, keys and rates that studies share."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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


def updated(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    opt_state: optax.OptState,
    params: Any,
) -> tuple[Any, optax.OptState]:
    """Take an optimizer's step; return parameters and the optimizer's state after it."""
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam raises a float to an integer.
        changes, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, changes), opt_state


def parameters(variables: Variables) -> int:
    """Count the trained parameters of variables, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def repeated(
    step: Callable[..., tuple[Any, jax.Array]],
) -> Callable[..., tuple[Any, jax.Array, jax.Array]]:
    """Build many training steps as one jitted function.

    Args:
        step: `(carried, *fixed) -> (carried, loss)`; `carried` begins with the `State`.

    Returns:
        `(carried, steps, *fixed) -> (carried, mean loss, steps with a finite loss)`. It stops after
        a loss that is not finite. `carried` is donated.
    """

    @partial(jax.jit, donate_argnums=0)
    def steps_of(carried: Any, steps: Any, *fixed: Any) -> tuple[Any, jax.Array, jax.Array]:
        def goes_on(looped: tuple[Any, jax.Array, jax.Array]) -> jax.Array:
            _, total, done = looped
            return (done < steps) & jnp.isfinite(total)

        def body(looped: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
            carried, total, done = looped
            carried, loss = step(carried, *fixed)
            return carried, total + loss, done + 1

        start = carried, jnp.float32(0), jnp.int32(0)
        carried, total, done = jax.lax.while_loop(goes_on, body, start)
        mean = total / jnp.asarray(steps, jnp.float32)
        return carried, mean, jnp.where(jnp.isfinite(total), done, done - 1)

    return steps_of


class DeviceTrainer:
    """A model with its optimizer on one device: a `runs.Trainer` without a mesh.

    Attributes:
        name: Of the run's files, and in messages.
        optimizer: Of the parameters.
        state_like: Shapes and dtypes of its state.
    """

    def __init__(
        self,
        name: str,
        init: Callable[[jax.Array], Any],
        optimizer: optax.GradientTransformation,
    ):
        """Make a trainer; `init` takes a key and returns parameters."""
        self.name, self.optimizer = name, optimizer

        @jax.jit
        def make(key: jax.Array) -> State:
            params = init(key)
            return State(jnp.int32(0), {"params": params}, optimizer.init(params))

        self._make = make  # one function, which is traced and compiled once
        self.state_like: State = jax.eval_shape(partial(self.init_state, 0))

    def parameters(self) -> int:
        """Count the trained parameters."""
        return parameters(self.state_like.variables)

    def compiled(
        self, steps_of: Any, *fixed: Any
    ) -> Callable[[State, jax.Array, int], tuple[State, jax.Array, jax.Array]]:
        """Compile many steps that draw on the device.

        Args:
            steps_of: `(state, steps, key, *fixed) -> (state, mean loss, steps with a finite one)`,
                from `repeated`.
            *fixed: Its other arguments.

        Returns:
            `(state, key, steps)` to the same. The state is donated.
        """
        key = jax.eval_shape(partial(training_key, 0))
        steps = jax.ShapeDtypeStruct((), jnp.int32)
        compiled = steps_of.lower(self.state_like, steps, key, *fixed).compile()
        return lambda state, key, steps: compiled(state, jnp.int32(steps), key, *fixed)

    def init_state(self, seed: int) -> State:
        """Make the state before the first step."""
        return self._make(jax.random.fold_in(jax.random.key(seed), 0))

    def place(self, tree: Any) -> Any:
        """Leave a state where it is."""
        return tree
