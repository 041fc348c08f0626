"""Models as people write them, modulated without a change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from lifting import (
    assert_modulation_equals_reference,
    assert_no_full_kernel,
    by_sample,
    modulated,
    random_factors,
)
from reference import TOLERANCE, assert_close, random_array, random_params

from straw_jax import Factors, Generated, modulate

ATTENTION = {
    "*/query/kernel": "rcc",
    "*/key/kernel": "rcc",
    "*/value/kernel": "rcc",
    "*/out/kernel": "rrc",
}


def linen_model(module, x):
    params = random_params(module.init, x)["params"]
    return (lambda params, x, **kw: module.apply({"params": params}, x, **kw)), params


def nnx_model(module):
    graph, state = nnx.split(module)

    def apply(params, x):
        return nnx.merge(graph, nnx.State(params))(x)

    return apply, nnx.to_pure_dict(state)


class Block(nn.Module):
    """Of a transformer. (The gradient of a key's bias is zero: rounding cannot be compared.)"""

    dtype: str | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(
            2, dtype=self.dtype, use_bias=self.bias, name="attention"
        )(h)
        h = nn.gelu(nn.Dense(12, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)))
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(h)


@pytest.mark.parametrize("axes", [None, ATTENTION])
def test_linen_transformer(axes):
    x = random_array(0, (2, 3, 8))
    apply, params = linen_model(Block(), x)
    factors = random_factors(params, 2, (2,), axes=axes)
    assert isinstance(factors["attention/query/kernel"], Factors)
    assert_modulation_equals_reference(apply, params, factors, x, tolerance=2e-5)


@pytest.mark.parametrize("kernel", ["query", "out"])
def test_no_kernel_of_attention_is_formed(kernel):
    x = random_array(0, (2, 1, 32))
    module = nn.MultiHeadDotProductAttention(4)
    apply, params = linen_model(module, x)
    axes = {path.removeprefix("*/"): letters for path, letters in ATTENTION.items()}
    factors = random_factors(params, 1, (2,), axes=axes)
    assert [part.shape[1:] for part in factors["query/kernel"]] == [(32, 1), (1, 32)]
    assert [part.shape[1:] for part in factors["out/kernel"]] == [(32, 1), (1, 32)]
    assert_no_full_kernel(apply, params, factors, x, f"{kernel}/kernel")
    usual = random_factors(params, 1, (2,))
    assert [part.shape[1:] for part in usual["query/kernel"]] == [(128, 1), (1, 8)]
    assert_no_full_kernel(apply, params, usual, x, f"{kernel}/kernel")


@jax.numpy_dtype_promotion("standard")  # Flax's LayerNorm promotes
def test_mixed_precision_transformer():
    x = random_array(0, (2, 3, 8))
    apply, params = linen_model(Block("bfloat16", bias=True), x)
    exact, _ = linen_model(Block(bias=True), x)
    factors = random_factors(params, 2, (2,), axes=ATTENTION)
    assert not isinstance(factors["attention/query/bias"], Factors)  # [heads, d_head]
    y = modulated(apply, params, factors, x)
    assert_close(y, by_sample(exact, params, factors, x), TOLERANCE["bfloat16"])
    assert "bf16" in str(jax.make_jaxpr(modulate(apply))(params, factors, x))


class NnxModel(nnx.Module):
    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, use_bias=False, rngs=rngs)
        self.mlp = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + nnx.gelu(self.mlp(x))


def test_nnx_attention_with_normalisation():
    apply, params = nnx_model(NnxModel(8, nnx.Rngs(0)))
    factors = random_factors(params, 2, (2,), axes=ATTENTION)
    x = random_array(0, (2, 3, 8))
    assert_modulation_equals_reference(apply, params, factors, x, tolerance=2e-5)


