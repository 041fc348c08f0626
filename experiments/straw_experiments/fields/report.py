"""The text table and the Markdown report of a study, made from `summary.json`."""

from collections.abc import Mapping
from typing import Any

from straw_experiments.fields.models import MODELS
from straw_experiments.runner.tables import (
    aligned,
    duration,
    markdown_table,
    mean_std,
    readable_count,
    run_facts,
    spread_note,
)

AIM = 30.0  # dB, of the test images of the data set that writers are trained on


def table(summary: Mapping[str, Any]) -> str:
    """Lay out a study's results as aligned plain text, for the terminal.

    Args:
        summary: Contents of `summary.json`.

    Returns:
        Lines of text without a final newline.
    """
    heading = [
        f"data    trained on {summary['dataset']}",
        *(f"        tested on {name}, {n:,} images" for name, n in summary["tested"].items()),
        f"device  {summary['device']}",
        f"runs    {spread_note(summary)}",
        "",
    ]
    header, *rows = _rows(summary)
    return "\n".join(heading + aligned([header, *rows]))


def markdown(summary: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Write a study's report.

    Args:
        summary: Contents of `summary.json`.
        pictures: Files in the same folder by what they show.

    Returns:
        Markdown: what was run and where, the results beside rivals, and controls.
    """
    config = summary["config"]
    seconds = sum(each["seconds"] for each in summary["results"].values())
    tested = "; ".join(f"{name}, {n:,} images" for name, n in summary["tested"].items())
    facts = [
        ["trained on", f"{summary['dataset']}, {summary['training images']:,} images"],
        ["tested on", tested],
        ["field", f"SIREN of hidden layers {config['sizes']}"],
        ["style", f"{config['style']} numbers"],
        [
            "recipe",
            f"{config['steps']:,} steps of Muon, {config['batch_size']} images, rate"
            f" {config['learning_rate']:g}, of the base {config['base_rate']:g}, of a generator"
            f" that is not linear {config['generator_rate']:g} by Adam, cosine",
        ],
        *run_facts(summary, seconds),
    ]
    sections = [
        "# Fields",
        markdown_table(["what", "value"], facts),
        f"```bash\n{summary['command']}\n```",
        "## Results",
        "PSNR in dB, intensities in [0, 1], mean over test images.",
        fields_table(summary),
        "## Principal components",
        "The same number of numbers an image by PCA of the training images. 0 components are the"
        " mean image: no field without a context has a smaller squared error on the training"
        " images.",
        components_table(summary),
        "## Controls",
        "Fields that were written for another image, or for the mean style of the training images.",
        controls_table(summary),
    ]
    if any("fitting" in each for each in summary["results"].values()):
        sections += ["## Fitted to each image", fitting_note(summary), fitting_table(summary)]
        sections += ["Seconds of a fitted step, and of a forward pass that writes all weights:"]
        sections += [seconds_table(summary)]
    sections += [f"![{text}]({file})" for text, file in pictures.items()]
    return "\n\n".join(sections) + "\n"


def fields_table(summary: Mapping[str, Any]) -> str:
    """Lay out the PSNR of written fields in Markdown."""
    header, *rows = _rows(summary)
    return markdown_table(header, rows)


def components_table(summary: Mapping[str, Any]) -> str:
    """Lay out the PSNR of principal components in Markdown."""
    found = summary["components"]
    counts = list(next(iter(found.values())))
    rows = [[name, *(f"{each[count]:.2f}" for count in counts)] for name, each in found.items()]
    return markdown_table(["components", *counts], rows)


def controls_table(summary: Mapping[str, Any]) -> str:
    """Lay out the PSNR of fields for another context in Markdown."""
    rows = []
    for name, each in summary["results"].items():
        for data, controls in each["controls"].items():
            own = mean_std(each["psnr"][data], 1, 2)
            rows.append(
                [MODELS.label(name), data, own, *(mean_std(x, 1, 2) for x in controls.values())]
            )
    header = ["written", "data", "own image", "another image", "mean context"]
    return markdown_table(header, rows)


def fitting_note(summary: Mapping[str, Any]) -> str:
    """Say what was fitted."""
    count = max(
        each["fitting"]["images"] for each in summary["results"].values() if "fitting" in each
    )
    return (
        f"Adam on all weights of the fields of {count} test images each, at the best of a few rates"
        " (by as many validation images, for each number of steps). Starts: SIREN's initial values;"
        " the trained base; the written field. PSNR in dB by steps; then the first of these steps"
        " with at least the written fields' PSNR, for each seed."
    )


def fitting_table(summary: Mapping[str, Any]) -> str:
    """Lay out the PSNR of fitted fields in Markdown, by steps and start."""
    rows, starts = [], ["siren", "base", "written"]
    for name, each in summary["results"].items():
        if "fitting" not in each:
            continue
        curves, label = each["fitting"]["curves"], MODELS.label(name)
        for place, step in enumerate(summary["steps of fitting"]):
            scores = [mean_std(curves[start]["psnr"][place], 1, 1) for start in starts]
            rows.append([label, str(step), *scores])
        reached = (each["fitting"]["reached"][start] for start in starts)
        levels = [
            ", ".join("never" if step is None else str(step) for step in steps) for steps in reached
        ]
        rows.append([label, "reached after", *levels])
    return markdown_table(["written", "steps", *starts], rows)


def seconds_table(summary: Mapping[str, Any]) -> str:
    """Lay out the seconds of writing and fitting in Markdown, and after how many steps they tie."""
    rows = []
    for name, each in summary["results"].items():
        if "fitting" in each:
            taken = each["fitting"]["seconds"]
            cells = [
                f"{1e3 * taken[what][size]['mean']:.2f} ms"
                for size in ("one", "batch")
                for what in ("forward", "step")
            ]
            rows.append([MODELS.label(name), str(each["fitting"]["images"]), *cells])
    header = ["written", "batch", "forward, one", "step, one", "forward, batch", "step, batch"]
    return markdown_table(header, rows)


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the main table, the header first."""
    tested = list(summary["tested"])
    rows = [["written", "numbers", *tested, "parameters", "steps/s", "time a run"]]
    for name, each in summary["results"].items():
        scores = [mean_std(each["psnr"][data], 1, 2) for data in tested]
        cells = [MODELS.label(name), f"{each['written']:,}", *scores]
        cells += [readable_count(each["parameters"]), f"{each['steps_per_second']:.1f}"]
        rows.append([*cells, duration(each["seconds"] / len(summary["seeds"]))])
    return rows
