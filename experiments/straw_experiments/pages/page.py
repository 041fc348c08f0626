"""The results page: what the studies of `experiments/reproduce.py` found, in one Markdown text.

Accuracies are fractions in 0..1 in the summaries, and per cent on the page.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from straw_experiments.image_classification import models as contenders
from straw_experiments.image_classification.published import PUBLISHED, SOURCE, Comparison, compare
from straw_experiments.image_classification.report import CONTROL_NAMES, model_name, variant_names
from straw_experiments.pages.analysis import analysis_text
from straw_experiments.pages.language import language_parts
from straw_experiments.pages.prediction import prediction_parts
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    statistic,
)
from straw_jax.straw import Base

Summary: TypeAlias = Mapping[str, Any]
Studies: TypeAlias = Mapping[str, Summary | None]
"""By name, what `summary.json` holds, or None of a study that has not been run."""

SETS = {"set1": "full_rank16", "set2": "10pct_rank16", "set3": "20pct_rank32"}
"""The article's sets, as studies and `PUBLISHED` name them."""

FAR = 3  # percentage points from the article, beyond which a figure is marked

_RECONSTRUCTED = "EMNIST (unofficial archive, sha256 8ef1351a4efc)"


class Row(NamedTuple):
    """A model of a study, or a trained STRAW with other style vectors than each image's own.

    Attributes:
        summary: Of the study.
        model: As the summary names it.
        control: As `image_classification.controls` names it, or None for the model itself.
    """

    summary: Summary
    model: str
    control: str | None = None

    @property
    def base(self) -> str | None:
        """Base of the article's STRAW, or of that which a control is sized for; else None."""
        follows = self.model == "straw" or self.model.startswith("wide")
        return self.summary["config"]["base"] if follows else None

    @property
    def name(self) -> str:
        """The row's name to a reader; a control's is told below its model."""
        if self.control:
            return f"style vector: {CONTROL_NAMES[self.control]}"
        if self.model == "straw":
            return f"STRAW, base {self.base}"
        sized = self.base == "trained"  # sizes for base none are the usual ones
        return model_name(self.model) + ", sized for base trained" * sized

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.summary["seeds"])

    @property
    def seconds(self) -> float:
        """Training time of one run."""
        return self.summary["seconds"][self.model] / self.seeds

    def accuracy(self, variant: str) -> dict[int, float]:
        """Return the accuracy on a variant of the test images by seed."""
        of_model = self.summary["results"][self.model]
        if self.control:
            of_model = self.summary["controls"][self.model][self.control]
        values = of_model[variant]["accuracy"]["seeds"]
        return dict(zip(self.summary["seeds"], values, strict=True))

    def controls(self) -> "list[Row]":
        """Return a STRAW's rows with other style vectors; none of a static model."""
        controls = self.summary["controls"].get(self.model, ())
        return [self._replace(control=name) for name in controls]


