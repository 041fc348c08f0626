"""The results page says what the summaries say, and what they do not say it leaves open."""

import json
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

from straw_experiments.image_classification import published
from straw_experiments.image_classification.config import parse
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import parameters, sample_cost
from straw_experiments.pages import figures as results_figures
from straw_experiments.pages import page as results_page
from straw_experiments.pages.write import write
from straw_experiments.reproduce import STUDIES

SCRIPT = scripts.EXPERIMENTS / "write_results.py"
DOCS = scripts.ROOT / "docs"

TRAINED = {**ARTICLE, "base": "trained"}
STATIC = ("standalone", "wide_dense", "wide_compute")


def page_of(studies, **more):
    usual = ("predictions", "languages", "findings", "analyses", "figures", "pictures")
    return results_page.page(studies, **{**{name: {} for name in usual}, **more})


def tables(text, heading):
    """Rows of the tables between a heading and the next, by their first cell."""
    part = text.split(f"{heading}\n")[1].split("\n#")[0]
    return {line[0]: line[1:] for line in map(cells, part.splitlines()) if len(line) > 1}


def flat(values):
    """One list of values, a seed each, for all variants of the test images."""
    return dict.fromkeys(VARIANTS, values)


def accuracies(**by_model):
    of_models = {model: flat(values) for model, values in by_model.items()}
    return summary_of(of_models, of_models)


@st.composite
def summaries(draw):
    models = draw(st.permutations((*STATIC, "straw", "resnet34")))[: draw(st.integers(1, 5))]
    seeds = draw(st.integers(1, 3))
    values = st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds)
    accuracy = {model: {v: draw(values) for v in VARIANTS} for model in models}
    return summary_of(accuracy, accuracy, experiment=draw(st.sampled_from(list(PAPER))))


PAPER = {"full_rank16": "set1", "10pct_rank16": "set2", "20pct_rank32": "set3"}
TITLES = {
    "set1": "### Set 1: 100 % of the training images, rank 16, 10 epochs",
    "set2": "### Set 2: 10 % of the training images, rank 16, 5 epochs",
    "set3": "### Set 3: 20 % of the training images, rank 32, 5 epochs",
}
NAMES = {"straw": "STRAW, base none", "resnet34": "ResNet-34"}


# --- the article's table ------------------------------------------------------------------------


@given(summaries())
def test_main_table_gives_every_result_and_the_articles(summary):
    study = PAPER[summary["experiment"]]
    table = tables(page_of({study: summary}), TITLES[study])
    for model, by_variant in summary["results"].items():
        seeds, *found = table[NAMES.get(model, model)]
        assert seeds == {1: "one seed", 2: "2", 3: "3"}[len(summary["seeds"])]
        for index, variant in enumerate(VARIANTS):
            ours, article = found[2 * index : 2 * index + 2]
            accuracy = by_variant[variant]["accuracy"]
            assert shows(ours.removesuffix(" †"), accuracy, 100, 2)
            figure = published.PUBLISHED[summary["experiment"]][variant].get(model)
            if figure is None:
                assert (article, ours[-1] == "†") == ("-", False)
            else:
                difference = 100 * accuracy["mean"] - figure[0]
                assert article == f"{figure[0]:.2f} ({difference:+.2f})"
                assert (ours[-1] == "†") == (abs(difference) > 3)
        parameters, multiply_adds = found[6:]
        assert parameters == f"{summary['parameters'][model]:,}"
        assert multiply_adds.endswith((" M", " G"))
    missing = [model for model in MODELS if model not in summary["results"]]
    assert all(table[NAMES.get(model, model)][1] == "not run" for model in missing)


def test_figures_far_from_the_articles_are_listed():
    ours = {"standard": [0.7137], "rotated": [0.33], "blurred": [0.6423]}
    text = page_of({"set2": summary_of({"standalone": ours}, {"standalone": ours})})
    row = tables(text, TITLES["set2"])["standalone"]
    assert row[1:7] == [
        *("71.37", "68.37 (+3.00)"),
        *("33.00 †", "29.22 (+3.78)"),
        *("64.23", "67.22 (-2.99)"),
    ]
    assert "† More than 3 points from the article: standalone on rotated images (+3.78)." in text


def test_nothing_of_the_article_stands_beside_other_data_or_settings():
    for changes in ({"dataset": "glyphs"}, {"experiment": None}):
        text = page_of({"set2": example(**changes)})
        assert "Not comparable with the article: " in text
        assert "68.37" not in text
        assert len(tables(text, TITLES["set2"])["standalone"]) == 6


def test_trained_base_is_a_row_without_figures_of_the_article():
    studies = {"set2": example(), "set2_trained": example(("straw",), config=TRAINED)}
    table = tables(page_of(studies), TITLES["set2"])
    assert [*table] == [
        *("model", "---", "standalone", "STRAW, base none", "STRAW, base trained", "ResNet-34")
    ]
    assert table["STRAW, base trained"][2:7:2] == ["-", "-", "-"]


