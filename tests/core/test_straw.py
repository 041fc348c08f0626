from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import assert_close, random_array, random_params, to_numpy

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
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


IMAGES = random_array(0, (3, 8, 8, 1))


def tiny_straw(**options):
    return make_straw(TinyExecutor(), IMAGES, **({"rank": 2, "hidden": 16} | options))


@cache
def usual_straw(base="none"):
    every = {"*kernel": 2, "*": "whole"}  # with a frozen base, biases are told to be generated
    return tiny_straw(base=base, scale=0.5, hidden=128, rank=every)


@cache
def initial_params(base="none"):
    return jax.jit(usual_straw(base).init)(jax.random.key(1))


def parameter_count(straw):
    shapes = jax.eval_shape(straw.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameter_counts_are_the_articles():
    images = jnp.zeros((1, 28, 28, 1))
    assert parameter_count(make_straw(CNN(), images, rank=16)) == 20_606_863
    trained = make_straw(CNN(), images, rank=16, base="trained")
    assert parameter_count(trained) == 20_606_863 + 1_204_655


def with_weights(base="none"):
    """Parameters away from the start, where the update may be zero; the executor's among them."""
    params = random_params(usual_straw(base).init)
    if base == "frozen":
        params["executor"] = random_params(TinyExecutor().init, IMAGES)["params"]
    return params


@pytest.mark.accelerator
@pytest.mark.parametrize("base", ["none", "trained", "frozen"])
def test_each_sample_runs_the_executor_with_its_own_dense_weights(base):
    straw, params = usual_straw(base), with_weights(base)
    logits = jax.jit(straw.apply)(params, IMAGES)
    factors = jax.jit(straw.factors)(params, IMAGES)
    executor = TinyExecutor()
    shapes = jax.eval_shape(lambda: executor.init(jax.random.key(0), IMAGES))["params"]
    weights = shapes if base == "none" else params["executor"]

    @jax.jit
    def one(factors, image):
        own = materialize(weights, factors, scale=0.5)
        return executor.apply({"params": own}, image[None])[0], own

    merge = jax.jit(straw.merge)
    for i in range(3):
        want, own = one(jax.tree.map(lambda leaf, i=i: leaf[i], to_numpy(factors)), IMAGES[i])
        assert_close(logits[i], want, 1e-5)
        assert_close(merge(params, IMAGES[i]), own, 1e-5)
    B = to_numpy(factors["dense/kernel"].B)
    assert not np.allclose(B[0], B[1])


@cache
def gradients(base):
    straw = usual_straw(base)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.cos(straw.apply(p, IMAGES)))))
    return to_numpy(gradient(with_weights(base)))


def test_a_frozen_executor_gets_no_gradient_and_its_modulator_the_trained_ones():
    frozen, trained = dict(gradients("frozen")), dict(gradients("trained"))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen.pop("executor")))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(trained.pop("executor")))
    assert_close(frozen, trained, 1e-6)


def test_a_frozen_executor_is_left_as_it_is_by_an_untrained_modulator():
    straw, modulator = usual_straw("frozen"), initial_params("frozen")
    assert sorted(modulator) == ["encoder", "generator"]
    weights = with_weights("frozen")["executor"]
    logits = jax.jit(straw.apply)({**modulator, "executor": weights}, IMAGES)
    assert_close(logits, jax.jit(TinyExecutor().apply)({"params": weights}, IMAGES), 1e-6)
    with pytest.raises(ValueError, match=r"the executor's weights, base 'frozen', got \['encoder'"):
        jax.eval_shape(straw.apply, modulator, IMAGES)


def test_compact_straw_runs_its_executor_with_each_samples_dense_weights():
    executor = CompactCNN(classes=4, stages=((8,), (16,)))
    straw = make_straw(executor, IMAGES, rank=2, base="trained", encoder=ConvEncoder(3), hidden=4)
    params = random_params(straw.init)
    logits = jax.jit(straw.apply)(params, IMAGES)
    factors = to_numpy(jax.jit(straw.factors)(params, IMAGES))

    @jax.jit
    def own(factors, image):
        weights = materialize(params["executor"], factors)
        return executor.apply({"params": weights}, image[None])[0]

    for i in range(3):
        assert_close(logits[i], own(jax.tree.map(lambda f, i=i: f[i], factors), IMAGES[i]), 1e-5)
    assert not np.allclose(factors["norm2/scale"][0], factors["norm2/scale"][1])


