"""What `accelerator.py` measures: a function for each section.

Each returns rows of figures by name. A figure is a number; or seconds, as median, least and most of
several repeats. "Queued" calls are dispatched one after the other, and waited for at the end; "in
one program" the device takes many steps without the host.
"""

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, NamedTuple

import alone  # noqa: F401  It goes first: then the experiments need no extra.
import jax
import jax.numpy as jnp
import jax_language
import jax_prediction
import numpy as np
import optax
import rates as machine
from article import CLASSES, IMAGE
from flax import linen as nn
from floor import Rates, least_seconds, phases
from jax.experimental.compilation_cache import compilation_cache
from jax_models import Training, make_batch
from jax_models import model as article_model
from worker import timed

from straw_experiments.data import normalise
from straw_experiments.documents import config as documents_config
from straw_experiments.documents import networks as readers
from straw_experiments.documents.models import MODELS as ADAPTERS
from straw_experiments.documents.tasks import Batch
from straw_experiments.documents.train import Recipe, Trainer
from straw_experiments.image_classification.evaluate import make_forward
from straw_experiments.image_classification.loop import train_on_device
from straw_experiments.image_classification.networks import article_straw, straw_model
from straw_experiments.image_classification.step import (
    Model,
    as_input,
    make_train_step,
    make_train_steps,
)
from straw_experiments.runner.environment import device, versions
from straw_experiments.runner.state import training_key
from straw_experiments.smollm.model import LlamaConfig, shapes
from straw_jax import Factors, hyperlora, make_straw, modulate
from straw_jax.straw import Base

Figure = float | dict[str, float]
Figures = dict[str, dict[str, Figure]]


class Sizes(NamedTuple):
    """How much is measured: by default what a card needs some minutes for.

    Attributes:
        models: Names and bases.
        repeats: Of every measurement.
        seconds: Of calls that are queued, at most, a repeat.
        small: Whether tiny networks stand for the article's.
        product: Rows and columns of matrices.
        copy: Numbers.
        rank: Of generated kernels.
        batch: Images of a step.
        large: Images of a large step.
        steps: In one program.
        seeds: Trained at once.
        inference: Batches.
        checked: Images of a comparison with float64.
        adapters: How many in a batch.
        width: Of the layer with adapters.
        tokens: Of a batch with adapters.
        cells: Of character models.
        language: Features, features of the smaller LSTM, batch, characters.
        predictors: Of weights.
        predicted: Networks of a step of weight prediction.
        llama: The language model whose adapters are written, with random weights.
        documents: A step's contexts, tokens of a context, and of the passage that follows.
        images: Of a training set.
        epochs: Over it.
    """

    models: tuple[tuple[str, Base], ...] = (
        ("straw", "none"),
        ("straw", "trained"),
        ("standalone", "none"),
    )
    repeats: int = 7
    seconds: float = 0.05
    small: bool = False
    product: int = 8192
    copy: int = 250_000_000
    rank: int = 16
    batch: int = 128
    large: int = 1024
    steps: int = 100
    seeds: int = 3
    inference: tuple[int, ...] = (1, 128, 1024)
    checked: int = 8
    adapters: tuple[int, ...] = (8, 32, 128)
    width: int = 2048
    tokens: int = 4096
    cells: tuple[str, ...] = ("lstm", "hyper")
    language: tuple[int, int, int, int] = (1000, 128, 128, 100)
    predictors: tuple[str, ...] = ("straw", "straw_muon")
    predicted: int = 1024
    llama: LlamaConfig = LlamaConfig()
    documents: tuple[int, int, int] = (8, 96, 64)
    images: int = 112_800
    epochs: int = 3