def test_missing_studies_are_said_to_be_missing():
    text = page_of({**dict.fromkeys(STUDIES), "set2": example(("straw",))})
    assert f"{TITLES['set1']}\n\nNot run." in text
    record = tables(text, "## How it was run")
    assert {name for name, row in record.items() if row[0] == "not run"} == {
        f"`{name}`" for name in STUDIES if name != "set2"
    }
    assert "## Rank" not in text
    assert "## The preset" not in text
    assert "## What the modulator does" not in text


def test_page_without_any_study_is_a_page():
    assert "Nothing has been run yet." in page_of(dict.fromkeys(STUDIES))


# --- controls -----------------------------------------------------------------------------------


def test_shares_of_the_gain_are_of_means():
    summary = accuracies(standalone=[0.60, 0.62], wide_dense=[0.65, 0.70], straw=[0.70, 0.70])
    # "shuffled" is a part of STRAW's own 0.70: see tests/summaries.py.
    summary["controls"]["straw"]["same class"] = summary["results"]["straw"]
    wide = accuracies(wide=[0.78])
    text = page_of({"set2": summary, "set2_wide": wide})
    assert (
        "Gain over the standalone, in percentage points: standard +9.00 ± 1.41, rotated +9.00"
        in text
    )
    table = tables(text, "### Set 2, STRAW, base none")
    share = {name: row[4] for name, row in table.items()}
    assert share["standalone"] == "0"
    assert share["STRAW, base none"] == "100"
    assert share["wide_dense"] == "72"  # (0.675 - 0.61) / (0.70 - 0.61)
    assert share["wide"] == "189"
    assert table["wide"][2] == "one seed"
    assert share["style vector: another image of its class"] == "100"
    assert share["style vector: another image"] == "none"  # below the standalone


def test_no_share_of_a_gain_that_is_none():
    text = page_of({"set2": accuracies(standalone=[0.6, 0.8], straw=[0.7, 0.7], wide=[0.8, 0.8])})
    table = tables(text, "### Set 2, STRAW, base none")
    assert all(table[name][4] == "-" for name in ("standalone", "wide", "STRAW, base none"))
    assert table["wide"][3] == "80.00 ± 0.00"


def test_static_controls_stand_beside_the_straw_that_they_are_sized_for():
    none = accuracies(standalone=[0.6], wide_compute=[0.65], straw=[0.7])
    trained = {**accuracies(wide_compute=[0.72], straw=[0.75]), "config": TRAINED}
    text = page_of({"set2": none, "set2_trained": trained})
    with_none = tables(text, "### Set 2, STRAW, base none")
    with_trained = tables(text, "### Set 2, STRAW, base trained")
    assert with_none["wide_compute"][3] == "65.00"
    assert "wide_compute" not in with_trained
    assert with_trained["wide_compute, sized for base trained"][3] == "72.00"
    assert "wide_compute, sized for base trained" in tables(text, TITLES["set2"])


@pytest.mark.parametrize(
    "study",
    [name for name, study in STUDIES.items() if study.script == "run.py" and "resnet" not in name],
)
def test_studies_size_their_controls_for_the_straw_beside_them(study):
    settings = parse(STUDIES[study].flags.split())
    sizes = {"classes": 47, "rank": settings.rank, "base": settings.base}
    counts = {"wide_dense": parameters, "wide": parameters, "wide_compute": sample_cost}
    for name in set(settings.models) & set(counts):
        count = counts[name]
        straw, control = (count(build_model(model, **sizes)) for model in ("straw", name))
        assert control == pytest.approx(straw, rel=0.03)


def test_controls_are_told_of_both_bases():
    studies = {
        "set3": example((*STATIC, "straw"), experiment="20pct_rank32"),
        "set3_trained": example(("straw",), experiment="20pct_rank32", config=TRAINED),
    }
    text = page_of(studies)
    for base, study in (("none", "set3"), ("trained", "set3_trained")):
        table = tables(text, f"### Set 3, STRAW, base {base}")
        static = ("wide_dense", "wide_compute") if base == "none" else ()
        assert [*table][2:] == [
            *("standalone", f"STRAW, base {base}", *static),
            *(f"style vector: {results_page.CONTROL_NAMES[control]}" for control in CONTROLS),
        ]
        mean = table["style vector: mean of training images"]
        controls = studies[study]["controls"]["straw"]["mean"]
        for index, variant in enumerate(VARIANTS):
            assert shows(mean[3 + 2 * index], controls[variant]["accuracy"], 100, 2)


# --- bases, ranks, preset -----------------------------------------------------------------------


