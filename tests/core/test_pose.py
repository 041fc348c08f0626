"""Eyes that see poses, executors that turn, and the rule: labels only on upright images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from reference import assert_close, random_array, relative_error

from straw_experiments.image_classification import models as contenders
from straw_experiments.image_classification.models import contender, parameters, straw_of
from straw_experiments.image_classification.step import as_input, make_train_step
from straw_experiments.runner.state import State, training_key
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
RESAMPLE = jax.jit(jax.vmap(resample))


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
    """Parameters with which the eye sees other poses than upright, and is sure of none."""
    return perturbed(untrained(poses), 0.3)


@functools.partial(jax.jit, static_argnums=1)
def perturbed(params, by):
    return jax.tree.map(lambda p: p + by * random_array(p.size, p.shape), params)


def inverse(matrix):
    square = np.concatenate([np.asarray(matrix, np.float64), [[0.0, 0.0, 1.0]]])
    return jnp.asarray(np.linalg.inv(square)[:2], jnp.float32)


@jax.jit
def said(weights, image, matrix):
    """Probabilities of the ordinary executor, of an image that is resampled by hand."""
    return nn.softmax(EXECUTOR.apply({"params": weights}, resample(image, matrix)[None])[0])


def mixture(params, style, image):
    """What hypotheses say of one image, one by one, averaged by confidence."""
    hypotheses = np.asarray(style, np.float64).reshape(-1, 6)
    confidence = np.exp(hypotheses[:, 0])
    total = 0.0
    for share, (_, degrees, size, shear, down, right) in zip(
        confidence / confidence.sum(), hypotheses, strict=True
    ):
        seen = affine(degrees, np.exp(size), shear, down, right)
        total += share * np.asarray(said(params["executor"], image, inverse(seen)), np.float64)
    return np.log(total)


# The composition.


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES], ids=["angles", "all"])
def test_untrained_eyes_leave_the_executor_as_it_is(poses):
    straw, params = geometric(poses).straw, untrained(poses)
    want = nn.log_softmax(jax.jit(EXECUTOR.apply)({"params": params["executor"]}, IMAGES))
    assert_close(jax.jit(straw.apply)(params, IMAGES), want, 1e-5)
    upright = jnp.zeros((3, 6 * 3))
    assert_close(jax.jit(straw.apply_styles)(params, upright, IMAGES), want, 1e-5)


@pytest.mark.parametrize(("poses", "hypotheses"), [(ANGLES, 1), (ALL_POSES, 3)])
def test_each_hypothesis_is_tried_on_an_image_that_is_brought_upright(poses, hypotheses):
    straw = geometric(poses, hypotheses).straw
    params = trained_like(poses)
    styles = jax.jit(straw.styles)(params, IMAGES)
    assert styles.shape == (3, 6 * hypotheses)
    assert np.all(styles[:, 1] != 0)
    assert np.any(styles.reshape(3, -1, 6)[..., 2:]) == (poses is ALL_POSES)
    y = jax.jit(straw.apply)(params, IMAGES)
    assert_close(jax.jit(straw.apply_styles)(params, styles, IMAGES), y, 1e-6)
    want = np.stack([mixture(params, *each) for each in zip(styles, IMAGES, strict=True)])
    assert_close(y, want, 2e-5)
    upright = [np.log(said(params["executor"], image, jnp.eye(2, 3))) for image in IMAGES]
    assert relative_error(y, np.stack(upright)) > 1e-3


def test_the_pose_may_be_another_images():
    straw = geometric(hypotheses=1).straw
    params = trained_like()
    others = IMAGES[::-1] + 1.0
    got = jax.jit(lambda x, c: straw.apply(params, x, context=c))(IMAGES, others)
    styles = jax.jit(straw.styles)(params, others)
    want = np.stack([mixture(params, *each) for each in zip(styles, IMAGES, strict=True)])
    assert_close(got, want, 2e-5)
    assert relative_error(got, jax.jit(straw.apply)(params, IMAGES)) > 1e-3


def test_factors_are_the_likeliest_pose_and_are_not_merged():
    straw = geometric().straw
    params = trained_like()
    factors = jax.jit(straw.factors)(params, IMAGES)
    assert list(factors) == ["conv1/kernel"]
    logits = jax.jit(modulate(linen(EXECUTOR).apply))(params["executor"], factors, IMAGES)
    styles = jax.jit(straw.styles)(params, IMAGES)[:, :6]
    want = jax.jit(straw.apply_styles)(params, styles, IMAGES)
    assert_close(nn.log_softmax(logits), want, 1e-5)
    with pytest.raises(ValueError, match="composed with a pose has no kernel of its own"):
        straw.merge(params, IMAGES[0])


def test_it_is_saved_for_batches_of_any_size(tmp_path):
    straw, params = geometric(ALL_POSES).straw, trained_like(ALL_POSES)
    save_exported(tmp_path / "geometric.zip", straw.apply, params, IMAGES[:1])
    predict = load_exported(tmp_path / "geometric.zip", batch_sizes=(4,))
    assert_close(predict(IMAGES), jax.jit(straw.apply)(params, IMAGES), 1e-5)


def test_what_the_executor_says_refines_the_eye():
    straw = geometric().straw
    params = trained_like()
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(straw.apply(p, IMAGES)))))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("hypotheses", [0, 32])
def test_no_more_hypotheses_than_angles(hypotheses):
    with pytest.raises(ValueError, match=f"expected 1 to 31 hypotheses, .* got {hypotheses}"):
        geometric(hypotheses=hypotheses)


@pytest.mark.parametrize("kernel", ["*/kernel", "conv?/kernel", "conv/kernel"])
def test_one_kernel_is_turned(kernel):
    with pytest.raises(ValueError, match=r"expected the path of one of conv1/kernel.*, got '"):
        make_geometric(EXECUTOR, IMAGES, kernel=kernel)


@pytest.mark.parametrize("sample", [IMAGES[0], (IMAGES, IMAGES)])
def test_a_sample_is_a_batch_of_images(sample):
    with pytest.raises(ValueError, match=r"expected a sample of images \[n, h, w, c\], got"):
        make_geometric(EXECUTOR, sample, kernel="conv1/kernel")


@pytest.mark.parametrize("shape", [(2, 7, 28, 1), (2, 3, 32, 32)])
def test_an_eye_that_would_be_blind_is_refused(shape):
    with pytest.raises(ValueError, match=r"of at least 8 x 8 pixels for 3 max-pools, got \(2, "):
        PoseEncoder().init(jax.random.key(0), jnp.ones(shape))


def test_only_a_convolution_can_be_turned():
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
    return jnp.log(jnp.asarray(sums + 1e-12, jnp.float32))[None]


@pytest.mark.parametrize("poses", [PoseRange(45.0), ALL_POSES])
def test_an_eye_of_another_range_is_refused(poses):
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
    return jax.jit(lambda *a: likeliest(PoseEstimate(*a, None), BINS, count))(logits, others)


@pytest.mark.parametrize("angles", [(-31.3, 22.0), (10.0, -40.0), (58.9, -12.2)])
def test_the_likeliest_angles_are_those_of_the_peaks(angles):
    (seen,) = hypotheses_of(peaks((0.7, angles[0]), (0.3, angles[1])), 2)
    np.testing.assert_allclose(seen[:, 1], angles, atol=0.5)
    np.testing.assert_allclose(np.exp(seen[:, 0]), [0.7, 0.3], atol=0.02)
    assert not np.any(seen[:, 2:])


@pytest.mark.parametrize("likely", [BINS, (0, 5, 10), (-20, -15), (15, 20), (-5, 0)])
def test_of_angles_that_are_as_likely_the_one_nearest_upright_is_the_maximum(likely):
    """An eye that knows nothing leaves images as they are."""
    logits = jnp.where(np.isin(BINS, likely), 0.0, -20.0)[None]
    (seen,) = hypotheses_of(logits, 2)
    nearest = min(likely, key=abs)
    near = [angle for angle in likely if abs(angle - nearest) <= 10]
    np.testing.assert_allclose(seen[0, 1], np.mean(near), atol=1e-3)
    assert seen[0, 0] > -2
    assert np.exp(seen[1, 0]) < 1e-5


def test_hypotheses_beyond_the_peaks_count_for_nothing():
    (seen,) = hypotheses_of(peaks((0.7, -31.0), (0.3, 22.0)), 4)
    assert np.all(np.exp(seen[2:, 0]) < 1e-5)
    assert np.all(np.isfinite(seen))


def test_other_numbers_are_those_at_the_chosen_angle():
    others = random_array(1, (1, len(BINS), 4)).at[..., 1].set(0.01 * jnp.asarray(BINS)[None])
    (seen,) = hypotheses_of(peaks((0.7, -31.0), (0.3, 22.0)), 2, others)
    np.testing.assert_allclose(seen[:, 3], 0.01 * seen[:, 1], atol=1e-6)
    for number, angle in ((0, -31.0), (1, 22.0)):
        near = np.abs(BINS - 5 * np.rint(angle / 5)) <= 10
        weights = np.exp(-0.5 * ((BINS[near] - angle) / 4) ** 2)
        want = np.average(others[0, near], axis=0, weights=weights)
        np.testing.assert_allclose(seen[number, 2:], want, atol=1e-3)


def test_the_logits_get_a_gradient_by_angle_and_by_confidence():
    logits = peaks((0.6, -31.3), (0.4, 22.0))
    for number in (0, 1):

        def loss(logits, number=number):
            return likeliest(PoseEstimate(logits, None, None), BINS, 2)[0, 0, number]

        gradient = jax.jit(jax.grad(loss))(logits)
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() > 1e-3
        step = 1e-2 * gradient / jnp.linalg.norm(gradient)
        up, down = jax.jit(loss)(logits + step), jax.jit(loss)(logits - step)
        assert (up - down) / 2e-2 == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-2)


# What the eye learns from.


def linear_eye(poses, seen, pixels=64):
    """An eye whose numbers are sums of pixels; what it looks at is kept."""
    bins = len(angles_of(poses))

    def apply(params, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x, np.float64)), x)
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
    return jnp.asarray(np.stack([spot, bar] * 6)[..., None], jnp.float32)


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES])
def test_the_eye_is_shown_images_in_the_poses_that_were_drawn(poses):
    looked_at, key, images = [], jax.random.key(6), spots()
    eye, params = linear_eye(poses, looked_at, 24 * 24)
    jax.jit(lambda x: pose_loss(eye, params, x, poses, key))(images)
    jax.effects_barrier()
    degrees, size, shear, down, right = drawn(poses, key, 12).T
    turned = RESAMPLE(images, affine(degrees, np.exp(size), shear, down, right))
    errors = [relative_error(*pair) for pair in zip(looked_at[0], turned, strict=True)]
    others = [relative_error(*pair) for pair in zip(looked_at[0], images, strict=True)]
    assert max(errors) < 0.15
    assert np.median(others) > 0.3


def test_an_image_does_not_tell_by_its_looks_that_it_was_turned():
    noise = random_array(0, (600, 12, 12, 1))
    roughness = jax.jit(lambda x: jnp.mean(jnp.abs(jnp.diff(x, axis=1)), axis=(1, 2, 3)))
    upright, turned = affine(jnp.zeros(600)), affine(jnp.full(600, 30.0))
    by_looks = np.median(roughness(noise)) / np.median(roughness(RESAMPLE(noise, turned)))
    assert by_looks > 1.5
    before, after = (
        np.asarray(roughness(pose._in_poses(noise, matrices, jax.random.key(1))))
        for matrices in (upright, turned)
    )
    assert np.median(before) / np.median(after) < 1.25
    assert np.quantile(before, 0.25) < np.median(after) < np.quantile(before, 0.75)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("poses", [ANGLES, ALL_POSES, PoseRange(30.0, shear=0.3)])
def test_pose_loss_is_a_cross_entropy_with_the_pose_that_was_drawn(poses):
    looked_at, key = [], jax.random.key(5)
    eye, params = linear_eye(poses, looked_at)
    got = jax.jit(lambda x: pose_loss(eye, params, x, poses, key))(IMAGES)
    jax.effects_barrier()
    degrees = (numbers := drawn(poses, key))[:, 0]
    angles = angles_of(poses).astype(np.float64)
    pixels = looked_at[0].reshape(3, -1)
    target = softmax(-0.5 * ((angles - degrees[:, None]) / 4) ** 2)
    likely = softmax(pixels @ np.asarray(params["angles"], np.float64))
    want = -(target * np.log(likely)).sum(-1)
    if poses is not ANGLES:
        seen = (pixels @ np.asarray(params["others"], np.float64)).reshape(3, -1, 4)
        ranges = largest(poses)[1:]
        ranges[ranges == 0] = 1
        errors = ((seen - numbers[:, None, 1:]) / ranges) ** 2
        want += (target[..., None] * errors).sum((1, 2))
    assert_close(got, want, 1e-5)


def test_every_key_draws_other_poses_of_every_image():
    looked_at = []
    eye, params = linear_eye(ANGLES, looked_at)
    same = jnp.stack([IMAGES[0]] * 2)
    call = jax.jit(lambda key: pose_loss(eye, params, same, ANGLES, key))
    for key in (1, 1, 2):
        call(jax.random.key(key))
        jax.effects_barrier()
    first, again, other = looked_at
    assert np.array_equal(first, again)
    assert relative_error(first, other) > 0.1
    assert relative_error(first[0], first[1]) > 0.1


def test_pose_loss_teaches_the_eye_and_not_the_executor():
    model = geometric(ALL_POSES)
    params = trained_like(ALL_POSES)

    def loss(params):
        return jnp.sum(model.pose_loss(params, IMAGES, jax.random.key(0)))

    gradient = jax.jit(jax.grad(loss))(params)
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
    return jnp.asarray(images + rng.normal(0, 0.05, images.shape), jnp.float32)


def test_the_eye_learns_angles_without_labels():
    eye = linen(PoseEncoder(features=(8, 16)))
    images, optimizer = arrows(256, 0), optax.adam(1e-2)

    def step(carry, key):
        params, state = carry
        chosen, turned = jax.random.split(key)
        batch = images[jax.random.randint(chosen, (32,), 0, len(images))]
        gradient = jax.grad(lambda p: pose_loss(eye, p, batch, ANGLES, turned).mean())(params)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
            changes, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, changes), state), None

    @jax.jit
    def learn(params):
        keys = jax.random.split(jax.random.key(1), 80)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    degrees = jnp.linspace(-60, 60, 64)
    others = RESAMPLE(arrows(64, 1), affine(degrees))

    @jax.jit
    def median_error(params):
        seen = likeliest(eye.apply(params, others), angles_of(ANGLES), 1)[:, 0, 1]
        return jnp.median(jnp.abs(seen - degrees))

    params = jax.jit(eye.init)(jax.random.key(0), images[:1])
    assert median_error(params) > 25
    assert median_error(learn(params)) < 10


# The rule: labels are only seen on upright images.

LABELS = np.array([0, 2, 1, 1], np.int32)
REAL = np.array([True, True, True, False])
BATCH = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)


SMALL = functools.partial(CompactCNN, stages=((8,), (16,)))


def small(name, executor=SMALL, make=contender):
    """A contender with a smaller executor and a smaller eye."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "CompactCNN", executor)
        for module in (contenders, pose):
            patch.setattr(module, "PoseEncoder", functools.partial(PoseEncoder, features=(8, 16)))
        return make(name, classes=3, rank=1, base="trained", image=(8, 8, 1))


