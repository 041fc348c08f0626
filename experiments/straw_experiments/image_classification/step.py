"""One optimizer step of a model of images, as pure functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from straw_experiments.data import normalise
from straw_experiments.runner.state import State, Variables, training_key, updated
from straw_jax.sharding import batch_sharding, everywhere, shardings


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
        init: `(key, images float32 [b, 28, 28, 1]) -> variables`: a dict with `"params"`, which the
            optimizer trains, and perhaps state collections such as `"batch_stats"`.
        apply: `(variables, images, key) -> (logits [b, classes], state)`: the key feeds dropout and
            is None in evaluation; `state` holds the updated collections, `{}` where there are none.
        unlabelled: `(variables, images, key) -> loss [b]`, or None: what a model learns of a
            batch's images beside their labels, which it is not given.
    """

    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Callable[[Variables, jax.Array, jax.Array | None], tuple[jax.Array, Variables]]
    unlabelled: Callable[[Variables, jax.Array, jax.Array], jax.Array] | None = None


class Metrics(NamedTuple):
    """Sums over the real samples of one batch.

    Attributes:
        loss: float32 [], summed cross-entropy in nats.
        correct: int32 [], how many samples were classified rightly.
        samples: int32 [], how many there were.
    """

    loss: jax.Array
    correct: jax.Array
    samples: jax.Array


TrainStep = Callable[[State, jax.Array, Any, Any, Any], tuple[State, Metrics]]
TrainSteps = Callable[[State, jax.Array, Any, Any, Any, Any, Any], tuple[State, Metrics]]


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    *,
    seed: int,
    mesh: Mesh | None = None,
) -> State:
    """Make the state before the first step.

    Args:
        model: The model.
        optimizer: Its optimizer.
        image_shape: Shape of one image, such as (28, 28, 1).
        seed: Decides the initial parameters, and nothing else does.
        mesh: Where the state shall lie, as `shardings` says; None for one device.

    Returns:
        The state at step 0.
    """
    return initializer(model, optimizer, image_shape, mesh)(seed)


def initializer(
    model: Model,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    mesh: Mesh | None = None,
) -> Callable[[int], State]:
    """Build what makes the state before the first step from a seed, compiled once: `init_state`."""

    def init(key: jax.Array) -> Variables:
        return model.init(key, jnp.zeros((1, *image_shape), jnp.float32))

    like = state_like(model, optimizer, image_shape) if mesh else None

    def jitted(function: Callable[..., Any], *parts: str) -> Callable[..., Any]:
        if mesh is None:
            return jax.jit(function)
        lie = tuple(shardings(getattr(like, part), mesh) for part in parts)
        return jax.jit(function, out_shardings=lie if len(parts) > 1 else lie[0])

    # Compiled apart from the rest: it needs much memory for a moment, for random bits.
    make_variables = jitted(init, "variables")
    make_step_and_opt_state = jitted(
        lambda params: (jnp.int32(0), optimizer.init(params)), "step", "opt_state"
    )

    def make(seed: int) -> State:
        variables = make_variables(jax.random.fold_in(jax.random.key(seed), 0))
        step, opt_state = make_step_and_opt_state(variables["params"])
        return State(step, variables, opt_state)

    return make


