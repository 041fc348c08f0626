import jax
import jax.numpy as jnp
import pytest
from reference import random_array

from straw_jax import CNN, ResNet34


def shapes_of(module, images):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), images))


@pytest.mark.parametrize(("module", "count"), [(CNN(), 1_204_655), (ResNet34(), 21_299_951)])
def test_parameter_counts_are_the_articles(module, count):
    images = jnp.zeros((2, 28, 28, 1))
    variables = shapes_of(module, images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    logits = jax.eval_shape(module.apply, variables, images)
    assert logits.shape == (2, 47)


def test_cnn_starts_as_pytorch_would():
    params = CNN().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    for name, fan_in in {"conv1": 9, "conv2": 288, "fc1": 9216, "fc2": 128}.items():
        for leaf in params[name].values():
            assert float(jnp.abs(leaf).max()) <= fan_in**-0.5
        assert float(jnp.abs(params[name]["kernel"]).max()) > 0.9 * fan_in**-0.5


def test_dropout_only_while_training():
    images = random_array(0, (2, 28, 28, 1))
    variables = CNN().init(jax.random.key(0), images)
    still = CNN().apply(variables, images)
    assert jnp.array_equal(still, CNN().apply(variables, images))
    one = CNN().apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
    two = CNN().apply(variables, images, train=True, rngs={"dropout": jax.random.key(2)})
    assert not jnp.allclose(one, still)
    assert not jnp.allclose(one, two)


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
