import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference import assert_close, random_array

from straw_experiments.data.variants import rotate
from straw_experiments.image_classification import analysis_figures, distortions
from straw_experiments.image_classification.report import model_name
from straw_experiments.pages import images
from straw_experiments.runner.tables import statistic
from straw_jax.geometry import affine, composed, resample

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
        after = composed(jnp.asarray(weights).reshape(-1, 1), matrix, (8, 8)).reshape(8, 8)
        want = jnp.sum(weights * resample(image, matrix)[..., 0])
        assert_close(jnp.sum(after * image[..., 0]), want, 1e-5)


class Poses:
    """Sees 0 degrees in every image, 30 with a confidence of its own, and -30 with next to none."""

    def __init__(self, second):
        self.second = second

    def apply_styles(self, params, styles, images):
        """Says class 1 where the angle is positive, else class 0."""
        return jnp.where(styles[:, 1:2] > 0, jnp.eye(2)[1], jnp.eye(2)[0])

    def styles(self, params, images):
        hypotheses = np.zeros((3, 6), np.float32)
        hypotheses[:, 0] = np.log([1 - self.second, self.second, 1e-6])
        hypotheses[:, 1] = 0, 30, -30
        return jnp.broadcast_to(hypotheses.ravel(), (len(images), 18))


@pytest.mark.parametrize(("second", "largest"), [(0.04, 15), (0.06, 45)])
def test_poses_are_seen_where_a_hypothesis_counts(second, largest):
    angles = np.array(distortions.AMOUNTS["rotation"])
    labels = np.array([1, 0, 1])
    found = distortions._poses(Poses(second), [{"params": {}}] * 2, [IMAGES] * len(angles), labels)
    assert [each["mean"] for each in found["median"]] == list(np.abs(angles))
    want = (angles >= -15) & (angles <= largest)
    assert [each["mean"] for each in found["share"]] == list(want.astype(float))
    accuracies = [each["mean"] for each in found["told"]]
    np.testing.assert_allclose(accuracies, np.where(angles > 0, 2 / 3, 1 / 3))


def test_confused_pairs_are_of_the_model_that_reads_turned_images_best():
    labels, angles = np.array([0, 0, 1, 2]), distortions.AMOUNTS["rotation"]
    upright, turned = np.array([0, 0, 1, 1]), np.array([1, 0, 0, 2])
    good = [upright if angle == 0 else turned for angle in angles]
    guesses = {"bad": [np.array([2, 2, 2, 0])] * len(angles), "good": good}
    # Others, taken for one another as often upright, are left out.
    (first,) = distortions._confused(guesses, labels, "abc")
    assert first["pair"] == ["a", "b"]
    assert first["upright"] == {"bad": 0.0, "good": 0.0}
    assert first["turned"] == {"bad": 0.0, "good": pytest.approx(0.5)}


def test_tables_of_distortions():
    amounts = {kind: list(each) for kind, each in distortions.AMOUNTS.items()}
    accuracy = {
        kind: {"geometric": [statistic([0.5, 0.5])] * len(each)} for kind, each in amounts.items()
    }
    per_angle = [statistic([1.0, 3.0])] * len(amounts["rotation"])
    confused = {"pair": ["6", "9"], "upright": {"geometric": 0.001}, "turned": {"geometric": 0.02}}
    analysis = {
        "distortions": {
            "amounts": amounts,
            "accuracy": accuracy,
            "seen": {"geometric": {"median": per_angle, "share": per_angle, "told": per_angle}},
            "confused": [confused],
        },
    }
    name = model_name("geometric")
    shear = images.distortion_table(analysis, "shear", [-0.6, -0.4])
    assert shear.splitlines()[0] == "| shear | -0.6 | -0.4 |"
    assert shear.splitlines()[2] == f"| {name} | 50.0 ± 0.0 | 50.0 ± 0.0 |"
    assert images.distorted(analysis, "geometric", "scale", 0.6) == 0.5
    assert f"| {name} | 2.0 ± 1.4 |" in images.pose_table(analysis, "median", [30])
    assert images.pose_figures(analysis, "geometric", "told", [0, 30]) == [2.0, 2.0]
    assert "| 6 9 | 0.10, 2.00 |" in images.confused_table(analysis, ["geometric"])
    assert images.confusion_growth(analysis, "geometric") == pytest.approx(0.019)


