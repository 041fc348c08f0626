"""The report says what the summary says, and the article's figures stand only where they may."""

import itertools
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from straw_jax.training import report

MODELS = ("standalone", "straw", "resnet34")
VARIANTS = ("standard", "rotated", "blurred")
PARAMETERS = {"standalone": 1_204_655, "straw": 20_606_863, "resnet34": 21_299_951}
UNOFFICIAL = "EMNIST (unofficial archive, sha256 8ef1351a4efc)"
ARTICLE = {"base": "none", "batch_size": 128, "learning_rate": 1e-4}
CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")


def statistic(values):
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "seeds": list(values)}


def summary_of(accuracy, loss, **changes):
    """A summary of `accuracy[model][variant]` and `loss[...]`, lists with a value for each seed."""
    models = list(accuracy)
    seeds = len(accuracy[models[0]][VARIANTS[0]])
    return {
        "dataset": UNOFFICIAL,
        "experiment": "10pct_rank16",
        "device": "cpu (2 cores)",
        "command": "python experiments/run.py --experiment 10pct_rank16",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "config": ARTICLE,
        "seeds": list(range(seeds)),
        "seconds": dict.fromkeys(models, 94.2 * seeds),
        "parameters": {model: PARAMETERS[model] for model in models},
        "results": {
            model: {
                variant: {
                    "accuracy": statistic(accuracy[model][variant]),
                    "loss": statistic(loss[model][variant]),
                }
                for variant in VARIANTS
            }
            for model in models
        },
        **changes,
    }


def example(models=MODELS, seeds=3, **changes):
    generator = np.random.default_rng([len(models), seeds])

    def draw(low, high):
        return {
            m: {v: generator.uniform(low, high, seeds).tolist() for v in VARIANTS} for m in models
        }

    return summary_of(draw(0.2, 0.9), draw(0.3, 4.0), **changes)