@pytest.mark.parametrize("kernel", ["attention/query/kernel", "mlp/kernel"])
def test_no_kernel_of_an_nnx_model_is_formed(kernel):
    apply, params = nnx_model(NnxModel(32, nnx.Rngs(0)))
    factors = random_factors(params, 1, (2,), axes=ATTENTION)
    assert_no_full_kernel(apply, params, factors, random_array(0, (2, 1, 32)), kernel)


def equinox_model(width):
    """Equinox keeps `[out, in]`, and `[out, in, *window]` with the channels first."""
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        conv: eqx.nn.Conv2d
        norm: eqx.nn.GroupNorm

        def __init__(self, width):
            keys = jax.random.split(jax.random.key(0))
            self.attention = eqx.nn.MultiheadAttention(2, width, use_query_bias=True, key=keys[0])
            self.conv = eqx.nn.Conv2d(2, width, 3, stride=2, padding=1, key=keys[1])
            self.norm = eqx.nn.GroupNorm(2, width)

        def __call__(self, x):
            x = jax.nn.relu(self.norm(self.conv(x)))
            tokens = x.reshape(x.shape[0], -1).T
            return self.attention(tokens, tokens, tokens)

    params, static = eqx.partition(Model(width), eqx.is_array)
    return (lambda params, x: jax.vmap(eqx.combine(params, static))(x)), params


def test_equinox_attention_and_convolution():
    apply, params = equinox_model(4)
    x = random_array(0, (2, 2, 4, 4))
    factors = random_factors(params, 2, (2,), axes={"conv/weight": "rccc"})
    assert [part.shape[1:] for part in factors["conv/weight"]] == [(4, 2), (2, 18)]
    assert_modulation_equals_reference(apply, params, factors, x, tolerance=2e-5)
    usual = random_factors(params, 1, (2,))
    assert_close(modulated(apply, params, usual, x), by_sample(apply, params, usual, x), 1e-5)


@pytest.mark.parametrize("kernel", ["attention/query_proj/weight", "conv/weight"])
def test_no_kernel_of_an_equinox_model_is_formed(kernel):
    apply, params = equinox_model(32)
    factors = random_factors(params, 1, (2,), axes={"conv/weight": "rccc"})
    assert_no_full_kernel(apply, params, factors, random_array(0, (2, 2, 2, 2)), kernel)


def embedding_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(50, 6)
            return embed.attend(jnp.tanh(nn.Dense(6)(embed(tokens))))

    tokens = jnp.array([[1, 7, 49], [0, 0, 3]])
    apply, params = linen_model(Model(), tokens)
    return apply, params, tokens


def test_embedding_is_a_look_up_of_rows():
    apply, params, tokens = embedding_model()
    factors = random_factors(params, 2, (2,))
    weights = random_array(9, (2, 3, 50))

    def ours(params, factors):
        y = modulate(apply)(params, factors, tokens)
        return jnp.sum(y * weights), y

    def reference(params, factors):
        y = by_sample(apply, params, factors, tokens)
        return jnp.sum(y * weights), y

    got = jax.jit(jax.grad(ours, (0, 1), has_aux=True))(params, factors)
    assert_close(got, jax.jit(jax.grad(reference, (0, 1), has_aux=True))(params, factors), 1e-5)
    assert_no_full_kernel(apply, params, factors, tokens, "Embed_0/embedding")


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 30)])
def test_look_up_with_generated_factors(shape):
    """Of few rows before the factor is formed, of many after."""
    table = random_array(0, (20, 3, 2))
    hidden = random_array(1, (2, 4))
    B = Generated(hidden, random_array(2, (60, 2, 4)), random_array(3, (60, 2)))
    A = Generated(hidden, random_array(4, (2, 2, 4)), random_array(5, (2, 2)))
    ids = np.random.default_rng(0).integers(0, 20, shape, np.int32)
    apply = lambda params, ids: jnp.asarray(params["table"])[ids]  # noqa: E731
    got = modulated(apply, {"table": table}, {"table": Factors(B, A)}, ids)
    formed = {
        "table": Factors(
            *(np.einsum("nh,mrh->nmr", hidden, each.kernel) + each.bias for each in (B, A))
        )
    }
    assert_close(got, by_sample(apply, {"table": table}, formed, ids), 1e-5)


