"""Fill the templates of pages with figures, tables and pictures."""

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jinja2

from straw_experiments.char_lm.published import BITS
from straw_experiments.documents import report as documents
from straw_experiments.fields import report as fields
from straw_experiments.image_classification.report import model_name
from straw_experiments.necessity import report as necessity
from straw_experiments.pages import images, tables
from straw_experiments.pages.stored import Results
from straw_experiments.runner.tables import markdown_table, mean_std
from straw_experiments.table_classification import report as of_tables
from straw_experiments.weight_prediction.published import EXPLAINED

_OF_RESULTS = (
    images.accuracy,
    images.accuracy_table,
    images.article_table,
    images.controls,
    images.difference_cell,
    images.difference_table,
    images.gain_table,
    images.rank_table,
    tables.commands,
    tables.cost,
    tables.facts,
    tables.once_table,
    tables.outputs_table,
    tables.predictor_test_table,
    tables.run_table,
    tables.shared_table,
    tables.weights_table,
)
_OTHERS = (
    documents.conditions_table,
    documents.costs_table,
    documents.results_table,
    fields.components_table,
    fields.controls_table,
    fields.fields_table,
    fields.fitting_table,
    fields.seconds_table,
    images.angle_table,
    images.confused_table,
    images.confusion_growth,
    images.cost_table,
    images.distorted,
    images.distortion_table,
    images.movement_table,
    images.pose_figures,
    images.pose_table,
    images.published,
    images.published_table,
    images.update_table,
    markdown_table,
    model_name,
    necessity.best_table,
    necessity.budget_table,
    necessity.contexts_table,
    necessity.lengths_table,
    necessity.predictions_table,
    necessity.rates_table,
    necessity.score,
    necessity.scores_table,
    of_tables.context_table,
    of_tables.curve_table,
    of_tables.mean_rank_table,
    of_tables.sets_table,
    of_tables.synthetic_table,
    tables.bits_difference,
    tables.bits_table,
    tables.extremes_table,
    tables.hyper_table,
    tables.parts_table,
)
_FILTERS: Mapping[str, Any] = {
    "percent": lambda share, digits=1: f"{100 * share:.{digits}f}",
    "fixed": lambda number, digits=1: f"{number:.{digits}f}",
    "thousands": lambda number: f"{number:,.0f}",
    "millions": lambda number, digits=1: f"{number / 1e6:.{digits}f} M",
    "mean_std": lambda figure, digits=4, scale=1: mean_std(figure, scale, digits),
}


def render(
    results: Results,
    templates: Path,
    *,
    pictures: Collection[str] = (),
    planned: Collection[str] = (),
    borrowed: bool = False,
) -> dict[str, str]:
    """Fill each page's template.

    Args:
        results: What the studies left.
        templates: Folder of `PAGE.md`, and of `_PART.md`, which pages include.
        pictures: Names of the PNGs that will lie beside the pages.
        planned: Studies in the order in which the page of runs lists them.
        borrowed: Whether the text was written about other results than these. Pages then say so,
            and may lack figures.

    Returns:
        Markdown by file name.

    Raises:
        ValueError: A template is damaged, or asks for a figure that is not there.
    """
    environment = environment_of(templates)
    environment.globals.update(
        {each.__name__: functools.partial(each, results) for each in _OF_RESULTS}
    )
    environment.globals.update(
        stored=results.summaries,
        analysed=results.analyses,
        once=results.once,
        missing=results.missing,
        pictures=pictures,
        planned=planned,
        borrowed=borrowed,
        the_papers_bits=BITS,
        the_posts=EXPLAINED,
    )
    pages = {}
    for name in sorted(path.name for path in templates.glob("[!_]*.md")):
        try:
            pages[name] = rendered(environment, name)
        except ValueError as error:
            if not borrowed:
                raise
            pages[name] = rendered(environment, "_unfinished.md", page=name, error=error)
    return pages


def environment_of(templates: Path) -> jinja2.Environment:
    """Return what fills the templates of a folder, without any results."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    environment.globals.update({each.__name__: each for each in _OTHERS})
    return environment


def rendered(environment: jinja2.Environment, name: str, **more: Any) -> str:
    """Fill one template.

    Args:
        environment: From `environment_of`.
        name: Of the template.
        **more: What it knows by name, too.

    Raises:
        ValueError: The template is damaged, or asks for a figure that is not there.
    """
    try:
        text = environment.get_template(name).render(**more)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{error.name}, line {error.lineno}: {error.message}") from None
    except (jinja2.TemplateError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