def page(
    studies: Studies,
    *,
    predictions: Mapping[str, Summary],
    languages: Mapping[str, Summary],
    findings: Mapping[str, str],
    analyses: Mapping[str, Any],
    figures: Mapping[str, str],
    pictures: Mapping[str, Sequence[str]],
) -> str:
    """Write the page.

    Args:
        studies: Of run.py, in the order in which they shall stand.
        predictions: Those of weight_prediction.py that have been run.
        languages: Those of char_lm.py that have been run.
        findings: Text by section, put under its heading: "intro", "main", "controls", "bases",
            "ranks", "networks", "preset", "geometry", "modulator", "weights", "hypernetworks",
            "characters"; and "set1", "set2", "set3", under the set's table.
        analyses: What `analysis.json` holds, by study.
        figures: File by what it shows, "main", "rank", "weights", as a link from the page.
        pictures: Files that analyse.py or char_lm.py drew, by study, as links from the page.

    Returns:
        Markdown.
    """
    run = finished(studies)
    # Where no modulator was analysed, there is nothing but how distorted images are read.
    updates = {
        study: found
        for study, found in analyses.items()
        if found["straw"] and study not in _GEOMETRY
    }
    poses = {study: found for study, found in analyses.items() if study not in updates}
    sections = [
        _section("# Results", [findings.get("intro"), _introduction(run)]),
        _section(
            "## The article's table", [findings.get("main"), *_main_parts(run, findings, figures)]
        ),
        _section(
            "## Is it the sample, or the capacity?",
            [findings.get("controls"), *_control_parts(run)],
        ),
        _section("## Base weights: none against trained", [findings.get("bases"), _bases(run)]),
        _section("## Rank", [findings.get("ranks"), _ranks(run), _link(figures, "rank")]),
        _section(
            "## Another encoder, another executor",
            [findings.get("networks"), *_network_parts(run, _NETWORKS)],
        ),
        _section("## The preset", [findings.get("preset"), *_preset_parts(run)]),
        _section(
            "## Rotated weights for rotated images",
            [
                findings.get("geometry"),
                *_network_parts(run, _GEOMETRY),
                analysis_text(poses, pictures),
            ],
        ),
        _section(
            "## What the modulator does",
            [findings.get("modulator"), analysis_text(updates, pictures)],
        ),
        _section(
            "## Weight prediction",
            [
                findings.get("weights"),
                _link(figures, "weights"),
                *prediction_parts(predictions),
            ],
        ),
        _section(
            "## Kernels from one generator",
            [findings.get("hypernetworks"), *_network_parts(run, _HYPERNETWORKS)],
        ),
        _section(
            "## Characters", [findings.get("characters"), *language_parts(languages, pictures)]
        ),
        _section("## How it was run", _record({**studies, **predictions, **languages})),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(studies: Studies) -> str:
    """Lay out what has been run as aligned plain text, for the terminal.

    Args:
        studies: In the order in which they shall stand.

    Returns:
        Lines of text without a final newline: accuracy in per cent, parameters and training time by
        study and model, and which studies are still to be run.
    """
    run = finished(studies)
    lines = []
    if run:
        variants = _variants(run)
        rows: list[list[str] | str] = [
            ["accuracy, %", "seeds", *variants, "parameters", "time a seed"]
        ]
        for name, summary in run.items():
            rows.append(name)
            rows += [
                [
                    f"  {row.name}",
                    str(row.seeds),
                    *(_percent(row.accuracy(v).values()) for v in variants),
                    readable_count(summary["parameters"][row.model]),
                    duration(row.seconds),
                ]
                for row in rows_of([summary])
            ]
        lines = aligned(rows)
    missing = [name for name in studies if name not in run]
    return "\n".join([*lines, f"not run: {', '.join(missing)}"] if missing else lines)


def finished(studies: Studies) -> dict[str, Summary]:
    """Return the studies that have been run."""
    return {name: summary for name, summary in studies.items() if summary}


def set_rows(studies: Mapping[str, Summary], name: str) -> list[Row]:
    """Return the models of one of the article's sets, static ones and controls first.

    Args:
        studies: Those that have been run; a set's have its name, or begin with it and "_".
        name: Of `SETS`.
    """
    return rows_of(summary for study, summary in studies.items() if study.split("_")[0] == name)


def rows_of(summaries: Iterable[Summary]) -> list[Row]:
    """Return the models of some studies, each once."""
    rows = [Row(summary, model) for summary in summaries for model in summary["results"]]
    first = {row.name: row for row in reversed(rows)}
    order = {name: place for place, name in enumerate(contenders.NAMES)}
    return sorted(first.values(), key=lambda row: (order.get(row.model, len(order)), row.name))


def published_name(model: str) -> str:
    """Name the row that a model of the article's is, as `Row.name` does."""
    return model_name(model) + ", base none" * (model == "straw")


def rank_rows(studies: Mapping[str, Summary]) -> list[Row]:
    """Return STRAW at each rank, on the second set's images, by base and rank."""
    rows = [
        Row(summary, "straw")
        for name, summary in studies.items()
        if re.fullmatch(r"(rank\d+|set2)(_trained)?", name) and "straw" in summary["results"]
    ]
    return sorted(rows, key=lambda row: (row.base, row.summary["config"]["rank"]))


def share_of_gain(row: Row, straw: Row, standalone: Row, variant: str) -> float | None:
    """Compute which share of STRAW's gain over the standalone another model has.

    Args:
        row: The other model.
        straw: The STRAW.
        standalone: The standalone.
        variant: Of the test images.

    Returns:
        `(row - standalone) / (straw - standalone)`, of means over seeds: 0 for the standalone's
        accuracy, 1 for STRAW's. None where STRAW gains nothing.
    """
    ours, best, least = (
        statistic([*each.accuracy(variant).values()])["mean"] for each in (row, straw, standalone)
    )
    return (ours - least) / (best - least) if best > least else None


def differences(row: Row, other: Row, variant: str) -> list[float]:
    """Compute the accuracy of one model less that of another, for each seed that both have."""
    ours, theirs = row.accuracy(variant), other.accuracy(variant)
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _section(title: str, parts: Iterable[str | None]) -> str:
    """Put parts under a heading; nothing where there are none."""
    present = [part.strip() for part in parts if part]
    return "\n\n".join([title, *present]) if present else ""


def _link(figures: Mapping[str, str], name: str) -> str | None:
    alt = {
        "main": "Test accuracy by model and control, and the article's",
        "rank": "Test accuracy by rank and base",
        "weights": "What predicted weights leave unexplained, by pairs an unknown",
    }
    return f"![{alt[name]}]({figures[name]})" if name in figures else None


# --- sections -----------------------------------------------------------------------------------


def _introduction(run: Mapping[str, Summary]) -> str:
    if not run:
        return "Nothing has been run yet."
    facts = {
        "data set": _shared(run, lambda summary: summary["dataset"]),
        "device": _shared(run, lambda summary: summary["device"]),
        "versions": _shared(run, lambda summary: _listed(summary["versions"])),
        "commit": _shared(run, lambda summary: summary["commit"] or "not in a clone"),
    }
    text = (
        "This page is made by `experiments/write_results.py` from the summaries of the runs; the"
        " commands are at its end. Accuracies are of test images, in per cent: mean ± sample"
        ' standard deviation over seeds. A figure without "±" is of one seed.'
    )
    parts = [text, markdown_table(["what", "value"], [[*fact] for fact in facts.items()])]
    if any(summary["dataset"] == _RECONSTRUCTED for summary in run.values()):
        parts.append(
            f"{_RECONSTRUCTED} is, by the description that comes with it, EMNIST (reconstructed"
            " balanced split): real EMNIST images with their official labels, but not the official"
            " split. Levels are only nearly comparable with the article's; differences between"
            " models are better compared."
        )
    return "\n\n".join(parts)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _shared(run: Mapping[str, Summary], fact: Any) -> str:
    """Tell a fact of all studies, once, or with the studies of each where they differ."""
    studies: dict[str, list[str]] = {}
    for name, summary in run.items():
        studies.setdefault(fact(summary), []).append(name)
    if len(studies) == 1:
        return next(iter(studies))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in studies.items())


