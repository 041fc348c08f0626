"""The article's three contenders, as pure functions for the training loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from straw_jax.models import CNN, ResNet34
from straw_jax.straw import Base, Straw, make_straw
from straw_jax.training.step import Model, Variables

NAMES = ("standalone", "straw", "resnet34")

_IMAGE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)


def contender(name: str, *, classes: int, rank: int, base: Base) -> Model:
    """Return one of the article's contenders.

    Args:
        name: "standalone" (the executor alone), "straw", or "resnet34".
        classes: number of classes.
        rank: of STRAW's updates; the others have none.
        base: STRAW's, as in `make_straw`; the others have none.

    Returns:
        The contender as pure functions.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "standalone":
        return _flax_model(CNN(classes))
    if name == "straw":
        return straw_model(article_straw(classes=classes, rank=rank, base=base))
    if name == "resnet34":
        return _flax_model(ResNet34(classes))
    raise ValueError(f"contender: expected one of {', '.join(NAMES)}, got {name!r}.")


def article_straw(*, classes: int, rank: int, base: Base) -> Straw:
    """Return the article's STRAW: its eye, its generator, and its CNN as executor."""
    return make_straw(CNN(classes), _IMAGE, rank=rank, base=base)


def style_function(straw: Straw) -> Callable[[Variables, jax.Array], jax.Array]:
    """Return `(variables, images float32 [b, 28, 28, 1]) -> style vectors [b, style]`."""
    return lambda variables, images: straw.styles(variables["params"], images)


def straw_model(straw: Straw) -> Model:
    """Return a STRAW as pure functions for the training loop."""

    def init(key: jax.Array, images: jax.Array) -> Variables:
        del images  # shapes are known
        return {"params": straw.init(key)}

    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        return straw.apply(variables["params"], images, **_mode(key)), {}

    return Model(init, apply)


def _flax_model(module: Any) -> Model:
    def apply(
        variables: Variables, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Variables]:
        collections = [name for name in variables if name != "params"]
        if key is None or not collections:
            return module.apply(variables, images, **_mode(key)), {}
        return module.apply(variables, images, mutable=collections, **_mode(key))

    return Model(module.init, apply)


def _mode(key: jax.Array | None) -> dict[str, Any]:
    return {} if key is None else {"train": True, "rngs": {"dropout": key}}
