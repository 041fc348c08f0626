"""Resampled images, and kernels that are composed with the resampling of what they see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from lifting import assert_no_full_kernel, by_sample, modulated, random_factors
from reference import (
    TOLERANCE,
    assert_close,
    largest_intermediate,
    random_array,
    random_params,
    relative_error,
    to_float32,
    to_numpy,
)
from scipy import ndimage

from straw_jax import (
    Factors,
    Posed,
    affine,
    factor_spec,
    linen,
    make_straw,
    materialize,
    modulate,
    resample,
)
from straw_jax.geometry import compose, composed, invert

POSES = st.tuples(
    st.floats(-180, 180), st.floats(0.5, 2), st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)
)

RESAMPLE, AFFINE, INVERT = jax.jit(resample), jax.jit(affine), jax.jit(invert)
COMPOSE = jax.jit(compose)


# Images.


@pytest.mark.accelerator
@settings(max_examples=min(12, settings().max_examples))
@given(
    POSES,
    st.sampled_from([(6, 6, 1), (5, 8, 2), (7, 4, 3), (1, 5, 1)]),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_resampling_equals_scipys(pose, shape, dtype):
    x, matrix = random_array(0, shape, dtype), AFFINE(*pose)
    got = RESAMPLE(x, matrix)
    assert got.dtype == x.dtype
    # Scipy counts in pixels, from the first; `affine` in halves of the height, from the centre.
    linear, offset = np.split(np.asarray(matrix, np.float64), [2], axis=1)
    centre = (np.array(shape[:2]) - 1) / 2
    offset = offset[:, 0] * shape[0] / 2 + centre - linear @ centre
    want = np.stack(
        [
            ndimage.affine_transform(channel, linear, offset, order=1, mode="nearest")
            for channel in np.moveaxis(np.asarray(x, np.float64), -1, 0)
        ],
        axis=-1,
    )
    assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.accelerator
@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2, 4])
@pytest.mark.parametrize("size", [5, 6])
def test_quarter_turns_move_every_pixel_to_another_ones_place(turns, size):
    x = random_array(0, (size, size, 2))
    got = RESAMPLE(x, AFFINE(90.0 * turns))
    np.testing.assert_allclose(got, np.rot90(x, turns), atol=1e-5)


def blob(down, right, height=40, width=48, spread=0.08):
    """A smooth dot at a place that is measured as `affine` does."""
    i, j = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    i, j = ((k - (n - 1) / 2) / (height / 2) for k, n in ((i, height), (j, width)))
    square = (i - down) ** 2 + (j - right) ** 2
    return np.exp(-square / (2 * spread**2)).astype("float32")[..., None]


def centre_of_mass(image):
    height, width, _ = image.shape
    place = ndimage.center_of_mass(np.asarray(image)[..., 0])
    return (np.array(place) - [(height - 1) / 2, (width - 1) / 2]) / (height / 2)


def moved(point, degrees=0.0, scale=1.0, shear=0.0, down=0.0, right=0.0):
    """Where a point goes, in the words of `affine`: by scale, then slant, then turn, then move."""
    x, up = scale * point[1], -scale * point[0]
    x += shear * up
    angle = np.deg2rad(degrees)
    x, up = x * np.cos(angle) - up * np.sin(angle), x * np.sin(angle) + up * np.cos(angle)
    return np.array([down - up, right + x])


@pytest.mark.accelerator
@pytest.mark.parametrize(
    "pose",
    [
        {"degrees": 30.0},
        {"degrees": 0.0, "scale": 1.5},
        {"degrees": 0.0, "scale": 0.7},
        {"degrees": 0.0, "shear": 0.4},
        {"degrees": 0.0, "down": 0.3},
        {"degrees": 0.0, "right": 0.3},
        {"degrees": -50.0, "scale": 1.2, "shear": -0.3, "down": -0.1, "right": 0.2},
    ],
)
@pytest.mark.parametrize("point", [(-0.4, 0.2), (0.3, 0.35)])
def test_a_dot_goes_where_affine_says(point, pose):
    place = centre_of_mass(RESAMPLE(blob(*point), AFFINE(**pose)))
    np.testing.assert_allclose(place, moved(point, **pose), atol=2e-3)


@pytest.mark.parametrize("degrees", [-50.0, 20.0])
def test_infinitely_sharp_is_the_nearest_pixel(degrees):
    image, matrix = random_array(0, (9, 9, 1)), to_numpy(AFFINE(degrees))
    linear = np.asarray(matrix[:, :2], np.float64)
    offset = 4 - linear @ [4, 4]
    want = ndimage.affine_transform(image[..., 0], linear, offset, order=0, mode="nearest")
    got = jax.jit(lambda x: resample(x, matrix, sharpness=jnp.inf))(image)
    np.testing.assert_allclose(np.asarray(got)[..., 0], want, atol=1e-4)


def test_infinitely_sharp_takes_the_mean_of_pixels_that_are_as_near():
    image = random_array(0, (4, 4, 1))
    matrix = AFFINE(0.0, down=0.25)
    got = to_numpy(jax.jit(lambda x: resample(x, matrix, sharpness=jnp.inf))(image))
    assert_close(got[1:], (image[1:] + image[:-1]) / 2, 1e-6)


def test_sharpness_lies_between():
    image = random_array(0, (6, 6, 1))
    matrix = AFFINE(25.0)
    call = jax.jit(lambda s: resample(image, matrix, sharpness=s))
    linear, sharper, nearest = (np.asarray(call(s)) for s in (1.0, 3.0, 1e6))
    assert_close(linear, RESAMPLE(image, matrix), 1e-6)
    assert np.linalg.norm(linear) < np.linalg.norm(sharper) < np.linalg.norm(nearest)


@pytest.mark.accelerator
@settings(max_examples=12)
@given(POSES, POSES)
def test_composed_matrices_do_one_after_the_other(first, then):
    first, then = (np.asarray(AFFINE(*pose), np.float64) for pose in (first, then))
    want = np.concatenate([first, [[0, 0, 1]]]) @ np.concatenate([then, [[0, 0, 1]]])
    assert_close(COMPOSE(first, then), want[:2], 1e-5)


def test_resampling_twice_is_resampling_by_the_composed_matrix():
    down, right = np.meshgrid(*[(np.arange(40) - 19.5) / 20] * 2, indexing="ij")
    image = np.exp(-((down + 0.2) ** 2 + (right - 0.1) ** 2) / 0.1)[..., None].astype("float32")
    first, then = AFFINE(20.0, 1.1, 0.2, 0.1, 0.05), AFFINE(-35.0, 0.9, -0.1, 0.0, 0.1)
    twice = RESAMPLE(RESAMPLE(image, first), then)
    assert_close(twice, RESAMPLE(image, COMPOSE(first, then)), 0.02)
    assert relative_error(twice, RESAMPLE(image, COMPOSE(then, first))) > 0.05


def test_a_move_of_whole_pixels_is_exact_and_the_edge_goes_on():
    x = random_array(0, (8, 12, 1))
    got = RESAMPLE(x, AFFINE(0.0, down=0.5, right=-0.25))  # of half the height: 2 and 1 pixels
    rows, columns = np.clip(np.arange(8) - 2, 0, 7), np.clip(np.arange(12) + 1, 0, 11)
    np.testing.assert_allclose(got, x[rows][:, columns], atol=1e-5)


def square(matrix):
    return np.concatenate([np.asarray(matrix, np.float64), [[0.0, 0.0, 1.0]]])


@pytest.mark.accelerator
@given(POSES)
def test_the_inverse_undoes_a_matrix(pose):
    matrix = AFFINE(*pose)
    for product in (
        square(INVERT(matrix)) @ square(matrix),
        square(matrix) @ square(INVERT(matrix)),
    ):
        np.testing.assert_allclose(product, np.eye(3), atol=2e-5)


@pytest.mark.accelerator
def test_matrices_of_many_poses_are_those_of_each():
    poses = 0.3 * random_array(0, (5, 2, 3))
    poses[1] += 1.5
    matrices = to_numpy(AFFINE(*poses))
    assert matrices.shape == (2, 3, 2, 3)
    assert_close(matrices[1, 2], AFFINE(*poses[:, 1, 2]), 1e-6)
    assert_close(to_numpy(INVERT(matrices))[1, 2], INVERT(matrices[1, 2]), 1e-6)
    assert np.array_equal(affine(0.0), np.eye(2, 3))


@settings(max_examples=6)
@given(POSES)
def test_resampling_is_linear_and_leaves_constant_images(pose):
    call, matrix = RESAMPLE, AFFINE(*pose)
    x, y = random_array(0, (2, 5, 7, 2))
    want = 2 * to_numpy(call(x, matrix)) - 3 * to_numpy(call(y, matrix))
    assert_close(call(2 * x - 3 * y, matrix), want, 1e-5)
    constant = np.full((5, 7, 2), 3.0, "float32")
    assert_close(call(constant, matrix), constant, 1e-6)


@pytest.mark.accelerator
def test_axes_in_front_are_resampled_alike():
    x, matrix = random_array(0, (2, 3, 5, 6, 1)), AFFINE(25.0, 1.2)
    one_by_one = jax.vmap(jax.vmap(lambda x: RESAMPLE(x, matrix)))(x)
    assert_close(RESAMPLE(x, matrix), one_by_one, 1e-6)


# The reference: every pixel of the result is a weighted sum of all pixels of the image.


def looked_up(x, matrix):
    height, width, _ = x.shape
    half = height / 2
    i, j = jnp.meshgrid(jnp.arange(1.0 * height), jnp.arange(1.0 * width), indexing="ij")
    point = jnp.stack(
        [(i - (height - 1) / 2) / half, (j - (width - 1) / 2) / half, jnp.ones_like(i)]
    )
    place = jnp.einsum("kl,lij->kij", matrix, point, precision="highest") * half

    def nearness(place, size):
        place = jnp.clip(place + (size - 1) / 2, 0, size - 1)[..., None]
        return jax.nn.relu(1 - jnp.abs(place - jnp.arange(1.0 * size)[None, None]))

    rows, columns = nearness(place[0], height), nearness(place[1], width)
    return jnp.einsum("ijm,ijn,mnc->ijc", rows, columns, x, precision="highest")


def resampled(factors, x, channels=-1):
    """What is there beside poses, and every sample's image as its posed layer sees it."""
    rest = {}
    for path, factor in factors.items():
        if isinstance(factor, Posed):
            matrices = jnp.broadcast_to(factor.matrix, (len(x), 2, 3))
            images = jax.vmap(looked_up)(jnp.moveaxis(x, channels, -1), matrices)
            x, factor = jnp.moveaxis(images, -1, channels), factor.update
        if factor is not None:
            rest[path] = factor
    return rest, x