FULL = Sizes()
TINY = Sizes(
    models=(("straw", "trained"),),
    repeats=2,
    seconds=0.001,
    small=True,
    product=32,
    copy=100,
    rank=1,
    batch=4,
    large=4,
    steps=2,
    seeds=2,
    inference=(3,),
    checked=2,
    adapters=(2,),
    width=8,
    tokens=8,
    cells=("lstm",),
    language=(3, 2, 2, 2),
    predictors=("straw",),
    predicted=2,
    llama=LlamaConfig(vocabulary=16, width=8, layers=2, heads=2, kv_heads=1, head=4, mlp=8),
    documents=(2, 4, 3),
    images=10,
    epochs=1,
)


class UnavailableError(Exception):
    """A section cannot be measured here; the message says why."""


def environment() -> dict[str, Any]:
    """Return device and versions. PyTorch is not imported, which would take a part of the card."""
    found = versions()
    try:
        found["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        found["torch"] = "not installed"
    platform = jax.devices()[0].client.platform_version
    return {"device": device(), "platform": " ".join(platform.split()), "versions": found}


# What the machine can do


def rates(sizes: Sizes) -> Figures:
    """Measure a product of large matrices in each precision, and a copy."""
    found: Figures = {}
    products = {
        "product, default precision": ("float32", None),
        "product, precision highest": ("float32", "highest"),
        "product, bfloat16": ("bfloat16", None),
    }
    for name, (dtype, precision) in products.items():
        taken = _queued(machine.product(sizes.product, dtype, precision), sizes)
        found[name] = {"time": taken, "TFLOP/s": 2e-12 * sizes.product**3 / taken["median"]}
    taken = _queued(machine.copy(sizes.copy), sizes)
    found["copy"] = {"time": taken, "GB/s": 2e-9 * 4 * sizes.copy / taken["median"]}
    return found


@functools.cache
def _rates(sizes: Sizes) -> Rates:
    product = _queued(machine.product(sizes.product), sizes)["median"]
    copy = _queued(machine.copy(sizes.copy), sizes)["median"]
    return Rates(2 * sizes.product**3 / product, 2 * 4 * sizes.copy / copy)


# Images


def compilation(sizes: Sizes) -> Figures:
    """Time first calls: in this process, with all caches empty, and then with the cache on disk."""
    images, labels = _batch(sizes.batch)
    found: Figures = {}
    with _cache_on_disk():
        for name, base in sizes.models:

            def seconds(name: str = name, base: Base = base) -> float:
                jax.clear_caches()
                training = Training(_model(name, base, sizes), images, labels)
                return timed(lambda: jax.block_until_ready(training.step()))

            found[f"training step of {_title(name, base)}"] = {
                "first call, s": seconds(),
                "cached, s": seconds(),
            }
    return found


@contextmanager
def _cache_on_disk() -> Iterator[None]:
    """Keep all compiled programs in an empty folder, for now."""
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with tempfile.TemporaryDirectory() as folder:
        settings["jax_compilation_cache_dir"] = folder
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            for name, value in settings.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def correctness(sizes: Sizes) -> Figures:
    """Compare logits and gradients with float64 on the host: errors relative to the largest."""
    images, labels = make_batch(sizes.checked)
    images = normalise(images)
    found: Figures = {}
    for base in _bases(sizes):
        model, variables = _initialised("straw", base, sizes)
        variables = jax.tree.map(_moved, variables)

        def loss(
            variables: Any, images: jax.Array, labels: jax.Array, model: Model = model
        ) -> tuple[jax.Array, jax.Array]:
            logits, _ = model.apply(variables, images, None)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), logits

        both = jax.value_and_grad(loss, has_aux=True)
        exact = _on_host(both, variables, images, labels)
        for precision in (None, "highest"):
            with jax.default_matmul_precision(precision):
                (_, logits), gradient = jax.jit(both)(variables, images, labels)
            found[f"base {base}, precision {precision or 'default'}"] = {
                "logits": _error(logits, exact[0]),
                "gradient": _error(_flat(gradient), exact[1]),
            }
    return found


def _moved(leaf: Any) -> np.ndarray:
    """Return parameters away from their initial values, of which some are zero, on the host."""
    noise = np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32)
    return np.asarray(leaf) + np.float32(0.01) * noise


