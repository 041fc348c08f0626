from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import (
    TOLERANCE,
    assert_close,
    intermediates,
    random_array,
    random_params,
    to_numpy,
)

from straw_jax import ConvEncoder, Network, NormEncoder, RecursiveEncoder, SetEncoder, make_straw
from straw_jax.encoders import rotary

SMALL = RecursiveEncoder(style=5, width=8, heads=2, steps=3)
IMAGES = random_array(0, (2, 10, 7, 3))


def params_of(module, x):
    return random_params(module.init, x, by=0.2)["params"]


def tokens_of(params, images):
    for name in ("conv1", "conv2"):
        conv = nn.Conv(params[name]["kernel"].shape[-1], (3, 3), 2, padding=1)
        images = jax.nn.relu(conv.apply({"params": params[name]}, images))
    return images.reshape(len(images), -1, images.shape[-1])


@partial(jax.jit, static_argnums=2)  # traced once
def block_by_hand(params, x, heads):
    """The transformer block for one image's tokens `[n, width]`, head by head."""

    def norm(name, x):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params[name]["scale"][None]

    def rotated(x):
        """Pairs of numbers as complex ones, each rotated by its angle."""
        half = x.shape[-1] // 2
        pairs = jax.lax.complex(x[:, :half], x[:, half:])
        angles = np.arange(len(x))[:, None] / 10_000.0 ** (np.arange(half) / half)
        pairs = pairs * np.exp(1j * angles).astype("complex64")
        return jnp.concatenate([pairs.real, pairs.imag], axis=-1)

    y = norm("norm1", x)
    query, key, value = (
        jnp.split(y @ params[name]["kernel"], heads, axis=-1) for name in ("query", "key", "value")
    )
    attended = [
        jax.nn.softmax(rotated(q) @ rotated(k).T / np.sqrt(q.shape[-1])) @ v
        for q, k, v in zip(query, key, value, strict=True)
    ]
    x = x + jnp.concatenate(attended, axis=-1) @ params["out"]["kernel"]
    y = norm("norm2", x) @ params["mlp1"]["kernel"] + params["mlp1"]["bias"][None]
    y = y * jax.scipy.stats.norm.cdf(y)
    return x + y @ params["mlp2"]["kernel"] + params["mlp2"]["bias"][None]


def unrolled(params, past, images, steps, heads):
    """The recursion call by call; `past` are the parameters of all steps but the last."""

    def one(tokens, earlier):
        z = past["state"] if steps > 1 else params["state"]
        for _ in range(steps - 1):
            z = block_by_hand(past["block"], z + earlier, heads)
            z = block_by_hand(past["block"], z, heads)
        z = block_by_hand(params["block"], z + tokens, heads)
        z = block_by_hand(params["block"], z, heads).mean(axis=0)
        return jnp.tanh(z @ params["style"]["kernel"] + params["style"]["bias"])

    return jax.vmap(one)(tokens_of(params, images), tokens_of(past, images))


@pytest.mark.parametrize("steps", [1, 3])
def test_recursive_encoder_is_its_unrolled_recursion_with_the_gradient_of_the_last_step(steps):
    encoder = SMALL.clone(steps=steps)
    params = params_of(encoder, IMAGES)
    weights = random_array(9, (2, 5))

    def ours(params):
        z = encoder.apply({"params": params}, IMAGES)
        return jnp.sum(z * weights), z

    def reference(params, past):
        z = unrolled(params, past, IMAGES, steps, heads=2)
        return jnp.sum(z * weights), z

    got, z = jax.jit(jax.grad(ours, has_aux=True))(params)
    want, expected = jax.jit(jax.grad(reference, has_aux=True))(params, params)
    assert_close(z, expected, 1e-5)
    assert_close(got, want, 1e-4)
    assert np.any(to_numpy(got["state"])) == (steps == 1)