@pytest.fixture
def drawn(monkeypatch):
    """What has been drawn: figures, still in memory."""
    figures, save = [], analysis_figures.save
    monkeypatch.setattr(
        analysis_figures, "save", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    return figures


def test_distortions_are_drawn_with_a_panel_a_kind_and_a_line_a_model(drawn, tmp_path):
    models = ("compact_static", "geometric")
    accuracy = {
        kind: {
            model: [statistic([0.1 * (i + 1), 0.05 * i]) for i in range(len(amounts))]
            for model in models
        }
        for kind, amounts in distortions.AMOUNTS.items()
    }
    amounts = {kind: list(each) for kind, each in distortions.AMOUNTS.items()}
    analysis = {
        "dataset": "EMNIST, of a test",
        "images": {"accuracy": 1000},
        "distortions": {"amounts": amounts, "accuracy": accuracy},
    }
    path = tmp_path / "distortions.png"
    analysis_figures.plot_distortions(analysis, path)
    panels = drawn[0].axes
    assert len(panels) == len(amounts)
    for panel, (kind, each) in zip(panels, amounts.items(), strict=True):
        assert kind in panel.get_xlabel()
        lines = {line.get_label(): line for line in panel.lines}
        assert set(lines) == {model_name(model) for model in models}
        x, y = lines[model_name("geometric")].get_data()
        np.testing.assert_allclose(x, each)
        want = [100 * figure["mean"] for figure in accuracy[kind]["geometric"]]
        np.testing.assert_allclose(y, want)
    with Image.open(path) as picture:
        assert picture.width > 1200


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_of_poses_shows_hands_that_turn_as_the_image_does(channels, drawn, tmp_path):
    images = IMAGES[:2].repeat(channels, axis=-1)
    seen = np.zeros((2, 3, 6), np.float32)
    seen[..., 0] = np.log([0.7, 0.29, 0.01])  # too unlikely to be drawn, the last one
    seen[0, :, 1], seen[1, :, 1] = [30, -45, 10], [-20, 40, 0]
    before = np.random.default_rng(1).normal(size=(2, 12, 12))
    shown = {
        "images": images,
        "degrees": [30, -20],
        "seen": seen,
        "resampled": images,
        "before": before,
        "after": np.stack([before, -before]),
        "guesses": np.array([1, 0]),
        "labels": np.array([1, 2]),
    }
    path = tmp_path / "poses.png"
    analysis_figures.plot_poses(shown, "abc", path, dataset="EMNIST, of a test")
    rows = np.array(drawn[0].axes).reshape(3, 5)
    for row, likely in zip(rows[1:], ((-30, 45), (20, -40)), strict=True):
        _, *hands = row[1].lines  # the first is upright
        tips = [np.array(hand.get_data())[:, -1] for hand in hands]
        angles = {float(np.rad2deg(np.arctan2(x, y)).round(3)) for x, y in tips}
        assert angles == set(likely)  # clockwise from upright: a turn to the left is positive
    assert [row[0].get_ylabel() for row in rows[1:]] == ["b", "c"]
    assert [row[0].get_xlabel() for row in rows[1:]] == ["rotated +30°", "rotated -20°"]
    assert [row[2].get_xlabel() for row in rows[1:]] == ["✓ b", "✗ a"]
    after = rows[2][3].images[0].get_array()
    np.testing.assert_allclose(after, -before[0][1:11, 1:11])
    with Image.open(path) as picture:
        assert picture.width > 600
