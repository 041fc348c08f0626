import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from lifting import assert_modulation_equals_reference, by_sample, modulated, random_factors
from reference import (
    TOLERANCE,
    assert_close,
    largest_intermediate,
    random_array,
    random_params,
    to_float32,
    to_numpy,
)

from straw_jax import Factors, Generated, materialize, modulate
from straw_jax.lift import take


class SmallCNN(nn.Module):
    """Every kind of layer that the lift has a rule for, as Linen writes them."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv")(x))
        x = nn.relu(nn.ConvTranspose(3, (2, 2), strides=(2, 2), name="up")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(8, name="dense")(x)


def small_cnn(dtype="float32"):
    module = SmallCNN()
    x = random_array(0, (3, 6, 6, 2))
    params = random_params(module.init, x)["params"]
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
    return (lambda params, x, **kw: module.apply({"params": params}, x, **kw)), params, x


@pytest.mark.accelerator
@pytest.mark.parametrize(("rank", "scale"), [(1, 1.0), (3, 0.25)])
def test_linen_model_equals_dense_weights(rank, scale):
    apply, params, x = small_cnn()
    factors = random_factors(params, rank, (3,))
    assert_modulation_equals_reference(apply, params, factors, x, scale)


@pytest.mark.accelerator
def test_bfloat16_model_equals_dense_weights():
    apply, params, x = small_cnn("bfloat16")
    factors = random_factors(params, 2, (3,), "bfloat16")
    y = modulated(apply, params, factors, x)
    assert y.dtype == jnp.bfloat16
    want = by_sample(apply, *to_float32((params, factors, x)))
    assert_close(y, want, TOLERANCE["bfloat16"])


@pytest.mark.accelerator
def test_mixed_precision_casts_factors_as_it_casts_kernels():
    """Linen's `dtype` casts parameters inside the layer."""
    module = nn.Dense(4, dtype=jnp.bfloat16)
    x = random_array(0, (3, 6))
    params = random_params(module.init, x)["params"]
    factors = random_factors(params, 2, (3,))
    apply = lambda params, x: module.apply({"params": params}, x)  # noqa: E731
    y = modulated(apply, params, factors, x)
    assert y.dtype == jnp.bfloat16
    assert_close(y, by_sample(apply, params, factors, x), TOLERANCE["bfloat16"])


def test_nnx_model_equals_dense_weights():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(144, 5, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.conv(x))
            return self.dense(x.reshape(x.shape[0], -1))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    x = random_array(0, (3, 6, 6, 2))

    def apply(params, x):
        return nnx.merge(graph, nnx.State(params))(x)

    factors = random_factors(params, 2, (3,))
    assert set(factors) == {"conv/kernel", "conv/bias", "dense/kernel", "dense/bias"}
    assert_modulation_equals_reference(apply, params, factors, x)


@pytest.mark.accelerator
def test_hand_written_function_with_transposed_and_tied_weights():
    """`W.T @ x` styles, a matrix used from both sides, and several axes between."""
    params = {"W": random_array(0, (6, 4)), "V": random_array(1, (2, 3, 5)), "b": jnp.zeros(6)}
    x = random_array(2, (3, 7, 6))

    def apply(params, x):
        h = jnp.tanh(jnp.einsum("nti,io->nto", x, params["W"]))
        y = jnp.einsum("nto,io->nti", h, params["W"]) + jnp.broadcast_to(params["b"], x.shape)
        z = h @ params["W"].T + y
        left = jnp.matmul(params["W"].T, z[0, 0])
        v = jnp.einsum("ntab,abc->ntc", z.reshape(*z.shape[:2], 3, 2).swapaxes(-1, -2), params["V"])
        return v + jnp.sum(left)

    factors = random_factors(params, 2, (3,))
    assert_modulation_equals_reference(apply, params, factors, x)


