"""An Equinox model with per-curve weights: it predicts a sine wave from ten of its points."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from straw_jax import Network, make_straw


class Encoder(nn.Module):  # from ten points of a curve to its style vector
    @nn.compact
    def __call__(self, points):
        return nn.tanh(nn.Dense(16)(nn.relu(nn.Dense(64)(points))))


def model(key):  # the executor: an ordinary model
    return eqx.nn.MLP(1, 1, 32, 2, jnp.tanh, key=key)


def batch(key):
    keys = jax.random.split(key, 3)
    height = jax.random.uniform(keys[0], (64, 1), minval=0.5, maxval=2)
    start = jax.random.uniform(keys[1], (64, 1), maxval=jnp.pi)
    at = jax.random.uniform(keys[2], (64, 10), minval=-3, maxval=3)
    points = height * jnp.sin(jnp.linspace(-3, 3, 10)[None] + start)
    return at[..., None], (height * jnp.sin(at + start))[..., None], points


_, static = eqx.partition(model(jax.random.key(0)), eqx.is_array)
executor = Network(
    init=lambda key, at: eqx.filter(model(key), eqx.is_array),
    apply=lambda params, at: jax.vmap(jax.vmap(eqx.combine(params, static)))(at),
)
at, _, points = batch(jax.random.key(0))
straw = make_straw(
    executor, at, rank=4, base="trained", encoder=Encoder(), context=points, hidden=32
)
params = jax.jit(straw.init)(jax.random.key(1))
optimizer = optax.adam(3e-3)


def loss_of(params, at, values, points):
    return jnp.mean((straw.apply(params, at, context=points) - values) ** 2)


@jax.jit
def step(params, state, key):
    loss, gradient = jax.value_and_grad(loss_of)(params, *batch(key))
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss


state = optimizer.init(params)
for i, key in enumerate(jax.random.split(jax.random.key(2), 41)):
    params, state, loss = step(params, state, key)
    if i % 10 == 0:
        print(f"step {i:2d}  loss {loss:.3f}")
