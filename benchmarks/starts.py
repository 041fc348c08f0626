"""How untrained STRAWs start: sizes of activations, the loss of the first steps, gradients by part.

`python benchmarks/starts.py` prints one line for each generator, base, kind and rank. Of three
tasks, "layers" (a small convolutional network) has all kinds and is not trained; "siren", an image
to a coordinate network that draws it, and "table", labelled rows to an MLP, have low ranks.
Columns:

    sizes      standard deviation of activations over that of the plain model, of the layer whose
               ratio is farthest from 1; over samples and 64 draws of initial values, as at rank 1
               those of single draws scatter
    loss       largest loss of the first ten steps of Adam (1e-3) over the first, of the worst seed
    gradients  norms of encoder, generator and executor, relative to the largest, at the step where
               they are closest to each other
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from straw_jax import (
    ConvEncoder,
    DoRA,
    Gain,
    Heads,
    LowRank,
    Mixture,
    Network,
    PerceiverEncoder,
    Pose,
    SetEncoder,
    SharedHeads,
    SharedLowRank,
    TokenHeads,
    Whole,
    linen,
    make_straw,
)
from straw_jax.straw import Base

# Each line compiles a program of its own and runs it a few times.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):  # later versions may not have these flags
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()

SEEDS = 4
DRAWS = 64
BATCH = 64
STEPS = 10
RANKS = 1, 4, 16, 64, 256
BASES: tuple[Base, ...] = "none", "trained"

KINDS: dict[str, Callable[[int], Any]] = {
    "low-rank": LowRank,
    "shared low-rank": SharedLowRank,
    "mixture": Mixture,
    "mixture, softmax": partial(Mixture, softmax=True),
    "DoRA": DoRA,
    "low-rank, gain": lambda rank: [LowRank(rank), Gain(inputs=True)],
}
"""By rank, or by number of templates."""

WITHOUT_RANK: dict[str, Any] = {"whole": Whole(), "low-rank 4, pose": [LowRank(4), Pose()]}

GENERATORS: dict[str, tuple[Any, str]] = {
    "Heads, article": (Heads, "article"),
    "Heads": (Heads, "plain"),
    "SharedHeads": (SharedHeads, "plain"),
    "TokenHeads": (TokenHeads, "plain"),
}


class Task(NamedTuple):
    """An executor that returns the activations of its layers, the last for the loss."""

    executor: Network
    x: Any
    context: Any
    encoder: Any
    tokens: Any
    loss: Callable[[Any, Any], Any]
    target: Any


class Start(NamedTuple):
    """What is reported of one cell."""

    sizes: float
    loss: float | None = None
    gradients: dict[str, float] | None = None


class _Layers(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> list[Any]:
        found = []
        for i, features in enumerate((8, 16), start=1):
            x = nn.Conv(features, (3, 3), strides=2, name=f"conv{i}")(x)
            found.append(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        found.append(nn.Dense(32, name="dense1")(x))
        found.append(nn.Dense(10, name="dense2")(nn.relu(found[-1])))
        return found


class _Siren(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> list[Any]:
        found = []
        for i in range(4):
            size = x.shape[-1]
            bound = 1 / size if i == 0 else (6 / size) ** 0.5 / 30

            def uniform(key: Any, shape: Any, dtype: Any = jnp.float32, b: float = bound) -> Any:
                return jax.random.uniform(key, shape, dtype, -b, b)

            y = nn.Dense(1 if i == 3 else 64, kernel_init=uniform, name=f"dense{i + 1}")(x)
            found.append(y)
            x = jnp.sin(30 * y)
        return found


class _Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> list[Any]:
        found = []
        for i, features in enumerate((64, 64, 2), start=1):
            found.append(nn.Dense(features, name=f"dense{i}")(x))
            x = nn.relu(found[-1])
        return found


def _images(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw images of a few waves, in 0 to 1."""
    at = np.linspace(0, 1, size)
    waves = rng.uniform(1, 8, (BATCH, 3, 2)), rng.uniform(0, 6, (BATCH, 3, 2))
    rows, columns = (np.sin(waves[0][..., i, None] * at + waves[1][..., i, None]) for i in (0, 1))
    image = np.einsum("bkh,bkw->bhw", rows, columns)[..., None] / 3
    return (0.5 + 0.5 * image).astype(np.float32)


