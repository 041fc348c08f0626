import numpy as np
import pytest
from scipy import ndimage

from straw_experiments.data import variants
from straw_experiments.data.variants import blur, rotate


def _images(count: int, height: int = 28, width: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)


def test_variants_keep_order_shape_and_the_images_themselves():
    images = _images(5)
    made = variants(images)
    assert list(made) == ["standard", "rotated", "blurred"]
    np.testing.assert_array_equal(made["standard"], images)
    for variant in made.values():
        assert variant.dtype == np.uint8
        assert variant.shape == images.shape
    assert (made["rotated"] != images).any()
    assert (made["blurred"] != images).any()


def test_the_seed_fixes_each_image_whatever_follows_it():
    images = _images(12)
    whole, again, first, other = (
        variants(images),
        variants(images),
        variants(images[:5]),
        variants(images, seed=1),
    )
    for name in ("rotated", "blurred"):
        np.testing.assert_array_equal(whole[name], again[name])
        np.testing.assert_array_equal(whole[name][:5], first[name])
        assert (whole[name] != other[name]).any()


def test_angles_and_sigmas_span_the_article_s_ranges():
    # A dot far from the centre shows the angle; a dot's loss of brightness shows the sigma.
    images = np.zeros((400, 41, 41, 1), np.uint8)
    images[:, 20, 38] = 255
    rotated = variants(images)["rotated"][..., 0]
    image, row, column = np.nonzero(rotated)
    angles = np.rad2deg(np.arctan2(20 - row, column - 20))
    assert len(set(image)) > 350  # Nearest neighbour may lose a lone dot.
    assert -62 < angles.min() < -55
    assert 55 < angles.max() < 62
    peaks = variants(images)["blurred"].max(axis=(1, 2, 3))
    assert peaks.max() == 255  # sigma 0.1 changes nothing,
    assert 31 <= peaks.min() < 40  # sigma 2 spreads almost evenly over 9 pixels.


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3), (360, 0)])
def test_quarter_turns_are_exact(degrees, turns):
    images = _images(3)
    expected = np.rot90(images, turns, axes=(1, 2))
    np.testing.assert_array_equal(rotate(images, np.full(3, float(degrees))), expected)


def test_rotation_equals_scipy_s():
    images = _images(6, 27, 28)
    angles = np.array([-57.3, -31.0, -2.2, 11.9, 44.4, 59.1])
    for image, angle, rotated in zip(images, angles, rotate(images, angles), strict=True):
        expected = ndimage.rotate(
            image[..., 0], angle, reshape=False, order=0, mode="grid-constant"
        )
        # A source that falls on the line between two pixels may round either way.
        assert (rotated[..., 0] == expected).mean() > 0.99


def test_what_comes_from_outside_is_zero():
    white = np.full((1, 28, 28, 1), 255, np.uint8)
    rotated = rotate(white, np.array([45.0]))[0, ..., 0]
    assert rotated[0, 0] == rotated[0, -1] == rotated[-1, 0] == rotated[-1, -1] == 0
    assert (rotated[6:-6, 6:-6] == 255).all()


def test_blur_equals_a_direct_convolution():
    images = _images(5, 9, 7)
    sigmas = np.array([0.1, 0.4, 0.8, 1.3, 2.0])
    for image, sigma, blurred in zip(images, sigmas, blur(images, sigmas), strict=True):
        line = np.exp(-0.5 * (np.array([-1, 0, 1]) / sigma) ** 2)
        kernel = np.outer(line, line) / np.outer(line, line).sum()
        expected = ndimage.convolve(image[..., 0].astype(float), kernel, mode="mirror")
        np.testing.assert_allclose(blurred[..., 0], expected, atol=0.51)


def test_colours_are_transformed_alike():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for name, made in variants(images).items():
        for channel in range(3):
            alone = variants(images[..., channel : channel + 1])[name]
            np.testing.assert_array_equal(made[..., channel], alone[..., 0])


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28, 1), np.float32), np.zeros((2, 28, 28), np.uint8)]
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8 images"):
        variants(images)
