"""The models in JAX: each as a training step, or as inference of a whole batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from article import CLASSES, IMAGE, LEARNING_RATE

from straw_experiments.image_classification.evaluate import make_forward
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.networks import article_straw, straw_model
from straw_experiments.image_classification.step import Model, make_train_steps
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


class Training:
    """A model's training on one batch, as experiments/run.py trains it; nothing is waited for.

    Without the large pages that run.py asks for: see GLIBC_TUNABLES in docs/performance.md.
    """

    def __init__(self, model: Model, images: Any, labels: Any):
        """Take images uint8 `[n, 28, 28, 1]` and labels int32 `[n]`, on the host or the device."""
        recipe = Recipe(1, len(images), LEARNING_RATE, "constant")
        self.trainer = Trainer("", model, recipe, images.shape)
        self.state, self.key = self.trainer.init_state(seed=0), training_key(0)
        self.batch = images, labels

    def step(self) -> object:
        """Take a step; the first call compiles."""
        real = np.ones(len(self.batch[1]), np.bool_)
        self.state, metrics = self.trainer.train_step(self.state, self.key, *self.batch, real)
        return self.state, metrics

    @functools.cache  # noqa: B019  A training lives as long as the process.
    def loop(self, steps: int) -> Callable[[], object]:
        """Return what takes many steps as one program; its first call compiles."""
        train_steps = make_train_steps(self.trainer.model, self.trainer.optimizer)
        count = len(self.batch[1])
        chosen = jnp.asarray(np.tile(np.arange(count, dtype=np.int32), (steps, 1)))
        real = jnp.ones((steps, count), jnp.bool_)

        def take() -> object:
            self.state, metrics = train_steps(
                self.state, self.key, *self.batch, chosen, real, np.int32(steps)
            )
            return self.state, metrics

        return take


def training(model: Model, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return the training step; it is compiled at the first call."""
    step = Training(model, images, labels).step
    return lambda: jax.block_until_ready(step())


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