def _on_host(
    both: Callable[..., Any], variables: Any, *batch: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and the gradient, flat, computed in float64 on the host."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (variables, batch[0]))
        (_, logits), gradient = jax.jit(both)(*wide, *batch[1:])
        if logits.dtype != np.float64:
            raise ValueError(f"expected logits in float64, got {logits.dtype}")
        return np.asarray(logits), _flat(gradient)


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _error(got: Any, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(got, np.float64) - exact).max() / np.abs(exact).max())


def steps(
    sizes: Sizes, large: bool = False, precision: str | None = None, dtype: str | None = None
) -> Figures:
    """Time training steps, with both bases: one by one, queued, and in one program."""
    batch = sizes.large if large else sizes.batch
    found: Figures = {}
    for name, base in sizes.models:
        if name == "standalone" and (precision or dtype):
            continue
        with jax.default_matmul_precision(precision):
            training = _training(name, base, sizes, batch, precision, dtype)
            looped = _queued(training.loop(sizes.steps), sizes, per=sizes.steps)
            found[_title(name, base)] = {
                "one by one": _one_by_one(training.step, sizes),
                "queued": _queued(training.step, sizes),
                "in one program": looped,
                "images/s": batch / looped["median"],
            }
    return found


def seeds(sizes: Sizes) -> Figures:
    """Time a step of several seeds, one after the other and as one program over all of them."""
    found: Figures = {}
    for name, base in sizes.models:
        apart, joined = _steps_of_seeds(_training(name, base, sizes, sizes.batch), sizes.seeds)
        taken = _queued(apart, sizes), _queued(joined, sizes)
        found[f"{_title(name, base)}, {sizes.seeds} seeds"] = {
            "one after the other": taken[0],
            "one program": taken[1],
            "times as fast": taken[0]["median"] / taken[1]["median"],
        }
    return found