def _main_parts(
    run: Mapping[str, Summary], findings: Mapping[str, str], figures: Mapping[str, str]
) -> list[str | None]:
    text = (
        "`wide_dense`, `wide_compute` and `wide` are the standalone made larger: its dense layer"
        " widened to STRAW's trained parameters; all layers widened to STRAW's multiply-adds; all"
        " layers widened to STRAW's trained parameters. Beside each figure stands the article's,"
        " and in brackets ours less the article's, in percentage points; † marks a difference of"
        f" more than {FAR}. The article's figures are of one run each, and its STRAW has no base"
        f" weights. Source: {SOURCE}."
    )
    parts: list[str | None] = [text, _link(figures, "main")]
    for name in SETS:
        parts.append(_set_title(name))
        parts += _set_parts(set_rows(run, name), name)
        parts.append(findings.get(name))
    return parts


def _set_title(name: str) -> str:
    fraction, settings = {
        "set1": ("100 %", "rank 16, 10 epochs"),
        "set2": ("10 %", "rank 16, 5 epochs"),
        "set3": ("20 %", "rank 32, 5 epochs"),
    }[name]
    return f"### Set {name[-1]}: {fraction} of the training images, {settings}"


def _set_parts(rows: Sequence[Row], name: str) -> list[str]:
    if not rows:
        return ["Not run."]
    comparison = compare(rows[0].summary)
    if not comparison or not comparison.fair:
        reason = comparison.reason if comparison else "their settings are none of the article's."
        return [_plain_table(rows), f"Not comparable with the article: {reason}"]
    variants = variant_names(rows[0].summary)
    header = ["model", "seeds"]
    header += [title for variant in variants for title in (f"{variant}, %", "article (difference)")]
    header += _COST
    table, far = [], []
    for row in rows:
        cells = [row.name, _seeds(row)]
        for variant in variants:
            difference = _from_article(row, variant, comparison)
            is_far = difference is not None and abs(difference) > FAR
            cells.append(_percent(row.accuracy(variant).values()) + " †" * is_far)
            cells.append(_article(comparison, variant, row.model, difference))
            far += [f"{row.name} on {variant} images ({difference:+.2f})"] if is_far else []
        table.append(cells + _cost(row))
    for model in comparison.results[variants[0]]:
        if published_name(model) not in {row.name for row in rows}:
            published = [f"{comparison.results[v][model][0]:.2f}" for v in variants]
            cells = [cell for figure in published for cell in ("not run", figure)]
            table.append([published_name(model), "-", *cells, *["-"] * len(_COST)])
    parts = [markdown_table(header, table)]
    if far:
        parts.append(f"† More than {FAR} points from the article: {'; '.join(far)}.")
    return parts