def test_untrained_modulator_leaves_a_trained_base_as_it_is():
    straw, params = usual_straw("trained"), initial_params("trained")
    want = jax.jit(TinyExecutor().apply)({"params": params["executor"]}, IMAGES)
    assert_close(jax.jit(straw.apply)(params, IMAGES), want, 1e-6)
    assert np.any(to_numpy(jax.jit(straw.factors)(params, IMAGES)["dense/kernel"].B))


@pytest.mark.accelerator
@pytest.mark.parametrize("base", ["none", "trained"])
def test_every_parameter_can_learn(base):
    """Away from the start, no gradient is zero: nothing is cut off."""
    gradient = gradients(base)
    assert jax.tree.structure(gradient) == jax.tree.structure(with_weights(base))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf), path


def test_samples_do_not_touch_each_other():
    straw, params = usual_straw(), initial_params()
    apply = jax.jit(straw.apply)
    together = apply(params, IMAGES)
    alone = [apply(params, IMAGES[i : i + 1]) for i in range(3)]
    assert_close(together, np.concatenate(alone), 1e-5)


@pytest.mark.accelerator
def test_dropout_of_the_executor_differs_from_sample_to_sample():
    straw, params = usual_straw(), initial_params()
    same = np.stack([IMAGES[0]] * 3)

    @jax.jit
    def train(key):
        return straw.apply(params, same, train=True, rngs={"dropout": key})

    logits = np.asarray(train(jax.random.key(2)))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert not np.allclose(logits[i], logits[j])
    assert np.array_equal(logits, train(jax.random.key(2)))
    still = np.asarray(jax.jit(straw.apply)(params, same))
    assert_close(still[1:], still[:2], 1e-6)


@pytest.mark.accelerator
def test_styles_are_the_encoders_and_between_minus_one_and_one():
    straw, params = usual_straw(), initial_params()
    styles = np.asarray(jax.jit(straw.styles)(params, IMAGES))
    assert styles.shape == (3, 64)
    assert np.abs(styles).max() < 1
    want = jax.jit(ConvEncoder().apply)({"params": params["encoder"]}, IMAGES)
    assert_close(styles, want, 1e-6)


def test_a_context_other_than_the_sample():
    task = random_array(5, (3, 6))
    straw = tiny_straw(encoder=nn.Dense(8), context=task[:1])
    params = random_params(straw.init)
    apply = jax.jit(straw.apply)
    logits = np.asarray(apply(params, IMAGES, context=task))
    assert logits.shape == (3, 4)
    other = np.asarray(apply(params, IMAGES, context=task[::-1]))
    assert_close(logits[1], other[1], 1e-5)
    assert not np.allclose(logits[0], other[0])


def test_one_context_is_for_all_samples():
    task = random_array(5, (3, 6))
    straw = tiny_straw(encoder=nn.Dense(8), context=task)
    params = random_params(straw.init)
    apply = jax.jit(straw.apply)
    same = np.broadcast_to(task[:1], task.shape)
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
    params = random_params(straw.init)
    same = np.stack([IMAGES[0]] * 2)

    @jax.jit
    def run(key):
        dropped = straw.apply(params, same, train=True, rngs={"dropout": key})
        return straw.apply(params, same), dropped

    still, dropped = map(np.asarray, run(jax.random.key(2)))
    assert_close(still[0], still[1], 1e-6)
    assert not np.allclose(dropped[0], dropped[1])


def test_whole_kernels_are_formed_where_that_is_allowed():
    network = Network(
        init=lambda key, x: {"W": jax.random.normal(key, (5, 2))},
        apply=lambda params, x: x @ jnp.tanh(params["W"]),
    )
    x = random_array(1, (3, 5))

    def straw(**options):
        return make_straw(network, x, rank=1, encoder=nn.Dense(4), base="trained", **options)

    allowed = straw(allow_materialise=True)
    params = random_params(allowed.init)
    merge = jax.jit(allowed.merge)
    own = np.stack([merge(params, row)["W"] for row in x])
    assert_close(jax.jit(allowed.apply)(params, x), np.einsum("bi,bio->bo", x, np.tanh(own)), 1e-5)
    with pytest.raises(
        ValueError, match="W: expected operations that are linear in a generated kernel"
    ):
        straw().apply(params, x)