def _squared(y: Any, target: Any) -> Any:
    return jnp.mean((y - target) ** 2)


def _entropy(y: Any, target: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(y, target).mean()


def task(name: str) -> Task:
    """Return one of the tasks, of a fixed batch."""
    rng = np.random.default_rng(0)
    if name == "layers":
        images = _images(rng, 12)
        return Task(
            linen(_Layers()), images, images, ConvEncoder(), _pixels(), _entropy,
            rng.integers(0, 10, BATCH),
        )  # fmt: skip
    if name == "siren":
        images = _images(rng, 16)
        at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 2, indexing="ij"), axis=-1)
        at = np.broadcast_to(at.reshape(1, -1, 2), (BATCH, 256, 2)).astype(np.float32)
        return Task(
            linen(_Siren()), at, images, ConvEncoder(), _pixels(), _squared,
            images.reshape(BATCH, 256, 1),
        )  # fmt: skip
    rows = rng.normal(size=(BATCH, 40, 8)).astype(np.float32)
    labels = (np.einsum("bnd,bd->bn", rows, rng.normal(size=(BATCH, 8))) > 0).astype(int)
    seen = np.concatenate([rows, np.eye(2, dtype=np.float32)[labels]], axis=-1)[:, :30]
    return Task(
        linen(_Mlp()), rows[:, 30:], seen, SetEncoder(), PerceiverEncoder(width=64), _entropy,
        labels[:, 30:],
    )  # fmt: skip


def _pixels() -> Network:
    """Return an encoder of images by their rows of pixels."""
    perceiver = linen(PerceiverEncoder(width=64))

    def rows(images: Any) -> Any:
        row = images.reshape(*images.shape[:2], -1)
        place = jnp.broadcast_to(jnp.eye(row.shape[1]), (len(row), row.shape[1], row.shape[1]))
        return jnp.concatenate([row, place], axis=-1)

    return Network(
        init=lambda key, images: perceiver.init(key, rows(images)),
        apply=lambda params, images, **kwargs: perceiver.apply(params, rows(images), **kwargs),
    )


def measure(
    given: Task, generator: Any, start: Any, base: Base, updates: Any, seeds: int, trained: bool
) -> Start:
    """Return how a STRAW starts, with each kernel updated as said and all other leaves whole."""
    straw = make_straw(
        given.executor,
        given.x,
        updates=updates,
        base=base,
        encoder=given.tokens if generator is TokenHeads else given.encoder,
        context=given.context,
        generator=generator,
        start=start,
    )
    data = jax.tree.map(jnp.asarray, (given.x, given.context, given.target))
    keys = jax.random.split(jax.random.key(0), max(seeds, DRAWS))
    optimiser = optax.adam(1e-3)

    def loss(params: Any, data: Any) -> Any:
        x, context, target = data
        layers = straw.apply(params, x, context=context)
        return given.loss(layers[-1], target), [_moments(layer) for layer in layers]

    @jax.jit
    def step(params: Any, state: Any, data: Any) -> Any:
        (value, moments), gradient = jax.value_and_grad(loss, has_aux=True)(params, data)
        change, state = optimiser.update(gradient, state)
        norms = {part: optax.global_norm(each) for part, each in gradient.items()}
        return optax.apply_updates(params, change), state, (value, moments, norms)

    @jax.jit
    def started(key: Any, data: Any) -> Any:
        return loss(straw.init(key), data)[1]

    found = [started(key, data) for key in keys]
    sizes = _ratio(given, [np.stack(each) for each in zip(*found, strict=True)])
    if not trained:
        return Start(sizes)

    init = jax.jit(straw.init)

    def one(key: Any) -> Any:
        params, found = init(key), []
        state = optimiser.init(params)
        for _ in range(STEPS):
            params, state, each = step(params, state, data)
            found.append(each)
        return jax.tree.map(lambda *each: np.stack(each), *found)

    losses, _, norms = jax.tree.map(lambda *each: np.stack(each), *map(one, keys[:seeds]))
    steps = {part: np.exp(np.log(each + 1e-30).mean(axis=0)) for part, each in norms.items()}
    spread = np.ptp(np.log([*steps.values()]), axis=0)
    at = int(spread[1:].argmin()) + 1  # of a base, A starts at 0, and so do gradients through it
    largest = max(each[at] for each in steps.values())
    return Start(
        sizes,
        float((losses.max(axis=1) / losses[:, 0]).max()),
        {part: float(each[at] / largest) for part, each in steps.items()},
    )


