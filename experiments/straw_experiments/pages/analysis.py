"""What `analysis.json` says of the modulators, as a section of the results page.

Its layout is that of `experiments/analyse.py`; each measured figure is a mapping with "mean" and
"std" over seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.image_classification.report import model_name
from straw_experiments.runner.tables import markdown_table, mean_std, readable_count

_FORMS = {"whole": "whole kernels", "factors": "factors", "static": "static"}


def analysis_text(
    analyses: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, Sequence[str]]
) -> str:
    """Write what the modulators cost and do.

    Args:
        analyses: What the files hold, by study.
        pictures: Links to figures, by study.

    Returns:
        Markdown; nothing where there are none.
    """
    parts: list[str] = []
    for study, found in analyses.items():
        parts += _of_study(study, found)
        parts += [f"![{study}: {Path(link).stem}]({link})" for link in pictures.get(study, ())]
    return "\n\n".join(parts)


def _of_study(study: str, analysis: Mapping[str, Any]) -> Iterator[str]:
    for name, straw in analysis["straw"].items():
        yield f"### {model_name(name)}, base {analysis['base']} (`{study}`)"
        yield (
            "What one image costs when each image's whole kernels are generated, when only factors"
            " are (what the library does), and with one static executor for all images. Bytes are"
            " of the weights that are one image's own."
        )
        yield _costs(straw["costs"])
        yield (
            f"Updates of {analysis['images']['updates']:,} test images. Norms are divided by that"
            f" of the {analysis['reference']}; brackets hold the 5th and the 95th percentile."
            " Spread over images is the root of the total variance, divided by the norm of the mean"
            " update; of this variance, the share that lies between classes, in brackets corrected"
            " for chance."
        )
        yield _updates(straw)
        yield (
            "How far an update moves when its image is turned (degrees) or blurred (σ in pixels),"
            " divided by the mean norm of updates; beside it the distance to the update of another"
            " image."
        )
        yield _movement(straw["movement"], analysis)
    yield f"### Accuracy by angle (`{study}`)"
    yield (
        f"In per cent, on {analysis['images']['accuracy']:,} test images, each turned by the angle"
        " to one side or the other; standard error up to"
        f" {100 * analysis['largest_standard_error']:.1f}. Style vectors: an image's own; for a"
        ' turned image that of the upright one ("upright style") or of another upright image of its'
        ' class ("same class style"); for the upright image that of the turned one ("turned'
        ' style").'
    )
    yield _by_angle(analysis)

    if "distortions" in analysis:
        yield from _of_distortions(study, analysis)


def _of_distortions(study: str, analysis: Mapping[str, Any]) -> Iterator[str]:
    found = analysis["distortions"]
    yield f"### Accuracy on distorted images (`{study}`)"
    yield (
        f"In per cent, on the same {analysis['images']['accuracy']:,} test images, all distorted"
        " alike: turned by degrees counter-clockwise (nearest neighbour), scaled, slanted"
        " (bilinear), blurred (3 x 3 Gaussian, σ in pixels)."
    )
    for kind, amounts in found["amounts"].items():
        rows = [
            [model_name(model), *(mean_std(figure, 100, 1) for figure in figures)]
            for model, figures in found["accuracy"][kind].items()
        ]
        yield markdown_table([kind, *(f"{amount:g}" for amount in amounts)], rows)
    angles = [f"{angle:g}°" for angle in found["amounts"]["rotation"]]
    for name, seen in found["seen"].items():
        yield f"### What {model_name(name)} sees (`{study}`)"
        yield (
            "Angle seen against the one by which an image was turned: median of the likeliest"
            " angle's error in degrees, and share of images that have a hypothesis within 15"
            " degrees, of a confidence of 5 % or more, in per cent; and accuracy where the eye's"
            " place is taken by the angle by which the image was turned, in per cent."
        )
        rows = [
            ["median error", *(mean_std(figure, 1, 1) for figure in seen["median"])],
            ["within 15°", *(mean_std(figure, 100, 1) for figure in seen["share"])],
            ["accuracy, angle told", *(mean_std(figure, 100, 1) for figure in seen["told"])],
        ]
        yield markdown_table(["", *angles], rows)
    yield f"### Pairs that turning confuses (`{study}`)"
    yield (
        "Taken for one another more often when turned by 30 to 60 degrees, by the model that reads"
        " turned images best: upright and turned, in per cent of all images (first seed)."
    )
    rows = [
        [" ".join(each["pair"])]
        + [
            f"{100 * each['upright'][model]:.2f}, {100 * each['turned'][model]:.2f}"
            for model in each["upright"]
        ]
        for each in found["confused"]
    ]
    yield markdown_table(["pair", *map(model_name, found["accuracy"]["rotation"])], rows)


def _costs(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["layer", "weights", "generated numbers"]
    header += [f"multiply-adds: {title}" for title in _FORMS.values()]
    header += [f"bytes: {title}" for title in _FORMS.values()]
    table = [
        [row["layer"], f"{row['dense_numbers']:,}", f"{row['generated_numbers']:,}"]
        + [readable_count(row[form]["multiply_adds"]) for form in _FORMS]
        + [f"{row[form]['bytes']:,}" for form in _FORMS]
        for row in rows
    ]
    return markdown_table(header, table)


def _updates(straw: Mapping[str, Any]) -> str:
    table = []
    for path, found in straw["updates"].items():
        share, corrected = (
            f"{100 * found['between_classes'][name]['mean']:.1f}" for name in ("share", "corrected")
        )
        rank = "-"
        if "effective_rank" in found:
            rank = f"{_range(found['effective_rank'], 1)} of {straw['leaves'][path]['largest']}"
        spread = f"{found['variation']['mean']:.2f}"
        table.append([path, _range(found["norm"], 2), spread, f"{share} ({corrected})", rank])
    header = ["leaf", "norm", "spread over images", "between classes, %", "effective rank"]
    return markdown_table(header, table)


def _range(figure: Mapping[str, Any], digits: int) -> str:
    mean, low, high = (f"{figure[name]['mean']:.{digits}f}" for name in ("mean", "p5", "p95"))
    return f"{mean} ({low} to {high})"


def _movement(movement: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    header = ["leaf", *(f"{angle}°" for angle in analysis["angles"])]
    header += [f"σ {sigma:g}" for sigma in analysis["sigmas"]]
    header += ["another image of its class", "any other image"]
    table = []
    for path, found in movement.items():
        figures = [*found["rotation"], *found["blur"], found["same class"], found["another image"]]
        table.append([path, *(f"{figure['mean']:.2f}" for figure in figures)])
    return markdown_table(header, table)


def _by_angle(analysis: Mapping[str, Any]) -> str:
    header = ["model", "style vector", *(f"{angle}°" for angle in analysis["angles"])]
    table = [
        [model_name(model), style, *(mean_std(figure, 100, 1) for figure in figures)]
        for model, styles in analysis["turned"].items()
        for style, figures in styles.items()
    ]
    return markdown_table(header, table)