@functools.cache
def start(name):
    return jax.jit(small(name).init)(jax.random.key(0), as_input(BATCH))


def test_the_label_loss_turns_nothing_at_random():
    """In training, without dropout, nothing depends on the key."""

    def trainings(dropout):
        executor = EXECUTOR.copy(dropout=dropout)
        model, params = geometric(executor=executor), trained_like()
        call = jax.jit(
            lambda key: model.straw.apply(params, IMAGES, train=True, rngs={"dropout": key})
        )
        return call(jax.random.key(1)), call(jax.random.key(2))

    assert jnp.array_equal(*trainings(0.0))
    assert relative_error(*trainings(0.5)) > 1e-3


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(nn.log_softmax(logits), jnp.asarray(labels)[:, None], 1)[:, 0]


@functools.cache
def spied_step(name):
    """A training step of plain gradient descent, and what each of its losses looks at."""
    model, looks = small(name), {"labelled": [], "unlabelled": []}

    def keep(kind, images):
        jax.debug.callback(lambda images: looks[kind].append(np.array(images)), images)

    def apply(variables, images, key):
        keep("labelled", images)
        return model.apply(variables, images, key)

    def unlabelled(variables, images, key):
        keep("unlabelled", images)
        return model.unlabelled(variables, images, key)

    spied = model._replace(apply=apply, unlabelled=unlabelled)
    return make_train_step(spied, optax.sgd(1.0)), looks