def state_like(
    model: Model, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> State:
    """Give the shapes and dtypes of `init_state`'s state, without computing it.

    Args:
        model: The model.
        optimizer: Its optimizer.
        image_shape: Shape of one image, such as (28, 28, 1).

    Returns:
        A state whose leaves are `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(partial(initializer(model, optimizer, image_shape), 0))


def as_input(images: Any) -> jax.Array:
    """Turn raw images, uint8, into what models take, float32 of the same shape."""
    return jnp.asarray(normalise(images))


def make_train_step(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainStep:
    """Build the jitted training step.

    The loss is the mean over the real samples of the batch of the cross-entropy, and of what the
    model learns without labels, if anything, which metrics do not count. The gradient is taken by
    `variables["params"]` alone. The step's own key is `fold_in(key, state.step)`, so that a run
    that was interrupted draws the same dropout masks as one that was not.

    Args:
        model: The model.
        optimizer: Its optimizer.
        mesh: Where the state lies, and shall lie after the step; None for one device.

    Returns:
        `(state, key, images uint8 [b, 28, 28, 1], labels int32 [b], real bool [b]) ->
        (state, Metrics)`. The state passed in is donated: use the one that comes back.
    """
    return jax.jit(_step(model, optimizer, mesh), donate_argnums=0)


def make_train_steps(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainSteps:
    """Build many training steps as one jitted function: those of `make_train_step`, in turn.

    Between them a GPU or TPU does not wait for the host: it picks the batches itself.

    Args:
        model: The model.
        optimizer: Its optimizer.
        mesh: Where the state lies, and shall lie after the steps; None for one device.

    Returns:
        `(state, key, images uint8 [n, 28, 28, 1], labels int32 [n], chosen int32 [most, b], real
        bool [most, b], steps int32 []) -> (state, Metrics, each [most])`: step i takes the samples
        `chosen[i]`, for the first `steps` of them. It stops after a loss that is not finite; the
        metrics of steps that it did not take are 0. The state passed in is donated.
    """
    step = _step(model, optimizer, mesh)

    @partial(jax.jit, donate_argnums=0)
    def train_steps(
        state: State, key: jax.Array, images: Any, labels: Any, chosen: Any, real: Any, steps: Any
    ) -> tuple[State, Metrics]:
        def goes_on(looped: tuple[State, Metrics, jax.Array]) -> jax.Array:
            _, metrics, done = looped
            return (done < steps) & jnp.all(jnp.isfinite(metrics.loss))

        def body(looped: tuple[State, Metrics, jax.Array]) -> tuple[State, Metrics, jax.Array]:
            state, metrics, done = looped
            batch = images[chosen[done]], labels[chosen[done]], real[done]
            if mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
            state, found = step(state, key, *batch)
            metrics = jax.tree.map(lambda each, one: each.at[done].set(one), metrics, found)
            return state, metrics, done + 1

        none = Metrics(*(jnp.zeros(len(chosen), d) for d in (jnp.float32, jnp.int32, jnp.int32)))
        state, metrics, _ = jax.lax.while_loop(goes_on, body, (state, none, jnp.int32(0)))
        return state, metrics

    return train_steps


def _step(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh | None) -> TrainStep:
    """Return the training step as a function that is not jitted."""

    def loss_of(
        params: Any,
        rest: Variables,
        images: Any,
        labels: jax.Array,
        real: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
        variables, inputs = {**rest, "params": params}, as_input(images)
        logits, updates = model.apply(variables, inputs, key)
        logits = logits.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        metrics = Metrics(
            loss=jnp.sum(losses, where=real),
            correct=jnp.sum(jnp.argmax(logits, axis=-1) == labels, where=real, dtype=jnp.int32),
            samples=jnp.sum(real, dtype=jnp.int32),
        )
        total = metrics.loss
        if model.unlabelled is not None:
            more = model.unlabelled(variables, inputs, jax.random.fold_in(key, 0))
            total += jnp.sum(more.astype(jnp.float32), where=real)
        return total / metrics.samples.astype(jnp.float32), (updates, metrics)

    def train_step(
        state: State, key: jax.Array, images: Any, labels: jax.Array, real: jax.Array
    ) -> tuple[State, Metrics]:
        rest = dict(state.variables)
        params = rest.pop("params")
        gradient, (updates, metrics) = jax.grad(loss_of, has_aux=True)(
            params, rest, images, labels, real, jax.random.fold_in(key, state.step)
        )
        if mesh is None:
            gradient = _joined(gradient)
        params, opt_state = updated(optimizer, gradient, state.opt_state, params)
        state = State(state.step + 1, {**rest, **updates, "params": params}, opt_state)
        if mesh is not None:
            state, metrics = jax.lax.with_sharding_constraint(
                (state, metrics), shardings((state, metrics), mesh)
            )
        return state, metrics

    return train_step


def _joined(gradient: Any) -> Any:
    """Make every leaf of a gradient wait for all others, without changing a finite one, on CPU.

    Parameters are then read for the last time before the first is overwritten, and XLA updates all
    of them in place. Else it copies the largest, a fifteenth of STRAW's step;
    `lax.optimization_barrier` is gone before XLA decides on copies.
    """
    if jax.default_backend() != "cpu":
        return gradient
    nothing = sum(
        0 * jnp.sum(leaf.ravel()[:1], dtype=jnp.float32) for leaf in jax.tree.leaves(gradient)
    )
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(nothing, leaf.dtype), gradient)


def lower_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    like: State | None = None,
) -> jax.stages.Lowered:
    """Trace the training step for one batch size, without making parameters.

    Args:
        model: The model.
        optimizer: Its optimizer.
        image_shape: Shape of one image, such as (28, 28, 1).
        batch_size: Samples in a batch.
        mesh: What the step is to be partitioned for; None for one device.
        like: What `state_like` gives, where it is known already.

    Returns:
        The lowered step: `.compile()` gives the step, `.cost_analysis()["flops"]` its cost.
    """
    train_step: Any = make_train_step(model, optimizer, mesh)
    state = like or state_like(model, optimizer, image_shape)
    key = jax.eval_shape(partial(training_key, 0))
    batch = (
        jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
    )
    if mesh is not None:
        state = _lying(state, shardings(state, mesh))
        key = _lying(key, everywhere(mesh))
        batch = tuple(_lying(each, batch_sharding(mesh)) for each in batch)
    return train_step.lower(state, key, *batch)


def _lying(shapes: Any, shardings: Any) -> Any:
    """Add shardings to `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf, lies: leaf.update(sharding=lies), shapes, shardings)