def assert_sees_resampled(apply, params, factors, x, channels=-1):
    """Compare values, and gradients by weights, poses, factors and input, where all images are seen
    by a posed layer."""

    def reference(params, factors, x):
        rest, x = resampled(factors, x, channels)
        return by_sample(apply, params, rest, x)

    weights = random_array(9, jax.eval_shape(reference, params, factors, x).shape)

    def with_loss(function):
        def loss(*arguments):
            y = function(*arguments)
            return jnp.sum(y * weights), y

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    got, y = with_loss(modulate(apply))(params, factors, x)
    want, expected = with_loss(reference)(params, factors, x)
    assert_close(y, expected, 1e-5)
    assert_close(got, want, 2e-5)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(to_numpy(want[1])))


# Poses of two samples: nothing of them is symmetric, and some of what is seen is beyond the edge.
MATRICES = to_numpy(
    AFFINE(
        *np.array(
            [[20.0, 130.0], [1.1, 0.8], [0.2, -0.1], [0.1, -0.2], [0.05, 0.3]], dtype="float32"
        )
    )
)
IMAGES = random_array(0, (2, 6, 7, 2))


class Convolution(nn.Module):
    strides: int = 1
    transposed: bool = False
    groups: int = 1

    @nn.compact
    def __call__(self, x):
        x = (
            nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="conv")(x)
            if self.transposed
            else nn.Conv(
                4, (3, 3), strides=self.strides, feature_group_count=self.groups, name="conv"
            )(x)
        )
        return nn.Dense(5, name="dense")(jnp.tanh(x).reshape(len(x), -1))