def test_bases_are_compared_seed_by_seed():
    none, trained = accuracies(straw=[0.50, 0.60]), accuracies(straw=[0.53, 0.65])
    text = page_of({"set2": none, "set2_trained": {**trained, "config": TRAINED}})
    row = next(line for line in text.splitlines() if line.startswith("| 2 | rotated |"))
    assert cells(row)[2:] == ["55.00 ± 7.07", "59.00 ± 8.49", "+4.00 ± 1.41"]


def rank_studies():
    def study(rank, base, parameters):
        config = {**ARTICLE, "rank": rank, "base": base}
        return example(
            ("straw",), 1, experiment=None, config=config, parameters={"straw": parameters}
        )

    return {
        "set2": example(),
        "rank1": study(1, "none", 1_427_143),
        "rank4_trained": study(4, "trained", 12_345),  # not the article's STRAW
        "rank2_trained": study(2, "trained", 3_910_446),
    }


def test_ranks_are_in_order_and_tell_what_is_generated():
    text = page_of(rank_studies())
    part = text.split("## Rank\n")[1].split("\n#")[0]
    rows = [cells(line) for line in part.splitlines() if line.startswith("|")][2:]
    assert [row[:4] for row in rows] == [
        ["1", "none", "10,183", "1,427,143"],
        ["16", "none", "158,863", "20,606,863"],
        ["2", "trained", "20,095", "3,910,446"],
        ["4", "trained", "-", "12,345"],
    ]


def test_preset_stands_beside_resnet34():
    studies = {
        "preset2": example(("standalone", "straw"), experiment=None),
        "set2_resnet34": example(("resnet34",), seeds=1),
    }
    table = tables(page_of(studies), "### 10 % of the training images")
    assert [*table][2:4] == ["standalone", "STRAW, base none"]
    assert [*table][-2:] == ["ResNet-34", "ResNet-34, the article's"]
    assert table["ResNet-34, the article's"][:4] == ["one run", "81.91", "40.06", "79.36"]
    assert len(table) == 2 + 2 + len(CONTROLS) + 2
    short = example(experiment=None, config={**ARTICLE, "epochs": 1})
    assert "the article's |" not in page_of({"preset2": short})
    glyphs = page_of({"preset2": example(dataset="glyphs", experiment=None)})
    assert "the article's |" not in glyphs


def test_other_networks_have_tables_with_their_controls():
    studies = {
        "trm2": example(("straw",), experiment=None),
        "vit2": example(("standalone", "straw"), experiment=None, config={**TRAINED, "rank": 4}),
    }
    text = page_of(studies)
    trm, vit = (
        tables(text, heading)
        for heading in (
            "### The TRM encoder in place of the article's eye (`--encoder trm`)",
            "### A small vision transformer in place of the article's CNN (`--executor vit`)",
        )
    )
    assert [*trm][2] == "STRAW, base none"
    assert [*vit][2:4] == ["standalone", "STRAW, base trained"]
    assert len(vit) == len(trm) + 1 == 2 + 2 + len(CONTROLS)
    assert "10 % of the training images, 5 epochs, rank 4, batches of 128, Adam with a" in text
    assert "Another encoder" not in page_of({"set2": example()})


# --- analysis -----------------------------------------------------------------------------------


def test_analysis_is_told_where_there_is_one():
    text = page_of({"set2": example()}, analyses={"set2": example_analysis()})
    assert "## What the modulator does\n\n### STRAW, base none (`set2`)" in text
    table = tables(text, "### STRAW, base none (`set2`)")
    counts = ["1,179,648", "589,824", *["3.54 M"] * 3, "4,718,592", "1,179,648", "0"]
    assert table["fc1"] == counts
    update = ["1.23 (0.90 to 1.50)", "0.46", "73.1 (72.5)"]
    assert table["fc1/bias"] == [*update, "-"]
    part = text.split("### STRAW, base none (`set2`)")[1]
    assert f"| fc1/kernel | {' | '.join(update)} | 1.2 (0.9 to 1.5) of 16 |" in part
    assert "| fc1/kernel | 0.00 | 0.81 | 0.17 | 0.62 | 1.41 |" in part
    assert "| STRAW | own | 72.5 ± 1.1 | 35.0 |\n| STRAW | upright style | 72.5 | 50.0 |" in part
    assert "1,880 test images" in part


# --- texts --------------------------------------------------------------------------------------


def test_facts_are_told_once_or_with_their_studies():
    same = page_of({"set2": example(), "set3": example()})
    assert "| commit | 0123456789 |" in same
    other = page_of({"set2": example(), "set3": example(commit="abcdef0123")})
    assert "| commit | 0123456789 (set2); abcdef0123 (set3) |" in other


def test_reconstructed_split_is_told_of_that_archive_alone():
    assert "not the official split" in page_of({"set2": example()})
    for name in ("EMNIST balanced", "glyphs", "EMNIST (unofficial archive, sha256 0123456789ab)"):
        assert "reconstructed" not in page_of({"set2": example(dataset=name)})