@st.composite
def summaries(draw):
    models = draw(st.permutations(MODELS))[: draw(st.integers(1, 3))]
    seeds = draw(st.integers(1, 3))

    def values(high):
        return {
            m: {
                v: draw(st.lists(st.floats(0, high), min_size=seeds, max_size=seeds))
                for v in VARIANTS
            }
            for m in models
        }

    return summary_of(values(1.0), values(99.0))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text, title):
    """Rows of the table under a heading of the Markdown report, as dictionaries by column."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    header, _, *rows = [cells(line) for line in part.splitlines() if line.startswith("|")]
    return [dict(zip(header, row, strict=True)) for row in rows]


def shows(text, expected, scale, digits):
    """Whether a printed mean, and spread if there is one, is what the summary holds."""
    numbers = [float(number) for number in text.split(" ± ")]
    exact = [expected["mean"]] + ([] if expected["std"] is None else [expected["std"]])
    return len(numbers) == len(exact) and np.allclose(
        numbers, np.multiply(exact, scale), rtol=0, atol=0.51 * 10**-digits
    )


# --- text ---------------------------------------------------------------------------------------


@given(summaries())
def test_markdown_gives_every_result_of_the_summary(summary):
    rows = section(report.markdown(summary), "Results")
    wanted = list(itertools.product(VARIANTS, summary["results"]))
    assert len(rows) == len(wanted)
    for row, (variant, model) in zip(rows, wanted, strict=True):
        result = summary["results"][model][variant]
        assert row["test images"] == variant
        assert row["model"].lower().replace("-", "") == model
        assert shows(row["accuracy, %"], result["accuracy"], 100, 2)
        assert shows(row["loss"], result["loss"], 1, 4)


@given(summaries())
def test_table_gives_every_result_in_100_columns(summary):
    lines = report.table(summary).splitlines()
    assert summary["dataset"] in lines[0]
    assert summary["device"] in lines[1]
    assert max(map(len, lines)) <= 100
    count = len(summary["results"])
    for metric, title, scale, digits in (
        ("accuracy", "accuracy, %", 100, 2),
        ("loss", "loss", 1, 4),
    ):
        start = lines.index(title) + 1
        for line, by_variant in zip(
            lines[start : start + count], summary["results"].values(), strict=True
        ):
            printed = [text for text in line.strip().split("  ") if text][1:4]
            for text, variant in zip(printed, VARIANTS, strict=True):
                assert shows(text.strip(), by_variant[variant][metric], scale, digits)


def test_columns_of_the_table_line_up():
    lines = report.table(example()).splitlines()
    header = next(line for line in lines if "rotated" in line)
    ends = [header.index(variant) + len(variant) for variant in VARIANTS]
    rows = [line for line in lines if line.startswith("  ") and line != header]
    assert len(rows) == 9
    assert all(line[end - 1].isdigit() for line in rows for end in ends)
    assert all(line[end : end + 2].strip() == "" for line in rows for end in ends)


@pytest.mark.parametrize("write", [report.markdown, report.table])
def test_one_seed_claims_no_spread(write):
    one, three = write(example(seeds=1)), write(example(seeds=3))
    assert "one seed: no spread" in one.lower()
    assert "±" not in one
    assert "± sample standard deviation over 3 seeds" in three


def test_every_seed_is_listed():
    summary = example(seeds=3)
    rows = section(report.markdown(summary), "Every seed")
    for row, (variant, model) in zip(rows, itertools.product(VARIANTS, MODELS), strict=True):
        printed = [float(row[f"seed {seed}: accuracy, %"]) for seed in range(3)]
        exact = summary["results"][model][variant]["accuracy"]["seeds"]
        np.testing.assert_allclose(printed, np.multiply(exact, 100), rtol=0, atol=0.0051)
    assert "Every seed" not in report.markdown(example(seeds=1))


def test_differences_are_taken_seed_by_seed():
    accuracy = {
        "standalone": {variant: [0.50, 0.60] for variant in VARIANTS},
        "straw": {variant: [0.53, 0.65] for variant in VARIANTS},
    }
    text = report.markdown(summary_of(accuracy, accuracy))
    rows = section(text, "Difference from the standalone")
    # Unpaired, the spread would be some 8 points.
    assert {row["difference, percentage points"] for row in rows} == {"+4.00 ± 1.41"}
    article = [row["article (nearly comparable)"] for row in rows]
    assert article == ["+3.50", "+2.68", "+3.73"]


@pytest.mark.parametrize("models", [("straw",), ("standalone",), ("straw", "resnet34")])
def test_no_differences_without_the_standalone_and_another(models):
    assert "Difference" not in report.markdown(example(models))


def test_parameters_are_exact_in_the_report_and_readable_in_the_table():
    text, lines = report.markdown(example()), report.table(example())
    assert [row["trained parameters"] for row in section(text, "Models")] == [
        "1,204,655",
        "20,606,863",
        "21,299,951",
    ]
    assert "17.7 times as many parameters" in text
    assert all(count in lines for count in ("1.20 M", "20.61 M", "21.30 M"))


@pytest.mark.parametrize(
    ("parameters", "shown"), [(850, " 850 "), (12_345, " 12.35 k "), (1_000_000, " 1.00 M ")]
)
def test_counts_are_readable(parameters, shown):
    assert shown in report.table(example(("straw",), parameters={"straw": parameters}))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (4.21, "4.2 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (402.7, "6 min 43 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_times_are_readable(seconds, shown):
    summary = example(("straw",), seconds={"straw": seconds})
    row = next(line for line in report.table(summary).splitlines() if line.startswith("  STRAW"))
    assert row.endswith("  " + shown)


def test_report_says_what_was_run_and_where():
    summary = example()
    text = report.markdown(summary)
    for fact in ("dataset", "device", "command", "experiment"):
        assert summary[fact] in text
    assert "jax 0.10.2, flax 0.12.8" in text


def test_report_links_the_figures_that_the_models_have():
    assert "](styles.png)" in report.markdown(example())
    without_straw = report.markdown(example(("standalone",)))
    assert "styles.png" not in without_straw
    assert all(f"]({name}.png)" in without_straw for name in ("curves", "variants", "samples"))


# --- the article's figures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "config", "verdict"),
    [
        ("EMNIST balanced", {}, "comparable"),
        ("EMNIST balanced", {"base": "trained"}, "nearly comparable"),
        ("EMNIST balanced", {"batch_size": 64}, "not comparable"),
        (UNOFFICIAL, {}, "nearly comparable"),
        (UNOFFICIAL, {"base": "trained"}, "nearly comparable"),
        (UNOFFICIAL, {"learning_rate": 1e-3}, "not comparable"),
        ("glyphs", {}, "not comparable"),
        ("glyphs", {"base": "trained"}, "not comparable"),
        ("mnist", {}, "not comparable"),
        ("EMNIST letters", {}, "not comparable"),
    ],
)
def test_verdict_and_what_follows_from_it(dataset, config, verdict):
    summary = example(dataset=dataset, config={**ARTICLE, **config})
    comparison = report.compare(summary)
    assert comparison.verdict == verdict
    assert all(f"{name} {value}" in comparison.reason for name, value in config.items())
    assert f"**The article's figures are {verdict}:**" in report.markdown(summary)
    assert ("the article's accuracy" in report.table(summary)) == (verdict != "not comparable")


@pytest.mark.parametrize("experiment", report.PUBLISHED)
def test_article_stands_beside_ours(experiment):
    summary = example(experiment=experiment, config={})
    published = report.PUBLISHED[experiment]
    for row in section(report.markdown(summary), "Results"):
        model = row["model"].lower().replace("-", "")
        figures = float(row["article: accuracy, %"]), float(row["article: loss"])
        assert figures == published[row["test images"]][model]
    *_, standalone, straw, resnet = report.table(summary).splitlines()
    for line, model in zip((standalone, straw, resnet), MODELS, strict=True):
        printed = [float(number) for number in line.split()[1:]]
        assert printed == [published[variant][model][0] for variant in VARIANTS]


def test_published_figures_are_the_articles():
    assert report.PUBLISHED["full_rank16"]["standard"]["straw"] == (86.71, 0.4351)
    assert report.PUBLISHED["10pct_rank16"]["rotated"]["standalone"] == (29.22, 3.0280)
    assert report.PUBLISHED["20pct_rank32"]["blurred"]["resnet34"] == (80.92, 0.6044)


def test_own_settings_show_nothing_published():
    summary = example(experiment=None)
    assert report.compare(summary) is None
    text = report.markdown(summary) + report.table(summary)
    numbers = {
        f"{accuracy:.2f}"
        for published in report.PUBLISHED.values()
        for by_model in published.values()
        for accuracy, _ in by_model.values()
    }
    assert not [number for number in numbers if f" {number} " in text]
    assert "article:" not in text


# --- figures ------------------------------------------------------------------------------------


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
    report.plot_curves(history_of(models, seeds, epochs=seeds), path, dataset=UNOFFICIAL)


def draw_variants(path, models, seeds):
    report.plot_variants(example(models, seeds), path)


def draw_samples(path, models, seeds):
    report.plot_samples(*sheet_of(models, 2 * seeds), CLASSES, path, dataset=UNOFFICIAL)


def draw_styles(path, models, seeds):
    classes = 10 * len(models)
    report.plot_styles(*styles_of(100 * seeds, classes), CLASSES, path, dataset=UNOFFICIAL)


DRAWINGS = {"curves": draw_curves, "variants": draw_variants, "samples": draw_samples}
DRAWINGS["styles"] = draw_styles


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn during a test, instead of files."""
    drawn = []
    monkeypatch.setattr(report, "_save", lambda figure, path: drawn.append(figure))
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
    assert min(pixels.shape) >= 3 * report.DPI
    assert max(pixels.shape) <= 12 * report.DPI
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
        assert picture.size == tuple(round(side * report.DPI) for side in inches)