def linen_model(module, x):
    network = linen(module)
    return network.apply, random_params(network.init, x)


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("options", "matrix"),
    [
        ({}, MATRICES),
        ({}, MATRICES[1]),
        ({"strides": 2}, MATRICES),
        ({"groups": 2}, MATRICES),
        ({"transposed": True}, MATRICES),
    ],
    ids=["plain", "shared", "strided", "groups", "transposed"],
)
def test_a_posed_convolution_sees_the_resampled_image(options, matrix):
    apply, params = linen_model(Convolution(**options), IMAGES)
    assert_sees_resampled(apply, params, {"conv/kernel": Posed(matrix)}, IMAGES)


def updates(params, path, rank, batch=(2,)):
    return random_factors(params, {path: rank}, batch)[path]


@pytest.mark.parametrize(("rank", "strides"), [(2, 1), ("whole", 2)])
def test_a_posed_kernel_may_have_an_update_and_other_leaves_theirs(rank, strides):
    apply, params = linen_model(Convolution(strides), IMAGES)
    factors = random_factors(params, {"dense/kernel": 1, "conv/bias": "whole"}, (2,))
    posed = Posed(MATRICES, updates(params, "conv/kernel", rank))
    assert_sees_resampled(apply, params, factors | {"conv/kernel": posed}, IMAGES)