def _steps_of_seeds(
    training: Training, count: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what takes a step of each seed, and what takes one of all as one program."""
    trainer, batch = training.trainer, training.batch
    real = np.ones(len(batch[1]), np.bool_)
    states: list[Any] = [trainer.init_state(seed) for seed in range(count)]
    keys = [training_key(seed) for seed in range(count)]
    stacked: list[Any] = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]
    step = make_train_step(trainer.model, trainer.optimizer)
    of_all = jax.jit(jax.vmap(step, (0, 0, None, None, None)), donate_argnums=0)

    def apart() -> object:
        for seed, key in enumerate(keys):
            states[seed], _ = trainer.train_step(states[seed], key, *batch, real)
        return states

    def joined() -> object:
        stacked[0], _ = of_all(stacked[0], jnp.stack(keys), *batch, real)
        return stacked

    return apart, joined


def floor(sizes: Sizes) -> Figures:
    """Compare a step and its parts with the least time of their operations and bytes."""
    images, labels = _batch(sizes.batch)
    found: Figures = {}
    for base in _bases(sizes):
        model, variables = _initialised("straw", base, sizes)
        forward, gradient = make_forward(model), jax.jit(jax.grad(_loss_of(model)))
        key = jax.random.key(0)
        training = _training("straw", base, sizes, sizes.batch)
        step = phases("training", sizes.batch, sizes.rank, base)
        parts = {
            "forward": (
                phases("inference", sizes.batch, sizes.rank, base),
                functools.partial(forward, variables, images),
            ),
            "forward and gradient": (
                [phase for phase in step if phase.name != "optimiser"],
                functools.partial(gradient, variables, images, labels, key),
            ),
            "step": (step, training.step),
        }
        for name, (included, call) in parts.items():
            least, taken = least_seconds(included, _rates(sizes)), _queued(call, sizes)
            found[f"base {base}, {name}"] = {
                "floor, ms": 1e3 * least,
                "measured": taken,
                "x floor": taken["median"] / least,
            }
        for phase in step:
            found[f"base {base}, {phase.name}"] = {
                "floor, ms": 1e3 * phase.seconds(_rates(sizes)),
                "MB": phase.bytes / 1e6,
                **({"GFLOP": phase.flops / 1e9} if phase.flops else {}),
            }
    return found


def _loss_of(model: Model) -> Callable[..., jax.Array]:
    """Return the loss of a training step, with dropout."""

    def loss(variables: Any, images: Any, labels: jax.Array, key: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, as_input(images), key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def inference(sizes: Sizes) -> Figures:
    """Time forward passes, waited for and queued."""
    found: Figures = {}
    for name, base in sizes.models:
        model, variables = _initialised(name, base, sizes)
        forward = make_forward(model)
        for batch in sizes.inference:
            call = functools.partial(forward, variables, _batch(batch)[0])
            queued = _queued(call, sizes)
            found[f"{_title(name, base)}, batch {batch}"] = {
                "one by one": _one_by_one(call, sizes),
                "queued": queued,
                "images/s": batch / queued["median"],
            }
    return found


def set_1(sizes: Sizes) -> Figures:
    """Train as the article's set 1 is trained, on noise: ten epochs from the time of a few."""
    images, labels = make_batch(sizes.images)
    found: Figures = {}
    for name, base in sizes.models:
        training = _training(name, base, sizes, sizes.batch)
        trainer = training.trainer
        train_steps = make_train_steps(trainer.model, trainer.optimizer)
        start = time.perf_counter()
        epochs = [
            epoch
            for _, epoch in train_on_device(
                train_steps,
                trainer.init_state(seed=1),
                images,
                labels,
                epochs=sizes.epochs,
                batch_size=sizes.batch,
                seed=1,
                title=None,
            )
        ]
        whole = time.perf_counter() - start
        each = statistics.median(epoch.seconds for epoch in epochs)
        first = whole - sum(epoch.seconds for epoch in epochs)
        found[_title(name, base)] = {
            "images/s": sizes.images / each,
            "ten epochs, s": 10 * each,
            "before them, s": first,
        }
    return found


@functools.cache
def _training(
    name: str,
    base: Base,
    sizes: Sizes,
    batch: int,
    precision: str | None = None,
    dtype: str | None = None,
) -> Training:
    """Return a training, one for all sections; to be used with the same default precision."""
    return Training(_model(name, base, sizes, dtype), *_batch(batch))


@functools.cache
def _initialised(name: str, base: Base, sizes: Sizes) -> tuple[Model, Any]:
    """Return a model and its variables."""
    model = _model(name, base, sizes)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *IMAGE)))


def _bases(sizes: Sizes) -> list[Base]:
    return [base for name, base in sizes.models if name == "straw"]


def _model(name: str, base: Base, sizes: Sizes, dtype: str | None = None) -> Model:
    if sizes.small or dtype:
        return straw_model(_straw(base, sizes, dtype))
    return article_model(name, sizes.rank, base)


def _straw(base: Base, sizes: Sizes, dtype: str | None = None) -> Any:
    """Return the article's STRAW, or a tiny one."""
    if not sizes.small:
        return article_straw(classes=CLASSES, rank=sizes.rank, base=base, dtype=dtype)
    sample = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    return make_straw(
        _Tiny(CLASSES, dtype),
        sample,
        rank=sizes.rank,
        base=base,
        encoder=_Tiny(2, dtype),
        dtype=dtype,
    )


