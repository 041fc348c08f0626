"""The pages of results say what the stored figures say, and what is missing they leave open."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scripts
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from summaries import (
    ARTICLE,
    CONTROLS,
    MODELS,
    VARIANTS,
    cells,
    example,
    example_analysis,
    shows,
    summary_of,
)

from straw_experiments.configs import STUDIES
from straw_experiments.image_classification import published
from straw_experiments.image_classification.config import parse
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import parameters, sample_cost
from straw_experiments.pages import figures, images, render, stored, tables
from straw_experiments.pages.analysis import analysis_text
from straw_experiments.pages.write import TEMPLATES, write
from straw_experiments.runner import records

SCRIPT = scripts.EXPERIMENTS / "write_results.py"
RESULTS = scripts.EXPERIMENTS / "results"
DOCS = scripts.ROOT / "docs" / "results"
PAGES = sorted(path.name for path in RESULTS.glob("pages/[!_]*.md"))

TRAINED = {**ARTICLE, "base": "trained"}
STATIC = ("standalone", "wide_dense", "wide_compute")


def results_of(analyses=None, once=None, **summaries):
    parts = {"summaries": summaries, "analyses": analyses or {}, "once": once or {}}
    return stored.Results(*(stored.stored(part, name) for name, part in parts.items()))


def lines(table):
    """Cells of a Markdown table, by the first one of each line."""
    return {line[0]: line[1:] for line in map(cells, table.splitlines()[2:])}


def flat(values):
    """One list of values, a seed each, for all variants of the test images."""
    return dict.fromkeys(VARIANTS, values)


def accuracies(**by_model):
    of_models = {model: flat(values) for model, values in by_model.items()}
    return summary_of(of_models, of_models)


def filled(folder, text, results):
    """Fill one template."""
    (folder / "page.md").write_text(text)
    return render.render(results, folder)["page.md"]


# --- the article's table ------------------------------------------------------------------------


@st.composite
def summaries(draw):
    models = draw(st.permutations((*STATIC, "straw", "resnet34")))[: draw(st.integers(1, 5))]
    seeds = draw(st.integers(1, 3))
    values = st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds)
    accuracy = {model: {v: draw(values) for v in VARIANTS} for model in models}
    names = st.sampled_from(list(published.PUBLISHED))
    return summary_of(accuracy, accuracy, experiment=draw(names))


@given(summaries())
def test_article_table_gives_every_result_less_the_articles(summary):
    rows = [["set", model] for model in summary["results"]]
    results, name = results_of(set=summary), summary["experiment"]
    table = lines(images.article_table(results, name, rows))
    for model, by_variant in summary["results"].items():
        seeds, *found = table[images.label(results, images.Row("set", model))]
        assert seeds == str(len(summary["seeds"]))
        for cell, variant in zip(found, VARIANTS, strict=False):
            accuracy = by_variant[variant]["accuracy"]
            ours, *beside = cell.split(" (")
            assert shows(ours, accuracy, 100, 2)
            theirs = published.PUBLISHED[name][variant].get(model)
            assert bool(beside) == (theirs is not None)
            if theirs is not None:
                difference = 100 * accuracy["mean"] - theirs[0]
                assert beside == [f"{difference:+.2f})" + " †" * (abs(difference) > 3)]
        assert found[3] == f"{summary['parameters'][model]:,}"
        assert found[4].endswith((" M", " G"))


def test_figures_far_from_the_articles_are_marked():
    ours = {"standard": [0.7137], "rotated": [0.33], "blurred": [0.6423]}
    results = results_of(set2=summary_of({"standalone": ours}, {"standalone": ours}))
    table = images.article_table(results, "10pct_rank16", [["set2", "standalone"]])
    assert lines(table)["standalone"][1:4] == [
        *("71.37 (+3.00)", "33.00 (+3.78) †", "64.23 (-2.99)"),
    ]


@pytest.mark.parametrize("changes", [{"dataset": "glyphs"}, {"config": {**ARTICLE, "epochs": 1}}])
def test_nothing_of_the_article_stands_beside_other_data_or_bases(changes):
    if "config" in changes:
        changes = {"config": {**ARTICLE, "learning_rate": 1e-3}}
    results = results_of(set2=example(**changes), trained=example(("straw",), config=TRAINED))
    rows = [["set2", "standalone"], ["trained", "straw"]]
    assert "(" not in images.article_table(results, "10pct_rank16", rows)


def test_missing_studies_are_said_to_be_missing():
    results = results_of(set2=example(("straw",)))
    table = images.accuracy_table(results, [["set2", "straw"], ["set1", "standalone"]])
    assert lines(table)["standalone"] == ["-", *["not run"] * 3, "-", "-"]
    record = lines(tables.run_table(results, STUDIES))
    assert {name for name, row in record.items() if row[0] == "not run"} == {
        f"`{name}`" for name in STUDIES if name != "set2"
    }


# --- controls -----------------------------------------------------------------------------------


def test_shares_of_the_gain_are_of_means():
    summary = accuracies(standalone=[0.60, 0.62], wide_dense=[0.65, 0.70], straw=[0.70, 0.70])
    # "shuffled" is a part of STRAW's own 0.70: see tests/summaries.py.
    summary["controls"]["straw"]["same class"] = summary["results"]["straw"]
    results = results_of(set2=summary, set2_wide=accuracies(wide=[0.78]))
    rows = [["set2", "wide_dense"], ["set2_wide", "wide"], ["set3", "wide_compute"]]
    rows += images.controls(results, "set2", "straw")
    table = lines(images.gain_table(results, ["set2", "straw"], ["set2", "standalone"], rows))
    share = {name: row[2] for name, row in table.items()}
    assert share["standalone"] == "0"
    assert share["STRAW, base none"] == "100"
    assert share["wide_dense"] == "72"  # (0.675 - 0.61) / (0.70 - 0.61)
    assert share["wide"] == "189"
    assert share["weights of another image of the class"] == "100"
    assert share["weights of any other image"] == "none"  # below the standalone
    assert table["wide_compute"][1:3] == ["not run", "-"]


def test_no_share_of_a_gain_that_is_none():
    results = results_of(set2=accuracies(standalone=[0.6, 0.8], straw=[0.7, 0.7], wide=[0.8, 0.8]))
    rows = [images.Row("set2", name) for name in ("wide", "straw", "standalone")]
    assert images.share_of_gain(results, *rows, "rotated") is None
    table = lines(images.gain_table(results, rows[1], rows[2], [rows[0]]))
    assert table["wide"][1:3] == ["80.00 ± 0.00", "-"]


@pytest.mark.parametrize(
    "study",
    [name for name, study in STUDIES.items() if study.command == "run" and "resnet" not in name],
)
def test_studies_size_their_controls_for_the_straw_beside_them(study):
    settings = parse(STUDIES[study].flags.split())
    sizes = {"classes": 47, "rank": settings.rank, "base": settings.base}
    counts = {"wide_dense": parameters, "wide": parameters, "wide_compute": sample_cost}
    for name in set(settings.models) & set(counts):
        count = counts[name]
        straw, control = (count(build_model(model, **sizes)) for model in ("straw", name))
        assert control == pytest.approx(straw, rel=0.03)


def test_controls_follow_their_model_with_their_own_figures():
    summary = example(("standalone", "straw"))
    results = results_of(set2=summary)
    rows = images.controls(results, "set2", "straw")
    assert [row.weights for row in rows] == list(CONTROLS)
    table = lines(images.accuracy_table(results, rows))
    for index, variant in enumerate(VARIANTS):
        found = table[images.WEIGHTS["mean"]][1 + index]
        assert shows(found, summary["controls"]["straw"]["mean"][variant]["accuracy"], 100, 2)
    assert images.controls(results, "set3", "straw") == []


# --- bases, ranks -------------------------------------------------------------------------------


def test_models_are_compared_seed_by_seed():
    none, trained = accuracies(straw=[0.50, 0.60]), accuracies(straw=[0.53, 0.65])
    results = results_of(set2=none, set2_trained={**trained, "config": TRAINED})
    table = lines(images.difference_table(results, ["set2_trained", "straw"], ["set2", "straw"]))
    assert table["rotated"] == ["59.00 ± 8.49", "55.00 ± 7.07", "+4.00 ± 1.41"]


def rank_studies():
    def study(rank, base):
        config = {**ARTICLE, "rank": rank, "base": base}
        return example(("straw",), 1, experiment=None, config=config)

    return {
        "set2": example(),
        "rank1": study(1, "none"),
        "rank4_trained": study(4, "trained"),
        "rank2_trained": study(2, "trained"),
    }


def test_ranks_are_in_order():
    table = images.rank_table(results_of(**rank_studies()), STUDIES)
    assert [cells(line)[:3] for line in table.splitlines()[2:]] == [
        ["none", "1", "1"],
        ["none", "16", "3"],
        ["trained", "2", "1"],
        ["trained", "4", "1"],
    ]


# --- analysis -----------------------------------------------------------------------------------


def test_analysis_is_printed():
    text = analysis_text("set2", example_analysis())
    assert text.startswith("### STRAW, base none (`set2`)\n")
    assert f"| fc1 | 1,179,648 | 589,824 | {'3.54 M | ' * 3}4,718,592 | 1,179,648 |" in text
    update = "1.23 (0.90 to 1.50) | 0.46 | 73.1 (72.5)"
    assert f"| fc1/bias | {update} | - |" in text
    assert f"| fc1/kernel | {update} | 1.2 (0.9 to 1.5) of 16 |" in text
    assert "| fc1/kernel | 0.00 | 0.81 | 0.17 | 0.62 | 1.41 |" in text
    assert "| STRAW | 72.5 ± 1.1 | 35.0 |" in text
    assert "| STRAW, weights of the image before rotation | 72.5 | 50.0 |" in text
    assert "1,880 test images" in text


# --- templates ----------------------------------------------------------------------------------


def test_figures_of_a_page_are_those_that_are_stored(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "set2" / "summary.json"
    summary = records.read_json(path)
    for each in summary["results"]["straw"]["standard"]["accuracy"]["seeds"]:
        assert 0.7 < each < 0.75
    summary["results"]["straw"]["standard"]["accuracy"]["seeds"] = [0.8, 0.8, 0.8]
    records.write_json(path, summary)
    before, after = (
        render.render(stored.read(folder), TEMPLATES) for folder in (RESULTS, path.parents[1])
    )
    least = summary["results"]["standalone"]["standard"]["accuracy"]["mean"]
    assert f"STRAW gains {80 - 100 * least:.1f} points" in " ".join(after["capacity.md"].split())
    assert "80.00 ± 0.00 (+8.13) †" in after["article.md"]
    changed = {name for name in PAGES if before[name] != after[name]}
    assert changed == {
        *("article.md", "capacity.md", "bases_and_ranks.md"),
        *("encoders_and_executors.md", "index.md"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ accuracy('set9', 'straw') }}", "page.md: summaries: expected one of set2, got 'set9'"),
        (
            "{{ stored.set2.results.straw.standard.speed }}",
            "page.md: summaries.set2.results.straw.standard: expected one of accuracy, loss, got"
            " 'speed'",
        ),
        ("{{ accuracies }}", "page.md: 'accuracies' is undefined"),
        ("\n{{ accuracy( }}", "page.md, line 2: "),
    ],
)
def test_missing_figures_are_errors_that_name_study_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(tmp_path, text, results_of(set2=example()))


def test_what_needs_a_missing_study_says_so_and_asks_for_nothing(tmp_path):
    shutil.copy(TEMPLATES / "_macros.md", tmp_path)
    text = """{% from "_macros.md" import needs %}
{% call needs(["set2", "set3"]) %}{{ accuracy("set3", "straw") }}{% endcall %}"""
    assert filled(tmp_path, text, results_of(set2=example())) == "*Not run: set3.*\n"
    both = filled(tmp_path, text, results_of(set2=example(), set3=example()))
    assert 0 < float(both) < 1


ALLOWED = {
    "hypernetworks.md": ["0.04", "0.76", "0.72", "1.6", "0.002"],  # the paper's, and a rate
    "encoders_and_executors.md": ["0.001"],  # learning rates
    "preset.md": ["0.004"],
    "weight_prediction.md": ["0.003"],
    "characters.md": ["0.004", "0.1"],  # a rate, and factors at the start
    "distortions.md": ["0.6", "1.4", "0.6"],  # amounts by which images are distorted
    "predicted_functions.md": ["1.33"],  # pairs per unknown
}


@pytest.mark.parametrize("name", PAGES)
def test_no_measured_figure_is_typed_into_a_page(name):
    text = (RESULTS / "pages" / name).read_text()
    prose = re.sub(r"{{.*?}}|{%.*?%}|```.*?```|`.*?`", "", text, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+", prose) == ALLOWED.get(name, [])


@pytest.mark.parametrize("name", PAGES)
def test_page_in_docs_has_its_parts_and_fits_a_screen(name):
    text = re.sub("```.*?```", "", (DOCS / name).read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert [heading[:2] for heading in headings].count("# ") == 1
    if name not in ("index.md", "runs.md"):
        parts = ["**Question.**", "**Answer.**", "## What it means", "## What was not controlled"]
        places = [text.index(part) for part in [*parts, "## How to run it"]]
        assert places == sorted(places)
        assert text.index("\n| ") < text.index("![") < places[2]
    assert all(len(cells(line)) <= 8 for line in text.splitlines() if line.startswith("|"))
    assert "*Not run: " not in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / link).is_file()
    for link in re.findall(r"!\[.*\]\((.+)\)", text):
        with Image.open(DOCS / link) as picture:
            assert picture.format == "PNG"


def test_pages_in_docs_are_those_of_the_stored_results():
    results = stored.read(RESULTS)
    pictures = [path.name for path in DOCS.glob("*.png")]
    assert {*figures.drawings(results)} <= {*pictures}
    pages = render.render(results, TEMPLATES, pictures=pictures, planned=STUDIES)
    assert pages == {path.name: path.read_text() for path in DOCS.glob("*.md")}


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn during a test, instead of files."""
    drawn = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.update({path: figure}))
    return drawn