@pytest.mark.parametrize("name", DRAWINGS)
def test_titles_name_the_data_set(name, figures):
    DRAWINGS[name]("unused", MODELS, 2)
    (figure,) = figures
    assert UNOFFICIAL in figure.get_suptitle()


def test_a_model_has_one_colour_in_all_figures(figures):
    draw_curves("unused", MODELS, 2)
    draw_variants("unused", MODELS, 2)
    curves, bars = (
        {
            text.get_text(): handle
            for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
        }
        for legend in (figure.legends[0] for figure in figures)
    )
    colours = {name: curves[name].get_color() for name in ("standalone", "STRAW", "ResNet-34")}
    assert len(set(colours.values())) == 3
    for name, colour in colours.items():
        assert to_hex(bars[name].get_facecolor()) == to_hex(colour)


def test_curves_show_mean_and_range_of_the_seeds(figures):
    history = history_of(("straw",), seeds=3, epochs=4)
    report.plot_curves(history, "unused", dataset="glyphs")
    accuracy = figures[0].axes[0]
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


def test_curves_take_the_later_of_two_lines(figures):
    first, second = history_of(("straw",), 1, 1)[0], history_of(("standalone",), 1, 2)[1]
    second = {**second, "model": "straw", "epoch": 1}
    report.plot_curves([first, second], "unused", dataset="glyphs")
    loss = figures[0].axes[1]
    solid = next(line for line in loss.lines if line.get_linestyle() == "-")
    assert list(solid.get_ydata()) == [second["test"]["loss"]]


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
def test_epochs_are_ticked_in_whole_numbers(epochs, figures):
    report.plot_curves(history_of(epochs=epochs), "unused", dataset="glyphs")
    for axes in figures[0].axes:
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
def test_bars_are_the_means(seeds, figures):
    summary = example(seeds=seeds)
    report.plot_variants(summary, "unused")
    axes = figures[0].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    results = summary["results"]
    expected = [100 * results[m][v]["accuracy"]["mean"] for m in MODELS for v in VARIANTS]
    np.testing.assert_allclose(heights, expected)
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for value in expected]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
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
def test_published_markers_only_where_they_may_stand(changes, shown, figures):
    report.plot_variants(example(**changes), "unused")
    published = report.PUBLISHED["10pct_rank16"]
    expected = [published[v][m][0] for m in MODELS for v in VARIANTS]
    assert diamonds(figures[0]) == (expected if shown else [])
    legend = " ".join(text.get_text() for text in figures[0].legends[0].get_texts())
    assert ("article" in legend) == shown