def test_recursive_encoders_of_more_steps_give_other_styles():
    params = params_of(SMALL, IMAGES)
    one, three = (jax.jit(SMALL.clone(steps=n).apply)({"params": params}, IMAGES) for n in (1, 3))
    assert np.abs(to_numpy(one) - to_numpy(three)).max() > 1e-3


def test_recursive_encoder_has_the_parameters_of_the_released_code():
    shapes = jax.eval_shape(RecursiveEncoder().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    params = shapes["params"]
    assert params["state"].shape == (49, 64)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 94_464


@pytest.mark.parametrize("options", [{"width": 12, "heads": 4}, {"steps": 0}])
def test_recursive_encoder_says_what_does_not_fit(options):
    with pytest.raises(
        ValueError, match=r"RecursiveEncoder: expected a width .* at least 1 step, got"
    ):
        jax.eval_shape(RecursiveEncoder(**options).init, jax.random.key(0), IMAGES)


def test_rotary_products_depend_on_differences_of_positions():
    query, key = (np.tile(random_array(i, (1, 1, 2, 6)), (1, 9, 1, 1)) for i in range(2))
    rotate = jax.jit(rotary)
    products = np.einsum("bqhd,bkhd->hqk", rotate(query), rotate(key))
    for difference in range(9):
        diagonal = np.diagonal(products, difference, 1, 2)
        assert_close(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), 1e-4)
    assert np.abs(products[:, 0, 0] - products[:, 0, 4]).max() > 0.1
    rounded = rotate(query.astype("bfloat16"))
    assert rounded.dtype == "bfloat16"
    assert_close(rounded, rotate(query), TOLERANCE["bfloat16"])


SET = SetEncoder(element=(6, 8), decoder=(7, 5), heads=2)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_set_encoder_cares_for_no_order_and_no_padding(pooling):
    encoder = SET.clone(pooling=pooling)
    x = random_array(0, (3, 6, 4))
    params = {"params": params_of(encoder, x)}
    run = jax.jit(encoder.apply)
    want = run(params, x)
    assert want.shape == (3, 5)
    assert_close(run(params, x[:, ::-1]), want, 1e-5)
    full = np.ones((3, 6), bool)
    assert_close(run(params, (x, full)), want, 1e-6)
    sizes = np.array([6, 1, 4])
    mask = np.arange(6) < sizes[:, None]
    padded = run(params, (np.where(mask[..., None], x, np.float32(1e3)), mask))
    alone = [run(params, x[i : i + 1, :n]) for i, n in enumerate(sizes)]
    assert_close(padded, np.concatenate(alone), 1e-5)
    assert np.abs(to_numpy(padded) - to_numpy(want))[1:].max() > 1e-3


def mlp(params, name, x, last):
    count = sum(layer.startswith(name) for layer in params)
    for i in range(1, count + 1):
        x = x @ params[f"{name}{i}"]["kernel"] + params[f"{name}{i}"]["bias"]
        x = np.maximum(x, 0) if i < count or last else x
    return x


def test_mean_of_a_set_is_that_of_its_encoded_elements():
    x = random_array(0, (2, 5, 3))
    params = params_of(SET, x)
    got = jax.jit(SET.apply)({"params": params}, x)
    pooled = mlp(params, "element", np.asarray(x), last=False).mean(axis=1)
    assert_close(got, mlp(params, "decoder", pooled, last=True), 1e-5)


