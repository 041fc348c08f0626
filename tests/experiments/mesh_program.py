"""Train a small STRAW on the devices that the command line gives, for test_mesh.py.

`python mesh_program.py [--join=ADDRESS,COUNT,INDEX] OUT,finish|interrupt|loop[,DATA,MODEL]...`
trains once for each OUT; "loop" lets the devices pick their batches.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from straw_experiments.data import Dataset
from straw_experiments.image_classification import evaluate
from straw_experiments.image_classification.controls import control_scores
from straw_experiments.image_classification.networks import straw_model
from straw_experiments.image_classification.train import Recipe, Trainer, train_and_test
from straw_experiments.runner import checkpoints, hosts
from straw_experiments.runner.runs import Run
from straw_jax import make_straw
from straw_jax.sharding import make_mesh


class Executor(nn.Module):
    """A convolution, dropout, and two dense layers with one input vector per sample."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(3, (3, 3), strides=2, name="conv")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(40, name="wide")(x.reshape(x.shape[0], -1)))
        return nn.Dense(4, name="dense")(x)


def straw():
    """The model, of rank 4, which 2 or 4 devices divide."""
    return make_straw(Executor(), np.zeros((1, 12, 12, 1), np.float32), rank=4, hidden=8)


def dataset():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (44, 12, 12, 1)).astype(np.uint8)
    labels = np.arange(44, dtype=np.int32) % 4
    return Dataset("noise", images, labels, images[:22], labels[:22], tuple("abcd"))


def main(words):
    if words[0].startswith("--join="):
        address, *numbers = words.pop(0).removeprefix("--join=").split(",")
        hosts.join(address, *map(int, numbers))
    for word in words:
        out, what, *sides = word.split(",")
        if what == "interrupt":
            _stop_after_saving()
        mesh = make_mesh(*map(int, sides)) if sides else None
        train(Path(out), mesh, on_device=what == "loop")


def train(out, mesh, *, on_device):
    """Train and test the model, and write what was found."""
    model, data = straw(), dataset()
    trainer = Trainer(
        "straw",
        straw_model(model),
        Recipe(2, 16, 1e-3, "constant"),  # Adam's first steps turn rounding into some of the rate
        data.train_images.shape,
        mesh,
    )
    trainer.on_device = on_device
    evaluate.on_device = lambda: on_device
    run = Run(trainer, 0, out)
    variants = {"standard": data.test_images}
    result = train_and_test(run, data, variants)
    variables = run.placed_variables()
    scores = control_scores(model, variables, data.train_images, variants, data.test_labels)
    if hosts.is_first():
        heads = variables["params"]["generator"]
        shares = {
            name: head["kernel"].addressable_shards[0].data.shape for name, head in heads.items()
        }
        if not on_device:
            (out / "compiled.txt").write_text(trainer.train_step.as_text())
        np.savez(
            out / "found.npz",
            *map(np.asarray, jax.tree.leaves(run.variables())),
            losses=[line["train"]["loss"] for line in run.history()],
            result=list(result["variants"]["standard"].values()),
            controls=[score["standard"]["loss"] for score in scores.values()],
            share=shares["wide.kernel.B"],
        )


def _stop_after_saving():
    """End the process after the first epoch's checkpoint, as if it had been killed."""
    save = checkpoints.save

    def save_and_stop(*arguments, **options):
        save(*arguments, **options)
        os._exit(7)

    checkpoints.save = save_and_stop


if __name__ == "__main__":
    main(sys.argv[1:])