def test_samples_tell_right_from_wrong(figures):
    images, labels, predictions = sheet_of(samples=5)
    report.plot_samples(images, labels, predictions, CLASSES, "unused", dataset="glyphs")
    grid = np.array(figures[0].axes).reshape(5, 3)
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
    assert verdicts == {(True, "✓", report.RIGHT), (False, "✗", report.WRONG)}
    assert [axes.get_title() for axes in grid[0]] == list(VARIANTS)
    assert [axes.get_ylabel().split()[-1] for axes in grid[:, 0]] == [CLASSES[i] for i in labels]


def test_styles_are_drawn_in_their_principal_plane(figures):
    generator = np.random.default_rng(0)
    plane = generator.standard_normal((400, 2)) * [3.0, 1.0]
    axes_64 = np.linalg.qr(generator.standard_normal((64, 2)))[0]
    labels = np.arange(400) % 3
    report.plot_styles(plane @ axes_64.T + 5, labels, "abc", "unused", dataset="glyphs")
    axes = figures[0].axes[0]
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
def test_class_names_do_not_cover_each_other(spread, figures):
    report.plot_styles(*styles_of(470, 47, spread), CLASSES, "unused", dataset="glyphs")
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    names = [text for text in figures[0].axes[0].texts if text.get_text()]
    boxes = [text.get_bbox_patch().get_window_extent() for text in names]
    assert len(boxes) == 47
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_many_styles_are_thinned_and_said_to_be(figures):
    report.plot_styles(*styles_of(9_000), CLASSES, "unused", dataset="glyphs")
    assert len(figures[0].axes[0].collections[0].get_offsets()) == report.MOST_POINTS
    assert f"9,000 test images ({report.MOST_POINTS:,} of them drawn)" in figures[0].get_suptitle()


def test_equal_styles_are_drawn(tmp_path):
    """An untrained encoder may give every image the same style."""
    path = tmp_path / "styles.png"
    report.plot_styles(np.ones((20, 64)), np.arange(20) % 4, CLASSES, path, dataset="glyphs")
    assert path.stat().st_size > 0


def test_texts_do_without_matplotlib():
    check = "import sys, straw_jax.training.report; print('matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"