def test_an_executor_as_plain_functions():
    network = Network(
        init=lambda key, x: {"W": jax.random.normal(key, (x.shape[-1], 2))},
        apply=lambda params, x: jnp.tanh(x @ params["W"]),
    )
    x = random_array(1, (3, 5))
    straw = make_straw(network, x, rank=1, encoder=nn.Dense(4), base="trained")
    params = jax.jit(straw.init)(jax.random.key(0))
    want = np.tanh(x @ np.asarray(params["executor"]["W"]))
    assert_close(jax.jit(straw.apply)(params, x), want, 1e-6)


@pytest.mark.accelerator
def test_generator_equals_one_wide_dense_layer_over_the_packed_factors():
    """The heads are the article's one layer, cut: packed kernels times the hidden vector."""
    straw, params = usual_straw(), with_weights()
    z = np.asarray(jax.jit(straw.styles)(params, IMAGES))
    generator = params["generator"]
    hidden = np.maximum(z @ generator["hidden"]["kernel"] + generator["hidden"]["bias"], 0)
    columns, biases = [], []
    for leaf in straw.spec:
        for part in leaf.parts:
            head = generator[f"{leaf.path}/{part}".replace("/", ".")]
            kernel = head["kernel"]
            columns.append(kernel if kernel.ndim == 2 else kernel.reshape(-1, 128).T)
            biases.append(head["bias"].reshape(-1))
    wide = hidden @ np.concatenate(columns, 1) + np.concatenate(biases)
    factors = to_numpy(jax.jit(straw.factors)(params, IMAGES))
    assert_close(straw.spec.pack(factors), wide, 1e-5)


def test_initial_values_are_those_of_a_dense_layer_in_pytorch():
    fan_in = {"dense.kernel.B": 128, "conv.kernel.A": 128, "dense.bias.whole": 128, "hidden": 64}
    for name, fan in fan_in.items():
        for leaf in to_numpy(initial_params()["generator"][name]).values():
            bound = fan**-0.5
            assert np.abs(leaf).max() <= bound
            if leaf.size > 500:
                assert np.abs(leaf).max() > 0.99 * bound
                assert abs(leaf.std() - bound / 3**0.5) < 0.05 * bound


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


def test_one_rank_reads_attentions_kernels_economically():
    """Rows are the axes that products sum; what is only added is whole."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + self.param("positions", nn.initializers.normal(), (1, 3, 8))
            return nn.MultiHeadDotProductAttention(2, name="attention")(x)

    straw = make_straw(Model(), jnp.zeros((1, 3, 8)), rank=2, encoder=Flat())
    read = {leaf.path: (leaf.label, leaf.axes) for leaf in straw.spec}
    assert read["attention/query/kernel"] == ("2", "rcc")
    assert read["attention/out/kernel"] == ("2", "")
    assert read["positions"] == ("whole", "")


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


def test_with_a_frozen_base_one_rank_is_for_kernels_alone():
    model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(3)])
    x = jnp.zeros((1, 5))
    frozen = make_straw(model, x, rank=2, base="frozen", encoder=nn.Dense(4))
    assert [leaf.path for leaf in frozen.spec] == ["layers_0/kernel", "layers_2/kernel"]
    told = {"*kernel": 2, "*": "whole"}
    assert len(make_straw(model, x, rank=told, base="frozen", encoder=nn.Dense(4)).spec) == 6


def test_a_straw_is_no_tree_and_can_be_a_static_argument():
    x = jnp.zeros((2, 5))
    straw = make_straw(
        nn.Dense(4), x, updates={"kernel": ["whole", 2], "*": "whole"}, base="trained",
        encoder=nn.Dense(3),
    )  # fmt: skip
    assert jax.tree.leaves(straw) == [straw]
    hash(straw)
    params = jax.jit(straw.init)(jax.random.key(0))
    run = jax.jit(lambda straw, params, x: straw.apply(params, x), static_argnums=0)
    assert run(straw, params, x).shape == (2, 4)