def test_article_figure_shows_means_and_the_articles(drawn):
    ours = example(("standalone", "straw"))
    results = results_of(set2=ours, set2_resnet34=example(("resnet34",)), set3=ours)
    figures.drawings(results)["article.png"]("article")
    axes = drawn["article"].axes[0]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    means, diamonds = {}, {}
    for line in axes.lines:
        if len(line.get_xdata()) == 1 and line.get_marker() in "oD":
            found = means if line.get_marker() == "o" else diamonds
            found[labels[int(line.get_ydata()[0])]] = line.get_xdata()[0]
    assert diamonds == {"standalone": 68.37, "STRAW, base none": 71.87, "ResNet-34": 81.91}
    for model, name in (("standalone", "standalone"), ("straw", "STRAW, base none")):
        mean = ours["results"][model]["standard"]["accuracy"]["mean"]
        assert means[name] == pytest.approx(100 * mean)


def test_rank_figure_shows_a_curve_for_each_base(drawn):
    studies = rank_studies()
    figures._ranks(results_of(**studies), "ranks")
    for axes, variant in zip(drawn["ranks"].axes, VARIANTS, strict=True):
        curves = {line.get_label(): line for line in axes.lines}
        assert [*curves["base none"].get_xdata()] == [1, 16]
        expected = [
            100 * studies[name]["results"]["straw"][variant]["accuracy"]["mean"]
            for name in ("rank1", "set2")
        ]
        np.testing.assert_allclose(curves["base none"].get_ydata(), expected)
        assert [*curves["base trained"].get_xdata()] == [2, 4]


