"""Pose encoders, and executors whose first kernel is composed with the estimated pose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import assert_close, moved, random_array, relative_error, to_numpy

from straw_jax import (
    CompactCNN,
    Network,
    PoseEncoder,
    PoseRange,
    affine,
    linen,
    load_exported,
    make_geometric,
    modulate,
    pose,
    resample,
    save_exported,
)
from straw_jax.pose import ANGLES, PoseEstimate, angles_of, likeliest, pose_loss

IMAGES = random_array(0, (3, 8, 8, 1))
EXECUTOR = CompactCNN(4, stages=((8,), (16,)), dropout=0.5)
ALL_POSES = PoseRange(40.0, 1.3, 0.2, 0.15)
RESAMPLE, AFFINE = jax.jit(jax.vmap(resample)), jax.jit(affine)


@functools.cache
def geometric(poses=ANGLES, hypotheses=3, executor=EXECUTOR):
    encoder = PoseEncoder(poses, features=(8, 16))
    return make_geometric(
        executor,
        IMAGES,
        kernel="conv1/kernel",
        poses=poses,
        hypotheses=hypotheses,
        encoder=encoder,
    )


@functools.cache
def untrained(poses=ANGLES):
    return jax.jit(geometric(poses).straw.init)(jax.random.key(1))


def trained_like(poses=ANGLES):
    """Parameters with which the encoder predicts other poses than upright, and is sure of none."""
    return moved(untrained(poses), 0.3)


def inverse(matrix):
    square = np.concatenate([np.asarray(matrix, np.float64), [[0.0, 0.0, 1.0]]])
    return np.linalg.inv(square)[:2].astype("float32")


@jax.jit
def probabilities(weights, image, matrix):
    """Of the ordinary executor, for an image that is resampled by hand."""
    return nn.softmax(EXECUTOR.apply({"params": weights}, resample(image, matrix)[None])[0])


def mixture(params, style, image):
    """Mean of the executor's probabilities over the hypotheses of an image, by confidence."""
    hypotheses = np.asarray(style, np.float64).reshape(-1, 6)
    confidence = np.exp(hypotheses[:, 0])
    total = 0.0
    for share, (_, degrees, size, shear, down, right) in zip(
        confidence / confidence.sum(), hypotheses, strict=True
    ):
        matrix = AFFINE(degrees, np.exp(size), shear, down, right)
        each = probabilities(params["executor"], image, inverse(matrix))
        total += share * np.asarray(each, np.float64)
    return np.log(total)


# The composition.


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES], ids=["angles", "all"])
def test_untrained_encoders_leave_the_executor_as_it_is(poses):
    straw, params = geometric(poses).straw, untrained(poses)
    want = log_softmax(jax.jit(EXECUTOR.apply)({"params": params["executor"]}, IMAGES))
    assert_close(jax.jit(straw.apply)(params, IMAGES), want, 1e-5)
    upright = np.zeros((3, 6 * 3), "float32")
    assert_close(jax.jit(straw.apply_styles)(params, upright, IMAGES), want, 1e-5)


@pytest.mark.parametrize(("poses", "hypotheses"), [(ANGLES, 1), (ALL_POSES, 3)])
def test_each_hypothesis_is_tried_on_an_image_that_is_brought_upright(poses, hypotheses):
    straw = geometric(poses, hypotheses).straw
    params = trained_like(poses)
    styles = to_numpy(jax.jit(straw.styles)(params, IMAGES))
    assert styles.shape == (3, 6 * hypotheses)
    assert np.all(styles[:, 1] != 0)
    assert np.any(styles.reshape(3, -1, 6)[..., 2:]) == (poses is ALL_POSES)
    y = jax.jit(straw.apply)(params, IMAGES)
    assert_close(jax.jit(straw.apply_styles)(params, styles, IMAGES), y, 1e-6)
    want = np.stack([mixture(params, *each) for each in zip(styles, IMAGES, strict=True)])
    assert_close(y, want, 2e-5)
    eye = np.eye(2, 3, dtype="float32")
    upright = [np.log(to_numpy(probabilities(params["executor"], x, eye))) for x in IMAGES]
    assert relative_error(y, np.stack(upright)) > 1e-3