def test_matrix_and_update_may_be_shared_each_for_itself():
    apply, params = linen_model(Convolution(), IMAGES)
    shared = updates(params, "conv/kernel", 2, ())
    own = jax.tree.map(lambda part: np.stack([part] * 2), shared)
    want = modulated(apply, params, {"conv/kernel": Posed(MATRICES, own)}, IMAGES)
    got = modulated(apply, params, {"conv/kernel": Posed(MATRICES, shared)}, IMAGES)
    assert_close(got, want, 1e-6)
    own = updates(params, "conv/kernel", 2)
    want = modulated(
        apply, params, {"conv/kernel": Posed(np.stack([MATRICES[1]] * 2), own)}, IMAGES
    )
    got = modulated(apply, params, {"conv/kernel": Posed(MATRICES[1], own)}, IMAGES)
    assert_close(got, want, 1e-6)


def test_a_posed_leaf_without_base_weights_is_its_update():
    apply, params = linen_model(Convolution(), IMAGES)
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    update = updates(params, "conv/kernel", 2)

    def model(rest, x):
        shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
        posed = {"conv/kernel": Posed(rest["matrix"], rest["update"])}
        weights = {"conv": {"kernel": shape, "bias": bias}, "dense": params["dense"]}
        return jnp.sum(jnp.sin(modulate(apply)(weights, posed, x)))

    def reference(rest, x):
        zeros = {"conv": {"kernel": 0 * kernel, "bias": bias}, "dense": params["dense"]}
        posed = {"conv/kernel": Posed(rest["matrix"], rest["update"])}
        rest, x = resampled(posed, x)
        return jnp.sum(jnp.sin(by_sample(apply, zeros, rest, x)))

    rest = {"matrix": MATRICES, "update": update}
    got, want = (
        jax.jit(jax.value_and_grad(function, (0, 1)))(rest, IMAGES)
        for function in (model, reference)
    )
    assert_close(got, want, 1e-5)
    shapes = {"conv": {"kernel": jax.eval_shape(lambda: kernel), "bias": bias}}
    with pytest.raises(ValueError, match="conv/kernel has neither weights nor factors"):
        modulate(apply)(params | shapes, {"conv/kernel": Posed(MATRICES)}, IMAGES)


@pytest.mark.accelerator
def test_bfloat16_models_see_the_resampled_image():
    apply, params = linen_model(Convolution(), IMAGES)
    posed = Posed(MATRICES, updates(params, "conv/kernel", 2))
    low, x = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), (params, IMAGES))
    factors = {
        "conv/kernel": Posed(
            MATRICES, jax.tree.map(lambda part: part.astype("bfloat16"), posed.update)
        )
    }
    y = modulated(apply, low, factors, x)
    assert y.dtype == jnp.bfloat16
    rest, seen = jax.jit(resampled)(*to_float32((factors, x)))
    assert_close(y, by_sample(apply, to_float32(low), rest, seen), TOLERANCE["bfloat16"])


def test_mixed_precision_casts_a_posed_kernel_as_any_other():
    module = nn.Conv(4, (3, 3), dtype=jnp.bfloat16)
    apply, params = linen_model(module, IMAGES)
    for update in (None, updates(params, "kernel", 2)):
        factors = {"kernel": Posed(MATRICES, update)}
        y = modulated(apply, params, factors, IMAGES)
        assert y.dtype == jnp.bfloat16
        rest, seen = jax.jit(resampled)(factors, IMAGES)
        assert_close(y, by_sample(apply, params, rest, seen), TOLERANCE["bfloat16"])