_COST = ["trained parameters", "multiply-adds an image"]


def _cost(row: Row) -> list[str]:
    summary = row.summary
    return [
        f"{summary['parameters'][row.model]:,}",
        readable_count(summary["multiply_adds"][row.model]),
    ]


def _seeds(row: Row) -> str:
    return "one seed" if row.seeds == 1 else str(row.seeds)


def _accuracies(row: Row, variants: Sequence[str]) -> list[str]:
    return [_percent(row.accuracy(variant).values()) for variant in variants]


def _percent(values: Iterable[float], sign: str = "", digits: int = 2) -> str:
    """Write fractions as mean and spread in per cent, a dash where there are none."""
    values = list(values)
    return mean_std(statistic(values), 100, digits, sign) if values else "-"


def _from_article(row: Row, variant: str, comparison: Comparison) -> float | None:
    """Our accuracy less the article's in percentage points, or None where it has none."""
    published = comparison.results[variant].get(row.model)
    if published is None or row.base == "trained":
        return None
    return 100 * statistic([*row.accuracy(variant).values()])["mean"] - published[0]


def _article(comparison: Comparison, variant: str, model: str, difference: float | None) -> str:
    if difference is None:
        return "-"
    return f"{comparison.results[variant][model][0]:.2f} ({difference:+.2f})"


def _control_parts(run: Mapping[str, Summary]) -> list[str]:
    parts = []
    for name in SETS:
        rows = set_rows(run, name)
        standalone = next((row for row in rows if row.model == "standalone"), None)
        for straw in rows:
            if straw.model == "straw" and standalone:
                parts.append(f"### Set {name[-1]}, {straw.name}")
                parts += _gain_parts(straw, standalone, rows)
    text = (
        "How much of STRAW's gain over the standalone does a control have? Static controls"
        " (`wide_dense`, `wide_compute`, `wide`) are larger networks with one set of weights: what"
        " they gain needs no weights of a sample's own. The others are the same trained STRAW with"
        " the weights that it writes for another style vector than the image's own: of another"
        " image of the same class, of any other image, the mean over the training images (one"
        " static network), and zero. Share is (control - standalone) / (STRAW - standalone), of"
        " means over seeds: above 100 where the control is better than STRAW, none where it is"
        " below the standalone."
    )
    return [text, *parts] if parts else []