def test_the_pose_may_be_another_images():
    straw = geometric(hypotheses=1).straw
    params = trained_like()
    others = IMAGES[::-1] + 1.0
    got = jax.jit(lambda x, c: straw.apply(params, x, context=c))(IMAGES, others)
    styles = to_numpy(jax.jit(straw.styles)(params, others))
    want = np.stack([mixture(params, *each) for each in zip(styles, IMAGES, strict=True)])
    assert_close(got, want, 2e-5)
    assert relative_error(got, jax.jit(straw.apply)(params, IMAGES)) > 1e-3


def test_factors_are_the_likeliest_pose_and_are_not_merged():
    straw = geometric().straw
    params = trained_like()
    factors = jax.jit(straw.factors)(params, IMAGES)
    assert list(factors) == ["conv1/kernel"]
    logits = jax.jit(modulate(linen(EXECUTOR).apply))(params["executor"], factors, IMAGES)
    styles = to_numpy(jax.jit(straw.styles)(params, IMAGES))[:, :6]
    want = jax.jit(straw.apply_styles)(params, styles, IMAGES)
    assert_close(log_softmax(logits), want, 1e-5)
    with pytest.raises(ValueError, match="composed with a pose has no kernel of its own"):
        jax.eval_shape(straw.merge, params, IMAGES[0])


def test_it_is_saved_for_batches_of_any_size(tmp_path):
    pytest.importorskip("flatbuffers")
    straw, params = geometric(ALL_POSES).straw, trained_like(ALL_POSES)
    save_exported(tmp_path / "geometric.zip", straw.apply, params, IMAGES[:1])
    predict = load_exported(tmp_path / "geometric.zip", batch_sizes=(4,))
    assert_close(predict(IMAGES), jax.jit(straw.apply)(params, IMAGES), 1e-5)


def test_the_executors_loss_refines_the_encoder():
    straw = geometric().straw
    params = trained_like()
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(straw.apply(p, IMAGES)))))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(to_numpy(gradient)))


@pytest.mark.parametrize("hypotheses", [0, 32])
def test_no_more_hypotheses_than_angles(hypotheses):
    with pytest.raises(ValueError, match=f"expected 1 to 31 hypotheses, .* got {hypotheses}"):
        geometric(hypotheses=hypotheses)


@pytest.mark.parametrize("kernel", ["*/kernel", "conv?/kernel", "conv/kernel"])
def test_one_kernel_is_posed(kernel):
    with pytest.raises(ValueError, match=r"expected the path of one of conv1/kernel.*, got '"):
        make_geometric(EXECUTOR, IMAGES, kernel=kernel)


@pytest.mark.parametrize("sample", [IMAGES[0], (IMAGES, IMAGES)])
def test_a_sample_is_a_batch_of_images(sample):
    with pytest.raises(ValueError, match=r"expected a sample of images \[n, h, w, c\], got"):
        make_geometric(EXECUTOR, sample, kernel="conv1/kernel")


@pytest.mark.parametrize("shape", [(2, 7, 28, 1), (2, 3, 32, 32)])
def test_images_too_small_for_the_encoder_are_refused(shape):
    with pytest.raises(ValueError, match=r"images .* of at least 8 x 8 pixels, got float32 \[2, "):
        jax.eval_shape(PoseEncoder().init, jax.random.key(0), jnp.ones(shape))


def test_no_images_give_no_results():
    straw = geometric(ALL_POSES).straw
    params = jax.eval_shape(straw.init, jax.random.key(0))
    assert jax.eval_shape(straw.apply, params, IMAGES[:0]).shape == (0, 4)


def test_a_model_is_one_leaf_that_can_be_a_static_argument():
    model = geometric()
    assert jax.tree.leaves(model) == [model]
    assert hash(model) == hash(model)


def test_only_a_convolution_can_be_posed():
    with pytest.raises(ValueError, match=r"kernel of four axes, got fc/kernel of shape \(64, 4\)"):
        make_geometric(EXECUTOR, IMAGES, kernel="fc/kernel")


@pytest.mark.parametrize(
    "poses",
    [
        PoseRange(0.0),
        PoseRange(-10.0),
        PoseRange(166.0),
        PoseRange(scale=0.9),
        PoseRange(shear=-0.1),
        PoseRange(shift=-0.1),
    ],
)
def test_ranges_that_are_none(poses):
    with pytest.raises(
        ValueError, match="PoseRange: expected degrees above 0 and at most 165, a s"
    ):
        geometric(poses)


