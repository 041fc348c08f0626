from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from reference import assert_close, random_array

from straw_jax import (
    CNN,
    CompactCNN,
    ConvEncoder,
    Network,
    RecursiveEncoder,
    linen,
    make_straw,
    materialize,
)


class TinyExecutor(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


IMAGES = random_array(0, (3, 8, 8, 1))


def tiny_straw(**options):
    return make_straw(TinyExecutor(), IMAGES, **({"rank": 2, "hidden": 16} | options))


def parameter_count(straw):
    shapes = jax.eval_shape(straw.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_are_the_articles():
    images = jnp.zeros((1, 28, 28, 1))
    assert parameter_count(make_straw(CNN(), images, rank=16)) == 20_606_863
    trained = make_straw(CNN(), images, rank=16, base="trained")
    assert parameter_count(trained) == 20_606_863 + 1_204_655


def with_weights(straw, key=1):
    """Parameters away from the start, where the update may be zero; the executor's among them."""
    params = jax.jit(straw.init)(jax.random.key(key))
    if "executor" not in params:
        params["executor"] = TinyExecutor().init(jax.random.key(2), IMAGES)["params"]
    return jax.tree.map(lambda p: p + 0.1 * random_array(p.size, p.shape), params)


@pytest.mark.parametrize("base", ["none", "trained", "frozen"])
def test_each_sample_runs_the_executor_with_its_own_dense_weights(base):
    straw = tiny_straw(base=base, scale=0.5)
    params = with_weights(straw)
    logits = jax.jit(straw.apply)(params, IMAGES)
    factors = jax.jit(straw.factors)(params, IMAGES)
    executor = TinyExecutor()
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), IMAGES))["params"]
    weights = shapes if base == "none" else params["executor"]
    per_sample = [jax.tree.map(lambda leaf, i=i: leaf[i], factors) for i in range(3)]
    for i in range(3):
        own = materialize(weights, per_sample[i], scale=0.5)
        want = executor.apply({"params": own}, IMAGES[i : i + 1])[0]
        assert_close(logits[i], want, 1e-5)
        assert_close(jax.jit(straw.merge)(params, IMAGES[i]), own, 1e-5)
    assert not jnp.allclose(factors["dense/kernel"].B[0], factors["dense/kernel"].B[1])


def test_a_frozen_executor_gets_no_gradient_and_its_modulator_the_trained_ones():
    params = with_weights(tiny_straw(base="frozen"))

    def gradient(base):
        straw = tiny_straw(base=base)
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.cos(straw.apply(p, IMAGES)))))(params)

    frozen, trained = gradient("frozen"), gradient("trained")
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen.pop("executor")))
    assert all(leaf.any() for leaf in jax.tree.leaves(trained.pop("executor")))
    assert_close(frozen, trained, 1e-6)


def test_a_frozen_executor_is_left_as_it_is_by_an_untrained_modulator():
    straw = tiny_straw(base="frozen")
    modulator = straw.init(jax.random.key(0))
    assert sorted(modulator) == ["encoder", "generator"]
    weights = TinyExecutor().init(jax.random.key(2), IMAGES)["params"]
    logits = straw.apply({**modulator, "executor": weights}, IMAGES)
    assert_close(logits, TinyExecutor().apply({"params": weights}, IMAGES), 1e-6)
    with pytest.raises(ValueError, match=r"the executor's weights, base 'frozen', got \['encoder'"):
        straw.apply(modulator, IMAGES)


def test_compact_straw_runs_its_executor_with_each_samples_dense_weights():
    executor = CompactCNN(classes=4, stages=((8,), (16,)))
    straw = make_straw(executor, IMAGES, rank=2, base="trained", encoder=ConvEncoder(3), hidden=4)
    params = jax.jit(straw.init)(jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.1 * random_array(p.size, p.shape), params)
    logits = jax.jit(straw.apply)(params, IMAGES)
    factors = jax.jit(straw.factors)(params, IMAGES)

    @jax.jit
    def own(factors, image):
        weights = materialize(params["executor"], factors)
        return executor.apply({"params": weights}, image[None])[0]

    for i in range(3):
        assert_close(logits[i], own(jax.tree.map(lambda f, i=i: f[i], factors), IMAGES[i]), 1e-5)
    assert not jnp.allclose(factors["norm2/scale"][0], factors["norm2/scale"][1])