def gradient_of_step(name, images=BATCH, labels=LABELS):
    step, looks = spied_step(name)
    for images_of in looks.values():
        images_of.clear()
    variables = jax.tree.map(jnp.array, start(name))
    opt_state = optax.sgd(1.0).init(variables["params"])
    state, metrics = step(
        State(jnp.int32(0), variables, opt_state), training_key(0), images, labels, REAL
    )
    jax.effects_barrier()
    after = state.variables["params"]
    gradient = jax.tree.map(lambda a, b: a - b, start(name)["params"], after)
    return gradient, {kind: list(images_of) for kind, images_of in looks.items()}, metrics


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
def eye_gradient(of_labels):
    """Of what the eye learns from images alone, or from labels that are seen as they are."""
    model, images = small("geometric_refined"), as_input(BATCH)
    params = start("geometric")["params"]

    def loss(encoder):
        variables = {"params": params | {"encoder": encoder}}
        if not of_labels:
            return model.unlabelled(variables, images, jax.random.fold_in(KEY, 0))[:3].mean()
        return cross_entropy(model.apply(variables, images, KEY)[0], LABELS)[:3].mean()

    return jax.jit(jax.grad(loss))(params["encoder"])


@pytest.mark.parametrize("name", ["geometric", "geometric_refined"])
def test_labels_are_only_seen_on_upright_images(name):
    gradient, looks, metrics = gradient_of_step(name)
    assert [len(images) for images in looks.values()] == [1, 1]
    for images in looks["labelled"] + looks["unlabelled"]:
        np.testing.assert_allclose(images, as_input(BATCH), atol=1e-6)
    assert metrics.samples == 3
    assert_close(gradient["executor"], plain_gradient(), 1e-4)
    parts = [eye_gradient(of_labels=False)]
    if name == "geometric_refined":
        parts.append(eye_gradient(of_labels=True))
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

    def said(model, key):
        return jax.jit(lambda: model.apply({"params": params}, images, key)[0])()

    likeliest = jax.jit(straw.apply_styles)(params, styles[:, :6], images)
    assert_close(said(model, jax.random.key(0)), likeliest, 1e-5)
    assert relative_error(said(model, None), likeliest) > 1e-4
    assert_close(said(model, None), said(refined, jax.random.key(0)), 1e-5)


