"""The experiments: studies, and what they share.

- `runner`: what any study needs, knowing none: settings, runs, checkpoints, processes, tables.
- `data`: EMNIST, glyphs, TFDS sets, your own images, texts.
- `image_classification`, `weight_prediction`, `char_lm`, `fields`, `table_classification`,
  `documents`: the studies, with the same file names.
- `smollm`: a pretrained language model, which needs the extra "smollm" in place of "experiments".
- `configs`: the published studies, a file each; `reproduce` runs them, `pages` lays them out.

All others but this module need the extra "experiments".
"""

from importlib.util import find_spec

_NEEDED = (
    *("optax", "orbax", "tensorflow_datasets", "importlib_resources", "matplotlib", "PIL"),
    *("scipy", "tqdm", "jinja2"),
)


def missing_extra() -> str | None:
    """Say what is not installed of the extra "experiments", and how to install it; else None."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if not missing:
        return None
    return (
        f'the experiments need the extra "experiments", of which {", ".join(missing)} cannot be'
        ' imported: pip install "straw_jax[experiments]"'
    )


def require_extra() -> None:
    """Refuse to be imported without the extra "experiments".

    Raises:
        ImportError: A package of it is missing; names it, and the way out.
    """
    if problem := missing_extra():
        raise ImportError(problem)