def test_untrained_modulator_leaves_a_trained_base_as_it_is():
    straw = tiny_straw(base="trained")
    params = jax.jit(straw.init)(jax.random.key(1))
    want = TinyExecutor().apply({"params": params["executor"]}, IMAGES)
    assert_close(jax.jit(straw.apply)(params, IMAGES), want, 1e-6)
    assert float(jnp.abs(jax.jit(straw.factors)(params, IMAGES)["dense/kernel"].B).max()) > 0


@pytest.mark.parametrize("base", ["none", "trained"])
def test_every_parameter_can_learn(base):
    """After one step away from the start, no gradient is zero: nothing is cut off."""
    straw = tiny_straw(base=base)
    params = jax.jit(straw.init)(jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.1 * random_array(p.size, p.shape), params)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(straw.apply(p, IMAGES) ** 2)))(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, path


def test_samples_do_not_touch_each_other():
    straw = tiny_straw()
    params = jax.jit(straw.init)(jax.random.key(1))
    together = jax.jit(straw.apply)(params, IMAGES)
    alone = jnp.concatenate([straw.apply(params, IMAGES[i : i + 1]) for i in range(3)])
    assert_close(together, alone, 1e-5)


def test_dropout_of_the_executor_differs_from_sample_to_sample():
    straw = tiny_straw()
    params = jax.jit(straw.init)(jax.random.key(1))
    same = jnp.stack([IMAGES[0]] * 2)

    @jax.jit
    def train(key):
        return straw.apply(params, same, train=True, rngs={"dropout": key})

    logits = train(jax.random.key(2))
    assert not jnp.allclose(logits[0], logits[1])
    assert jnp.array_equal(logits, train(jax.random.key(2)))
    still = jax.jit(straw.apply)(params, same)
    assert_close(still[0], still[1], 1e-6)


def test_styles_are_the_encoders_and_between_minus_one_and_one():
    straw = tiny_straw()
    params = jax.jit(straw.init)(jax.random.key(1))
    styles = straw.styles(params, IMAGES)
    assert styles.shape == (3, 64)
    assert float(jnp.abs(styles).max()) < 1
    assert_close(styles, ConvEncoder().apply({"params": params["encoder"]}, IMAGES), 1e-6)


def test_a_context_other_than_the_sample():
    task = random_array(5, (3, 6))
    straw = tiny_straw(encoder=nn.Dense(8), context=task[:1])
    params = jax.jit(straw.init)(jax.random.key(1))
    logits = jax.jit(straw.apply)(params, IMAGES, context=task)
    assert logits.shape == (3, 4)
    other = jax.jit(straw.apply)(params, IMAGES, context=task[::-1])
    assert_close(logits[1], other[1], 1e-5)
    assert not jnp.allclose(logits[0], other[0])


def test_one_context_is_for_all_samples():
    task = random_array(5, (3, 6))
    straw = tiny_straw(encoder=nn.Dense(8), context=task)
    params = jax.jit(straw.init)(jax.random.key(1))
    apply = jax.jit(straw.apply)
    same = jnp.broadcast_to(task[:1], task.shape)
    assert_close(apply(params, IMAGES, context=task[:1]), apply(params, IMAGES, context=same), 1e-6)
    with pytest.raises(ValueError, match=r"one for all, \[3, ...\] or \[1, ...\], got .* \[2, 8\]"):
        straw.apply(params, IMAGES, context=task[:2])


@pytest.mark.parametrize(
    "encoder", [ConvEncoder(4), RecursiveEncoder(4, width=4, heads=2, steps=1)]
)
def test_no_samples_give_no_results(encoder):
    straw = tiny_straw(encoder=encoder)
    params = jax.eval_shape(straw.init, jax.random.key(1))
    assert jax.eval_shape(straw.apply, params, IMAGES[:0]).shape == (0, 4)


def test_a_straw_is_one_leaf_and_can_be_a_static_argument():
    straw = tiny_straw()
    network = linen(TinyExecutor())
    assert jax.tree.leaves((straw, network)) == [straw, network]
    params = jax.eval_shape(straw.init, jax.random.key(1))
    apply = jax.jit(lambda straw, params, x: straw.apply(params, x), static_argnums=0)
    assert jax.eval_shape(partial(apply, straw), params, IMAGES).shape == (3, 4)


def test_an_executor_that_must_be_told_whether_it_is_trained():
    class Trained(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return TinyExecutor(name="tiny")(x, train=train)

    straw = make_straw(
        linen(Trained(), train=False), IMAGES, rank=2, encoder=ConvEncoder(4), hidden=4
    )
    params = jax.jit(straw.init)(jax.random.key(1))
    same = jnp.stack([IMAGES[0]] * 2)
    still = jax.jit(straw.apply)(params, same)
    assert_close(still[0], still[1], 1e-6)
    key = jax.random.key(2)
    dropped = jax.jit(partial(straw.apply, train=True))(params, same, rngs={"dropout": key})
    assert not jnp.allclose(dropped[0], dropped[1])


def test_whole_kernels_are_formed_where_that_is_allowed():
    network = Network(
        init=lambda key, x: {"W": jax.random.normal(key, (5, 2))},
        apply=lambda params, x: x @ jnp.tanh(params["W"]),
    )
    x = random_array(1, (3, 5))

    def straw(**options):
        return make_straw(network, x, rank=1, encoder=nn.Dense(4), base="trained", **options)

    allowed = straw(allow_materialise=True)
    params = jax.jit(allowed.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * random_array(p.size, p.shape), params)
    own = jnp.stack([jax.jit(allowed.merge)(params, row)["W"] for row in x])
    assert_close(
        jax.jit(allowed.apply)(params, x), jnp.einsum("bi,bio->bo", x, jnp.tanh(own)), 1e-5
    )
    with pytest.raises(ValueError, match="W: expected operations that support low-rank kernels"):
        straw().apply(params, x)


def test_an_executor_as_plain_functions():
    network = Network(
        init=lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], 2))},
        apply=lambda params, x: jnp.tanh(x @ params["W"]),
    )
    x = random_array(1, (3, 5))
    straw = make_straw(network, x, rank=1, encoder=nn.Dense(4), base="trained")
    params = straw.init(jax.random.key(0))
    assert_close(straw.apply(params, x), jnp.tanh(x @ params["executor"]["W"]), 1e-6)