def test_pictures_without_their_studies_are_not_drawn():
    assert [*figures.drawings(results_of(preset2=example()))] == ["preset.png"]


# --- the script ---------------------------------------------------------------------------------


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_pages_of_a_reproduction_say_that_their_text_is_of_other_runs(tmp_path, capsys):
    for name, summary in rank_studies().items():
        _write(tmp_path / "here" / name / "summary.json", summary)
    _write(tmp_path / "here" / "set2" / "analysis.json", example_analysis())
    write(tmp_path / "here", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("out/*.md")) == PAGES
    article = (tmp_path / "out" / "article.md").read_text()
    assert "The text was written about the stored results" in article
    assert "*Not run: set3.*" in article
    ours = example()["results"]["standalone"]["standard"]["accuracy"]["mean"]
    assert f"| standalone | 3 | {100 * ours:.2f} ± " in article
    lacking = (tmp_path / "out" / "capacity.md").read_text()
    assert "Missing: `capacity.md: " in lacking
    assert "got 'wide_dense'`" in lacking
    assert "not run: set2_trained" in capsys.readouterr().out


def test_table_for_the_terminal_says_what_is_still_to_be_run():
    text = images.terminal_table(results_of(set2=example()), ["set1", "set2"])
    assert [line.split("  ")[0] or line.split()[0] for line in text.splitlines()] == [
        *("accuracy, %", "set2", "standalone", "STRAW,", "ResNet-34", "not run: set1")
    ]
    assert len(MODELS) == 3


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, "", "expected finished studies, found no here/STUDY/summary.json"),
        ("here/set2/summary.json", "{", "cannot read here/set2/summary.json: "),
        ("here/set2/summary.json", "{}", "cannot read here/set2/summary.json: expected a JSON ob"),
        (
            "here/set2/summary.json",
            {"format": 2, "seeds": [0], "crc32": 1},
            "cannot read here/set2",
        ),
        ("here/set2/analysis.json", "{", "cannot read here/set2/analysis.json: "),
    ],
)
def test_bad_input_gets_one_line(tmp_path, file, content, message):
    if file:
        _write(tmp_path / file, content)
    words = [sys.executable, SCRIPT, "here", "--out", "out"]
    ran = subprocess.run(
        words, cwd=tmp_path, env=scripts.environment(), capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"write_results.py: {message}")
    assert not (tmp_path / "out").exists()
