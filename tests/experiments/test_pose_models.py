"""Models of poses as the study trains them, and the rule: labels only for upright images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from reference import assert_close, random_array, relative_error

from straw_experiments.data.variants import rotate
from straw_experiments.image_classification import networks
from straw_experiments.image_classification.models import build_model, straw_of
from straw_experiments.image_classification.networks import parameters
from straw_experiments.image_classification.step import as_input, make_train_step
from straw_experiments.runner.state import State, training_key
from straw_jax import CompactCNN, PoseEncoder, affine, pose, resample
from straw_jax.pose import ANGLES

RESAMPLE = jax.jit(jax.vmap(resample))


@functools.partial(jax.jit, static_argnums=1)
def perturbed(params, by):
    return jax.tree.map(lambda p: p + by * random_array(p.size, p.shape), params)


# The rule: labels are used on upright images only.

LABELS = np.array([0, 2, 1, 1], np.int32)
REAL = np.array([True, True, True, False])
BATCH = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)


SMALL = functools.partial(CompactCNN, stages=((8,), (16,)))


def small(name, executor=SMALL, make=build_model):
    """A model with a smaller executor and a smaller pose encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "CompactCNN", executor)
        for module in (networks, pose):
            patch.setattr(module, "PoseEncoder", functools.partial(PoseEncoder, features=(8, 16)))
        return make(name, classes=3, rank=1, base="trained", image=(8, 8, 1))


@functools.cache
def start(name):
    return jax.jit(small(name).init)(jax.random.key(0), as_input(BATCH))


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(nn.log_softmax(logits), jnp.asarray(labels)[:, None], 1)[:, 0]


@functools.cache
def spied_step(name):
    """A training step of plain gradient descent, and the images of each of its losses."""
    model, inputs = small(name), {"labelled": [], "unlabelled": []}

    def keep(kind, images):
        jax.debug.callback(lambda images: inputs[kind].append(np.array(images)), images)

    def apply(variables, images, key):
        keep("labelled", images)
        return model.apply(variables, images, key)

    def unlabelled(variables, images, key):
        keep("unlabelled", images)
        return model.unlabelled(variables, images, key)

    spied = model._replace(apply=apply, unlabelled=unlabelled)
    return make_train_step(spied, optax.sgd(1.0)), inputs


def gradient_of_step(name, images=BATCH, labels=LABELS):
    step, inputs = spied_step(name)
    for images_of in inputs.values():
        images_of.clear()
    variables = jax.tree.map(jnp.array, start(name))
    opt_state = optax.sgd(1.0).init(variables["params"])
    state, metrics = step(
        State(jnp.int32(0), variables, opt_state), training_key(0), images, labels, REAL
    )
    jax.effects_barrier()
    after = state.variables["params"]
    gradient = jax.tree.map(lambda a, b: a - b, start(name)["params"], after)
    return gradient, {kind: list(images_of) for kind, images_of in inputs.items()}, metrics


KEY = jax.random.fold_in(training_key(0), 0)  # of the first step


@functools.cache
def plain_gradient():
    """Of the executor alone, on the upright images that are real, sample by sample."""
    keys = jax.random.split(KEY, 4)
    images = as_input(BATCH)

    def loss(weights):
        losses = [
            cross_entropy(
                SMALL(3).apply(
                    {"params": weights}, images[i : i + 1], train=True, rngs={"dropout": keys[i]}
                ),
                LABELS[i : i + 1],
            )
            for i in range(3)
        ]
        return jnp.concatenate(losses).mean()

    return jax.jit(jax.grad(loss))(start("geometric")["params"]["executor"])