def test_nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
            self.dense = nnx.Linear(48, 5, rngs=rngs)

        def __call__(self, x):
            return self.dense(jnp.tanh(self.conv(x)).reshape(len(x), -1))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    posed = Posed(MATRICES, updates(params, "conv/kernel", 2))
    assert_sees_resampled(
        lambda params, x: nnx.merge(graph, nnx.State(params))(x),
        params,
        {"conv/kernel": posed},
        IMAGES,
    )


def test_equinox_model_with_channels_first():
    eqx = pytest.importorskip("equinox")
    conv = eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, key=jax.random.key(0))
    params, static = eqx.partition(conv, eqx.is_array)
    x = np.moveaxis(IMAGES, -1, 1)
    factors = {"weight": Posed(MATRICES, updates(params, "weight", 2))}
    assert_sees_resampled(
        lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, factors, x, channels=1
    )


def conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def test_a_layer_within_sees_its_own_input_resampled():
    params = {"first": random_array(1, (3, 3, 2, 3)), "second": random_array(2, (3, 3, 3, 4))}

    def apply(params, x):
        return conv(jnp.tanh(conv(x, params["first"])), params["second"])

    @jax.jit
    def reference(x):
        hidden = jnp.tanh(conv(x, params["first"]))
        return conv(jax.vmap(looked_up)(hidden, MATRICES), params["second"])

    got = modulated(apply, params, {"second": Posed(MATRICES)}, IMAGES)
    assert_close(got, reference(IMAGES), 1e-5)


# Dense layers on all pixels.


class DenseOnPixels(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(5, name="dense")(x.reshape(len(x), -1)))


@pytest.mark.accelerator
@pytest.mark.parametrize("rank", [None, 2])
def test_a_posed_dense_layer_sees_the_resampled_image(rank):
    apply, params = linen_model(DenseOnPixels(), IMAGES)
    update = None if rank is None else updates(params, "dense/kernel", rank)
    factors = {"dense/kernel": Posed(MATRICES, update, grid=(6, 7))}
    assert_sees_resampled(apply, params, factors, IMAGES)
    got = modulated(apply, params, factors, IMAGES)

    @jax.jit
    def with_formed_kernel(factors, x):
        return apply(materialize(params, factors), x[None])[0]

    for i in range(2):
        own = jax.tree.map(lambda part, i=i: part[i], factors)
        assert_close(with_formed_kernel(own, IMAGES[i]), to_numpy(got)[i], 1e-5)
    assert_close(modulated(apply, params, factors, IMAGES, allow_materialise=True), got, 1e-6)


def test_a_kernel_on_pixels_may_be_on_the_left():
    """`[out, in]`, as Equinox keeps it, and vectors that are images along another axis."""
    params = {"W": random_array(1, (5, 84))}

    def apply(params, x):
        return jax.vmap(lambda x: jnp.tanh(params["W"] @ x))(x)

    x = 0.1 * random_array(2, (2, 84, 3))  # three images a sample
    got = modulated(apply, params, {"W": Posed(MATRICES, grid=(6, 7))}, x)
    images = x.reshape(2, 6, 7, 2 * 3)
    seen = to_numpy(jax.jit(jax.vmap(looked_up))(images, MATRICES))
    assert_close(got, np.tanh(params["W"] @ seen.reshape(x.shape)), 1e-5)


def test_a_formed_kernel_is_a_product_of_matrices():
    kernel, matrix = random_array(0, (30, 4)), MATRICES[0]
    pixels = np.eye(30, dtype="float32").reshape(30, 5, 3, 2)
    looking = to_numpy(jax.jit(jax.vmap(looked_up, (0, None)))(pixels, matrix)).reshape(30, 30)
    got = jax.jit(lambda *a: composed(*a, (5, 3)))(kernel, matrix)
    assert_close(got, looking @ kernel, 1e-5)


# Programs within the program, and what is not formed.


