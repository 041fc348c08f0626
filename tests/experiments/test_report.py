"""The report says what the summary says, and the article's figures stand only where they may."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from summaries import (
    ARTICLE,
    CONTROLS,
    MODELS,
    UNOFFICIAL,
    VARIANTS,
    cells,
    example,
    shows,
    summary_of,
)

from straw_experiments.image_classification import published, report


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


def section(text, title):
    """Rows of the table under a heading of the Markdown report, as dictionaries by column."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    header, _, *rows = [cells(line) for line in part.splitlines() if line.startswith("|")]
    return [dict(zip(header, row, strict=True)) for row in rows]


# --- text ---------------------------------------------------------------------------------------


@given(summaries())
def test_markdown_gives_every_result_of_the_summary(summary):
    rows = section(report.markdown(summary, {}), "Results")
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


def test_controls_are_in_table_and_report():
    summary = example()
    lines = report.table(summary).splitlines()
    start = next(i for i, line in enumerate(lines) if "by style vector" in line) + 1
    assert "4,700 test images" in lines[start - 1]
    rows = section(report.markdown(summary, {}), "Controls")
    assert rows[0]["style vector of"] == "the image itself"
    assert len(rows) == len(CONTROLS)
    controls = summary["controls"]["straw"].items()
    for line, row, (name, by_variant) in zip(lines[start:], rows, controls, strict=False):
        printed = [text.strip() for text in line.split("  ") if text]
        assert printed[0] == name
        for text, variant in zip(printed[1:], VARIANTS, strict=True):
            assert shows(text, by_variant[variant]["accuracy"], 100, 2)
            assert row[f"{variant}: accuracy, %"] == text
    static = example(("standalone", "resnet34"))
    assert "Controls" not in report.markdown(static, {})
    assert "style vector" not in report.table(static)


def test_columns_of_the_table_line_up():
    lines = report.table(example()).splitlines()
    header = next(line for line in lines if "rotated" in line)
    ends = [header.index(variant) + len(variant) for variant in VARIANTS]
    rows = [line for line in lines if line.startswith("  ") and line != header]
    assert len(rows) == 9 + len(CONTROLS)
    assert all(line[end - 1].isdigit() for line in rows for end in ends)
    assert all(line[end : end + 2].strip() == "" for line in rows for end in ends)


@pytest.mark.parametrize("write", [lambda summary: report.markdown(summary, {}), report.table])
def test_one_seed_claims_no_spread(write):
    one, three = write(example(seeds=1)), write(example(seeds=3))
    assert "one seed: no spread" in one.lower()
    assert "±" not in one
    assert "± sample standard deviation over 3 seeds" in three


def test_every_seed_is_listed():
    summary = example(seeds=3)
    rows = section(report.markdown(summary, {}), "Every seed")
    for row, (variant, model) in zip(rows, itertools.product(VARIANTS, MODELS), strict=True):
        printed = [float(row[f"seed {seed}: accuracy, %"]) for seed in range(3)]
        exact = summary["results"][model][variant]["accuracy"]["seeds"]
        np.testing.assert_allclose(printed, np.multiply(exact, 100), rtol=0, atol=0.0051)
    assert "Every seed" not in report.markdown(example(seeds=1), {})


def test_differences_are_taken_seed_by_seed():
    accuracy = {
        "standalone": {variant: [0.50, 0.60] for variant in VARIANTS},
        "straw": {variant: [0.53, 0.65] for variant in VARIANTS},
    }
    text = report.markdown(summary_of(accuracy, accuracy), {})
    rows = section(text, "Difference from the standalone")
    # Unpaired, the spread would be some 8 points.
    assert {row["difference, percentage points"] for row in rows} == {"+4.00 ± 1.41"}
    article = [row["article (nearly comparable)"] for row in rows]
    assert article == ["+3.50", "+2.68", "+3.73"]


@pytest.mark.parametrize("models", [("straw",), ("standalone",), ("straw", "resnet34")])
def test_no_differences_without_the_standalone_and_another(models):
    assert "Difference" not in report.markdown(example(models), {})


def test_parameters_are_exact_in_the_report_and_readable_in_the_table():
    text, lines = report.markdown(example(), {}), report.table(example())
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
    text = report.markdown(summary, {})
    for fact in ("dataset", "device", "command", "experiment"):
        assert summary[fact] in text
    assert "jax 0.10.2, flax 0.12.8" in text


def test_report_links_its_pictures():
    text = report.markdown(example(), {"Accuracy by epoch": "curves.png"})
    assert f"![Accuracy by epoch, {example()['dataset']}](curves.png)" in text


# --- the article's figures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "config", "verdict"),
    [
        ("EMNIST balanced", {}, "comparable"),
        ("EMNIST balanced", {"base": "trained"}, "nearly comparable"),
        ("EMNIST balanced", {"batch_size": 64}, "not comparable"),
        ("EMNIST balanced", {"precision": "bfloat16"}, "nearly comparable"),
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
    comparison = published.compare(summary)
    assert comparison.verdict == verdict
    assert all(f"{name} {value}" in comparison.reason for name, value in config.items())
    assert f"**The article's figures are {verdict}:**" in report.markdown(summary, {})
    assert ("the article's accuracy" in report.table(summary)) == (verdict != "not comparable")


def test_precision_is_named():
    """Earlier versions did not store it: they computed in float32."""
    for config, named in ((ARTICLE, "float32"), ({**ARTICLE, "precision": "bfloat16"}, "bfloat16")):
        summary = example(config=config)
        assert f"| precision | {named} |" in report.markdown(summary, {})
        run = next(line for line in report.table(summary).splitlines() if line.startswith("run "))
        assert ("bfloat16" in run) == (named == "bfloat16")


@pytest.mark.parametrize("experiment", published.PUBLISHED)
def test_article_stands_beside_ours(experiment):
    summary = example(experiment=experiment, config={})
    figures = published.PUBLISHED[experiment]
    for row in section(report.markdown(summary, {}), "Results"):
        model = row["model"].lower().replace("-", "")
        article = float(row["article: accuracy, %"]), float(row["article: loss"])
        assert article == figures[row["test images"]][model]
    *_, standalone, straw, resnet = report.table(summary).splitlines()
    for line, model in zip((standalone, straw, resnet), MODELS, strict=True):
        printed = [float(number) for number in line.split()[1:]]
        assert printed == [figures[variant][model][0] for variant in VARIANTS]


def test_published_figures_are_the_articles():
    assert published.PUBLISHED["full_rank16"]["standard"]["straw"] == (86.71, 0.4351)
    assert published.PUBLISHED["10pct_rank16"]["rotated"]["standalone"] == (29.22, 3.0280)
    assert published.PUBLISHED["20pct_rank32"]["blurred"]["resnet34"] == (80.92, 0.6044)


def test_own_settings_show_nothing_published():
    summary = example(experiment=None)
    assert published.compare(summary) is None
    text = report.markdown(summary, {}) + report.table(summary)
    numbers = {
        f"{accuracy:.2f}"
        for figures in published.PUBLISHED.values()
        for by_model in figures.values()
        for accuracy, _ in by_model.values()
    }
    assert not [number for number in numbers if f" {number} " in text]
    assert "article:" not in text


def test_texts_do_without_matplotlib():
    module = "straw_experiments.image_classification.report"
    check = f"import sys, {module}; print('matplotlib' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert ran.stdout == "False\n"