@functools.cache
def encoder_gradient(of_labels):
    """Of the encoder's loss on images alone, or of the labels' loss on upright images."""
    model, images = small("geometric_refined"), as_input(BATCH)
    params = start("geometric")["params"]

    def loss(encoder):
        variables = {"params": params | {"encoder": encoder}}
        if not of_labels:
            return model.unlabelled(variables, images, jax.random.fold_in(KEY, 0))[:3].mean()
        return cross_entropy(model.apply(variables, images, KEY)[0], LABELS)[:3].mean()

    return jax.jit(jax.grad(loss))(params["encoder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["geometric", "geometric_refined"])
def test_labels_are_used_on_upright_images_only(name):
    gradient, inputs, metrics = gradient_of_step(name)
    assert [len(images) for images in inputs.values()] == [1, 1]
    for images in inputs["labelled"] + inputs["unlabelled"]:
        np.testing.assert_allclose(images, as_input(BATCH), atol=1e-6)
    assert metrics.samples == 3
    assert_close(gradient["executor"], plain_gradient(), 1e-4)
    parts = [encoder_gradient(of_labels=False)]
    if name == "geometric_refined":
        parts.append(encoder_gradient(of_labels=True))
    for part in parts:
        assert np.abs(part["angles"]["kernel"]).max() > 1e-4
    assert_close(gradient["encoder"], jax.tree.map(lambda *leaves: sum(leaves), *parts), 1e-4)


def test_what_is_learnt_without_labels_does_not_change_with_them():
    gradient, *_ = gradient_of_step("geometric")
    other, *_ = gradient_of_step("geometric", labels=LABELS[::-1].copy())
    assert_close(other["encoder"], gradient["encoder"], 1e-6)
    assert relative_error(other["executor"]["fc"]["bias"], gradient["executor"]["fc"]["bias"]) > 0.1


def test_an_executor_learns_from_the_likeliest_pose_and_is_tested_with_all():
    executor, images = functools.partial(SMALL, dropout=0.0), as_input(BATCH)
    model, refined = (small(name, executor) for name in ("geometric", "geometric_refined"))
    straw = small("geometric", executor, make=straw_of)
    params = perturbed(start("geometric")["params"], 0.3)
    styles = jax.jit(straw.styles)(params, images)
    assert np.exp(styles[:, 6]).min() > 1e-3  # a second hypothesis of some confidence

    def logits(model, key):
        return jax.jit(lambda: model.apply({"params": params}, images, key)[0])()

    likeliest = jax.jit(straw.apply_styles)(params, styles[:, :6], images)
    assert_close(logits(model, jax.random.key(0)), likeliest, 1e-5)
    assert relative_error(logits(model, None), likeliest) > 1e-4
    assert_close(logits(model, None), logits(refined, jax.random.key(0)), 1e-5)


def test_fillers_count_in_neither_loss():
    gradient, _, metrics = gradient_of_step("geometric")
    images, labels = BATCH.copy(), LABELS.copy()
    images[3], labels[3] = 255 - images[3], 2
    other, _, again = gradient_of_step("geometric", images, labels)
    assert_close(other, gradient, 1e-5)
    assert_close(again, metrics, 1e-5)


# Baselines.


def test_augmented_training_rotates_labelled_images_and_testing_does_not():
    executor, images = functools.partial(SMALL, dropout=0.0), as_input(BATCH)
    model = small("compact_augmented", executor)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    plain = jax.jit(lambda images: executor(3).apply(variables, images))
    call = jax.jit(lambda key: model.apply(variables, images, key)[0])
    key = jax.random.key(7)
    assert_close(call(None), plain(images), 1e-5)
    rotated, poses = pose.in_random_poses(images, ANGLES, jax.random.fold_in(key, 1))
    assert np.abs(poses[:, 0]).max() > 5
    assert_close(call(key), plain(rotated), 1e-5)
    assert relative_error(call(key), plain(images)) > 1e-2
    assert relative_error(call(key), call(jax.random.key(8))) > 1e-2
    assert model.unlabelled is None


def test_a_fan_is_tested_with_the_mean_of_its_rotations_and_trained_without():
    model, static, images = small("compact_fan"), small("compact_static"), as_input(BATCH)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    plain = jax.jit(lambda images: static.apply(variables, images, None)[0])
    total = 0.0
    for degrees in range(-60, 61, 15):
        rotated = RESAMPLE(images, affine(np.full(4, float(degrees))))
        total += np.asarray(nn.softmax(plain(rotated)), np.float64)
    assert_close(
        jax.jit(lambda: model.apply(variables, images, None)[0])(), np.log(total / 9), 1e-5
    )
    got, want = (
        jax.jit(lambda key, m=m: m.apply(variables, images, key)[0])(jax.random.key(3))
        for m in (model, static)
    )
    assert jnp.array_equal(got, want)
    assert model.unlabelled is None


def test_the_same_network_may_learn_from_labels_alone():
    stn, image = build_model("geometric_stn", classes=47, rank=4, base="trained"), (28, 28, 1)
    assert stn.unlabelled is None
    for name in ("geometric", "geometric_refined"):
        model = build_model(name, classes=47, rank=4, base="trained")
        assert model.unlabelled is not None
        assert parameters(model, image) == parameters(stn, image)


def test_an_encoder_of_more_than_angles_is_trained_on_all_numbers_of_a_pose():
    model, images = small("geometric_affine"), as_input(BATCH)
    straw = small("geometric_affine", make=straw_of)
    params = perturbed(start("geometric_affine")["params"], 0.1)
    seen = np.asarray(jax.jit(straw.styles)(params, images)).reshape(4, 3, 6)
    assert np.abs(seen[:, 0, 1:]).min() > 1e-4

    def loss(params):
        return jnp.sum(model.unlabelled({"params": params}, images, jax.random.key(0)))

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]["others"]["kernel"]
    assert np.all(np.any(np.asarray(gradient).reshape(-1, 4), axis=0))


@pytest.mark.slow
def test_the_context_models_encoder_learns_poses():
    model, images = small("compact_context"), as_input(BATCH)
    straw = small("compact_context", make=straw_of)
    params = start("compact_context")["params"]
    styles = jax.jit(straw.styles)
    before = styles(params, images)
    assert before.shape == (4, 32)
    other = perturbed(params, 0.1)
    assert relative_error(styles(params | {"encoder": other["encoder"]}, images), before) > 0.1
    assert relative_error(styles(other | {"encoder": params["encoder"]}, images), before) < 1e-6

    def loss(params):
        return jnp.sum(model.unlabelled({"params": params}, images, jax.random.key(0)))

    gradient = jax.jit(jax.grad(loss))(other)
    for part in ("executor", "generator"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[part]))
    style = gradient["encoder"].pop("style")
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(style))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))


