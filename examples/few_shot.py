"""A hand-written function with per-set weights: it predicts a sine wave from 4 to 12 examples."""

import jax
import jax.numpy as jnp
import optax

from straw_jax import Network, SetEncoder, make_straw

SETS, GIVEN, ASKED = 32, 12, 16


def init(key, x):
    keys = jax.random.split(key)
    return {
        "W1": jax.random.normal(keys[0], (1, 32)),
        "b1": jnp.zeros(32),
        "W2": jax.random.normal(keys[1], (32, 1)) / 32**0.5,
    }


def apply(weights, x):  # the executor: an ordinary function
    return jnp.sin(x @ weights["W1"] + weights["b1"]) @ weights["W2"]


def batch(key):
    keys = jax.random.split(key, 4)
    x = jax.random.uniform(keys[0], (SETS, GIVEN + ASKED, 1), minval=-2, maxval=2)
    start = jax.random.uniform(keys[1], (SETS, 1, 1), maxval=2 * jnp.pi)
    height = jax.random.uniform(keys[2], (SETS, 1, 1), minval=0.5, maxval=2)
    y = height * jnp.sin(2 * x + start)
    pairs = jnp.concatenate([x, y], axis=-1)[:, :GIVEN]
    sizes = jax.random.randint(keys[3], (SETS, 1), 4, GIVEN + 1)  # of each set, 4 to 12
    return (pairs, jnp.arange(GIVEN)[None] < sizes), x[:, GIVEN:], y[:, GIVEN:]


context, x, _ = batch(jax.random.key(0))
straw = make_straw(
    Network(init, apply), x, rank=4, base="trained", context=context, encoder=SetEncoder()
)
params = jax.jit(straw.init)(jax.random.key(1))
optimizer = optax.adam(3e-3)


def loss_of(params, context, x, y):
    return jnp.mean((straw.apply(params, x, context=context) - y) ** 2)


@jax.jit
def step(params, state, key):
    loss, gradient = jax.value_and_grad(loss_of)(params, *batch(key))
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, loss


state = optimizer.init(params)
for i, key in enumerate(jax.random.split(jax.random.key(2), 401)):
    params, state, loss = step(params, state, key)
    if i % 100 == 0:
        print(f"step {i:3d}  loss {loss:.3f}")
