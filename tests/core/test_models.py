from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import TOLERANCE, assert_close, random_array, random_params, to_numpy

from straw_jax import CNN, CompactCNN, NormEncoder, ResNet34, ViT, factor_spec, make_straw
from straw_jax.layers import max_pool, pooled_conv
from straw_jax.models import Conv7, WideResNet


def shapes_of(module, images):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), images))


@partial(jax.jit, static_argnames=("strides", "padding"))
def convolve(kernel, x, strides, padding):
    layer = nn.Conv(kernel.shape[-1], (3, 3), strides, padding=padding, use_bias=False)
    return layer.apply({"params": {"kernel": kernel}}, x)


def convolution(kernel, x, strides=1, padding="SAME"):
    return np.asarray(convolve(kernel, x, strides, padding))


def pooled(x):
    """Maxima of 2 x 2 pixels."""
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    x = x[:, :height, :width].reshape(len(x), height // 2, 2, width // 2, 2, -1)
    return x.max(axis=(2, 4))


def convolved(params, number, x, stride=1):
    """A 3x3 convolution, GroupNorm with 8 groups, and ReLU; but for the convolution in NumPy."""
    conv, norm = params[f"conv{number}"], params[f"norm{number}"]
    x = convolution(conv["kernel"], x, stride, padding=1)
    return np.maximum(group_normed(x, norm, 8), 0)


def group_normed(x, norm, count):
    groups = np.reshape(x, (*x.shape[:-1], count, -1))
    groups = groups - groups.mean((1, 2, 4), keepdims=True)
    groups = groups / np.sqrt((groups**2).mean((1, 2, 4), keepdims=True) + 1e-6)
    return groups.reshape(x.shape) * norm["scale"] + norm["bias"]


@pytest.mark.parametrize(
    ("module", "count"), [(CNN(), 1_204_655), (ResNet34(), 21_299_951), (ViT(), 225_071)]
)
def test_parameter_counts_are_those_that_are_told(module, count):
    images = jnp.zeros((2, 28, 28, 1))
    variables = shapes_of(module, images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    logits = jax.eval_shape(module.apply, variables, images)
    assert logits.shape == (2, 47)


def test_cnn_starts_as_pytorch_would():
    params = jax.jit(CNN().init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    params = to_numpy(params)
    for name, fan_in in {"conv1": 9, "conv2": 288, "fc1": 9216, "fc2": 128}.items():
        for leaf in params[name].values():
            assert np.abs(leaf).max() <= fan_in**-0.5
        assert np.abs(params[name]["kernel"]).max() > 0.9 * fan_in**-0.5


@pytest.mark.parametrize("module", [CNN(), CompactCNN(), ViT(depth=1)])
def test_dropout_only_while_training(module):
    images = random_array(0, (2, 28, 28, 1))
    variables = random_params(module.init, images)
    apply = jax.jit(module.apply)
    still = to_numpy(apply(variables, images))
    assert np.array_equal(still, apply(variables, images))
    train = jax.jit(lambda key: module.apply(variables, images, train=True, rngs={"dropout": key}))
    one, two = (to_numpy(train(jax.random.key(seed))) for seed in (1, 2))
    assert not np.allclose(one, still)
    assert not np.allclose(one, two)


@pytest.mark.accelerator
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bias_after_the_pool_is_a_bias_before_it(dtype):
    conv = partial(nn.Conv, 5, (3, 3), padding="VALID", dtype=dtype)
    params = random_params(conv().init, np.zeros((1, 9, 7, 2)))
    # Of whole numbers every sum is exact, so that both orders have the same ties.
    params = jax.tree.map(lambda leaf: np.round(3 * leaf), params)
    images = np.round(random_array(0, (4, 9, 7, 2)))  # 7 x 5 positions: the last ones are left out
    weights = np.round(3 * random_array(1, (4, 3, 2, 5)))

    def before(params, images):
        return max_pool(nn.relu(conv().apply(params, images)))

    def after(params, images):
        return nn.relu(conv(conv_general_dilated=pooled_conv).apply(params, images))

    def value_and_gradient(layer):
        def loss(params, images):
            y = layer(params, images)
            return jnp.sum(y.astype("float32") * weights), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, images)

    got, y = value_and_gradient(after)
    want, expected = value_and_gradient(before)
    assert y.dtype == dtype
    assert np.array_equal(y, expected)
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("side", [8, 15])  # an odd row or column is left out by the pools
def test_compact_cnn_is_convolutions_group_norms_and_pools(side):
    module = CompactCNN(classes=5, stages=((8, 16), (24,)))
    images = random_array(0, (2, side, side, 3))
    params = random_params(module.init, images)["params"]
    want = pooled(convolved(params, 2, convolved(params, 1, images)))
    want = np.reshape(pooled(convolved(params, 3, want)), (2, -1))
    want = want @ params["fc"]["kernel"] + params["fc"]["bias"]
    assert_close(jax.jit(module.apply)({"params": params}, images), want, 1e-5)


def test_norm_encoder_is_convolutions_group_norms_and_a_dense_layer():
    module = NormEncoder(style=3, features=(8, 16))
    images = random_array(0, (2, 9, 10, 1))
    params = random_params(module.init, images)["params"]
    want = convolved(params, 2, convolved(params, 1, images, stride=2), stride=2).reshape(2, -1)
    want = np.tanh(want @ params["style"]["kernel"] + params["style"]["bias"])
    assert_close(jax.jit(module.apply)({"params": params}, images), want, 1e-5)


def test_compact_cnn_has_the_parameters_that_its_docstring_says():
    params = shapes_of(CompactCNN(), jnp.zeros((1, 28, 28, 1)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{count:,} parameters" in CompactCNN.__doc__


def test_compact_cnn_starts_as_he():
    images = jnp.zeros((1, 28, 28, 1))
    params = jax.jit(CompactCNN().init)(jax.random.key(0), images)["params"]
    for name, fan_in in {"conv2": 288, "conv3": 576}.items():
        spread = float(np.std(params[name]["kernel"]))
        assert spread == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)


def test_resnet_downsamples_three_times_after_a_full_size_stem():
    images = jnp.zeros((1, 28, 28, 1))
    variables = shapes_of(ResNet34(), images)

    def run(variables):
        return ResNet34().apply(
            variables, images, mutable=["intermediates"], capture_intermediates=True
        )

    _, state = jax.eval_shape(run, variables)
    layers = state["intermediates"]
    assert layers["stem"]["__call__"][0].shape == (1, 28, 28, 64)
    sizes = {leaf.shape[1:] for leaf in jax.tree.leaves(layers) if len(leaf.shape) == 4}
    assert sizes == {(28, 28, 64), (14, 14, 128), (7, 7, 256), (4, 4, 512)}


def test_resnet_updates_batch_statistics_only_while_training():
    images = jnp.zeros((1, 28, 28, 1))
    variables = shapes_of(ResNet34(), images)

    def train(variables):
        return ResNet34().apply(variables, images, train=True, mutable=["batch_stats"])

    _, updates = jax.eval_shape(train, variables)
    assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )


def by_hand(params, image, *, heads):
    """The vision transformer for one image `[h, w, c]`, in NumPy but for its convolutions."""

    def conv(name, x):
        return convolution(params[name]["kernel"], x, 2, padding=1) + params[name]["bias"]

    def dense(name, x, block):
        return x @ block[name]["kernel"] + block[name]["bias"]

    def norm(name, x, block):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * block[name]["scale"] + block[name]["bias"]

    def softmax(x):
        x = np.exp(x - x.max(-1, keepdims=True))
        return x / x.sum(-1, keepdims=True)

    x = conv("conv2", np.maximum(conv("conv1", image), 0))
    x = x.reshape(-1, x.shape[-1])
    x = x + params["positions"]
    for i in range(1, sum(name.startswith("block") for name in params) + 1):
        block = params[f"block{i}"]
        y = norm("norm1", x, block)
        query, key, value = (
            np.split(dense(name, y, block), heads, axis=-1) for name in ("query", "key", "value")
        )
        y = [
            softmax(q @ k.T / np.sqrt(q.shape[-1])) @ v
            for q, k, v in zip(query, key, value, strict=True)
        ]
        x = x + dense("out", np.concatenate(y, axis=-1), block)
        y = dense("mlp1", norm("norm2", x, block), block)
        gelu = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + dense("mlp2", gelu, block)
    return dense("fc", norm("norm", x, params).mean(axis=0), params)


SMALL_VIT = ViT(classes=5, width=8, depth=2, heads=2)


def test_vit_is_convolutions_attention_and_mlps():
    images = random_array(0, (2, 10, 6, 3))
    params = random_params(SMALL_VIT.init, images, by=0.2)["params"]
    got = jax.jit(SMALL_VIT.apply)({"params": params}, images)
    want = [by_hand(params, image, heads=2) for image in images]
    assert_close(got, np.stack(want), 1e-5)


def test_vit_runs_with_each_samples_own_attention_and_mlps():
    images = random_array(0, (3, 9, 6, 1))
    straw = make_straw(
        SMALL_VIT, images, rank={"block*/*/kernel": 2, "block*/norm?/*": "whole"}, base="trained"
    )
    params = random_params(straw.init, by=0.2)
    logits = jax.jit(straw.apply)(params, images)
    merge = jax.jit(straw.merge)
    for i in range(3):
        want = by_hand(to_numpy(merge(params, images[i])), images[i], heads=2)
        assert_close(logits[i], want, 1e-4)
    kernels = factor_spec(params["executor"], {"block*/*/kernel": 2})
    assert {leaf.path.split("/")[1] for leaf in kernels} == {
        "query", "key", "value", "out", "mlp1", "mlp2"
    }  # fmt: skip


def test_conv7_is_two_convolutions_with_pools():
    module = Conv7(classes=3, channels=(2, 4))
    x = random_array(0, (2, 8, 8, 1))
    params = random_params(module.init, x)["params"]
    logits = jax.jit(module.apply)({"params": params}, x)
    for name in ("conv1", "conv2"):
        kernel = params[name]["kernel"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = np.maximum(pooled(np.asarray(x) + params[name]["bias"]), 0)
    expected = x.reshape(2, -1) @ params["fc"]["kernel"] + params["fc"]["bias"]
    assert_close(logits, expected, 1e-4)


def test_wide_residual_network_adds_blocks_to_a_shortcut():
    """With its last convolutions at 0, a block is its shortcut."""
    module = WideResNet(classes=3, depth=10, width=2, channels=4)
    images = random_array(0, (2, 8, 8, 3))
    params = random_params(module.init, images)["params"]
    kernels = {name: leaf["kernel"].shape for name, leaf in params.items() if "kernel" in leaf}
    assert kernels["group1_block1_conv1"] == (3, 3, 4, 8)
    assert kernels["group3_block1_conv2"] == (3, 3, 32, 32)
    assert len([name for name in kernels if "_conv" in name]) == 2 * 3
    for name in kernels:
        if name.endswith("conv2"):
            params[name]["kernel"] = np.zeros_like(params[name]["kernel"])

    def normed(x, name):
        return np.maximum(group_normed(x, params[name], 4), 0)

    x = convolution(params["stem"]["kernel"], images)
    for group in (1, 2, 3):
        y = normed(x, f"group{group}_block1_norm1")
        shortcut = params[f"group{group}_block1_shortcut"]["kernel"][0, 0]
        x = (y if group == 1 else y[:, ::2, ::2]) @ shortcut
    x = normed(x, "norm").mean(axis=(1, 2))
    expected = x @ params["fc"]["kernel"] + params["fc"]["bias"]
    assert_close(jax.jit(module.apply)({"params": params}, images), expected, 1e-4)
    with pytest.raises(ValueError, match="expected a depth of 6 n"):
        jax.eval_shape(WideResNet(depth=12).init, jax.random.key(0), images)
