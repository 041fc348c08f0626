"""The models in JAX: each as a training step, or as inference of a whole batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from article import CLASSES, IMAGE, LEARNING_RATE

from straw_experiments.image_classification.evaluate import make_forward
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import article_straw, straw_model
from straw_experiments.image_classification.step import Model
from straw_experiments.image_classification.train import Recipe, Trainer
from straw_experiments.runner.state import training_key
from straw_jax.lift import materialize
from straw_jax.models import CNN
from straw_jax.straw import Base, make_straw

_SAMPLE = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)


def build(name: str, work: str, batch: int, rank: int, base: Base) -> Callable[[], object]:
    """Return the step to time; it returns when its work is done.

    Args:
        name: A name of `cells.MODELS`.
        work: "training" or "inference".
        batch: Images, noise.
        rank: Of the generated kernels, where there are any.
        base: "none" or "trained".
    """
    images, labels = make_batch(batch)
    case = training if work == "training" else inference
    return case(model(name, rank, base), images, labels)


def model(name: str, rank: int, base: Base) -> Model:
    """Return a model as pure functions."""
    if name == "naive":
        return naive_model(rank, base)
    if name == "dense":  # every weight of the executor is a number that the generator writes
        return straw_model(make_straw(CNN(CLASSES), _SAMPLE, rank={"*": "whole"}, base=base))
    return build_model(name, classes=CLASSES, rank=rank, base=base)


def make_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 `[size, 28, 28, 1]` and labels int32 `[size]`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *IMAGE), np.uint8)
    return images, rng.integers(0, CLASSES, size, np.int32)


def training(model: Model, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return the training step that experiments/run.py takes; it is compiled at the first call.

    Without the large pages that run.py asks for: see GLIBC_TUNABLES in docs/performance.md.
    """
    recipe = Recipe(1, len(images), LEARNING_RATE, "constant")
    trainer = Trainer("", model, recipe, images.shape)
    state, key = trainer.init_state(seed=0), training_key(0)
    real = np.ones(len(images), np.bool_)

    def step() -> object:
        nonlocal state
        state, metrics = trainer.train_step(state, key, images, labels, real)
        return jax.block_until_ready((state, metrics))

    return step


def inference(model: Model, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return the logits of the whole batch, as evaluation computes them."""
    del labels
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))
    forward = make_forward(model)
    return lambda: jax.block_until_ready(forward(variables, images))


def naive_model(rank: int, base: Base) -> Model:
    """Return STRAW without this library's lift: `vmap` over an executor with whole kernels."""
    straw, executor = article_straw(classes=CLASSES, rank=rank, base=base), CNN(CLASSES)
    shapes = jax.eval_shape(executor.init, jax.random.key(0), _SAMPLE)["params"]

    def apply(
        variables: Any, images: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Any]]:
        params = variables["params"]
        start = params["executor"] if base == "trained" else shapes

        def one_sample(factors: Any, image: jax.Array, **mode: Any) -> jax.Array:
            weights = {"params": materialize(start, factors)}
            return executor.apply(weights, image[None], **mode)[0]

        factors = straw.factors(params, images)
        if key is None:
            return jax.vmap(one_sample)(factors, images), {}

        def one_trained(factors: Any, image: jax.Array, key: jax.Array) -> jax.Array:
            return one_sample(factors, image, train=True, rngs={"dropout": key})

        return jax.vmap(one_trained)(factors, images, jax.random.split(key, len(images))), {}

    return Model(lambda key, images: {"params": straw.init(key)}, apply)
