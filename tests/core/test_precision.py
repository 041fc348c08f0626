"""Modules with `dtype=bfloat16`: float32 parameters, bfloat16 computation, float32 sums."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import TOLERANCE, assert_close, random_array, random_params, relative_error

from straw_jax import (
    CNN,
    CompactCNN,
    ConvEncoder,
    Heads,
    Network,
    NormEncoder,
    PoseEncoder,
    PoseRange,
    RecursiveEncoder,
    ResNet34,
    SetEncoder,
    ViT,
    factor_spec,
    make_geometric,
    make_straw,
)
from straw_jax.costs import nested_jaxprs
from straw_jax.hypernetwork import make_hypernetwork
from straw_jax.lowrank import multiply
from straw_jax.models import Conv7, WideResNet
from straw_jax.recurrent import HyperLSTMCell, LowRankLSTMCell, LSTMCell
from straw_jax.weight_cells import DeltaCell, SelfReferentialCell

BF16 = jnp.bfloat16
IMAGES = random_array(0, (3, 8, 8, 1))
SETS = random_array(1, (3, 5, 2)), np.arange(5)[None] < np.array([[5], [2], [3]])


def recurrent(cell, **settings):
    return lambda dtype=None: nn.RNN(cell.clone(**settings, dtype=dtype))


normed = partial(recurrent, layer_norm=True)


MODULES = {
    "ConvEncoder": (partial(ConvEncoder, style=5), IMAGES),
    "NormEncoder": (partial(NormEncoder, style=5, features=(8,)), IMAGES),
    "RecursiveEncoder": (partial(RecursiveEncoder, style=5, width=8, heads=2, steps=2), IMAGES),
    "mean": (partial(SetEncoder, element=(8, 4), decoder=(5,)), SETS),
    "attention": (partial(SetEncoder, (8, 4), (5,), pooling="attention", heads=2), SETS),
    "PoseEncoder": (partial(PoseEncoder, PoseRange(30.0, 1.2), features=(8,), style=4), IMAGES),
    "CNN": (partial(CNN, classes=4, channels=(4, 4), hidden=8), IMAGES),
    "CompactCNN": (partial(CompactCNN, classes=4, stages=((8,),)), IMAGES),
    "ViT": (partial(ViT, classes=4, width=8, depth=1, heads=2), IMAGES),
    "Conv7": (partial(Conv7, classes=4, channels=(4, 4)), IMAGES),
    "WideResNet": (partial(WideResNet, classes=4, depth=10, channels=8), IMAGES),
    "ResNet34": (partial(ResNet34, classes=4), IMAGES),
    "LSTMCell": (normed(LSTMCell(4)), SETS[0]),
    "HyperLSTMCell": (normed(HyperLSTMCell(4, hyper_features=3, embedding=2)), SETS[0]),
    "LowRankLSTMCell": (normed(LowRankLSTMCell(4, hyper_features=3)), SETS[0]),
    "DeltaCell": (recurrent(DeltaCell(4, heads=2, forgetting=True)), SETS[0]),
    "SelfReferentialCell": (recurrent(SelfReferentialCell(4, heads=2)), SETS[0]),
}
# Flax's norms subtract float32 statistics from bfloat16 inputs.
as_jax_promotes = jax.numpy_dtype_promotion("standard")


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in nested_jaxprs(equation.params):
            yield from equations(inner)


def operations(function, *args):
    """How often each operation with a dtype of its operands occurs."""
    found = equations(jax.make_jaxpr(function)(*args).jaxpr)
    return Counter(
        (eq.primitive.name, *sorted({str(v.aval.dtype) for v in eq.invars if hasattr(v, "aval")}))
        for eq in found
    )


PRODUCTS = "dot_general", "conv_general_dilated"
SUMS = "reduce_sum", "cumsum", "exp", "rsqrt", "log"  # and what is summed in a softmax


def assert_sums_in_float32(found):
    products = {key for key in found if key[0] in PRODUCTS}
    assert products
    assert all(len(key) == 2 for key in products), "a product of two dtypes is one of the wider"
    assert not [key for key in found if key[0] in SUMS and "bfloat16" in key]


@as_jax_promotes
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "ResNet34")) for name in MODULES],
)
def test_parameters_are_float32_and_results_are_not(name):
    make, x = MODULES[name]
    module = make(dtype=BF16)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert dtypes(variables) == {"float32"}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(make().init, jax.random.key(0), x)
    )
    result = jax.eval_shape(module.apply, variables, x)
    if name == "PoseEncoder":
        assert dtypes((result.angles, result.others)) == {"float32"}
        result = result.style
    assert dtypes(result) == {"bfloat16"}
    assert_sums_in_float32(operations(module.apply, variables, x))


@pytest.mark.slow
@as_jax_promotes
def test_modules_compute_as_in_float32():
    chosen = {name: each for name, each in MODULES.items() if name != "ResNet34"}
    params = {name: random_params(make().init, x) for name, (make, x) in chosen.items()}

    @partial(jax.jit, static_argnums=0)
    def results(dtype, params):
        return {
            name: make(dtype=dtype).apply(params[name], x) for name, (make, x) in chosen.items()
        }

    for name, got in results(BF16, params).items():
        want = results(None, params)[name]
        errors = jax.tree.map(lambda g, w: relative_error(g, w), got, want)
        assert max(jax.tree.leaves(errors)) < 2 * TOLERANCE["bfloat16"], (name, errors)


def test_float32_is_what_none_is():
    def program(dtype):
        straw = make_straw(
            CNN(4, (4, 4), 8, dtype=dtype), IMAGES, rank=2, base="trained", dtype=dtype
        )
        params = jax.eval_shape(straw.init, jax.random.key(0))
        return str(
            jax.make_jaxpr(lambda p: jax.grad(lambda p: straw.apply(p, IMAGES).sum())(p))(params)
        )

    def without_addresses(text):
        return [line for line in text.splitlines() if " at 0x" not in line]

    assert without_addresses(program(jnp.float32)) == without_addresses(program(None))


class Encoder(nn.Module):
    """A dense layer, smooth, so that rounding does not switch units off."""

    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(5, dtype=self.dtype)(x.reshape(len(x), -1)))


class Executor(nn.Module):
    """A convolution, a dense layer, and no norm."""

    dtype: object = None

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3), dtype=self.dtype, name="conv")(x))
        return nn.Dense(4, dtype=self.dtype, name="dense")(x.reshape(len(x), -1))


def straw_of(base, dtype, of_executor=None):
    executor = Executor(dtype if of_executor is None else of_executor)
    encoder = Encoder(dtype)
    return make_straw(
        executor, IMAGES, rank=2, base=base, encoder=encoder, hidden=8, scale=0.5, dtype=dtype
    )


def with_weights(base):
    straw = straw_of("trained" if base == "frozen" else base, None)
    return random_params(straw.init)


@pytest.mark.parametrize("base", ["none", "trained", "frozen"])
def test_factors_have_half_the_bytes(base):
    straw, params = straw_of(base, BF16), with_weights(base)

    def factors(dtype):
        return jax.eval_shape(straw_of(base, dtype).factors, params, IMAGES)

    assert dtypes(factors(BF16)) == {"bfloat16"}
    assert 2 * size(factors(BF16)) == size(factors(None)) == 4 * len(IMAGES) * straw.spec.size
    assert dtypes(jax.eval_shape(straw.styles, params, IMAGES)) == {"bfloat16"}
    assert dtypes(jax.eval_shape(straw.merge, params, IMAGES[0])) == {"float32"}
    assert dtypes(jax.eval_shape(straw.init, jax.random.key(0))) == {"float32"}


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("of_executor", [BF16, jnp.float32])
@pytest.mark.parametrize("base", ["none", "trained", "frozen"])
def test_an_executor_computes_in_its_own_dtype(base, of_executor):
    straw, params = straw_of(base, BF16, of_executor), with_weights(base)
    own = jax.eval_shape(straw.merge, params, IMAGES[0])
    plain = jax.eval_shape(Executor(of_executor).apply, {"params": own}, IMAGES)
    logits = jax.eval_shape(straw.apply, params, IMAGES)
    assert (logits.shape, logits.dtype) == (plain.shape, plain.dtype)


@pytest.mark.parametrize(("base", "backend"), [("none", "cpu"), ("trained", "gpu")])
def test_values_and_gradients_are_those_of_dense_weights(monkeypatch, base, backend):
    """In bfloat16; with "gpu", by the operations chosen there, which a CPU has too."""
    params, targets = with_weights(base), random_array(5, (len(IMAGES), 4))

    def loss(logits):
        assert logits.dtype == dtype
        return jnp.sum((logits.astype(jnp.float32) - targets) ** 2)

    def ours(params):
        return loss(straw.apply(params, IMAGES))

    def of_dense(params):
        every = [straw.merge(params, image) for image in IMAGES]
        rows = [
            Executor().apply({"params": own}, image[None])
            for own, image in zip(every, IMAGES, strict=True)
        ]
        return loss(jnp.concatenate(rows))

    straw, dtype = straw_of(base, None), jnp.float32
    want, want_gradient = jax.jit(jax.value_and_grad(of_dense))(params)
    straw, dtype = straw_of(base, BF16), BF16
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    got, gradient = jax.jit(jax.value_and_grad(ours))(params)
    assert dtypes(gradient) == {"float32"}
    assert got == pytest.approx(float(want), rel=2 * TOLERANCE["bfloat16"])
    for (path, g), w in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(want_gradient), strict=True
    ):
        error = np.linalg.norm(np.asarray(g - w)) / np.linalg.norm(np.asarray(w))
        assert error < 0.05, (jax.tree_util.keystr(path), error)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_gradients_multiply_numbers_of_16_bits(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    straw, params = straw_of("trained", BF16), with_weights("trained")
    found = operations(
        jax.grad(lambda p: jnp.sum(straw.apply(p, IMAGES).astype(jnp.float32))), params
    )
    # Flax adds biases in bfloat16, and so sums their gradients.
    products = {key for key in found if key[0] in PRODUCTS}
    # On CPU a convolution is made of slices and a product.
    assert products == {(name, "bfloat16") for name in PRODUCTS[: 1 + (backend == "gpu")]}


def test_merged_weights_are_made_of_the_factors_that_are_applied():
    straw, params = straw_of("none", BF16), with_weights("none")
    factors, merged = jax.jit(lambda p: (straw.factors(p, IMAGES[:1]), straw.merge(p, IMAGES[0])))(
        params
    )
    B, A = (np.asarray(part[0], np.float64) for part in factors["dense/kernel"])
    assert_close(merged["dense"]["kernel"], 0.5 * B @ A, TOLERANCE["float32"])
    assert np.array_equal(merged["dense"]["bias"], np.float32(factors["dense/bias"][0]))


def test_hand_written_models_see_weights_of_their_parameters_dtype():
    model = Network(
        init=lambda key, x: {"W": jnp.zeros((x.shape[-1], 4))}, apply=lambda p, x: x @ p["W"]
    )
    x = random_array(2, (3, 6))
    for base in ("none", "trained"):
        straw = make_straw(model, x, rank=2, base=base, encoder=nn.Dense(5), dtype=BF16)
        params = jax.eval_shape(straw.init, jax.random.key(0))
        assert jax.eval_shape(straw.factors, params, x)["W"].B.dtype == BF16
        assert jax.eval_shape(straw.apply, params, x).dtype == jnp.float32


def test_poses_are_written_in_float32():
    spec = factor_spec({"kernel": jnp.zeros((3, 3, 1, 4)), "b": jnp.zeros(4)}, {"*": "whole"})
    posed = factor_spec({"kernel": jnp.zeros((3, 3, 1, 4))}, {"kernel": "pose"})
    z = random_array(0, (2, 5))

    def written(spec):
        generator = Heads(spec, 8, dtype=BF16)
        return jax.eval_shape(lambda: generator.init_with_output(jax.random.key(0), z)[0])

    assert dtypes(written(spec)) == {"bfloat16"}
    assert dtypes(written(posed)) == {"float32"}


@as_jax_promotes
def test_probabilities_of_poses_are_averaged_in_float32():
    model = make_geometric(
        CompactCNN(4, ((8,),), dtype=BF16),
        IMAGES,
        kernel="conv1/kernel",
        encoder=PoseEncoder(features=(8,), dtype=BF16),
    )
    params = jax.eval_shape(model.straw.init, jax.random.key(0))
    assert jax.eval_shape(model.straw.apply, params, IMAGES).dtype == BF16
    assert_sums_in_float32(operations(model.straw.apply, params, IMAGES))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_products_are_summed_in_float32(dtype):
    x, y = (random_array(i, (4, 600), dtype) for i in range(2))
    weights = random_array(2, (4, 4))

    def loss(product):
        return lambda x, y: jnp.sum(product(x, y.T) * weights)

    def exact(x, y):
        return jnp.matmul(x.astype(jnp.float32), y.astype(jnp.float32))

    def found(product, x, y):
        value, vjp = jax.vjp(loss(product), x, y)
        _, tangent = jax.jvp(loss(product), (x, y), (y, x))
        _, of_one = jax.jvp(lambda x: loss(product)(x, y), (x,), (y,))
        return value, vjp(jnp.ones_like(value)), tangent, of_one

    multiplied = partial(multiply, jnp.matmul)
    got, want = (jax.jit(partial(found, p))(x, y) for p in (multiplied, exact))
    assert multiplied(x, y.T).dtype == jnp.float32
    assert got[0] == pytest.approx(float(want[0]), rel=1e-5)  # not as exact if summed in 16 bits
    assert [g.dtype for g in got[1]] == [x.dtype, y.dtype]
    assert_close(got[1:], want[1:], TOLERANCE["float32" if dtype == "float32" else "bfloat16"])


MAKERS = {
    "make_straw": lambda dtype: make_straw(Executor(), IMAGES, dtype=dtype),
    "make_hypernetwork": lambda dtype: make_hypernetwork(
        Conv7(), IMAGES, ["conv2/kernel"], chunk=(8, 8), dtype=dtype
    ),
    "Heads": lambda dtype: jax.eval_shape(
        Heads(factor_spec({"W": jnp.zeros((3, 4))}, 2), dtype=dtype).init,
        jax.random.key(0),
        jnp.zeros((2, 5)),
    ),
} | {
    name: lambda dtype, make=make, x=x: jax.eval_shape(make(dtype=dtype).init, jax.random.key(0), x)
    for name, (make, x) in MODULES.items()
}


@pytest.mark.parametrize("name", MAKERS)
def test_dtypes_that_cannot_be_computed_in_are_refused(name):
    for dtype in ("int8", jnp.complex64, jnp.float8_e4m3fn, "float64", "fast", bool, 16):
        with pytest.raises(ValueError, match=r": expected dtype to be bfloat16, float16, float32"):
            MAKERS[name](dtype)