PROGRAMS = {
    "jit": lambda conv, x: jax.jit(conv)(x),
    "checkpoint": lambda conv, x: jnp.sin(jax.checkpoint(conv)(x)),
    "cond": lambda conv, x: lax.cond(
        x[0, 0, 0, 0] > 0, lambda x: conv(2 * x), lambda x: conv(x - 1), x
    ),
    "loop": lambda conv, x: lax.fori_loop(0, 2, lambda _, y: jnp.sin(conv(y)), x),
    "scan": lambda conv, x: lax.scan(lambda y, t: (jnp.cos(conv(y)) * t, t), x, jnp.ones(2))[0],
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_posed_kernel_in_programs_within_the_model(program):
    params = {"K": random_array(1, (3, 3, 2, 2)), "W": random_array(2, (3, 3, 2, 2))}
    factors = {"K": Posed(MATRICES, updates(params, "K", 1)), "W": Posed(MATRICES[::-1])}

    def apply(params, x, look=lambda x, path: x):
        return program(
            lambda x: conv(look(x, "K"), params["K"]) + conv(look(x, "W"), params["W"]), x
        )

    def reference(x):
        def one(i):
            poses = {"K": MATRICES[i], "W": MATRICES[1 - i]}
            update = {"K": jax.tree.map(lambda part: part[i : i + 1], factors["K"].update)}
            return by_sample(
                lambda params, x: apply(
                    params, x, lambda x, path: looked_up(x[0], poses[path])[None]
                ),
                params,
                update,
                x[i : i + 1],
            )

        return jnp.concatenate([one(0), one(1)])

    assert_close(modulated(apply, params, factors, IMAGES), jax.jit(reference)(IMAGES), 1e-5)


@pytest.mark.parametrize("rank", [None, 1])
def test_no_kernel_of_a_posed_convolution_is_formed(rank):
    x = random_array(0, (2, 3, 3, 32))
    apply, params = linen_model(nn.Conv(32, (3, 3)), x)
    factors = {"kernel": Posed(MATRICES, None if rank is None else updates(params, "kernel", rank))}
    assert_no_full_kernel(apply, params, factors, x, "kernel")
    formed = {"kernel": Posed(MATRICES, updates(params, "kernel", "whole"))}
    with pytest.raises(AssertionError):
        assert_no_full_kernel(apply, params, formed, x, "kernel")


@pytest.mark.parametrize("rank", [None, 1])
def test_no_kernel_of_a_posed_dense_layer_is_formed(rank):
    apply, params = linen_model(DenseOnPixels(), IMAGES)
    update = None if rank is None else updates(params, "dense/kernel", rank)

    def loss(params, matrix, x):
        factors = {"dense/kernel": Posed(matrix, update, grid=(6, 7))}
        return jnp.sum(modulate(apply)(params, factors, x) ** 2)

    largest = largest_intermediate(jax.grad(loss, (0, 1)), params, MATRICES, IMAGES)
    assert largest < 2 * params["dense"]["kernel"].size


# Errors.


def posed(function, shape, **options):
    """Modulate a function of a kernel `W` that is posed."""
    params = {"W": random_array(0, shape)}

    def call(matrix, x, **more):
        return modulate(function, **more)(params, {"W": Posed(matrix, **options)}, x)

    return call


def test_a_posed_convolution_is_no_ordinary_one():
    _, params = linen_model(Convolution(), IMAGES)
    with pytest.raises(ValueError, match="conv/kernel: expected a dense layer's kernel whose pose"):
        materialize(params, {"conv/kernel": Posed(MATRICES[0])})
    with pytest.raises(
        ValueError, match=r"dense/kernel: expected .* whose pose has a grid, got .* grid None"
    ):
        materialize(params, {"dense/kernel": Posed(MATRICES[0])})


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        ("max", lambda p, x: x @ jnp.maximum(p["W"], 0.0)),
        ("transpose", lambda p, x: x @ p["W"].T),
        ("dot_general", lambda p, x: x @ (p["W"] @ p["W"])),
    ],
)
def test_other_operations_on_a_posed_kernel_name_it(operation, function):
    call = posed(function, (12, 12), grid=(3, 4))
    message = rf"W: expected .* got the operation '{operation}' \(in "
    with pytest.raises(ValueError, match=message + r".*test_geometry\.py"):
        call(MATRICES, random_array(1, (2, 12)))


def test_a_posed_kernel_is_scaled_and_added():
    call = posed(lambda p, x: x @ (2 * p["W"] + 1), (12, 5), grid=(3, 4))
    x = random_array(1, (2, 12))
    W = random_array(0, (12, 5))
    formed = to_numpy(jax.jit(jax.vmap(lambda matrix: composed(W, matrix, (3, 4))))(MATRICES))
    assert_close(jax.jit(call)(MATRICES, x), np.einsum("ni,nio->no", x, 2 * formed + 1), 1e-5)