def test_equinox_linear_layers_equal_dense_weights():
    """Equinox keeps `[out, in]` and one sample a call; the factors follow the stored shape."""
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(mlp, eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    x = random_array(0, (3, 6))
    factors = random_factors(params, 2, (3,))
    assert "layers/0/weight" in factors
    assert_modulation_equals_reference(apply, params, factors, x)


@pytest.mark.accelerator
def test_shapes_alone_mean_that_the_factors_are_the_weights():
    apply, params, x = small_cnn()
    shapes = jax.eval_shape(lambda: params)
    zeros = jax.tree.map(np.zeros_like, params)
    factors = random_factors(params, 3, (3,))
    got = modulated(apply, shapes, factors, x)
    assert_close(got, by_sample(apply, zeros, factors, x), 1e-5)


def test_a_leaf_without_factors_keeps_its_weights():
    apply, params, x = small_cnn()
    factors = random_factors(params, {"dense/kernel": 2}, (3,))
    assert list(factors) == ["dense/kernel"]
    assert_modulation_equals_reference(apply, params, factors, x)


def test_factors_without_a_sample_axis_are_shared():
    apply, params, x = small_cnn()
    shared = random_factors(params, 2, ())
    repeated = jax.tree.map(lambda leaf: np.stack([leaf] * 3), shared)
    mixed = repeated | {"dense/bias": shared["dense/bias"]}
    want = modulated(apply, params, repeated, x)
    assert_close(modulated(apply, params, shared, x), want, 1e-6)
    assert_close(modulated(apply, params, mixed, x), want, 1e-6)
    dense = jax.jit(lambda shared, x: apply(materialize(params, shared), x))
    assert_close(dense(shared, x), want, 1e-5)


@pytest.mark.accelerator
@pytest.mark.parametrize("positions", [1, 4])
def test_generated_factors_equal_formed_ones(positions):
    """In both contraction orders: one vector a sample, and several."""
    params = {"W": random_array(0, (40, 5))}
    hidden = random_array(1, (3, 8))
    kernels = random_array(2, (40, 2, 8)), random_array(3, (2, 5, 8))
    biases = random_array(4, (40, 2)), random_array(5, (2, 5))
    x = 0.1 * random_array(6, (3, positions, 40))  # where tanh is not flat

    def apply(params, x):
        return jnp.tanh(x @ params["W"])

    def ours(params, hidden, kernels, biases, x):
        B, A = (Generated(hidden, *each) for each in zip(kernels, biases, strict=True))
        return modulate(apply)(params, {"W": Factors(B, A)}, x)

    def reference(params, hidden, kernels, biases, x):
        B, A = (
            jnp.einsum("bh,mnh->bmn", hidden, k, precision="highest") + c[None]
            for k, c in zip(kernels, biases, strict=True)
        )
        return by_sample(apply, params, {"W": Factors(B, A)}, x)

    arguments = (params, hidden, kernels, biases, x)

    def value_and_gradients(function):
        def loss(*arguments):
            y = function(*arguments)
            return jnp.sum(y**2), y

        return jax.jit(jax.grad(loss, tuple(range(5)), has_aux=True))(*arguments)

    assert_close(value_and_gradients(ours), value_and_gradients(reference), 1e-5)


def test_one_vector_a_sample_never_forms_the_factor():
    batch, rows, hidden, rank = 16, 200, 8, 4
    params = {"W": jax.ShapeDtypeStruct((rows, 5), jnp.float32)}
    G = random_array(0, (rows, rank, hidden)), random_array(1, (rank, 5, hidden))

    def loss(h, x):
        B, A = Generated(h, G[0], jnp.zeros((rows, rank))), Generated(h, G[1], jnp.zeros((rank, 5)))
        return jnp.sum(modulate(lambda p, x: x @ p["W"])(params, {"W": Factors(B, A)}, x) ** 2)

    arguments = random_array(2, (batch, hidden)), random_array(3, (batch, rows))
    assert largest_intermediate(jax.grad(loss, (0, 1)), *arguments) < batch * rows * rank


def test_typed_keys_are_split_so_that_samples_draw_their_own_noise():
    apply, params, _ = small_cnn()
    x = jnp.ones((3, 6, 6, 2))
    factors = random_factors(params, 1, ())

    @jax.jit
    def train(key):
        return modulate(apply)(params, factors, x, train=True, rngs={"dropout": key})

    y = to_numpy(train(jax.random.key(0)))
    assert not np.allclose(y[0], y[1])
    assert np.array_equal(y, train(jax.random.key(0)))
    assert np.array_equal(y, train(jax.random.split(jax.random.key(0), 3)))


def test_an_unsupported_operation_names_the_layer():
    params = {"block": {"W": random_array(0, (4, 4))}}
    factors = random_factors(params, 1, (3,))
    x = random_array(1, (3, 4))

    def normalised(params, x):
        W = params["block"]["W"]
        return x @ (W / jnp.max(W))

    with pytest.raises(ValueError, match=r"block/W: expected .* generated kernel, got the op"):
        modulate(normalised)(params, factors, x)
    got = modulated(normalised, params, factors, x, allow_materialise=True)
    assert_close(got, by_sample(normalised, params, factors, x), 1e-5)


def test_no_full_kernel_in_the_jaxpr_of_a_modulated_model():
    module = SmallCNN()
    x = random_array(0, (16, 32, 32, 2))
    params = random_params(module.init, x)["params"]
    factors = random_factors(params, 1, (16,))
    call = modulate(lambda params, x: module.apply({"params": params}, x))

    def loss(params, factors):
        return jnp.sum(call(params, factors, x) ** 2)

    kernel = 16 * params["dense"]["kernel"].size
    assert largest_intermediate(jax.grad(loss, (0, 1)), params, factors) < kernel


def test_errors_for_factors_that_do_not_fit():
    apply, params, x = small_cnn()
    factors = random_factors(params, 2, (3,))
    call = modulate(apply)
    with pytest.raises(ValueError, match=r"got also \['other'\]"):
        call(params, factors | {"other": x}, x)
    wrong = Factors(jnp.ones((3, 7, 2)), factors["dense/kernel"].A)
    with pytest.raises(ValueError, match="expected B of dense/kernel to be of shape"):
        call(params, factors | {"dense/kernel": wrong}, x)
    with pytest.raises(ValueError, match="expected the whole of dense/bias to be of shape"):
        call(params, factors | {"dense/bias": jnp.ones((3, 4))}, x)
    shapes = jax.eval_shape(lambda: params)
    with pytest.raises(ValueError, match="conv/bias has neither weights nor factors"):
        call(shapes, {k: v for k, v in factors.items() if k != "conv/bias"}, x)
    with pytest.raises(ValueError, match="expected the factors of one sample"):
        materialize(params, factors)


# What the caller hands over.


def test_several_inputs_and_arguments_mapped_or_shared():
    params = {"W": random_array(0, (6, 5))}
    factors = random_factors(params, 2, (3,))
    x, y = random_array(1, (3, 4, 6)), random_array(2, (3, 4, 5))
    cache = {"k": random_array(3, (3, 4, 5)), "table": random_array(4, (4, 5))}

    def apply(params, x, y, *, cache, bias):
        return jnp.sin(x @ params["W"]) * y + cache["k"] + cache["table"][None] + bias[None, None]

    options = {"cache": cache, "bias": random_array(5, (5,))}
    axes = {"cache": {"k": 0, "table": None}, "bias": None}
    got = jax.jit(modulate(apply, per_sample=axes))(params, factors, x, y, **options)
    each = [materialize(params, take(params, factors, i)) for i in range(3)]
    want = [
        apply(each[i], x[i : i + 1], y[i : i + 1], bias=options["bias"],
              cache={"k": cache["k"][i : i + 1], "table": cache["table"]})
        for i in range(3)
    ]  # fmt: skip
    assert_close(got, jnp.concatenate(want), 1e-5)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"cache": 1}, "a dict from names to 0, None or trees of them, got {'cache': 1}"),
        ({"cache": {"k": 0}}, "per_sample to be trees like the arguments"),
    ],
)
def test_wrong_axes_of_arguments_are_errors(axes, message):
    params = {"W": random_array(0, (6, 5))}
    factors = random_factors(params, 2, (3,))
    cache = {"k": random_array(3, (3, 4)), "table": random_array(4, (4, 5))}
    apply = lambda params, x, *, cache: x @ params["W"]  # noqa: E731
    with pytest.raises(ValueError, match=message):
        modulate(apply, per_sample=axes)(params, factors, random_array(1, (3, 6)), cache=cache)


def test_a_traced_scale_has_a_gradient():
    params = {"W": random_array(0, (6, 5))}
    factors = random_factors(params, 2, (3,))
    x = random_array(1, (3, 4, 6))

    def loss(scale):
        y = modulate(lambda params, x: x @ params["W"], scale=scale)(params, factors, x)
        return jnp.sum(jnp.sin(y))

    value, slope = jax.jit(jax.value_and_grad(loss))(0.7)
    fixed = jax.jit(lambda: loss(0.7))()
    assert_close(value, fixed, 1e-5)
    step = 1e-2
    near = [float(jax.jit(lambda s: loss(s))(0.7 + sign * step)) for sign in (1, -1)]
    assert_close(slope, np.float32((near[0] - near[1]) / (2 * step)), 1e-2)