def _gain_parts(straw: Row, standalone: Row, rows: Sequence[Row]) -> list[str]:
    variants = variant_names(straw.summary)
    gains = [
        f"{variant} {_percent(differences(straw, standalone, variant), '+')}"
        for variant in variants
    ]
    static = [row for row in rows if row.model.startswith("wide") and row.base == straw.base]
    table = [
        [row.name, *_cost(row), _seeds(row)]
        + [
            cell
            for variant in variants
            for cell in (
                _percent(row.accuracy(variant).values()),
                _share(share_of_gain(row, straw, standalone, variant)),
            )
        ]
        for row in [standalone, straw, *static, *straw.controls()]
    ]
    header = ["model", *_COST, "seeds"]
    header += [title for variant in variants for title in (f"{variant}, %", "share, %")]
    gain = f"Gain over the standalone, in percentage points: {', '.join(gains)}."
    return [gain, markdown_table(header, table)]


def _share(share: float | None) -> str:
    """Write a share in per cent; how far below the standalone a control falls is no share."""
    if share is None:
        return "-"
    return "none" if share < 0 else f"{100 * share:.0f}"


def _bases(run: Mapping[str, Summary]) -> str | None:
    table = []
    for name in SETS:
        straws = {row.base: row for row in set_rows(run, name) if row.model == "straw"}
        if len(straws) == 2:
            for variant in variant_names(straws["none"].summary):
                accuracies = [
                    _percent(straws[base].accuracy(variant).values())
                    for base in ("none", "trained")
                ]
                difference = differences(straws["trained"], straws["none"], variant)
                table.append([name[-1], variant, *accuracies, _percent(difference, "+")])
    header = ["set", "test images", "base none, %", "base trained, %", "difference, points"]
    return markdown_table(header, table) if table else None


def _ranks(run: Mapping[str, Summary]) -> str | None:
    rows = rank_rows(run)
    if len(rows) < 2:
        return None
    variants = variant_names(rows[0].summary)
    table = [
        [
            str(row.summary["config"]["rank"]),
            row.base or "",
            _generated(row),
            *_cost(row),
            _seeds(row),
            *_accuracies(row, variants),
        ]
        for row in rows
    ]
    header = ["rank", "base", "generated numbers an image", *_COST, "seeds"]
    return markdown_table([*header, *(f"{v}, %" for v in variants)], table)


def _generated(row: Row) -> str:
    """Count what the article's STRAW writes an image, if that is what was trained."""
    config = row.summary["config"]
    size, parameters = _article_straw(config["rank"], config["base"])
    return f"{size:,}" if parameters == row.summary["parameters"][row.model] else "-"


@functools.cache
def _article_straw(rank: int, base: Base) -> tuple[int, int]:
    straw = contenders.article_straw(classes=47, rank=rank, base=base)
    return straw.spec.size, contenders.parameters(contenders.straw_model(straw))


_NETWORKS = {
    "trm2": "The TRM encoder in place of the article's eye (`--encoder trm`)",
    "vit2": "A small vision transformer in place of the article's CNN (`--executor vit`)",
}


_GEOMETRY = {
    "geometry3": "The article's third set: 20 % of the images",
    "geometry1": "All images",
}

_HYPERNETWORKS = {
    "static_mnist": "MNIST, the paper's network: 12,544 parameters of its second convolution, or"
    " 4,244",
    "static_wrn": "EMNIST, a wide residual network: 170,496 parameters of its 3x3 kernels, or"
    " 7,984",
}


def _network_parts(run: Mapping[str, Summary], titles: Mapping[str, str]) -> list[str]:
    parts = []
    for study, title in titles.items():
        if study in run:
            config, rows = run[study]["config"], _with_controls(run[study])
            setting = (
                f"{100 * config['fraction']:g} % of the training images, {config['epochs']} epochs,"
                + f" rank {config['rank']}," * ("straw" in run[study]["results"])
                + f" batches of {config['batch_size']}, Adam with a rate of"
                f" {config['learning_rate']:g}, {config['schedule']}."
            )
            parts += [f"### {title}", setting, _plain_table(rows)]
    return parts


