"""Figures are sound files, and show what the records say."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image
from summaries import CLASSES, MODELS, UNOFFICIAL, VARIANTS, example

from straw_experiments.image_classification import figures, published
from straw_experiments.runner.plots import DPI, drawable


def history_of(models=MODELS, seeds=3, epochs=5):
    generator = np.random.default_rng([len(models), seeds, epochs])
    return [
        {
            "model": model,
            "seed": seed,
            "epoch": epoch,
            "step": 89 * epoch,
            "train": {"loss": generator.uniform(0.5, 4), "accuracy": generator.uniform(0.1, 0.9)},
            "test": {"loss": generator.uniform(0.5, 4), "accuracy": generator.uniform(0.1, 0.9)},
            "images_per_second": 500.0,
            "seconds": 22.5,
        }
        for model in models
        for seed in range(seeds)
        for epoch in range(1, epochs + 1)
    ]


def sheet_of(models=MODELS, samples=4, classes=47):
    generator = np.random.default_rng([len(models), samples, classes])
    images = {v: generator.integers(0, 256, (samples, 28, 28, 1), np.uint8) for v in VARIANTS}
    labels = generator.integers(0, classes, samples)
    wrong = (labels + 1) % classes
    predictions = {
        m: {v: np.where(generator.random(samples) < 0.5, labels, wrong) for v in VARIANTS}
        for m in models
    }
    return images, labels, predictions


def styles_of(count=300, classes=47, spread=1.0):
    generator = np.random.default_rng([count, classes])
    labels = np.arange(count) % classes
    centres = spread * generator.standard_normal((classes, 64))
    styles = np.tanh(centres[labels] + 0.3 * generator.standard_normal((count, 64)))
    return styles.astype(np.float32), labels


def draw_curves(path, models, seeds):
    figures.plot_curves(history_of(models, seeds, epochs=seeds), path, dataset=UNOFFICIAL)


def draw_variants(path, models, seeds):
    figures.plot_variants(example(models, seeds), path)


def draw_samples(path, models, seeds):
    figures.plot_samples(*sheet_of(models, 2 * seeds), CLASSES, path, dataset=UNOFFICIAL)


def draw_styles(path, models, seeds):
    classes = 10 * len(models)
    figures.plot_styles(*styles_of(100 * seeds, classes), CLASSES, path, dataset=UNOFFICIAL)


DRAWINGS = {"curves": draw_curves, "variants": draw_variants, "samples": draw_samples}
DRAWINGS["styles"] = draw_styles


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn during a test, instead of files."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    return drawn


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(("models", "seeds"), [(MODELS[:1], 1), (MODELS[:2], 2), (MODELS, 3)])
def test_figures_are_sound_files(name, models, seeds, tmp_path):
    path, again = tmp_path / f"{name}.png", tmp_path / "again.png"
    DRAWINGS[name](path, models, seeds)
    DRAWINGS[name](again, models, seeds)
    assert path.read_bytes() == again.read_bytes()
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("L"), float)
    assert min(pixels.shape) >= 3 * DPI
    assert max(pixels.shape) <= 12 * DPI
    assert pixels.std() > 10
    # Nothing is cut off: the outermost pixels are background.
    border = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in border)


@pytest.mark.parametrize(
    ("name", "inches"), [("curves", (9.5, 4.2)), ("variants", (8.5, 4.4)), ("styles", (8.0, 7.2))]
)
def test_figures_have_the_size_they_ask_for(name, inches, tmp_path):
    DRAWINGS[name](tmp_path / "a.png", MODELS, 2)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == tuple(round(side * DPI) for side in inches)


@pytest.mark.parametrize("name", DRAWINGS)
def test_titles_name_the_data_set(name, drawn):
    DRAWINGS[name]("unused", MODELS, 2)
    (figure,) = drawn
    assert UNOFFICIAL in figure.get_suptitle()


def test_a_model_has_one_colour_in_all_figures(drawn):
    draw_curves("unused", MODELS, 2)
    draw_variants("unused", MODELS, 2)
    curves, bars = (
        {
            text.get_text(): handle
            for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
        }
        for legend in (figure.legends[0] for figure in drawn)
    )
    colours = {name: curves[name].get_color() for name in ("standalone", "STRAW", "ResNet-34")}
    assert len(set(colours.values())) == 3
    for name, colour in colours.items():
        assert to_hex(bars[name].get_facecolor()) == to_hex(colour)


def test_curves_show_mean_and_range_of_the_seeds(drawn):
    history = history_of(("straw",), seeds=3, epochs=4)
    figures.plot_curves(history, "unused", dataset="glyphs")
    accuracy = drawn[0].axes[0]
    values = np.array([line["test"]["accuracy"] for line in history]).reshape(3, 4)
    solid = next(line for line in accuracy.lines if line.get_linestyle() == "-")
    np.testing.assert_array_equal(solid.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(solid.get_ydata(), 100 * values.mean(0))
    band = accuracy.collections[2].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(100 * values.min())
    assert band.max() == pytest.approx(100 * values.max())
    dashed = next(line for line in accuracy.lines if line.get_linestyle() == "--")
    training = np.array([line["train"]["accuracy"] for line in history]).reshape(3, 4)
    np.testing.assert_allclose(dashed.get_ydata(), 100 * training.mean(0))


def test_curves_take_the_later_of_two_lines(drawn):
    first, second = history_of(("straw",), 1, 1)[0], history_of(("standalone",), 1, 2)[1]
    second = {**second, "model": "straw", "epoch": 1}
    figures.plot_curves([first, second], "unused", dataset="glyphs")
    loss = drawn[0].axes[1]
    solid = next(line for line in loss.lines if line.get_linestyle() == "-")
    assert list(solid.get_ydata()) == [second["test"]["loss"]]


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_epochs_are_ticked_in_whole_numbers(epochs, drawn):
    figures.plot_curves(history_of(epochs=epochs), "unused", dataset="glyphs")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)


def diamonds(figure):
    return [
        float(value)
        for line in figure.axes[0].lines
        if line.get_marker() == "D"
        for value in line.get_ydata()
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_bars_are_the_means(seeds, drawn):
    summary = example(seeds=seeds)
    figures.plot_variants(summary, "unused")
    axes = drawn[0].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    results = summary["results"]
    expected = [100 * results[m][v]["accuracy"]["mean"] for m in MODELS for v in VARIANTS]
    np.testing.assert_allclose(heights, expected)
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for value in expected]
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert ("one seed: no spread" in labels) == (seeds == 1)
    stems = [segment for lines in axes.collections for segment in lines.get_segments()]
    stds = [results[m][v]["accuracy"]["std"] for m in MODELS for v in VARIANTS]
    expected = [] if seeds == 1 else [200 * std for std in stds]
    np.testing.assert_allclose([high - low for (_, low), (_, high) in stems], expected)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"dataset": "EMNIST balanced"}, True),
        ({"dataset": UNOFFICIAL}, True),
        ({"dataset": "glyphs"}, False),
        ({"experiment": None}, False),
    ],
)
def test_published_markers_only_where_they_may_stand(changes, shown, drawn):
    figures.plot_variants(example(**changes), "unused")
    article = published.PUBLISHED["10pct_rank16"]
    expected = [article[v][m][0] for m in MODELS for v in VARIANTS]
    assert diamonds(drawn[0]) == (expected if shown else [])
    legend = " ".join(text.get_text() for text in drawn[0].legends[0].get_texts())
    assert ("article" in legend) == shown


def test_samples_tell_right_from_wrong(drawn):
    images, labels, predictions = sheet_of(samples=5)
    figures.plot_samples(images, labels, predictions, CLASSES, "unused", dataset="glyphs")
    grid = np.array(drawn[0].axes).reshape(5, 3)
    verdicts = set()
    for (row, column), axes in np.ndenumerate(grid):
        assert len(axes.texts) == len(MODELS)
        for text, model in zip(axes.texts, MODELS, strict=True):
            guess = predictions[model][VARIANTS[column]][row]
            mark, *_, name = text.get_text().split()
            assert name == CLASSES[guess]
            right = bool(guess == labels[row])
            verdicts.add((right, mark, text.get_color()))
        np.testing.assert_array_equal(
            axes.images[0].get_array(), images[VARIANTS[column]][row, :, :, 0]
        )
    assert verdicts == {(True, "✓", figures.RIGHT), (False, "✗", figures.WRONG)}
    assert [axes.get_title() for axes in grid[0]] == list(VARIANTS)
    assert [axes.get_ylabel().split()[-1] for axes in grid[:, 0]] == [CLASSES[i] for i in labels]


def test_any_class_name_is_drawn(tmp_path):
    names = ["price_$5_$10", "ampelmännchen_of_the_north", "日本語", "a\\b {c} ^d_"]
    images, labels, predictions = sheet_of(MODELS[:1], samples=3, classes=4)
    figures.plot_samples(images, labels, predictions, names, tmp_path / "x.png", dataset="$a_$b")
    figures.plot_styles(*styles_of(40, 4), names, tmp_path / "y.png", dataset="$a_$b")
    assert (drawable("price_$5", 16), drawable("日本語a")) == (r"price_\$5", "???a")
    assert drawable("ampelmännchen_of_the_north", 16) == "ampelmännchen_o…"


def test_styles_are_drawn_in_their_principal_plane(drawn):
    generator = np.random.default_rng(0)
    plane = generator.standard_normal((400, 2)) * [3.0, 1.0]
    axes_64 = np.linalg.qr(generator.standard_normal((64, 2)))[0]
    labels = np.arange(400) % 3
    figures.plot_styles(plane @ axes_64.T + 5, labels, "abc", "unused", dataset="glyphs")
    axes = drawn[0].axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    share = plane.var(0) / plane.var(0).sum()
    assert len(points) == 400
    np.testing.assert_allclose(points.var(0) / points.var(0).sum(), share, atol=0.01)
    names = {text.get_text(): text for text in axes.texts if text.get_text()}
    assert list(names) == ["a", "b", "c"]
    shown = [
        float(label.split("(")[1].split(" %")[0])
        for label in (axes.get_xlabel(), axes.get_ylabel())
    ]
    assert sum(shown) == pytest.approx(100, abs=0.11)
    # Distances within the plane are kept, so a centroid is where its class is.
    centre = (plane - plane.mean(0))[labels == 1].mean(0)
    assert np.hypot(*names["b"].xy) == pytest.approx(np.hypot(*centre))


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_class_names_do_not_cover_each_other(spread, drawn):
    figures.plot_styles(*styles_of(470, 47, spread), CLASSES, "unused", dataset="glyphs")
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    names = [text for text in drawn[0].axes[0].texts if text.get_text()]
    boxes = [text.get_bbox_patch().get_window_extent() for text in names]
    assert len(boxes) == 47
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_many_styles_are_thinned_and_said_to_be(drawn):
    figures.plot_styles(*styles_of(9_000), CLASSES, "unused", dataset="glyphs")
    assert len(drawn[0].axes[0].collections[0].get_offsets()) == figures.MOST_POINTS
    assert f"9,000 test images ({figures.MOST_POINTS:,} of them drawn)" in drawn[0].get_suptitle()


def test_equal_styles_are_drawn(tmp_path):
    """An untrained encoder may give every image the same style."""
    path = tmp_path / "styles.png"
    figures.plot_styles(np.ones((20, 64)), np.arange(20) % 4, CLASSES, path, dataset="glyphs")
    assert path.stat().st_size > 0
