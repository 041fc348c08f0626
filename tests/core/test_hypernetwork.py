import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import TOLERANCE, assert_close, random_array, random_params, to_numpy

from straw_jax.factors import factor_spec
from straw_jax.hypernetwork import ChunkGenerator, make_hypernetwork
from straw_jax.network import Network


class Small(nn.Module):
    """Two 3x3 convolutions with channels that chunks divide, one that they do not."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(4, (3, 3), name="second")(x))
        x = nn.relu(nn.Conv(6, (3, 3), name="third")(x))
        return nn.Dense(3, name="out")(x.mean(axis=(1, 2)))


KERNELS = ["second/kernel", "third/kernel"]
IMAGES = random_array(0, (5, 8, 8, 1))


def make(chunk=(2, 2), **settings):
    return make_hypernetwork(Small(), IMAGES, KERNELS, chunk=chunk, **settings)


@pytest.mark.parametrize("chunk", [(2, 2), (4, 2), (1, 1)])
def test_outputs_and_gradients_are_those_of_kernels_made_by_hand(chunk):
    model = make(chunk, hidden=3)
    params = random_params(model.init)
    leaves = {"second/kernel": (3, 3, 4, 4), "third/kernel": (3, 3, 4, 6)}

    def plain(params):
        kernels = by_hand(params["generator"], leaves, chunk, hidden=3)
        tree = {}
        for path, leaf in {**params["executor"], **kernels}.items():
            layer, name = path.split("/")
            tree.setdefault(layer, {})[name] = leaf
        return Small().apply({"params": tree}, IMAGES)

    def values_and_gradient(function):
        def loss(params):
            values = function(params)
            return jnp.sum(values**2), values

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, found), ours = values_and_gradient(lambda p: model.apply(p, IMAGES))
    (_, expected), theirs = values_and_gradient(plain)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_a_generator_computes_in_its_dtype():
    """Values and gradients in bfloat16; the executor gets float32 weights, as it has itself."""
    params = random_params(make(hidden=3).init)

    @partial(jax.jit, static_argnums=0)
    def values_and_gradient(dtype, params):
        def loss(params):
            values = make(hidden=3, dtype=dtype).apply(params, IMAGES)
            return jnp.sum(values**2), values

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, values), gradient = values_and_gradient(jnp.bfloat16, params)
    (_, exact), of_exact = values_and_gradient(None, params)
    assert values.dtype == jnp.float32
    assert_close(values, exact, TOLERANCE["bfloat16"])
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_exact), strict=True):
        assert found.dtype == jnp.float32
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_kernels_are_of_the_generators_dtype():
    spec = factor_spec({"kernel": jnp.zeros((3, 3, 4, 4))}, {"kernel": "whole"})

    def generated(dtype):
        module = ChunkGenerator(spec, (2, 2), dtype=dtype)
        kernels, variables = jax.eval_shape(module.init_with_output, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        return kernels["kernel"].dtype

    assert generated(jnp.bfloat16) == jnp.bfloat16
    assert generated(None) == jnp.float32


def by_hand(p, leaves, chunk, hidden):
    """Kernels by plain loops over the chunks and their input channels."""
    rows, columns = chunk
    embeddings, kernels = iter(p["embeddings"]), {}
    for path, shape in leaves.items():
        grid = []
        for _ in range(shape[-2] // rows):
            line = []
            for _ in range(shape[-1] // columns):
                vectors = next(embeddings) @ p["vectors"]["kernel"] + p["vectors"]["bias"]
                channels = [
                    (vectors[i * hidden : (i + 1) * hidden] @ p["weights"]["kernel"])
                    + p["weights"]["bias"]
                    for i in range(rows)
                ]
                line.append(
                    jnp.stack([each.reshape(*shape[:-2], columns) for each in channels], axis=-2)
                )
            grid.append(jnp.concatenate(line, axis=-1))
        kernels[path] = jnp.concatenate(grid, axis=-2) * math.sqrt(2 / math.prod(shape[:-1]))
    return kernels


def test_count_is_that_of_the_paper():
    """16 x 16 kernels of 7 x 7: 4,244 parameters in place of 12,544 (section 4.1)."""
    spec = factor_spec({"kernel": jnp.zeros((7, 7, 16, 16))}, {"kernel": "whole"})
    init = ChunkGenerator(spec, (16, 16)).init
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4_244


def test_kernels_start_with_the_variance_that_their_layer_wants():
    shapes = {"wide": jnp.zeros((3, 3, 64, 16)), "narrow": jnp.zeros((3, 3, 16, 64))}
    spec = factor_spec(shapes, {"*": "whole"})
    module = ChunkGenerator(spec, (16, 16), embedding=64, hidden=64)
    kernels = jax.jit(lambda key: module.apply(module.init(key)))(jax.random.key(0))
    for path, kernel in to_numpy(kernels).items():
        fan_in = math.prod(shapes[path].shape[:-1])
        assert float(kernel.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)


def test_parameters_are_the_generators_and_what_is_not_generated():
    params = jax.eval_shape(make().init, jax.random.key(0))
    assert sorted(params["executor"]) == [
        "first/bias", "first/kernel", "out/bias", "out/kernel", "second/bias", "third/bias",
    ]  # fmt: skip
    assert params["generator"]["embeddings"].shape == (2 * 2 + 2 * 3, 4)


def test_kernels_are_written_once_for_all_samples():
    model = make()
    params = jax.eval_shape(model.init, jax.random.key(0))

    def shapes(count):
        images = jnp.zeros((count, 8, 8, 1))
        text = str(jax.make_jaxpr(model.apply)(params, images))
        return text.count("dot_general")

    assert shapes(2) == shapes(7)


def test_any_function_can_be_the_executor():
    network = Network(lambda key, x: {"w": jax.random.normal(key, (4, 4))}, lambda p, x: x @ p["w"])
    model = make_hypernetwork(network, jnp.zeros((1, 4)), ["w"], chunk=(2, 2))
    params = jax.jit(model.init)(jax.random.key(0))
    assert params["executor"] == {}
    assert model.apply(params, jnp.ones((3, 4))).shape == (3, 4)


@pytest.mark.parametrize(
    ("kernels", "chunk", "says"),
    [
        (["second/kernel", "first/kernel"], (2, 2), r"chunk's \(2, 2\), got first/kernel"),
        (["third/kernel"], (2, 4), r"got third/kernel of shape \(3, 3, 4, 6\)"),
        (["second/kernel", "out/kernel"], (2, 1), r"of window \(\) .* got second/kernel"),
        (["fourth/*"], (2, 2), "fourth"),
    ],
)
def test_what_does_not_fit_is_refused(kernels, chunk, says):
    with pytest.raises(ValueError, match=says):
        make_hypernetwork(Small(), IMAGES, kernels, chunk=chunk)