def test_fillers_count_in_neither_loss():
    gradient, _, metrics = gradient_of_step("geometric")
    images, labels = BATCH.copy(), LABELS.copy()
    images[3], labels[3] = 255 - images[3], 2
    other, _, again = gradient_of_step("geometric", images, labels)
    assert_close(other, gradient, 1e-5)
    assert_close(again, metrics, 1e-5)


# What it is measured by.


def test_augmented_training_turns_labelled_images_and_testing_does_not():
    executor, images = functools.partial(SMALL, dropout=0.0), as_input(BATCH)
    model = small("compact_augmented", executor)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    plain = jax.jit(lambda images: executor(3).apply(variables, images))
    call = jax.jit(lambda key: model.apply(variables, images, key)[0])
    key = jax.random.key(7)
    assert_close(call(None), plain(images), 1e-5)
    turned, poses = pose.in_random_poses(images, ANGLES, jax.random.fold_in(key, 1))
    assert np.abs(poses[:, 0]).max() > 5
    assert_close(call(key), plain(turned), 1e-5)
    assert relative_error(call(key), plain(images)) > 1e-2
    assert relative_error(call(key), call(jax.random.key(8))) > 1e-2
    assert model.unlabelled is None


def test_a_fan_is_tested_with_the_mean_of_its_rotations_and_trained_without():
    model, static, images = small("compact_fan"), small("compact_static"), as_input(BATCH)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    plain = jax.jit(lambda images: static.apply(variables, images, None)[0])
    total = 0.0
    for degrees in range(-60, 61, 15):
        turned = RESAMPLE(images, affine(np.full(4, float(degrees))))
        total += np.asarray(nn.softmax(plain(turned)), np.float64)
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
    stn, image = contender("geometric_stn", classes=47, rank=4, base="trained"), (28, 28, 1)
    assert stn.unlabelled is None
    for name in ("geometric", "geometric_refined"):
        model = contender(name, classes=47, rank=4, base="trained")
        assert model.unlabelled is not None
        assert parameters(model, image) == parameters(stn, image)


def test_an_eye_for_more_than_angles_is_taught_all_numbers_of_a_pose():
    model, images = small("geometric_affine"), as_input(BATCH)
    straw = small("geometric_affine", make=straw_of)
    params = perturbed(start("geometric_affine")["params"], 0.1)
    seen = np.asarray(jax.jit(straw.styles)(params, images)).reshape(4, 3, 6)
    assert np.abs(seen[:, 0, 1:]).min() > 1e-4

    def loss(params):
        return jnp.sum(model.unlabelled({"params": params}, images, jax.random.key(0)))

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]["others"]["kernel"]
    assert np.all(np.any(np.asarray(gradient).reshape(-1, 4), axis=0))


def test_a_context_is_written_by_an_eye_that_learns_poses():
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
