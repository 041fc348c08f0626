"""An NNX model with per-image weights: it classifies the direction of noisy stripes."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from straw_jax import Network, NormEncoder, make_straw


class Model(nnx.Module):  # the executor: an ordinary model
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.dense = nnx.Linear(128, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return self.dense(x.reshape(len(x), -1))


def batch(key):
    keys = jax.random.split(key, 3)
    classes = jax.random.randint(keys[0], (64, 1, 1, 1), 0, 4)
    start = jax.random.uniform(keys[1], (64, 1, 1, 1), maxval=6)
    rows, columns = jnp.arange(8.0)[None, :, None, None], jnp.arange(8.0)[None, None, :, None]
    angle = classes * jnp.pi / 4
    waves = jnp.sin(1.5 * (jnp.cos(angle) * rows + jnp.sin(angle) * columns) + start)
    return waves + 0.5 * jax.random.normal(keys[2], waves.shape), classes.ravel()


graph = nnx.graphdef(Model(nnx.Rngs(0)))
executor = Network(
    init=lambda key, images: nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(key)), nnx.Param)),
    apply=lambda params, images: nnx.merge(graph, nnx.State(params))(images),
)
images, _ = batch(jax.random.key(0))
straw = make_straw(executor, images, rank=2, encoder=NormEncoder(), hidden=32)
params = jax.jit(straw.init)(jax.random.key(1))
optimizer = optax.adam(3e-3)


def loss_of(params, images, classes):
    logits = straw.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()


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
