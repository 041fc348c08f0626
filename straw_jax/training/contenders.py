"""The article's three contenders and static controls of them, as pure functions for training."""

import bisect
from typing import Any

import jax
import jax.numpy as jnp

from straw_jax.models import CNN, ResNet34
from straw_jax.straw import Base, Straw, make_straw
from straw_jax.training.costs import multiply_adds
from straw_jax.training.step import Model, Variables

NAMES = ("standalone", "wide_dense", "wide_compute", "wide", "straw", "resnet34")

_IMAGE = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)


def contender(name: str, *, classes: int, rank: int, base: Base) -> Model:
    """Return one of the contenders.

    Args:
        name: "standalone" (the executor alone), "straw" or "resnet34", which are the article's;
            or a control, the executor alone with more of its own: "wide_dense" (its dense layer
            widened to STRAW's trained parameters), "wide_compute" and "wide" (all layers widened
            by one factor, to STRAW's multiply-adds a sample and to its trained parameters).
        classes: number of classes.
        rank: of STRAW's updates, which the controls follow.
        base: STRAW's, as in `make_straw`.

    Returns:
        The contender as pure functions.

    Raises:
        ValueError: if the name is unknown.
    """
    if straw := straw_of(name, classes=classes, rank=rank, base=base):
        return straw_model(straw)
    if name == "standalone":
        return flax_model(CNN(classes))
    if name == "resnet34":
        return flax_model(ResNet34(classes))
    if name in NAMES:
        straw = article_straw(classes=classes, rank=rank, base=base)
        return flax_model(_widened(name, classes, straw_model(straw)))
    raise ValueError(f"contender: expected one of {', '.join(NAMES)}, got {name!r}.")


def straw_of(name: str, *, classes: int, rank: int, base: Base) -> Straw | None:
    """Return the STRAW that a contender is, or None where it is none; arguments as `contender`."""
    return article_straw(classes=classes, rank=rank, base=base) if name == "straw" else None


def article_straw(*, classes: int, rank: int, base: Base) -> Straw:
    """Return the article's STRAW: its eye, its generator, and its CNN as executor."""
    return make_straw(CNN(classes), _IMAGE, rank=rank, base=base)


def parameters(model: Model) -> int:
    """Count a model's trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)["params"]))


def sample_cost(model: Model) -> int:
    """Count the multiply-adds of one image's way through a model, without its gradient."""

    def logits(variables: Variables, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, None)[0]

    return multiply_adds(logits, _shapes(model), _IMAGE)


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


def flax_model(module: Any) -> Model:
    """Return a Flax module, with or without state, as pure functions for the training loop."""

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


def _widened(name: str, classes: int, straw: Model) -> CNN:
    """Widen the executor until it is as near to STRAW in a count as whole widths allow."""

    def executor(width: int) -> CNN:
        if name == "wide_dense":
            return CNN(classes, hidden=width)
        return CNN(classes, channels=(round(width / 4), round(width / 2)), hidden=width)

    count = sample_cost if name == "wide_compute" else parameters

    def of_width(width: int) -> int:
        return count(flax_model(executor(width)))

    target = count(straw)
    widths = range(2, 100_000)
    above = bisect.bisect_left(widths, target, key=of_width)
    return executor(min(widths[above - 1 : above + 1], key=lambda w: abs(of_width(w) - target)))


def _shapes(model: Model) -> Variables:
    return jax.eval_shape(model.init, jax.random.key(0), _IMAGE)