def _ratio(given: Task, moments: list[np.ndarray]) -> float:
    """Return the ratio of deviations that is farthest from 1; of moments `[seeds, 2]` by layer."""
    expected = plain(given.executor, given.x, len(moments[0]))
    ratios = [
        _deviation(own) / _deviation(other) for own, other in zip(moments, expected, strict=True)
    ]
    return float(max(ratios, key=lambda ratio: abs(np.log(ratio))))


def plain(executor: Network, x: Any, seeds: int) -> list[np.ndarray]:
    """Return means and mean squares of the layers of untrained plain models, `[seeds, 2]` each."""

    def one(key: Any) -> Any:
        own = jax.random.split(key, 3)[2]  # of the executor in `Straw.init`
        return [_moments(layer) for layer in executor.apply(executor.init(own, x), x)]

    keys = jax.random.split(jax.random.key(0), seeds)
    return [np.asarray(each) for each in jax.jit(partial(jax.lax.map, one))(keys)]


def _moments(layer: Any) -> Any:
    return jnp.stack([layer.mean(), (layer**2).mean()])


def _deviation(moments: np.ndarray) -> float:
    means, squares = moments.astype(np.float64).T
    return float(np.sqrt(squares.mean() - (means**2).mean()))


def cells(tasks: list[str], generators: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield task, generator, base, kind and rank of each line."""
    for name, generator, base in itertools.product(tasks, generators, BASES):
        for kind in KINDS if name == "layers" else ["low-rank"]:
            yield from ((name, generator, base, kind, str(rank)) for rank in RANKS)
        if name == "layers":
            yield from ((name, generator, base, kind, "") for kind in WITHOUT_RANK)


def updates_of(kind: str, rank: str) -> dict[str, Any]:
    """Return the updates of a line: a pose is for the first layer alone."""
    if rank:
        return {"*kernel": KINDS[kind](int(rank)), "*": Whole()}
    if "pose" in kind:
        return {"conv1/kernel": WITHOUT_RANK[kind], "*kernel": LowRank(4), "*": Whole()}
    return {"*": WITHOUT_RANK[kind]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = ("layers", "siren", "table")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=list(tasks))
    names = [*GENERATORS]
    parser.add_argument("--generators", nargs="+", choices=names, default=names)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--kinds", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the steps: %(default)s")
    parser.add_argument("--ranks", nargs="+", type=int, help="only these")
    given = parser.parse_args()
    began = time.process_time()
    print(
        "| task | generator | base | kind | rank | sizes | loss | encoder | generator | executor |"
    )
    print("|---" * 10 + "|")
    for line in cells(given.tasks, given.generators):
        name, generator, base, kind, rank = line
        ranked = not given.ranks or not rank or int(rank) in given.ranks
        if base not in given.bases or not ranked or (given.kinds and kind not in given.kinds):
            continue
        made, start = GENERATORS[generator]
        found = measure(
            task(name), made, start, base, updates_of(kind, rank), given.seeds, name != "layers"
        )
        parts = (
            f"{found.gradients[part]:.3f}" if part in (found.gradients or {}) else ""
            for part in ("encoder", "generator", "executor")
        )
        loss = "" if found.loss is None else f"{found.loss:.2f}"
        print("|", " | ".join([*line, f"{found.sizes:.2f}", loss, *parts]), "|", flush=True)
    print(f"\n{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
