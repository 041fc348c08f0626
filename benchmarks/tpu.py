"""What a TPU would compile: memory and cost of STRAW's training step and prediction, without a TPU.

`pip install "jax[tpu]"`, then `python benchmarks/tpu.py [--model straw] [--batch 128 1024]`. XLA
compiles for the topology of a TPU v5e, one chip of it.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import article
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from straw_experiments.image_classification.evaluate import make_forward
from straw_experiments.image_classification.models import MODELS, build_model
from straw_experiments.image_classification.step import Model, lower_train_step, state_like
from straw_experiments.runner.readers import whole
from straw_jax.sharding import batch_sharding, shardings

TOPOLOGY = "v5e:2x2"  # the smallest that there is
_OPTIMIZER = optax.adam(article.LEARNING_RATE)


def one_chip() -> Mesh:
    """Return a mesh of one chip of a TPU that need not be there.

    Raises:
        RuntimeError: There is no libtpu.
    """
    # libtpu asks for these what only a TPU's host can answer.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    return Mesh(np.array(devices[:1]).reshape(1, 1), ("data", "model"), (AxisType.Auto,) * 2)


def training(model: Model, batch: int, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a training step for a mesh."""
    lowered = lower_train_step(model, _OPTIMIZER, article.IMAGE, batch_size=batch, mesh=mesh)
    return lowered.compile()


def prediction(model: Model, batch: int, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the forward pass for a mesh."""
    variables = state_like(model, _OPTIMIZER, article.IMAGE).variables
    images = jax.ShapeDtypeStruct((batch, *article.IMAGE), jnp.uint8)
    placed = jax.tree.map(
        lambda leaf, lies: leaf.update(sharding=lies),
        (variables, images),
        (shardings(variables, mesh), batch_sharding(mesh)),
    )
    forward: Any = make_forward(model)
    return forward.lower(*placed).compile()


def measured(model: Model, batch: int, mesh: Mesh) -> dict[str, dict[str, float]]:
    """Compile training step and prediction as on a TPU; return figures of each.

    They are "compile_s", "memory_mb", "parameters_mb" (with the optimizer's state), "gflop" and
    "accessed_mb" (bytes that operations read and write).
    """
    found = {}
    # What the library chooses for each backend, it chooses by this.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        for work, compile_ in (("training", training), ("prediction", prediction)):
            start = time.perf_counter()
            compiled = compile_(model, batch, mesh)
            seconds = time.perf_counter() - start
            memory: Any = compiled.memory_analysis()
            cost: Any = compiled.cost_analysis()
            found[work] = {
                "compile_s": round(seconds, 1),
                "memory_mb": round(memory.peak_memory_in_bytes / 1e6, 1),
                "parameters_mb": round(memory.argument_size_in_bytes / 1e6, 1),
                "gflop": round(cost["flops"] / 1e9, 3),
                "accessed_mb": round(cost["bytes accessed"] / 1e6, 1),
            }
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print figures as JSON, a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="straw", help="(straw)")
    parser.add_argument("--rank", type=whole(1, 4096), default=16, help="(16)")
    parser.add_argument("--base", choices=["none", "trained"], default="none", help="(none)")
    parser.add_argument(
        "--batch", type=whole(1, 10**6), nargs="+", default=[128], help="images in a batch (128)"
    )
    chosen = parser.parse_args(words)
    mesh = one_chip()
    model = build_model(chosen.model, classes=article.CLASSES, rank=chosen.rank, base=chosen.base)
    for batch in chosen.batch:
        print(json.dumps({"batch": batch, **measured(model, batch, mesh)}), flush=True)


if __name__ == "__main__":
    main()
