"""What would be a wrong number, or a whole kernel, in silence: right, or one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from lifting import by_sample, modulated, random_factors
from reference import assert_close, largest_intermediate, random_array, random_params

from straw_jax import Posed, hyperlora, hyperlora_conv, materialize, modulate

SAMPLES = 3


def dense_model():
    """A kernel and a bias, both generated."""
    params = {"W": random_array(0, (6, 5)), "b": random_array(1, (5,))}
    return params, random_factors(params, 2, (SAMPLES,)), random_array(2, (SAMPLES, 4, 6))


def linear(params, x, **_):
    y = x @ params["W"]
    return y + jnp.broadcast_to(params["b"], y.shape)


def refused(apply, message, *, params=None, factors=None, x=None, **options):
    usual = dense_model()
    params, factors = (
        usual[0] if params is None else params,
        usual[1] if factors is None else factors,
    )
    with pytest.raises(ValueError, match=message):
        modulate(apply)(params, factors, usual[2] if x is None else x, **options)


# Keyword arguments.


def masked(params, x, *, mask):
    scores = linear(params, x)
    return jnp.where(mask, scores, jnp.zeros((), scores.dtype))


def test_a_keyword_with_a_batch_axis_is_refused():
    mask = random_array(3, (SAMPLES, 4, 5)) > 0
    refused(
        masked, r"every output .* got one of shape \(3, 4, 5\). A keyword .* per_sample", mask=mask
    )


@pytest.mark.parametrize("names", ["mask", ["mask", "absent"]])
def test_a_keyword_is_mapped_over_samples_where_asked(names):
    params, factors, x = dense_model()
    mask = (random_array(3, (SAMPLES, 4, 5)) > 0).astype("float32")

    def apply(params, x, *, mask):
        return jnp.sin(linear(params, x)) * mask

    def ours(params, factors, x):
        return modulate(apply, per_sample=names)(params, factors, x, mask=mask)

    def reference(params, factors, x):
        one = lambda i: by_one(params, factors, x, mask, i)  # noqa: E731
        return jnp.concatenate([one(i) for i in range(SAMPLES)])

    def by_one(params, factors, x, mask, i):
        own = materialize(params, jax.tree.map(lambda leaf: leaf[i], factors))
        return apply(own, x[i : i + 1], mask=mask[i : i + 1])

    def loss(function):
        def value(*arguments):
            y = function(*arguments)
            return jnp.sum(y**2), y

        return value

    gradient = lambda f: jax.jit(jax.grad(loss(f), (0, 1, 2), has_aux=True))  # noqa: E731
    assert_close(gradient(ours)(params, factors, x), gradient(reference)(params, factors, x), 1e-5)


@pytest.mark.parametrize("mask", [jnp.ones((2, 4, 5)), jnp.ones(())])
def test_a_mapped_keyword_has_the_samples_of_x(mask):
    params, factors, x = dense_model()
    with pytest.raises(ValueError, match=r"the same samples, got \{'mask': .*'x': \(3, 4, 6\)"):
        modulate(masked, per_sample="mask")(params, factors, x, mask=mask)


@pytest.mark.parametrize("x", [(), jnp.ones(()), (jnp.ones((3, 6)), jnp.ones((2, 6)))])
def test_all_arrays_of_x_have_the_same_samples(x):
    refused(linear, r"modulate: expected x, .* arrays \[batch, ...\] of the same samples", x=x)


@pytest.mark.parametrize("wrong", [1, 2])
def test_factors_of_other_samples_are_refused(wrong):
    _, factors, _ = dense_model()
    fewer = jax.tree.map(lambda leaf: leaf[:wrong], factors)
    refused(linear, f"expected B of W for 3 samples, as x has, got {wrong}", factors=fewer)
    mixed = factors | {"b": fewer["b"]}
    refused(linear, f"expected the whole of b for 3 samples, as x has, got {wrong}", factors=mixed)


def noisy(params, x, *, rngs):
    return linear(params, x) + jax.random.normal(rngs["noise"], (1, 4, 5))


@pytest.mark.parametrize("convert", [lambda key: key, np.asarray], ids=["jax", "numpy"])
def test_legacy_random_keys_are_refused(convert):
    key = convert(jax.random.PRNGKey(0))
    refused(
        noisy, r"random keys of jax.random.key, got rngs/noise of shape \(2,\)", rngs={"noise": key}
    )


def test_a_number_of_keys_other_than_the_samples_is_refused():
    keys = jax.random.split(jax.random.key(0), 2)
    refused(
        noisy, r"rngs/noise as one random key, or .* 3 samples, got \(2,\)", rngs={"noise": keys}
    )


@pytest.mark.parametrize("data", [jnp.arange(2), jnp.arange(3, dtype=jnp.uint32), 7, "train", None])
def test_data_that_is_no_key_is_passed_on(data):
    params, factors, x = dense_model()
    seen = []

    def apply(params, x, *, data):
        seen.append(data)
        return linear(params, x)

    modulate(apply)(params, factors, x, data=data)
    assert np.array_equal(seen, [data])


# Outputs.


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: {"y": y, "loss": jnp.mean(y**2)}, r"got loss of shape \(\)"),
        (lambda y: (y, jnp.ones(5)), r"got 1 of shape \(5,\)"),
        (lambda y: y[0], r"got one of shape \(4, 5\)"),
        (lambda y: (y, 3.0), r"got 1 of shape \(\)"),
    ],
)
def test_every_output_has_a_batch_axis(output, message):
    refused(lambda params, x: output(linear(params, x)), message)


# Casts.


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.bool_, jnp.float8_e4m3fn])
def test_a_cast_that_is_not_linear_is_of_the_whole_kernel(dtype):
    params, factors, x = dense_model()
    # Sums of few eighths are exact in any order: no kernel is on the two sides of a cast's border.
    params, factors = jax.tree.map(lambda leaf: np.round(8 * leaf) / 8, (params, factors))

    def apply(params, x):
        W = (jnp.float32(8) * params["W"]).astype(dtype).astype(jnp.float32)
        return jnp.sin(x @ W)

    refused(apply, "W: expected .* got the operation 'convert_element_type'")
    got = modulated(apply, params, factors, x, allow_materialise=True)
    assert_close(got, by_sample(apply, params, factors, x), 1e-5)


def test_a_posed_kernel_is_not_cast_to_integers():
    params = {"W": random_array(0, (6, 5))}
    factors = {"W": Posed(jnp.tile(jnp.eye(2, 3), (SAMPLES, 1, 1)), None, (3, 2))}
    apply = lambda params, x: x @ params["W"].astype(jnp.int32).astype(jnp.float32)  # noqa: E731
    refused(
        apply, "W: expected .* linear in a generated kernel, got", params=params, factors=factors
    )


# Scales.


def test_a_scale_is_a_scalar():
    params, factors, x = dense_model()
    B, A = factors["W"]
    scale = jnp.ones(2)  # of the rank's size, and not of the samples'
    with pytest.raises(ValueError, match=r"hyperlora: expected a scalar scale, got shape \(2,\)"):
        hyperlora(x, B, A, scale=scale)
    with pytest.raises(ValueError, match=r"hyperlora_conv: expected a scalar scale"):
        hyperlora_conv(x[:, None], B, A, window=(1, 1), scale=scale)
    with pytest.raises(ValueError, match=r"modulate: expected a scalar scale, got shape \(2,\)"):
        modulate(linear, scale=scale)(params, factors, x)
    own = random_array(4, (SAMPLES,))
    got = hyperlora(x, B, A * own[:, None, None])
    want = [hyperlora(x[i], B[i], A[i], scale=own[i]) for i in range(SAMPLES)]
    assert_close(got, jnp.stack(want), 1e-5)


# Statistics over the batch.


class Normalised(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not self.train)(x)
        return nn.Dense(3, name="head")(nn.relu(x).mean((1, 2)))


def normalised(train, keep_statistics=False):
    x = random_array(0, (SAMPLES, 5, 5, 2))
    variables = random_params(Normalised(False).init, x)
    params, statistics = variables["params"], jax.tree.map(np.abs, variables["batch_stats"])

    def apply(params, x):
        given = {"params": params, "batch_stats": statistics}
        y, updates = Normalised(train).apply(given, x, mutable=["batch_stats"])
        return (y, updates) if keep_statistics else y

    return apply, params, random_factors(params, {"*kernel": 1}, (SAMPLES,)), x


@pytest.mark.parametrize("keep_statistics", [False, True])
def test_batch_normalisation_in_training_is_refused(keep_statistics):
    apply, params, factors, x = normalised(True, keep_statistics)
    with pytest.raises(
        ValueError, match=r"got 'reduce_sum' over the batch axis \(in .*py:\d+.*Use"
    ):
        modulate(apply)(params, factors, x)


def test_batch_normalisation_with_running_averages_equals_dense_weights():
    apply, params, factors, x = normalised(False)
    assert_close(modulated(apply, params, factors, x), by_sample(apply, params, factors, x), 1e-5)


def test_nnx_batch_normalisation_in_training_is_refused():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    graph, weights, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    params = nnx.to_pure_dict(weights)
    factors = random_factors(params, {"dense/kernel": 2}, (SAMPLES,))

    def apply(params, x):
        return nnx.merge(graph, nnx.State(params), rest, copy=True)(x)

    refused(apply, "over the batch axis", params=params, factors=factors)


def centred(y):
    return y - jnp.mean(y, axis=(0, 1), keepdims=True)


@pytest.mark.parametrize(
    "statistic",
    [
        centred,
        jax.jit(centred),
        jax.checkpoint(centred),
        lambda y: y / jnp.std(y, axis=(0, 1), keepdims=True),
        lambda y: y.swapaxes(0, 1) - jnp.max(y.swapaxes(0, 1), axis=1, keepdims=True) + y[:, :, :1],
        lambda y: jax.lax.scan(lambda y, _: (centred(y), None), y, length=2)[0],
        lambda y: jax.lax.cond(jnp.sum(y) > 0, centred, jnp.sin, y),
        lambda y: jax.nn.relu(centred(y.reshape(1, 2, 2, 5).transpose(0, 2, 1, 3))),
    ],
    ids=["mean", "jit", "remat", "deviation", "moved", "scan", "cond", "reshaped"],
)
def test_statistics_over_the_batch_are_refused(statistic):
    refused(
        lambda params, x: statistic(linear(params, x)), "over the batch axis .*test_lift_refusals"
    )


@pytest.mark.parametrize(
    "within",
    [
        lambda y: y - jnp.mean(y, axis=1, keepdims=True),
        lambda y: jax.vmap(lambda y: y - jnp.mean(y, axis=0, keepdims=True))(y),
        lambda y: (y[0] - jnp.mean(y[0], axis=0, keepdims=True))[None],
        lambda y: jnp.sum(y.swapaxes(0, 1), axis=0),
        lambda y: jax.nn.softmax(y.reshape(1, 20)),
        lambda y: (jnp.mean(y, axis=(0, 1)), y)[1],  # which is not among the results
        lambda y: y + jnp.sum(jnp.ones((1, 5)), axis=0)[None, None],
    ],
    ids=["axis", "vmap", "taken out", "moved", "softmax", "unused", "constants"],
)
def test_statistics_within_a_sample_are_those_of_dense_weights(within):
    params, factors, x = dense_model()
    apply = lambda params, x: within(linear(params, x))  # noqa: E731
    assert_close(modulated(apply, params, factors, x), by_sample(apply, params, factors, x), 1e-5)


# Gains.


@pytest.mark.parametrize(
    "gained",
    [
        lambda W, g: W * g[None],
        lambda W, g: (W + jnp.tile(g[None], (6, 1))).T.T,
        lambda W, g: jax.jit(jnp.where)((g > 0)[None], W, jnp.zeros_like(W)),
        lambda W, g: W @ jnp.diag(g),
        lambda W, g: W * jnp.exp(g)[None],
        lambda W, g: W * jax.lax.fori_loop(0, 2, lambda _, g: jnp.sin(g), g)[None],
        lambda W, g: W * jax.lax.cond(W[0, 0] > 0, jnp.sin, jnp.cos, g)[None],
    ],
    ids=["gain", "shift", "jit", "diagonal", "function", "loop", "branch"],
)
def test_a_gain_never_forms_kernels(gained):
    params, factors, x = dense_model()
    params = {"W": random_array(0, (6, 5)), "b": random_array(1, (5,))}
    factors = {"b": factors["b"]}
    apply = lambda params, x: jnp.sin(x @ gained(params["W"], params["b"]))  # noqa: E731
    got = modulated(apply, params, factors, x)
    assert_close(got, by_sample(apply, params, factors, x), 1e-5)
    call = lambda params, factors: modulate(apply)(params, factors, x)  # noqa: E731
    assert largest_intermediate(call, params, factors) < SAMPLES * 6 * 5


def test_what_is_no_gain_of_a_kernel_is_kept():
    params = {"W": random_array(0, (6, 5)), "g": jnp.ones(5), "K": random_array(1, (5, 5))}
    factors = random_factors(params, {"g": "whole", "K": "whole"}, (SAMPLES,))

    def apply(params, x):
        y = x @ params["W"] * params["g"][None, None]  # the gain of the outputs
        y = y @ params["K"].T * jnp.tile(params["g"][None, None], (1, 4, 1))
        return y + (params["W"] * jnp.float32(2))[:4][None] * params["g"][None, None]

    x = random_array(2, (SAMPLES, 4, 6))
    assert_close(modulated(apply, params, factors, x), by_sample(apply, params, factors, x), 1e-5)


def test_a_gain_that_all_samples_share_is_kept():
    params, factors, x = dense_model()
    shared = {"b": factors["b"][0]}
    apply = lambda params, x: x @ (params["W"] * params["b"][None])  # noqa: E731
    want = apply(materialize(params, shared), x)
    assert_close(modulated(apply, params, shared, x), want, 1e-5)


# Locations.


@pytest.mark.parametrize(
    "used",
    [
        lambda W: jnp.sort(W, axis=0),
        lambda W: jax.nn.softmax(W),
        lambda W: jnp.where(W > 0, W, jnp.zeros_like(W)),
        lambda W: jax.jit(jnp.linalg.det)(W[:5])[None, None] * jnp.ones((6, 5)),
    ],
    ids=["sort", "softmax", "where", "det"],
)
def test_an_error_from_inside_a_function_of_jax_names_the_users_line(used):
    apply = lambda params, x: x @ used(params["W"])  # noqa: E731
    refused(apply, r"W: expected .* \(in \S*test_lift_refusals.py:\d+")
