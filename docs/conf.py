"""Builds the documentation: `sphinx-build -W -b html docs build/site`.

With `-t online` names of other projects (`jax.Array`) become links; it needs a network.
"""

import re
from typing import Any

import jax
from sphinx.domains.python import PyObject

import straw_jax

jax.Array.__qualname__ = "Array"  # as it is imported, not where it is defined
next(f for f in PyObject.doc_field_types if f.name == "variable").label = "Attributes"

project = "straw_jax"
author = "The straw_jax authors"
copyright = author
version = release = straw_jax.__version__
html_title = f"straw_jax {release}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "results/findings"]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook is shown as its last run left it

autosummary_generate = False
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90
add_module_names = False
python_use_unqualified_type_names = True
python_trailing_comma_in_multi_line_signatures = False
default_role = "py:obj"  # in docstrings: a link where it is a name, else code

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "jax": ("https://docs.jax.dev/en/latest", None),
    "flax": ("https://flax.readthedocs.io/en/latest", None),
    "optax": ("https://optax.readthedocs.io/en/latest", None),
    "numpy": ("https://numpy.org/doc/stable", None),
}
if not tags.has("online"):  # noqa: F821 - Sphinx defines it
    intersphinx_mapping = {}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": "https://github.com/straw-jax/straw_jax/",
    "source_branch": "main",
    "source_directory": "docs/",
}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def _skip_member(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool:
    """Leave out what is documented elsewhere: names of `straw_jax` itself, fields of tuples."""
    exported = what == "module" and name in straw_jax.__all__
    return skip or exported or type(member).__name__ == "_tuplegetter"


def _shorten_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str | None, Any]:
    """Leave out the two arguments that every Flax module has."""
    if what == "class" and signature:
        signature = re.sub(r"(?:, )?parent=.*", ")", signature)
    return signature, returns


def setup(app: Any) -> None:
    """Register the hooks above."""
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("autodoc-process-signature", _shorten_signature)