@pytest.mark.parametrize(
    ("layout", "groups", "options"),
    [
        (("NHWC", "HWIO", "NHWC"), 1, {}),
        (("NHWC", "HWIO", "NHWC"), 2, {"rhs_dilation": (1, 2)}),
        (("NHWC", "HWIO", "NHWC"), 4, {"window_strides": (2, 1)}),  # depthwise
        (("NCHW", "HWIO", "NCHW"), 1, {"lhs_dilation": (2, 2)}),
        (("NCHW", "OIHW", "NCHW"), 2, {}),
        (("NCHW", "OIHW", "NHWC"), 4, {"padding": "VALID"}),
    ],
)
def test_convolutions_of_every_layout(layout, groups, options):
    sizes = {"H": 3, "W": 2, "I": 4 // groups, "O": 8}
    params = {"K": random_array(0, [sizes[letter] for letter in layout[1]])}
    x = random_array(1, [{"N": 2, "C": 4, "H": 5, "W": 4}[letter] for letter in layout[0]])
    options = {"window_strides": (1, 1), "padding": ((1, 0), (1, 1))} | options

    def apply(params, x):
        return lax.conv_general_dilated(
            x, params["K"], dimension_numbers=layout, feature_group_count=groups, **options
        )

    factors = random_factors(params, 2, (2,))
    assert_modulation_equals_reference(apply, params, factors, x, scale=0.5)


def test_no_kernel_of_a_depthwise_convolution_is_formed():
    """Larger than an input of two numbers a channel, padded."""
    x = random_array(0, (2, 2, 1, 16))
    module = nn.Conv(16, (9, 9), strides=9, feature_group_count=16, padding=[(7, 0), (8, 0)])
    apply, params = linen_model(module, x)
    factors = random_factors(params, 1, (2,))
    assert isinstance(factors["kernel"], Factors)
    assert_modulation_equals_reference(apply, params, factors, x, tolerance=2e-5)


# Programs within the model's program.


def dense_model():
    params = {"W": random_array(0, (6, 4)), "b": random_array(1, (4,))}
    x = random_array(2, (2, 6))
    return params, x, random_factors(params, 2, (2,))


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g * jnp.cos(x), -0.1, 0.1),))


@jax.custom_jvp
def doubled(x):
    return jnp.tanh(x)


@doubled.defjvp
def _(primals, tangents):
    return jnp.tanh(primals[0]), 2 * tangents[0]


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, W: jax.jit(lambda x, W: x @ W)(x, W),
        lambda x, W: jax.checkpoint(lambda x, W: jnp.sin(x @ W))(x, W),
        lambda x, W: jax.checkpoint(
            lambda x, W: jnp.sin(x @ W), policy=jax.checkpoint_policies.dots_saveable
        )(x, W),
        lambda x, W: clipped(doubled(jax.nn.relu(x @ W))),
        lambda x, W: lax.cond(x.sum() > 0, lambda: x @ W, lambda: -x @ W),
        lambda x, W: lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ W @ W.T), x),
        lambda x, W: lax.scan(lambda x, _: (jnp.sin(x @ W @ W.T), x[0, 0]), x, length=3)[0],
        lambda x, W: lax.fori_loop(
            0, 2, lambda _, carry: (jnp.sin(carry[0] @ carry[1] @ carry[1].T), carry[1]), (x, W)
        )[0],
        lambda x, W: jax.vmap(lambda row: row @ W)(x),
        lambda x, W: jax.vmap(lambda row, column: row @ column, (None, 1), 1)(x, W),
        lambda x, W: jax.grad(lambda x: jnp.sum(jnp.sin(x @ W)))(x),
    ],
    ids=[
        "jit", "checkpoint", "policy", "custom derivatives", "cond", "loop", "scan", "carried",
        "vmap", "vmap over columns", "grad",
    ],
)  # fmt: skip
def test_transformations_within_the_model(layer):
    params, x, factors = dense_model()
    apply = lambda params, x: layer(x, params["W"]) + jnp.sum(params["b"])  # noqa: E731
    assert_modulation_equals_reference(apply, params, factors, x)


