"""What `experiments/analyse.py` prints of one study."""

from collections.abc import Mapping
from typing import Any

from straw_experiments.pages.render import environment_of, rendered
from straw_experiments.pages.write import TEMPLATES


def analysis_text(study: str, analysis: Mapping[str, Any]) -> str:
    """Write what modulators cost and do, and how distorted images are classified.

    Args:
        study: Its name.
        analysis: Contents of `analysis.json`.

    Returns:
        Markdown.
    """
    return rendered(environment_of(TEMPLATES), "_analysis.md", study=study, analysis=analysis)