@pytest.mark.parametrize(
    ("section", "heading"),
    [
        ("intro", "# Results"),
        ("main", "## The article's table"),
        ("controls", "## Is it the sample, or the capacity?"),
        ("bases", "## Base weights: none against trained"),
        ("ranks", "## Rank"),
        ("networks", "## Another encoder, another executor"),
        ("preset", "## The preset"),
        ("geometry", "## Rotated weights for rotated images"),
        ("modulator", "## What the modulator does"),
    ],
)
def test_findings_stand_under_their_heading(section, heading):
    text = page_of({"set2": example()}, findings={section: "We found it.\n"})
    assert f"\n{heading}\n\nWe found it.\n\n" in f"\n{text}"


def test_findings_on_a_set_follow_its_table():
    text = page_of({"set2": example()}, findings={"set2": "An explanation."})
    assert "(+" in text.split("An explanation.\n\n### Set 3")[0].splitlines()[-2]


def test_table_for_the_terminal_says_what_is_still_to_be_run():
    lines = results_page.table({"set2": example(), "set1": None}).splitlines()
    assert [line.split("  ")[0] or line.split()[0] for line in lines] == [
        *("accuracy, %", "set2", "standalone", "STRAW,", "ResNet-34", "not run: set1")
    ]


# --- figures ------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn during a test, instead of files."""
    drawn = {}
    monkeypatch.setattr(results_figures, "save", lambda figure, path: drawn.update({path: figure}))
    return drawn


def test_main_figure_shows_means_and_the_articles(drawn):
    studies = {"set2": example(("standalone", "straw"))}
    assert results_figures.draw(studies, {"main": "main", "rank": "rank"}) == ["main"]
    (axes,) = drawn["main"].axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    means, diamonds = {}, {}
    for line in axes.lines:
        if len(line.get_xdata()) == 1 and line.get_marker() in "oD":
            found = means if line.get_marker() == "o" else diamonds
            found[labels[int(line.get_ydata()[0])]] = line.get_xdata()[0]
    assert diamonds == {"standalone": 68.37, "STRAW, base none": 71.87, "ResNet-34": 81.91}
    standard = {m: v["standard"]["accuracy"]["mean"] for m, v in studies["set2"]["results"].items()}
    assert means["standalone"] == pytest.approx(100 * standard["standalone"])
    assert means["STRAW, base none"] == pytest.approx(100 * standard["straw"])
    assert len(means) == 2 + len(CONTROLS)


def test_rank_figure_shows_a_curve_for_each_base(drawn):
    studies = rank_studies()
    assert "rank" in results_figures.draw(studies, {"main": "main", "rank": "rank"})
    for axes, variant in zip(drawn["rank"].axes, VARIANTS, strict=True):
        curves = {bar.get_label(): bar.lines[0] for bar in axes.containers}
        assert [*curves["base none"].get_xdata()] == [1, 16]
        expected = [
            100 * studies[name]["results"]["straw"][variant]["accuracy"]["mean"]
            for name in ("rank1", "set2")
        ]
        np.testing.assert_allclose(np.asarray(curves["base none"].get_ydata(), float), expected)
        assert [*curves["base trained"].get_xdata()] == [2, 4]


# --- the script ---------------------------------------------------------------------------------


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_page_and_figures_are_made_from_a_folder(tmp_path, capsys):
    for name, summary in rank_studies().items():
        _write(tmp_path / "here" / name / "summary.json", summary)
    _write(tmp_path / "here" / "set2" / "analysis.json", example_analysis())
    _write(tmp_path / "here" / "findings" / "ranks.md", "More is better.\n")
    write(tmp_path / "here", tmp_path / "docs" / "page.md")
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "## Rank\n\nMore is better.\n" in text
    assert "### Accuracy by angle (`set2`)" in text
    for name in ("main", "rank"):
        assert f"](page_{name}.png)" in text
        with Image.open(tmp_path / "docs" / f"page_{name}.png") as picture:
            assert picture.format == "PNG"
    assert "not run: set2_trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "expected finished studies, found no here/STUDY/summary.json"),
        ("here/set2/summary.json", "cannot read here/set2/summary.json: "),
    ],
)
def test_bad_input_gets_one_line(tmp_path, file, message):
    if file:
        _write(tmp_path / file, "{")
    words = [sys.executable, SCRIPT, "here", "--out", "page.md"]
    ran = subprocess.run(
        words, cwd=tmp_path, env=scripts.environment(), capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"write_results.py: {message}")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.skipif(not (DOCS / "results").is_dir(), reason="no results are kept")
def test_page_in_docs_is_that_of_its_results(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    write(tmp_path / "results", tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == (DOCS / "results.md").read_text()