def test_a_loop_of_unknown_length():
    """Which has no gradient."""
    params, x, factors = dense_model()

    def apply(params, x):
        shrink = lambda x: 0.01 * x @ params["W"] @ params["W"].T  # noqa: E731
        return lax.while_loop(lambda x: jnp.sum(jnp.abs(x @ params["W"])) > 0.1, shrink, x)

    got = modulated(apply, params, factors, x)
    assert_close(got, by_sample(apply, params, factors, x), 1e-5)


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda W: W.T.T,
        lambda W: W.reshape(2, 3, 4).reshape(6, 2, 2).transpose(0, 2, 1).reshape(6, 4),
        lambda W: W[None].reshape(1, 6, 4, 1)[0, :, :, 0],
        lambda W: W[:, ::-1][1:5:2],
        lambda W: lax.dynamic_index_in_dim(W.reshape(2, 3, 4), jnp.int32(1), 0, keepdims=False),
        lambda W: jnp.split(W, 2, axis=1)[1],
        lambda W: 2.0 * W / jnp.sqrt(jnp.float32(3)),
        lambda W: W.astype(jnp.bfloat16).astype(jnp.float32),
    ],
)
def test_rearranged_kernels_keep_their_factors(rearranged):
    params, x, factors = dense_model()
    rows = rearranged(params["W"]).shape[0]
    apply = lambda params, x: x[:, :rows] @ rearranged(params["W"])  # noqa: E731
    got = modulated(apply, params, factors, x)
    half = "bfloat16" in str(jax.make_jaxpr(rearranged)(params["W"]))
    assert_close(got, by_sample(apply, params, factors, x), 2e-2 if half else 1e-5)
    assert_no_full_kernel_of_wide(rearranged)


def assert_no_full_kernel_of_wide(rearranged):
    params = {"W": jax.ShapeDtypeStruct((6, 4), jnp.float32)}
    factors = random_factors(params, 1, (2,))
    apply = lambda params, x: x @ rearranged(params["W"])  # noqa: E731
    rows = jax.eval_shape(rearranged, params["W"]).shape[0]
    assert_no_full_kernel(apply, params, factors, jnp.ones((2, rows)), "W")


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("nabc,abcd->nd", (3, 2, 2, 4)),
        ("nabc,abd->ncd", (3, 2, 4)),
        ("nabc,bd->nacd", (2, 4)),
        ("nabc,abcd->nad", (3, 2, 2, 4)),  # a kernel for each `a`
        ("nabc,dca->nbd", (4, 2, 3)),
        ("nabc,abc->n", (3, 2, 2)),
        ("nabc,adc->nabdc", (3, 4, 2)),
    ],
)
@pytest.mark.parametrize("letters", ["rrrc", "rccc", "srrc"])
def test_einsum_with_every_reading(equation, shape, letters):
    params = {"W": random_array(0, shape)}
    axes = letters[: len(shape) - 1] + "c" if len(shape) > 2 else "rc"
    x = random_array(1, (2, 3, 2, 2))
    factors = random_factors(params, 2, (2,), axes={"W": axes})
    apply = lambda params, x: jnp.einsum(equation, x, params["W"])  # noqa: E731
    got = modulated(apply, params, factors, x)
    assert_close(got, by_sample(apply, params, factors, x), 1e-5)