@pytest.mark.parametrize("degrees", [1.0, 60.0, 165.0])
def test_angles_go_beyond_the_range_by_a_margin(degrees):
    angles = angles_of(PoseRange(degrees))
    assert_close(angles, -angles[::-1], 1e-6)
    assert np.all(np.diff(angles) == 5)
    assert degrees + 15 <= angles[-1] < degrees + 20


# Hypotheses.

BINS = angles_of(ANGLES)


def peaks(*which):
    """Logits of a sum of Gaussians: share, angle."""
    sums = sum(share * np.exp(-0.5 * ((BINS - angle) / 4) ** 2) for share, angle in which)
    return np.log(sums + 1e-12).astype("float32")[None]


@pytest.mark.parametrize("poses", [PoseRange(45.0), ALL_POSES])
def test_an_encoder_of_another_range_is_refused(poses):
    with pytest.raises(
        ValueError,
        match=r"expected an encoder that returns a `PoseEstimate` with angles \(3, \d+\)",
    ):
        make_geometric(
            EXECUTOR,
            IMAGES,
            kernel="conv1/kernel",
            poses=poses,
            encoder=PoseEncoder(ANGLES, features=(8,)),
        )


def hypotheses_of(logits, count, others=None):
    return to_numpy(likeliest_of(logits, others, count))


@functools.partial(jax.jit, static_argnums=2)
def likeliest_of(logits, others, count):
    return likeliest(PoseEstimate(logits, others, None), BINS, count)


@pytest.mark.parametrize("angles", [(-31.3, 22.0), (10.0, -40.0), (58.9, -12.2)])
def test_the_likeliest_angles_are_those_of_the_peaks(angles):
    (found,) = hypotheses_of(peaks((0.7, angles[0]), (0.3, angles[1])), 2)
    np.testing.assert_allclose(found[:, 1], angles, atol=0.5)
    np.testing.assert_allclose(np.exp(found[:, 0]), [0.7, 0.3], atol=0.02)
    assert not np.any(found[:, 2:])


@pytest.mark.parametrize("likely", [BINS, (0, 5, 10), (-20, -15), (15, 20), (-5, 0)])
def test_of_angles_that_are_as_likely_the_one_nearest_upright_is_the_maximum(likely):
    """An encoder that knows nothing leaves images as they are."""
    logits = np.where(np.isin(BINS, likely), 0.0, -20.0).astype("float32")[None]
    (found,) = hypotheses_of(logits, 2)
    nearest = min(likely, key=abs)
    near = [angle for angle in likely if abs(angle - nearest) <= 10]
    np.testing.assert_allclose(found[0, 1], np.mean(near), atol=1e-3)
    assert found[0, 0] > -2
    assert np.exp(found[1, 0]) < 1e-5


def test_hypotheses_beyond_the_peaks_count_for_nothing():
    (found,) = hypotheses_of(peaks((0.7, -31.0), (0.3, 22.0)), 4)
    assert np.all(np.exp(found[2:, 0]) < 1e-5)
    assert np.all(np.isfinite(found))


def test_other_numbers_are_those_at_the_chosen_angle():
    others = random_array(1, (1, len(BINS), 4))
    others[..., 1] = 0.01 * BINS
    (found,) = hypotheses_of(peaks((0.7, -31.0), (0.3, 22.0)), 2, others)
    np.testing.assert_allclose(found[:, 3], 0.01 * found[:, 1], atol=1e-6)
    for number, angle in ((0, -31.0), (1, 22.0)):
        near = np.abs(BINS - 5 * np.rint(angle / 5)) <= 10
        weights = np.exp(-0.5 * ((BINS[near] - angle) / 4) ** 2)
        want = np.average(others[0, near], axis=0, weights=weights)
        np.testing.assert_allclose(found[number, 2:], want, atol=1e-3)


def test_the_logits_get_a_gradient_by_angle_and_by_confidence():
    logits = peaks((0.6, -31.3), (0.4, 22.0))
    for number in (0, 1):

        def loss(logits, number=number):
            return likeliest(PoseEstimate(logits, None, None), BINS, 2)[0, 0, number]

        gradient = to_numpy(jax.jit(jax.grad(loss))(logits))
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() > 1e-3
        step = np.float32(1e-2) * gradient / np.linalg.norm(gradient)
        up, down = (float(jax.jit(loss)(logits + each)) for each in (step, -step))
        assert (up - down) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