def test_returning_a_posed_kernel_is_refused():
    call = posed(lambda p, x: p["W"], (12, 5), grid=(3, 4))
    with pytest.raises(ValueError, match="linear in a generated kernel, got returning it"):
        call(MATRICES, random_array(1, (2, 12)))


def test_other_operations_may_form_the_kernel_where_that_is_allowed():
    function = lambda p, x: x @ jnp.maximum(p["W"], 0.0)  # noqa: E731
    x = random_array(1, (2, 12))
    call = posed(function, (12, 5), grid=(3, 4))
    got = jax.jit(lambda matrix, x: call(matrix, x, allow_materialise=True))(MATRICES, x)
    W = random_array(0, (12, 5))
    formed = to_numpy(jax.jit(jax.vmap(lambda matrix: composed(W, matrix, (3, 4))))(MATRICES))
    assert_close(got, np.einsum("ni,nio->no", x, np.maximum(formed, 0)), 1e-5)
    call = posed(lambda p, x: jnp.sum(p["W"]) * x, (3, 3, 2, 2))
    with pytest.raises(ValueError, match="has no kernel of its own"):
        call(MATRICES, IMAGES, allow_materialise=True)


def test_layers_that_see_no_image_cannot_be_posed():
    x = random_array(1, (2, 12))
    product = lambda p, x: x @ p["W"]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"images of 5 x 2 pixels, the pose's grid, got vectors of "
    ):
        posed(product, (12, 5), grid=(5, 2))(MATRICES, x)
    with pytest.raises(
        ValueError, match=r"got the operation 'dot_general' .* or, with a grid, for a"
    ):
        posed(product, (12, 5))(MATRICES, x)

    def along(p, x):
        layout = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(x, p["W"], (1,), "SAME", dimension_numbers=layout)

    with pytest.raises(
        ValueError, match=r"got the .* 'conv_general_dilated' .* convolution over two"
    ):
        posed(along, (3, 2, 4))(MATRICES, random_array(1, (2, 8, 2)))


@pytest.mark.parametrize("shape", [(3, 3), (6,), (3, 3, 2), (2, 3, 2, 3)])
def test_matrices_of_other_shapes_are_refused(shape):
    apply, params = linen_model(Convolution(), IMAGES)
    with pytest.raises(
        ValueError, match=r"expected the pose of conv/kernel to be of shape \(2, 3\)"
    ):
        modulate(apply)(params, {"conv/kernel": Posed(np.ones(shape, "float32"))}, IMAGES)


def test_an_update_of_another_shape_is_refused():
    apply, params = linen_model(Convolution(), IMAGES)
    wrong = Posed(MATRICES, np.ones((2, 3, 3, 2, 5), "float32"))
    with pytest.raises(ValueError, match="expected the whole of conv/kernel to be of shape"):
        modulate(apply)(params, {"conv/kernel": wrong}, IMAGES)
    with pytest.raises(ValueError, match="expected the factors of one sample"):
        materialize(params, {"dense/kernel": Posed(MATRICES[0], np.ones((2, 168, 5)), (6, 7))})


# Specifications, and generated poses.


class TinyExecutor(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(3, (3, 3), name="conv")(x))
        return nn.Dense(4, name="dense")(x.reshape(len(x), -1))


RANKS = {"conv/kernel": "pose", "dense/kernel": 2}


def tiny_straw(ranks=RANKS, **options):
    return make_straw(TinyExecutor(), IMAGES, rank=ranks, hidden=8, **{"base": "trained"} | options)


@pytest.mark.parametrize("leading", [(), (3,), (2, 4)])
def test_unpack_and_pack_are_inverse(leading):
    spec = tiny_straw().spec
    assert spec.size == 6 + 2 * (126 + 4)
    vector = random_array(0, (*leading, spec.size))
    factors = spec.unpack(vector)
    assert isinstance(factors["conv/kernel"], Posed)
    assert isinstance(factors["dense/kernel"], Factors)
    flat = factors["conv/kernel"].matrix.reshape(*leading, 6)
    assert np.array_equal(flat, vector[..., :6])
    assert np.array_equal(spec.pack(factors), vector)