@pytest.mark.parametrize("axes", ["rrc", "src"])
def test_scan_over_layers(axes):
    params = {"W": random_array(0, (3, 4, 4)), "b": random_array(1, (3, 4))}
    x = random_array(2, (2, 4))

    def apply(params, x):
        def layer(x, params):
            h = jnp.tanh(x @ params["W"] + params["b"][None])
            return x + h, jnp.sum(h)

        x, sums = lax.scan(layer, x, params, reverse=True)
        return x + jnp.sum(sums)

    factors = random_factors(params, {"W": 2, "b": "whole"}, (2,), axes={"W": axes})
    assert [part.shape[1:] for part in factors["W"]] == [(12, 2), (2, 12 if "s" in axes else 4)]
    assert_modulation_equals_reference(apply, params, factors, x)


@pytest.mark.parametrize("axes", ["rrc", "src"])
def test_no_kernel_of_a_layer_of_a_scan_is_formed(axes):
    params = {"W": random_array(0, (2, 16, 16))}
    x = random_array(1, (8, 16))
    apply = lambda params, x: lax.scan(  # noqa: E731
        lambda x, W: (jnp.tanh(x @ W), None), x, params["W"]
    )[0]
    factors = random_factors(params, 1, (8,), axes={"W": axes})
    assert_no_full_kernel(apply, params, factors, x, "W", layers=2)


def test_linen_scan_and_remat_over_transformer_blocks():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(
                nn.remat(Body), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
            )
            return blocks(name="blocks")(x, None)[0]

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Block()(x), None

    x = random_array(0, (2, 3, 8))
    apply, params = linen_model(Model(), x)
    whole = {"*LayerNorm*": "whole", "*bias": "whole", "*": 2}
    dense = {"*Dense*": "src"}
    stacked = {path: "s" + letters for path, letters in ATTENTION.items()}
    factors = random_factors(params, whole, (2,), axes=stacked | dense)
    assert_modulation_equals_reference(apply, params, factors, x, tolerance=5e-5)


# Unsupported operations.


@jax.custom_jvp
def product(x, W):
    return x @ W


@product.defjvp
def _(primals, tangents):
    (x, W), (dx, dW) = primals, tangents
    return x @ W, 3 * (dx @ W) + x @ dW


@jax.custom_vjp
def reversed_product(x, W):
    return x @ W


reversed_product.defvjp(
    lambda x, W: (x @ W, (x, W)), lambda res, g: (3 * (g @ res[1].T), res[0].T @ g)
)


@pytest.mark.parametrize(
    ("apply", "operation"),
    [
        (lambda params, x: product(x, params["W"]), "the operation 'custom_jvp_call'"),
        (lambda params, x: reversed_product(x, params["W"]), "the operation 'custom_vjp_call'"),
        (lambda params, x: x @ jnp.tanh(params["W"]), "the operation 'tanh'"),
        (lambda params, x: x @ params["W"].reshape(3, 8).reshape(6, 4), "the operation 'reshape'"),
        (
            lambda params, x: lax.scan(lambda x, W: (x @ jnp.exp(W), None), x, params["L"])[0],
            "the operation 'exp'",
        ),
        (lambda params, x: jnp.sin(params["W"][None] + x[..., None]), "the operation 'sin'"),
        (lambda params, x: params["L"], "returning it"),
    ],
)  # fmt: skip
def test_unsupported_operations_are_refused_or_materialised(apply, operation):
    params = {"W": random_array(0, (6, 4)), "L": random_array(1, (1, 6, 6))}
    x = random_array(2, (2, 6))
    factors = random_factors(params, 2, (2,))
    with pytest.raises(ValueError, match=f"(W|L): expected .* kernel, got ({operation})") as error:
        modulate(apply)(params, factors, x)
    assert "test_lift_models.py" in str(error.value) or "results" in str(error.value)

    def loss(factors, x):
        return jnp.sum(jnp.sin(modulate(apply, allow_materialise=True)(params, factors, x)))

    def reference(factors, x):
        return jnp.sum(jnp.sin(by_sample(apply, params, factors, x)))

    got = jax.jit(jax.value_and_grad(loss, (0, 1)))(factors, x)
    assert_close(got, jax.jit(jax.value_and_grad(reference, (0, 1)))(factors, x), 1e-5)