class _Tiny(nn.Module):
    """A linear network: what is measured with it tests the benchmark alone."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(self.features, dtype=self.dtype)(x.mean(axis=(2, 3)))


def _title(name: str, base: str) -> str:
    return f"{name}, base {base}" if name == "straw" else name


@functools.cache
def _batch(size: int) -> tuple[jax.Array, jax.Array]:
    return jax.device_put(make_batch(size))


# Layers


def adapters(sizes: Sizes) -> Figures:
    """Time a layer with several low-rank adapters in a batch beside the layer without any.

    Each adapter has its own share of tokens, or each token its number: by index, and with factors
    repeated for each token.
    """
    layer = modulate(lambda params, x: x @ params["W"])

    def by_index(kernel: Any, bank: Any, x: Any, ids: Any) -> Any:
        return layer({"W": kernel}, {"W": bank}, x, index=ids)

    def repeated(kernel: Any, bank: Any, x: Any, ids: Any) -> Any:
        return layer({"W": kernel}, {"W": jax.tree.map(lambda each: each[ids], bank)}, x)

    found: Figures = {}
    for dtype in ("float32", "bfloat16"):
        kernel = jnp.ones((sizes.width, sizes.width), dtype)
        for count in sizes.adapters:
            x = jnp.ones((count, sizes.tokens // count, sizes.width), dtype)
            B = jnp.ones((count, sizes.width, sizes.rank), dtype)
            A = jnp.ones((count, sizes.rank, sizes.width), dtype)
            base = _queued(functools.partial(jax.jit(jnp.matmul), x, kernel), sizes)
            own = _queued(functools.partial(jax.jit(hyperlora), x, B, A, kernel), sizes)
            rows = x.reshape(-1, sizes.width)
            ids = jax.random.randint(jax.random.key(0), rows.shape[:1], 0, count)
            arguments = kernel, Factors(B, A), rows, ids
            indexed = _queued(functools.partial(jax.jit(by_index), *arguments), sizes)
            each = _queued(functools.partial(jax.jit(repeated), *arguments), sizes)
            found[f"{dtype}, {count} adapters"] = {
                "layer alone": base,
                "with adapters": own,
                "x alone": own["median"] / base["median"],
                "by index": indexed,
                "by index, x alone": indexed["median"] / base["median"],
                "repeated": each,
            }
    return found


# Other studies


def language(sizes: Sizes) -> Figures:
    """Time training of character models, several steps as one program."""
    found: Figures = {}
    steps = math.ceil(sizes.steps / 20)  # each has as many steps of the cell as characters
    for name in sizes.cells:
        take = jax_language.build(name, **_language(sizes), steps=steps)
        found[name] = _characters(_one_by_one(take, sizes, per=steps), sizes)
    return found


def _language(sizes: Sizes) -> dict[str, int]:
    features, hyper, batch, length = sizes.language
    sizes_of_both = {"features": features, "hyper": hyper, "batch": batch, "length": length}
    return {**sizes_of_both, "characters": 50}


def _characters(taken: dict[str, float], sizes: Sizes) -> dict[str, Figure]:
    read = _language(sizes)["batch"] * _language(sizes)["length"]
    return {"step": taken, "characters/s": read / taken["median"]}


def prediction(sizes: Sizes) -> Figures:
    """Time training of weight predictors, many steps as one program."""
    found: Figures = {}
    for name in sizes.predictors:
        take = jax_prediction.build(name, [2, 5, 1], 30, sizes.predicted, sizes.steps)
        taken = _one_by_one(take, sizes, per=sizes.steps)
        found[name] = {"step": taken, "steps/s": 1 / taken["median"]}
    return found


class _RandomTexts:
    """A task of documents: random tokens, of contexts as long as there may be."""

    def __init__(self, sizes: Sizes):
        self.vocabulary = sizes.llama.vocabulary
        _, self.length, self.passage = sizes.documents

    def draw(
        self, rng: np.random.Generator, n: int, part: str, *, length: int | None = None
    ) -> Batch:
        """Draw contexts and passages."""
        del part
        context, query = (
            rng.integers(0, self.vocabulary, (n, size), dtype=np.int32)
            for size in (length or self.length, self.passage)
        )
        asked = np.ones(query.shape, bool)
        asked[:, 0] = False
        return Batch(context, np.ones(context.shape, bool), query, asked)


def documents(sizes: Sizes, dtype: str = "float32") -> Figures:
    """Time training of what writes a language model's adapters from documents, and the writing."""
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def weight(shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(next(keys), shape, dtype) * shape[-1] ** -0.5

    weights = jax.tree.map(
        weight, shapes(sizes.llama), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    usual = documents_config.defaults("documents")
    of_models = readers.sizes_of(sizes.llama, {**usual, "precision": dtype})
    recipe = Recipe(
        usual["steps"], parts=1, batch_size=sizes.documents[0], learning_rate=usual["learning_rate"]
    )
    found: Figures = {}
    for name in ("gradients", "static"):
        task = _RandomTexts(sizes)
        trainer = Trainer(name, ADAPTERS[name].build(of_models), of_models, weights, task, recipe)
        batch = jax.tree.map(jnp.asarray, trainer.draw(0, 0))
        state, ids = trainer.init_state(0), jnp.asarray(batch.ids)

        def take(trainer: Any = trainer, batch: Any = batch, ids: Any = ids) -> Any:
            nonlocal state
            state, loss = trainer.step(state, trainer.weights, batch, ids)
            return loss

        taken = _one_by_one(take, sizes)
        found[name] = {
            "step": taken,
            "tokens/s": batch.query.size / taken["median"],
            f"{recipe.steps} steps, minutes": recipe.steps * taken["median"] / 60,
        }
    return found


# PyTorch


def torch(sizes: Sizes, compiled: bool = False) -> Figures:
    """Time the author's algorithm in PyTorch, with TF32, eager or compiled."""
    wait = _torch()
    import torch_straw

    name, found = "torch_compile" if compiled else "torch", Figures()
    for work in ("training", "inference"):
        for batch in (sizes.batch,) if compiled else (sizes.batch, sizes.large):
            call = torch_straw.make_call(name, work, batch, sizes.rank, "none")
            queued = _queued(call, sizes, wait)
            found[f"{work}, batch {batch}"] = {
                "one by one": _one_by_one(call, sizes, wait),
                "queued": queued,
                "images/s": batch / queued["median"],
            }
    return found


def torch_language(sizes: Sizes) -> Figures:
    """Time training of PyTorch's `nn.LSTM`, which is no cell."""
    wait = _torch()
    import torch_language

    take = torch_language.build("lstm_fused", **_language(sizes))
    return {"nn.LSTM": _characters(_one_by_one(take, sizes, wait), sizes)}


def _torch() -> Callable[[object], object]:
    """Import PyTorch, and return what waits for a result.

    Raises:
        UnavailableError: It cannot be imported.
    """
    try:
        import torch
    except ImportError:
        raise UnavailableError("PyTorch is not installed") from None
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32, which JAX takes by default
    torch.backends.cudnn.allow_tf32 = True
    if torch.cuda.is_available():
        return lambda _: torch.cuda.synchronize()
    return lambda result: result


# Time


def _one_by_one(
    call: Callable[[], object],
    sizes: Sizes,
    wait: Callable[[Any], object] = jax.block_until_ready,
    per: int = 1,
) -> dict[str, float]:
    """Time calls, each waited for; `per` steps are in each."""
    return _spread([timed(lambda: wait(call())) / per for _ in _warm(call, sizes, wait)[0]])


def _queued(
    call: Callable[[], object],
    sizes: Sizes,
    wait: Callable[[Any], object] = jax.block_until_ready,
    per: int = 1,
) -> dict[str, float]:
    """Time several calls at once, of which the last is waited for."""
    repeats, calls = _warm(call, sizes, wait)

    def many() -> None:
        for _ in range(calls - 1):
            call()
        wait(call())

    return _spread([timed(many) / calls / per for _ in repeats])


def _warm(
    call: Callable[[], object], sizes: Sizes, wait: Callable[[Any], object]
) -> tuple[range, int]:
    """Call twice, of which the first may compile; return repeats, and how many calls to queue."""
    wait(call())
    once = timed(lambda: wait(call()))
    return range(sizes.repeats), max(1, min(50, math.ceil(sizes.seconds / once)))


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