# The library's rotations and those of the test sets.


@pytest.mark.parametrize("degrees", [-60.0, -25.0, 40.0])
def test_images_rotate_in_the_direction_of_the_test_sets(degrees):
    down, right = np.meshgrid(*[(np.arange(28) - 13.5) / 14] * 2, indexing="ij")
    places = ((-0.5, 0.1), (0.2, 0.5), (0.1, -0.2))
    image = sum(np.exp(-((down - i) ** 2 + (right - j) ** 2) / 0.045) for i, j in places)
    image = image.astype(np.float32)[None, ..., None]
    rotated = rotate(image, np.array([degrees])).ravel()

    def likeness(degrees):
        return np.corrcoef(RESAMPLE(image, affine(jnp.array([degrees]))).ravel(), rotated)[0, 1]

    assert likeness(degrees) > 0.97
    assert likeness(-degrees) < 0.8


@pytest.mark.parametrize("degrees", [-50.0, 20.0])
def test_infinitely_sharp_is_the_nearest_pixel_as_in_the_test_sets(degrees):
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 9, 1), np.uint8)
    want = rotate(image, np.array([degrees]))[0]
    rotated = jax.jit(lambda x: resample(x, affine(degrees), sharpness=jnp.inf))
    got = rotated(jnp.asarray(image[0], jnp.float32))
    inside = rotate(np.ones_like(image), np.array([degrees]))[0] > 0
    np.testing.assert_allclose(np.asarray(got)[inside], want[inside], atol=1e-2)
