import distortions
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, random_array

from straw_jax.data.variants import rotate
from straw_jax.geometry import affine, resample

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("kind", "amount"), [("rotation", 0), ("scale", 1.0), ("shear", 0.0), ("blur", 0.0)]
)
def test_no_distortion_leaves_images_as_they_are(kind, amount):
    assert amount in distortions.AMOUNTS[kind]
    np.testing.assert_array_equal(distortions.distorted(IMAGES, kind, amount), IMAGES)


def test_images_turn_as_the_test_variant_does():
    turned = distortions.distorted(IMAGES, "rotation", 30)
    np.testing.assert_array_equal(turned, rotate(IMAGES, np.full(3, 30.0)))


@pytest.mark.parametrize(("kind", "amount"), [("scale", 1.3), ("shear", -0.4)])
def test_images_are_resampled_and_rounded(kind, amount):
    found = distortions.distorted(IMAGES, kind, amount)
    want = resample(jnp.asarray(IMAGES, jnp.float32), affine(0.0, **{kind: amount}))
    assert found.dtype == np.uint8
    assert np.abs(found - np.asarray(want)).max() <= 0.5 + 1e-4


def test_weights_after_are_those_of_pixels_before_the_resampling():
    """A unit finds in an image what its weights before find in the resampled one."""
    kernels = np.asarray(random_array(1, (3, 3, 2)))
    before = distortions._placed(kernels, (8, 8))
    assert before.sum() == pytest.approx(kernels.sum(), rel=1e-5)
    matrix, image = affine(25.0, 1.1), random_array(2, (8, 8, 1))
    for weights in before:
        after = distortions._composed(jnp.asarray(weights), matrix)
        want = jnp.sum(weights * resample(image, matrix)[..., 0])
        assert_close(jnp.sum(after * image[..., 0]), want, 1e-5)