def test_attention_pools_as_a_query_that_attends_to_encoded_elements():
    """Flax's attention with keys and values of each element, for parameters of ours."""
    x = random_array(0, (2, 5, 3))
    encoder = SetEncoder(element=(6, 8), decoder=(), pooling="attention", heads=2)
    params = params_of(encoder, x)
    got = jax.jit(encoder.apply)({"params": params}, x)
    hidden = np.maximum(x @ params["element1"]["kernel"] + params["element1"]["bias"], 0)
    attention = nn.MultiHeadDotProductAttention(2, qkv_features=12, out_features=8)
    # A query whose products with the keys, over root 6, are our scores.
    query = np.ones((2, 1, 1), "float32")
    theirs = {
        "query": {"kernel": np.ones((1, 2, 6)), "bias": np.zeros((2, 6))},
        "key": {
            "kernel": np.tile(params["scores"]["kernel"][..., None], (1, 1, 6)) / 6**0.5,
            "bias": np.tile(params["scores"]["bias"][..., None], (1, 6)) / 6**0.5,
        },
        "value": {"kernel": np.tile(np.eye(6)[:, None], (1, 2, 1)), "bias": np.zeros((2, 6))},
        "out": {
            "kernel": params["element2"]["kernel"].reshape(2, 6, 8),
            "bias": params["element2"]["bias"],
        },
    }
    theirs = jax.tree.map(lambda leaf: leaf.astype("float32"), theirs)
    want = to_numpy(jax.jit(attention.apply)({"params": theirs}, query, hidden))[:, 0]
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_only_the_hidden_layers_see_every_element(pooling):
    x = jnp.zeros((2, 100, 3))
    encoder = SetEncoder(element=(4, 5, 9), decoder=(), pooling=pooling, heads=2)
    params = jax.eval_shape(encoder.init, jax.random.key(0), x)
    shapes = intermediates(encoder.apply, params, x)
    assert max(shape[2] for shape in shapes if len(shape) == 3 and shape[1] == 100) == 5


def test_set_encoder_says_what_poolings_there_are():
    with pytest.raises(ValueError, match=r"SetEncoder: .*\('mean', 'attention'\), got 'max'"):
        jax.eval_shape(SET.clone(pooling="max").init, jax.random.key(0), jnp.zeros((1, 2, 3)))


@pytest.mark.parametrize("encoder", [ConvEncoder(), NormEncoder(), RecursiveEncoder()])
def test_every_encoder_keeps_samples_apart_and_styles_bounded(encoder):
    x = random_array(0, (3, 28, 28, 1))
    params = {"params": params_of(encoder, x)}
    apply = jax.jit(encoder.apply)
    styles = np.asarray(apply(params, x))
    for i in range(3):  # to the last bit, whatever the others are
        others = np.where(np.arange(3)[:, None, None, None] == i, x, -x)
        np.testing.assert_array_equal(np.asarray(apply(params, others))[i], styles[i])
    # In float64, of whose rounding too little is left to grow from step to step.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, x))
        alone = np.concatenate([apply(params, exact[i : i + 1]) for i in range(3)])
        assert_close(apply(params, exact), alone, 1e-12)
    assert np.abs(styles).max() <= 1
    assert np.abs(styles[0] - styles[1]).max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_set_of_pairs_writes_a_network(pooling):
    """What a set encoder is for: sets of different sizes, each of which a network is written of."""
    executor = Network(
        init=lambda key, x: {
            "w1": jax.random.normal(key, (2, 5)),
            "w2": jax.random.normal(key, (5, 1)),
        },
        apply=lambda w, x: jax.nn.relu(x @ w["w1"]) @ w["w2"],
    )
    pairs = random_array(0, (3, 4, 3))
    mask = np.arange(4) < np.array([4, 2, 3])[:, None]
    x = random_array(1, (3, 7, 2))
    straw = make_straw(
        executor,
        x,
        rank={"*": "whole"},
        encoder=SetEncoder(decoder=(256,), pooling=pooling),
        context=(pairs, mask),
    )
    params = random_params(straw.init)
    if pooling == "mean":  # pairs 128-256-128, then 256-128 and one number for each unknown
        layers = [(3, 128), (128, 256), (256, 128), (128, 256), (256, 128), (128, 15)]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert count == sum((rows + 1) * columns for rows, columns in layers)
    y = jax.jit(straw.apply)(params, x, context=(pairs, mask))
    merge = jax.jit(straw.merge)
    for i in range(3):
        weights = to_numpy(merge(params, (pairs[i], mask[i])))
        assert_close(y[i], np.maximum(x[i] @ weights["w1"], 0) @ weights["w2"], 1e-5)