def test_the_table_counts_a_pose_as_six_numbers():
    lines = {line.split()[0]: line.split() for line in str(tiny_straw().spec).splitlines()}
    assert lines["conv/kernel"][1:] == ["3x3x2x3", "pose", "54", "6", "0.111"]
    assert lines["total"][1:] == ["558", "266", f"{266 / 558:.3f}"]


def test_a_specification_refuses_what_is_no_pose_of_its_own():
    spec = tiny_straw().spec
    factors = spec.unpack(np.zeros(spec.size, "float32"))
    update = Posed(factors["conv/kernel"].matrix, np.zeros((3, 3, 2, 3), "float32"))
    for wrong in (Posed(np.zeros((3, 2))), np.zeros((3, 3, 2, 4)), update):
        with pytest.raises(
            ValueError, match=r"conv/kernel to end in shapes \[\(2, 3\)\] \(rank po"
        ):
            spec.pack(factors | {"conv/kernel": wrong})


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            {"dense/kernel": "pose"},
            r"rank 'pose' to be a convolution's kernel of four axes, got dens",
        ),
        ({"*": "pose"}, r"kernel of four axes, got conv/bias of shape \(3,\)"),
        ({"conv/kernel": "posed"}, r"of at least 1, or 'whole', or 'pose', got 'posed'"),
    ],
)
def test_ranks_that_are_none(ranks, message):
    _, params = linen_model(TinyExecutor(), IMAGES)
    with pytest.raises(ValueError, match=message):
        factor_spec(params, ranks)


def test_untrained_poses_change_nothing():
    straw = tiny_straw()
    params = jax.jit(straw.init)(jax.random.key(1))
    want = jax.jit(TinyExecutor().apply)({"params": params["executor"]}, IMAGES)

    def loss(params):
        y = straw.apply(params, IMAGES)
        return jnp.sum(jnp.sin(y)), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert_close(y, want, 1e-5)
    poses = jax.jit(straw.factors)(params, IMAGES)["conv/kernel"].matrix
    assert np.array_equal(poses, np.stack([np.eye(2, 3)] * 2))
    of_poses = to_numpy(gradient["generator"]["conv.kernel.pose"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_poses))


@pytest.mark.accelerator
def test_each_sample_is_seen_in_its_own_pose():
    straw = tiny_straw(scale=0.5)
    params = random_params(straw.init)
    logits = to_numpy(jax.jit(straw.apply)(params, IMAGES))
    factors = to_numpy(dict(jax.jit(straw.factors)(params, IMAGES)))
    matrices = factors.pop("conv/kernel").matrix
    assert relative_error(matrices[0], matrices[1]) > 0.01

    @jax.jit
    def one(matrix, factors, x):
        weights = materialize(params["executor"], factors, scale=0.5)
        return TinyExecutor().apply({"params": weights}, looked_up(x, matrix)[None])[0]

    for i in range(2):
        own = jax.tree.map(lambda part, i=i: part[i], factors)
        assert_close(logits[i], one(matrices[i], own, IMAGES[i]), 2e-5)
    with pytest.raises(ValueError, match="has no kernel of its own"):
        jax.eval_shape(straw.merge, params, IMAGES[0])


def test_a_pose_is_no_weight_where_all_have_to_be_generated():
    ranks = {"conv/kernel": "pose", "*/kernel": 2, "*/bias": "whole"}
    with pytest.raises(
        ValueError, match=r"every leaf must be generated, got no rank for \['conv/k"
    ):
        tiny_straw(ranks, base="none")


@pytest.mark.parametrize(
    ("image", "matrix"), [((5, 5, 1), (2, 2)), ((3, 5, 5, 1), (3, 2, 3)), ((5, 5), (2, 3))]
)
def test_shapes_that_are_not_resampled(image, matrix):
    with pytest.raises(ValueError, match=r"expected an image \[\.\.\., h, w, c\] and a matrix"):
        resample(np.ones(image, "float32"), np.ones(matrix, "float32"))


def test_integers_are_not_resampled():
    with pytest.raises(ValueError, match="expected pixels of a floating-point type, got uint8"):
        resample(np.zeros((4, 4, 1), np.uint8), AFFINE(10.0))


def test_a_grid_of_a_list_is_as_good_as_of_a_tuple():
    posed = Posed(AFFINE(10.0), grid=[np.int64(2), 3])
    assert posed.grid == (2, 3)
    assert hash(jax.tree.structure(posed)) == hash(jax.tree.structure(Posed(0, grid=(2, 3))))
