"""The text table and the Markdown report of a study, made from `summary.json`.

Accuracies are fractions in 0..1 there, and per cent in print.
"""

from collections.abc import Mapping
from typing import Any

from straw_experiments.image_classification.models import MODELS
from straw_experiments.image_classification.published import SOURCE, Comparison, compare
from straw_experiments.runner import precision
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
    statistic,
)

# As `controls` names them: whose style vector each image's weights come from.
CONTROL_NAMES = {
    "own": "the image itself",
    "same class": "another image of its class",
    "shuffled": "another image",
    "mean": "mean of training images",
    "zero": "zero",
}


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a run's results as aligned plain text, for the terminal.

    Args:
        summary: contents of `summary.json`.

    Returns:
        Lines of text without a final newline: data set, device, seeds, then accuracy in per cent
        and loss by model (rows) and test variant (columns), and the accuracy of controls. Published
        accuracies follow where they may be compared.
    """
    results, variants = summary["results"], variant_names(summary)
    rows: list[list[str] | str] = [["", *variants, "parameters", "training time"]]
    rows.append("accuracy, %")
    for model, by_variant in results.items():
        accuracy = [mean_std(by_variant[v]["accuracy"], 100, 2) for v in variants]
        cost = [readable_count(summary["parameters"][model]), duration(summary["seconds"][model])]
        rows.append([f"  {model_name(model)}", *accuracy, *cost])
    rows.append("loss")
    for model, by_variant in results.items():
        loss = [mean_std(by_variant[v]["loss"], 1, 4) for v in variants]
        rows.append([f"  {model_name(model)}", *loss, "", ""])
    for model, by_control in summary["controls"].items():
        count = f"{summary['control_images']:,} test images"
        rows.append(f"accuracy, %, of {model_name(model)} by style vector, on {count}")
        for control, by_variant in by_control.items():
            accuracy = [mean_std(by_variant[v]["accuracy"], 100, 2) for v in variants]
            rows.append([f"  {control}", *accuracy, "", ""])
    comparison = compare(summary)
    if comparison and comparison.fair:
        rows.append(f"the article's accuracy, %: {comparison.verdict}, one run each")
        for model in results:
            accuracy = [_published(comparison, v, model)[0] for v in variants]
            rows.append([f"  {model_name(model)}", *accuracy, "", ""])
    heading = [
        f"data set  {summary['dataset']}",
        f"device    {summary['device']}",
        f"run       {', '.join(_named(summary))}; {spread_note(summary)}",
        "",
    ]
    return "\n".join(heading + aligned(rows))


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a run's report.

    Args:
        summary: contents of `summary.json`.
        pictures: files in the same folder by what they show.

    Returns:
        Markdown: what was run and where, results by test variant and model with the article's
        figures beside them where there are any, differences between the models, what each model
        costs, every seed, and the pictures.
    """
    sections = [
        _section_run(summary),
        _section_results(summary),
        _section_differences(summary),
        _section_controls(summary),
        _section_models(summary),
        _section_seeds(summary),
        _section_figures(summary, pictures),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _named(summary: Mapping[str, Any]) -> list[str]:
    return [summary["experiment"] or "own settings", *precision.named(summary)]


def _section_run(summary: Mapping[str, Any]) -> str:
    facts = [
        ["data set", summary["dataset"]],
        ["the article's set", summary["experiment"] or "none of the three"],
        *run_facts(summary, sum(summary["seconds"].values())),
    ]
    title = f"# STRAW on {summary['dataset']}"
    if summary["experiment"]:
        title += f": {summary['experiment']}"
    command = f"```bash\n{summary['command']}\n```\n\nEvery setting is in `config.json`."
    return "\n\n".join([title, command, markdown_table(["what", "value"], facts)])


def _section_results(summary: Mapping[str, Any]) -> str:
    comparison = compare(summary)
    header = ["test images", "model", "accuracy, %", "loss"]
    if comparison:
        header += ["article: accuracy, %", "article: loss"]
    rows = []
    for variant in variant_names(summary):
        for model, by_variant in summary["results"].items():
            accuracy = mean_std(by_variant[variant]["accuracy"], 100, 2)
            loss = mean_std(by_variant[variant]["loss"], 1, 4)
            rows.append([variant, model_name(model), accuracy, loss])
            if comparison:
                rows[-1] += _published(comparison, variant, model)
    if comparison:
        remark = (
            f"**The article's figures are {comparison.verdict}:** {comparison.reason} "
            f"They are of one run each, without a spread. Source: {SOURCE}."
        )
    else:
        remark = "No figures of the article stand beside these: the run is none of its three sets."
    spread = f"{spread_note(summary).capitalize()}."
    return "\n\n".join(["## Results", spread, remark, markdown_table(header, rows)])


def _section_differences(summary: Mapping[str, Any]) -> str:
    """Accuracy of each model less the standalone's, seed by seed; empty without both."""
    results, comparison = summary["results"], compare(summary)
    others = [model for model in results if model != "standalone"]
    if "standalone" not in results or not others:
        return ""
    rows = []
    for variant in variant_names(summary):
        for model in others:
            ours = results[model][variant]["accuracy"]["seeds"]
            base = results["standalone"][variant]["accuracy"]["seeds"]
            pairs = [a - b for a, b in zip(ours, base, strict=True)]
            difference = mean_std(statistic(pairs), 100, 2, sign="+")
            rows.append([variant, model_name(model), difference])
            if comparison:
                rows[-1].append(_published_difference(comparison, variant, model))
    header = ["test images", "model", "difference, percentage points"]
    if comparison:
        header.append(f"article ({comparison.verdict})")
    text = "Accuracy less that of the standalone with the same seed."
    return "\n\n".join(["## Difference from the standalone", text, markdown_table(header, rows)])


def _section_controls(summary: Mapping[str, Any]) -> str:
    """Accuracy with other style vectors than each image's own; empty without a STRAW."""
    variants = variant_names(summary)
    rows = []
    for model, by_control in summary["controls"].items():
        for control, by_variant in by_control.items():
            accuracy = [mean_std(by_variant[v]["accuracy"], 100, 2) for v in variants]
            rows.append([model_name(model), CONTROL_NAMES[control], *accuracy])
    if not rows:
        return ""
    header = ["model", "style vector of", *(f"{variant}: accuracy, %" for variant in variants)]
    text = (
        "Is it the sample? The same trained model, each image's weights written from another style"
        f" vector than its own, on {summary['control_images']:,} test images, evenly strided. The"
        " mean is one static network; zero is the generator's biases."
    )
    return "\n\n".join(["## Controls", text, markdown_table(header, rows)])


def _section_models(summary: Mapping[str, Any]) -> str:
    parameters, seconds = summary["parameters"], summary["seconds"]
    rows = [
        [
            model_name(model),
            f"{count:,}",
            f"{summary['multiply_adds'][model]:,}",
            duration(seconds[model]),
        ]
        for model, count in parameters.items()
    ]
    header = ["model", "trained parameters", "multiply-adds an image", "training time, all seeds"]
    parts = ["## Models", markdown_table(header, rows)]
    largest, smallest = (f(parameters, key=parameters.__getitem__) for f in (max, min))
    ratio = parameters[largest] / parameters[smallest]
    if ratio > 1.1:
        parts.append(
            f"{model_name(largest)} trains {ratio:.1f} times as many parameters as"
            f" {model_name(smallest)}: a difference in accuracy may be one of capacity."
        )
    return "\n\n".join(parts)


def _section_seeds(summary: Mapping[str, Any]) -> str:
    """Accuracy of every single run; empty with one seed, where it would repeat the results."""
    seeds = summary["seeds"]
    if len(seeds) == 1:
        return ""
    rows = [
        [variant, model_name(model)]
        + [f"{100 * value:.2f}" for value in by_variant[variant]["accuracy"]["seeds"]]
        for variant in variant_names(summary)
        for model, by_variant in summary["results"].items()
    ]
    header = ["test images", "model", *(f"seed {seed}: accuracy, %" for seed in seeds)]
    return "\n\n".join(["## Every seed", markdown_table(header, rows)])


def _section_figures(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    links = [f"![{text}, {summary['dataset']}]({file})" for text, file in pictures.items()]
    return "\n\n".join(["## Figures", *links])


def _published(comparison: Comparison, variant: str, model: str) -> list[str]:
    """Accuracy and loss of the article as text, dashes where it has none."""
    accuracy, loss = comparison.results.get(variant, {}).get(model, (None, None))
    return ["-", "-"] if accuracy is None else [f"{accuracy:.2f}", f"{loss:.4f}"]


def _published_difference(comparison: Comparison, variant: str, model: str) -> str:
    figures = comparison.results.get(variant, {})
    if model not in figures:
        return "-"
    return f"{figures[model][0] - figures['standalone'][0]:+.2f}"


def variant_names(summary: Mapping[str, Any]) -> list[str]:
    """Name a summary's test variants, in their order."""
    return list(next(iter(summary["results"].values())))


def model_name(model: str) -> str:
    """Return a model's name in tables."""
    return MODELS.label(model)