# The self-supervised loss.


def linear_encoder(poses, inputs, pixels=64):
    """An encoder whose outputs are sums of pixels; its inputs are kept."""
    bins = len(angles_of(poses))

    def apply(params, x):
        jax.debug.callback(lambda x: inputs.append(np.asarray(x, np.float64)), x)
        logits = x.reshape(len(x), -1) @ params["angles"]
        others = None
        if poses.more_than_angles:
            others = (x.reshape(len(x), -1) @ params["others"]).reshape(-1, bins, 4)
        return PoseEstimate(logits, others, None)

    params = {
        "angles": random_array(2, (pixels, bins)),
        "others": random_array(3, (pixels, 4 * bins)),
    }
    return Network(lambda key, x: params, apply), params


def drawn(poses, key, count=3):
    """Poses `[count, 5]` that a step of training draws."""
    return np.asarray(poses.draw(jax.random.split(key)[0], count), np.float64)


def largest(poses):
    """Of each number of a pose that is drawn."""
    return np.array([poses.degrees, np.log(poses.scale), poses.shear, poses.shift, poses.shift])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_poses_are_uniform_but_for_a_share_that_is_upright(share):
    poses = ALL_POSES._replace(upright=share)
    numbers = np.asarray(poses.draw(jax.random.key(0), 4000))
    upright = ~numbers.any(axis=1)
    assert upright.mean() == pytest.approx(share, abs=0.03)
    parts = numbers[~upright] / largest(poses)
    assert np.abs(parts).max() <= 1
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(parts, quantile, axis=0), 2 * quantile - 1, atol=0.1)
    assert np.abs(np.corrcoef(parts.T) - np.eye(5)).max() < 0.1


def spots():
    """Two smooth images `[24, 24, 1]`, which blur and resampling change little, six times each."""
    down, right = np.meshgrid(*[(np.arange(24) - 11.5) / 12] * 2, indexing="ij")
    spot = np.exp(-((down + 0.3) ** 2 + (right - 0.1) ** 2) / 0.08)
    bar = np.exp(-((down - 0.1) ** 2) / 0.06 - (right - 0.1) ** 2 / 0.3)
    return np.stack([spot, bar] * 6)[..., None].astype("float32")


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES])
def test_the_encoders_input_is_images_in_the_poses_that_were_drawn(poses):
    inputs, key, images = [], jax.random.key(6), spots()
    encoder, params = linear_encoder(poses, inputs, 24 * 24)
    jax.jit(lambda x: pose_loss(encoder, params, x, poses, key))(images)
    jax.effects_barrier()
    degrees, size, shear, down, right = drawn(poses, key, 12).T
    rotated = to_numpy(RESAMPLE(images, AFFINE(degrees, np.exp(size), shear, down, right)))
    errors = [relative_error(*pair) for pair in zip(inputs[0], rotated, strict=True)]
    others = [relative_error(*pair) for pair in zip(inputs[0], images, strict=True)]
    assert max(errors) < 0.15
    assert np.median(others) > 0.3


def test_smoothness_does_not_reveal_that_an_image_was_rotated():
    noise = random_array(0, (600, 12, 12, 1))
    roughness = jax.jit(lambda x: jnp.mean(jnp.abs(jnp.diff(x, axis=1)), axis=(1, 2, 3)))
    upright, rotated = AFFINE(np.zeros(600)), AFFINE(np.full(600, 30.0))
    smooth = to_numpy(roughness(RESAMPLE(noise, rotated)))
    assert np.median(to_numpy(roughness(noise))) / np.median(smooth) > 1.5
    in_poses = jax.jit(pose._in_poses)
    before, after = (
        to_numpy(roughness(in_poses(noise, matrices, jax.random.key(1))))
        for matrices in (upright, rotated)
    )
    assert np.median(before) / np.median(after) < 1.25
    assert np.quantile(before, 0.25) < np.median(after) < np.quantile(before, 0.75)


def log_softmax(x):
    return np.log(softmax(np.asarray(x, np.float64)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES, PoseRange(30.0, shear=0.3)])
