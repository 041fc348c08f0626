"""A Linen transformer with per-sequence weights: it finds the token that the first one names."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from straw_jax import make_straw

LENGTH, TOKENS = 5, 8


class Transformer(nn.Module):  # the executor: an ordinary model
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(TOKENS, 32)(tokens) + nn.Embed(LENGTH, 32)(jnp.arange(LENGTH))[None]
        x = x + nn.MultiHeadDotProductAttention(4, name="attention")(nn.LayerNorm()(x))
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(TOKENS)(x[:, 0])


class Encoder(nn.Module):  # from a sequence to its style vector
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(TOKENS, 16)(tokens)
        return nn.tanh(nn.Dense(16)(x.reshape(len(x), -1)))


def batch(key):
    tokens = jax.random.randint(key, (64, LENGTH), 0, TOKENS)
    which = 1 + tokens[:, :1] % (LENGTH - 1)  # named by the first token
    return tokens, jnp.take_along_axis(tokens, which, 1)[:, 0]


# The kernels of query, key and value are [d, heads, d_head]; products sum over the first axis.
axes = {f"attention/{name}/kernel": "rcc" for name in ("query", "key", "value")}
tokens, _ = batch(jax.random.key(0))
straw = make_straw(Transformer(), tokens, rank=2, axes=axes, base="trained", encoder=Encoder())
params = jax.jit(straw.init)(jax.random.key(1))
optimizer = optax.adam(3e-3)


def loss_of(params, tokens, answers):
    logits = straw.apply(params, tokens)  # with weights generated for each sequence
    return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()


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