def _with_controls(summary: Summary) -> list[Row]:
    """Return the models of a study, each followed by its controls."""
    return [each for row in rows_of([summary]) for each in (row, *row.controls())]


def _plain_table(rows: Sequence[Row], *more: list[str]) -> str:
    """Lay out accuracy and cost of models, and more rows of such cells."""
    variants = variant_names(rows[0].summary)
    table = [[row.name, _seeds(row), *_accuracies(row, variants), *_cost(row)] for row in rows]
    return markdown_table(
        ["model", "seeds", *(f"{v}, %" for v in variants), *_COST], [*table, *more]
    )


def _preset_parts(run: Mapping[str, Summary]) -> list[str]:
    parts = [
        "`run.py --preset compact`: a STRAW with a small executor and a small generator, its"
        " executor alone (`compact_static`), and that widened to as many parameters"
        " (`compact_wide`), all with the same recipe: Adam with a rate of 0.004 that rises and"
        " falls along a cosine, batches of 32, as many epochs as the article's set. The recipe was"
        " chosen on validation images held out of the training images. ResNet-34 has the"
        " article's recipe, which was not tuned for it. Figures by style vector are of an evenly"
        " strided sample of the test images; compare them with that of the image itself."
    ]
    for study, name in (("preset2", "set2"), ("preset3", "set3")):
        if study in run:
            parts.append(f"### {100 * run[study]['config']['fraction']:g} % of the training images")
            parts.append(_preset_table(run[study], name, set_rows(run, name)))
    return parts if len(parts) > 1 else []


def _preset_table(summary: Summary, name: str, others: Sequence[Row]) -> str:
    """Set a preset and its controls beside ResNet-34, published and our own."""
    variants, config = variant_names(summary), summary["config"]
    rows = _with_controls(summary) + [row for row in others if row.model == "resnet34"]
    published = []
    comparison = compare({**summary, "experiment": SETS[name], "config": {}})
    usual = {"fraction": {"set2": 0.1, "set3": 0.2}[name], "epochs": 5}
    same_images = usual.items() <= config.items() and not (config["limit"] or config["validation"])
    if comparison and comparison.fair and same_images:
        figures = [f"{PUBLISHED[SETS[name]][v]['resnet34'][0]:.2f}" for v in variants]
        published.append(["ResNet-34, the article's", "one run", *figures, *["-"] * len(_COST)])
    return _plain_table(rows, *published)


def _record(studies: Studies) -> list[str]:
    run = finished(studies)
    rows = []
    for name, summary in studies.items():
        if summary:
            facts = [summary["device"], summary["commit"] or "-", str(summary["jobs"])]
            facts += [str(len(summary["seeds"])), duration(_seconds(summary))]
        else:
            facts = ["not run", "-", "-", "-", "-"]
        rows.append([f"`{name}`", *facts])
    header = ["study", "device", "commit", "runs at a time", "seeds", "training time, all runs"]
    text = (
        "`python experiments/reproduce.py` runs all studies, looks at what their modulators do"
        " (`experiments/analyse.py`) and writes this page; `--only STUDY` runs one. Times are of"
        " the machine as it was: runs side by side, and other work beside them, slow each other."
    )
    commands = [
        f"# {name}\n{summary['command'].removesuffix(' --resume')}" for name, summary in run.items()
    ]
    block = "```bash\n" + "\n".join(commands) + "\n```" if commands else ""
    return [text, markdown_table(header, rows), block]


def _seconds(summary: Summary) -> float:
    """Training time of all runs."""
    if "study" in summary:
        return sum(each["seconds"] for each in summary["results"].values())
    return sum(summary["seconds"].values())


def _variants(run: Mapping[str, Summary]) -> list[str]:
    return variant_names(next(iter(run.values())))