def test_pose_loss_is_a_cross_entropy_with_the_pose_that_was_drawn(poses):
    inputs, key = [], jax.random.key(5)
    encoder, params = linear_encoder(poses, inputs)
    got = jax.jit(lambda x: pose_loss(encoder, params, x, poses, key))(IMAGES)
    jax.effects_barrier()
    degrees = (numbers := drawn(poses, key))[:, 0]
    angles = angles_of(poses).astype(np.float64)
    pixels = inputs[0].reshape(3, -1)
    target = softmax(-0.5 * ((angles - degrees[:, None]) / 4) ** 2)
    likely = softmax(pixels @ np.asarray(params["angles"], np.float64))
    want = -(target * np.log(likely)).sum(-1)
    if poses is not ANGLES:
        found = (pixels @ np.asarray(params["others"], np.float64)).reshape(3, -1, 4)
        ranges = largest(poses)[1:]
        ranges[ranges == 0] = 1
        errors = ((found - numbers[:, None, 1:]) / ranges) ** 2
        want += (target[..., None] * errors).sum((1, 2))
    assert_close(got, want, 1e-5)


def test_every_key_draws_other_poses_of_every_image():
    inputs = []
    encoder, params = linear_encoder(ANGLES, inputs)
    same = np.stack([IMAGES[0]] * 2)
    call = jax.jit(lambda key: pose_loss(encoder, params, same, ANGLES, key))
    for key in (1, 1, 2):
        call(jax.random.key(key))
        jax.effects_barrier()
    first, again, other = inputs
    assert np.array_equal(first, again)
    assert relative_error(first, other) > 0.1
    assert relative_error(first[0], first[1]) > 0.1


def test_pose_loss_trains_the_encoder_and_not_the_executor():
    model = geometric(ALL_POSES)
    params = trained_like(ALL_POSES)

    def loss(params):
        return jnp.sum(model.pose_loss(params, IMAGES, jax.random.key(0)))

    gradient = to_numpy(jax.jit(jax.grad(loss))(params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["executor"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["encoder"]))


def arrows(count, seed):
    """Images of 12 x 12 pixels: a bar with a dot above at its right, each a little unlike."""
    rng = np.random.default_rng(seed)
    place = (np.arange(12) - 5.5) / 6
    strokes = np.array([(-0.6, 0), (-0.2, 0), (0.2, 0), (0.6, 0), (-0.5, 0.45)])
    strokes = strokes[None] + rng.normal(0, 0.05, (count, 5, 2))
    square = (place[:, None] - strokes[..., :1, None]) ** 2
    square = square + (place - strokes[..., 1:, None]) ** 2
    images = np.exp(-square / (2 * 0.17**2)).sum(1)[..., None]
    return (images + rng.normal(0, 0.05, images.shape)).astype("float32")


def test_the_encoder_learns_angles_without_labels():
    optax = pytest.importorskip("optax")
    encoder = linen(PoseEncoder(features=(8, 16)))
    images, optimizer = jnp.asarray(arrows(256, 0)), optax.adam(1e-2)

    def step(carry, key):
        params, state = carry
        chosen, rotated = jax.random.split(key)
        batch = images[jax.random.randint(chosen, (32,), 0, len(images))]
        gradient = jax.grad(lambda p: pose_loss(encoder, p, batch, ANGLES, rotated).mean())(params)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
            changes, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, changes), state), None

    @jax.jit
    def learn(params):
        keys = jax.random.split(jax.random.key(1), 80)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    degrees = np.linspace(-60, 60, 64, dtype="float32")
    others = RESAMPLE(arrows(64, 1), AFFINE(degrees))

    @jax.jit
    def median_error(params):
        found = likeliest(encoder.apply(params, others), angles_of(ANGLES), 1)[:, 0, 1]
        return jnp.median(jnp.abs(found - degrees))

    params = jax.jit(encoder.init)(jax.random.key(0), images[:1])
    assert median_error(params) > 25
    assert median_error(learn(params)) < 10


def test_the_label_loss_rotates_nothing_at_random():
    """In training, without dropout, nothing depends on the key."""

    def trainings(dropout):
        executor = EXECUTOR.copy(dropout=dropout)
        model, params = geometric(executor=executor), trained_like()
        call = jax.jit(
            lambda key: model.straw.apply(params, IMAGES, train=True, rngs={"dropout": key})
        )
        return tuple(to_numpy(call(jax.random.key(seed))) for seed in (1, 2))

    assert np.array_equal(*trainings(0.0))
    assert relative_error(*trainings(0.5)) > 1e-3
