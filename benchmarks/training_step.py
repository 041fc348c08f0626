"""Time one STRAW training step of this library against PyTorch's, side by side.

    pip install -e ".[benchmarks]"
    python benchmarks/training_step.py

Both train the article's system (base "none") on one fixed batch of noise. Before timing, both must
have the article's number of parameters and give the same logits from the same parameters.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import interleaved, summary, table

from straw_jax.data import normalise
from straw_jax.lift import materialize
from straw_jax.models import CNN
from straw_jax.training.contenders import article_straw, contender
from straw_jax.training.environment import device, versions
from straw_jax.training.step import Model, init_state, make_train_step, training_key

CLASSES, IMAGE, LEARNING_RATE = 47, (28, 28, 1), 1e-4
PARAMETERS_AT_RANK_16 = 20_606_863  # the article's STRAW
OURS, TORCH, NAIVE = "straw_jax", "PyTorch, vmap", "JAX, vmap over whole kernels"

Step = Callable[[], object]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    add = parser.add_argument
    add("--batch-size", type=_positive, default=128, help="images in a batch")
    add("--rank", type=_positive, default=16, help="of the generated weights")
    add("--repeats", type=_positive, default=30, help="timed steps of each case")
    add("--naive", action="store_true", help="time naive JAX too (about 20 s a step on 2 cores)")
    add("--out", type=Path, default=f"results/training_step_{now}.json", help="JSON to write")
    parsed = parser.parse_args(arguments)
    if parsed.out.exists():
        parser.error(f"--out: {parsed.out} exists. Name another file, or remove it.")
    return parsed


def main() -> None:
    args = parse()
    if importlib.util.find_spec("torch") is None:
        sys.exit('This benchmark needs PyTorch: pip install -e ".[benchmarks]"')
    environment = describe_machine()
    print(json.dumps(environment, indent=2))
    images, labels = make_batch(args.batch_size)
    agreement = check_same_model(images, args.rank)
    print(json.dumps(agreement, indent=2))
    print(f"\nTraining step, batch {args.batch_size}, rank {args.rank}, {args.repeats} in turn ...")

    straw = contender("straw", classes=CLASSES, rank=args.rank, base="none")
    cases = {
        OURS: jax_case(straw, images, labels),
        TORCH: torch_case(images, labels, args.rank),
    }
    if args.naive:
        cases[NAIVE] = jax_case(naive_model(args.rank), images, labels)
    seconds = interleaved(cases, args.repeats)
    rows = summary(seconds, OURS)
    print(table(rows, OURS))

    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"batch_size": args.batch_size, "rank": args.rank, "repeats": args.repeats}
    result = {**settings, **environment, **agreement, "summary": rows, "seconds": seconds}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{args.out}")


def describe_machine() -> dict[str, Any]:
    """Return what decides the figures: device, threads, versions, and how busy the machine is."""
    import torch

    return {
        "device": device(),
        "load_average_at_start": os.getloadavg()[0],
        "threads": {"torch": torch.get_num_threads(), "jax": len(os.sched_getaffinity(0))},
        "versions": versions() | {"torch": torch.__version__},
    }


def make_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 `[size, 28, 28, 1]` and labels int32 `[size]`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *IMAGE), np.uint8)
    return images, rng.integers(0, CLASSES, size, np.int32)


def check_same_model(images: np.ndarray, rank: int) -> dict[str, Any]:
    """Return the number of parameters, and how far both versions' logits differ.

    Raises:
        RuntimeError: if the two versions are not the same model.
    """
    import torch
    import torch_straw

    straw = article_straw(classes=CLASSES, rank=rank, base="none")
    params = jax.jit(straw.init)(jax.random.key(0))
    model = torch_straw.Straw(CLASSES, rank).eval()
    torch_straw.load_params(model, params)
    ours = np.asarray(jax.jit(straw.apply)(params, normalise(images)))
    with torch.no_grad():
        theirs = model(_torch_images(images)).numpy()
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference < 1e-4:
        raise RuntimeError(f"the two versions' logits differ by {difference:.1e} of the largest")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    torch_count = sum(parameter.numel() for parameter in torch_straw.trained(model))
    if count != torch_count or (rank == 16 and count != PARAMETERS_AT_RANK_16):
        raise RuntimeError(
            f"expected as many parameters in both versions ({PARAMETERS_AT_RANK_16:,} at rank 16), "
            f"got {count:,} and {torch_count:,} at rank {rank}"
        )
    return {"parameters": count, "logits_relative_difference": difference}


def jax_case(model: Model, images: np.ndarray, labels: np.ndarray) -> Step:
    """Return the training step that the library's users run."""
    optimizer = optax.adam(LEARNING_RATE)
    train_step = make_train_step(model, optimizer)
    state, key = init_state(model, optimizer, IMAGE, seed=0), training_key(0)
    real = np.ones(len(images), np.bool_)

    def step() -> object:
        nonlocal state
        state, metrics = train_step(state, key, images, labels, real)
        return jax.block_until_ready((state, metrics))

    return step


def torch_case(images: np.ndarray, labels: np.ndarray, rank: int) -> Step:
    """Return PyTorch's training step; images are normalised beforehand, as its loaders do."""
    import torch
    import torch_straw

    torch.manual_seed(0)
    step = torch_straw.make_train_step(torch_straw.Straw(CLASSES, rank), LEARNING_RATE)
    inputs, targets = _torch_images(images), torch.tensor(labels, dtype=torch.int64)
    return lambda: step(inputs, targets)


def naive_model(rank: int) -> Model:
    """Return STRAW without this library's lift: `vmap` over an executor with whole kernels."""
    straw, executor = article_straw(classes=CLASSES, rank=rank, base="none"), CNN(CLASSES)
    shapes = jax.eval_shape(executor.init, jax.random.key(0), jnp.zeros((1, *IMAGE)))["params"]

    def apply(variables: Any, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        def one_sample(factors: Any, image: jax.Array, key: jax.Array) -> jax.Array:
            weights = {"params": materialize(shapes, factors)}
            return executor.apply(weights, image[None], train=True, rngs={"dropout": key})[0]

        assert key is not None  # it is only trained
        params = variables["params"]
        keys = jax.random.split(key, len(images))
        return jax.vmap(one_sample)(straw.factors(params, images), images, keys), {}

    return Model(lambda key, images: {"params": straw.init(key)}, apply)


def _torch_images(images: np.ndarray) -> Any:
    """Return normalised images in PyTorch's layout `[b, 1, 28, 28]`."""
    import torch

    return torch.tensor(np.asarray(normalise(images))).permute(0, 3, 1, 2).contiguous()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


if __name__ == "__main__":
    main()
