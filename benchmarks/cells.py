"""What is measured: cells of cases that are timed in turn.

Only the standard library is imported: no framework shares memory or threads with what is timed.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from article import ENCODER, EXECUTOR, generated, generator_weights, weights

OURS = "straw"
MODELS = {
    OURS: "straw_jax",
    "standalone": "executor alone",
    "torch": "PyTorch, vmap",
    "torch_compile": "PyTorch, compiled",
    "dense": "JAX, dense hypernetwork",
    "naive": "JAX, naive vmap",
}
WORKS = {"training": "training step", "inference": "inference"}
BASES = ("none", "trained")

LAYERS = {
    "dense": "dense, 1 vector a sample",
    "dense_16": "dense, 16 vectors a sample",
    "conv": "convolution 3x3, 8x8 positions",
}
METHODS = {OURS: "straw_jax", "kernels": "B @ A formed", "einsum": "einsum"}
PASSES = {"forward": "forward", "gradient": "forward and gradient"}
LAYER_RANK, LAYER_BATCH = 16, {"dense": 128, "dense_16": 128, "conv": 8}
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)

GIB = 2**30
KERNELS_BOUND = 4 * GIB  # of all samples' whole kernels, in a layer

# Factors of measured peaks, rounded up: copies of the samples' weights, and numbers beside them.
_FRAMEWORK = GIB // 2
_WEIGHT_COPIES = {"training": 3, "inference": 2}
_ACTIVATIONS = {"training": 600_000, "inference": 200_000}


class Case(NamedTuple):
    """One thing to time.

    Attributes:
        name: in the table's rows.
        module: whose `build(**arguments)` returns the step to time.
        arguments: of `build`.
        needs: bytes of memory, estimated.
        least: steps to take however long they last.
        skip: why it is not to be started; empty where it is.
    """

    name: str
    module: str
    arguments: dict[str, object]
    needs: int = _FRAMEWORK
    least: int = 3
    skip: str = ""


class Cell(NamedTuple):
    """Cases that are timed in turn: `key` names the cell in a results file, `title` to readers."""

    key: str
    title: str
    settings: dict[str, object]
    cases: list[Case]


def model_cells(
    works: Sequence[str],
    batches: Sequence[int],
    ranks: Sequence[int],
    bases: Sequence[str],
    models: Sequence[str],
) -> list[Cell]:
    """Return a cell for every combination, of all models."""
    cells = []
    for batch, rank, base, work in itertools.product(batches, ranks, bases, works):
        arguments = {"work": work, "batch": batch, "rank": rank, "base": base}
        cases = [
            Case(
                name,
                "torch_straw" if name.startswith("torch") else "jax_models",
                {"name": name, **arguments},
                model_bytes(name, work, batch, rank, base),
                1 if name in ("dense", "naive") else 3,
            )
            for name in models
        ]
        title = f"{WORKS[work]}, batch {batch}, rank {rank}, base {base}"
        cells.append(Cell(title, title, arguments, cases))
    return cells


def layer_cells(layers: Sequence[str], widths: Sequence[int]) -> list[Cell]:
    """Return a cell for every layer, pass and width, of all methods."""
    cells = []
    for layer, work, width in itertools.product(layers, PASSES, widths):
        arguments = {"layer": layer, "work": work, "width": width}
        cases = []
        for name in METHODS:
            needs, skip = layer_bytes(name, layer, work, width), ""
            if name == "kernels" and needs > KERNELS_BOUND:
                skip = f"over {KERNELS_BOUND // GIB} GiB"
            least = 1 if name == "kernels" else 3
            case = {"method": name, **arguments}
            cases.append(Case(name, "layers", case, _FRAMEWORK + needs, least, skip))
        title = f"{LAYERS[layer]}, batch {LAYER_BATCH[layer]}, rank {LAYER_RANK}: {PASSES[work]}"
        cells.append(Cell(f"{title}, width {width}", title, arguments, cases))
    return cells


def model_bytes(name: str, work: str, batch: int, rank: int, base: str) -> int:
    """Estimate a model's peak: parameters (with Adam's and gradient), samples, framework."""
    executor, modulator = weights(EXECUTOR), weights(ENCODER)
    if name == "standalone":
        parameters, sample = executor, 0
    elif name == "dense":
        parameters, sample = modulator + generator_weights(executor), executor
    else:
        parameters = modulator + generator_weights(generated(rank))
        sample = generated(rank) if name == OURS else executor + generated(rank)
    if base == "trained" and name != "standalone":
        parameters += executor
    copies = 5 if work == "training" else 1
    samples = batch * (sample * _WEIGHT_COPIES[work] + _ACTIVATIONS[work])
    return _FRAMEWORK + 4 * (copies * parameters + samples)


def layer_bytes(method: str, layer: str, work: str, width: int) -> int:
    """Estimate a layer's peak: the samples' kernels (and their gradient), or its factors."""
    rows = 9 * width if layer == "conv" else width
    vectors = {"dense": 1, "dense_16": 16, "conv": 64}[layer]
    copies = 2 if work == "gradient" else 1
    each = rows * width if method == "kernels" else (rows + width) * (LAYER_RANK + vectors)
    return 4 * LAYER_BATCH[layer] * copies * each