def test_generator_equals_one_wide_dense_layer_over_the_packed_factors():
    """The heads are the article's one layer, cut: packed kernels times the hidden vector."""
    straw = tiny_straw()
    params = jax.jit(straw.init)(jax.random.key(1))
    z = straw.styles(params, IMAGES)
    generator = params["generator"]
    hidden = nn.relu(z @ generator["hidden"]["kernel"] + generator["hidden"]["bias"][None])
    columns, biases = [], []
    for leaf in straw.spec:
        for part in leaf.parts:
            head = generator[f"{leaf.path}/{part}".replace("/", ".")]
            kernel = head["kernel"]
            columns.append(kernel if kernel.ndim == 2 else kernel.reshape(-1, 16).T)
            biases.append(head["bias"].reshape(-1))
    wide = hidden @ jnp.concatenate(columns, 1) + jnp.concatenate(biases)[None]
    assert_close(straw.spec.pack(jax.jit(straw.factors)(params, IMAGES)), wide, 1e-5)


def test_initial_values_are_those_of_a_dense_layer_in_pytorch():
    straw = make_straw(CNN(), jnp.zeros((1, 28, 28, 1)), rank=4)
    params = jax.jit(straw.init)(jax.random.key(0))
    fan_in = {"fc1.kernel.B": 128, "conv2.kernel.A": 128, "fc1.bias.whole": 128, "hidden": 64}
    for name, fan in fan_in.items():
        for leaf in params["generator"][name].values():
            bound = fan**-0.5
            assert float(jnp.abs(leaf).max()) <= bound
            if leaf.size > 1000:
                assert float(jnp.abs(leaf).max()) > 0.99 * bound
                assert abs(float(leaf.std()) - bound / 3**0.5) < 0.05 * bound


def test_errors():
    with pytest.raises(ValueError, match=r"base of \('none', 'trained', 'frozen'\), got 'thawed'"):
        tiny_straw(base="thawed")
    with pytest.raises(ValueError, match=r"got no rank for \['conv/bias', 'dense/bias'\]"):
        tiny_straw(rank={"*/kernel": 2})
    assert len(tiny_straw(rank={"*/kernel": 2}, base="trained").spec) == 2

    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(x)

    with pytest.raises(ValueError, match=r"Normalised to have parameters only, got also \['batch"):
        linen(Normalised()).init(jax.random.key(0), IMAGES)
