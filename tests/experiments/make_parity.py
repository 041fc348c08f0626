"""Write `data/parity.npz`: losses, outputs and gradients of PyTorch, in float64.

    pip install -e ".[test,benchmarks]"
    python tests/experiments/make_parity.py

`test_parity.py` compares the library with them.
"""

import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import parity
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import torch_language
import torch_prediction
import torch_straw


def of_images(params: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    if "generator" in params:
        base = "trained" if "executor" in params else "none"
        model = torch_straw.Straw(47, parity.RANK, base)
        weights = torch_straw.straw_weights(params)
    else:
        model = torch_straw.Executor(47)
        weights = torch_straw.executor_weights(params)
    images = inputs["images"].permute(0, 3, 1, 2)
    logits = functional_call(model.eval(), weights, (images,))
    return functional.cross_entropy(logits, inputs["labels"]), logits


def of_weights(params: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    model = torch_prediction.WeightPredictor(parity.NETWORK)
    weights = torch_prediction.predictor_weights(params)
    written = functional_call(model, weights, (inputs["x"], inputs["y"]))
    predicted = torch_prediction.compute(written, inputs["fresh"])
    return functional.mse_loss(predicted, inputs["wanted"]), predicted


def of_text(params: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    characters, features = parity.CHARACTERS, parity.FEATURES
    state = inputs["state"], inputs["memory"]
    if "hyper" in params["cell"]:
        cell = torch_language.HyperLSTMCell(characters, features, parity.HYPER)
        of_cell = torch_language.hyper_weights(params["cell"])
        state += inputs["hyper_state"], inputs["hyper_memory"]
    else:
        cell = torch.nn.LSTMCell(characters, features)
        of_cell = torch_language.lstm_weights(params["cell"]["gates"], characters)
    model = torch_language.CharacterModel(cell, features, characters)
    weights = {f"cell.{name}": weight for name, weight in of_cell.items()}
    weights["output.weight"] = params["output"]["kernel"].T
    weights["output.bias"] = params["output"]["bias"]
    numbers = inputs["numbers"]
    x = math.sqrt(characters) * functional.one_hot(numbers[:, :-1], characters).double()
    logits, _ = functional_call(model, weights, (x.swapaxes(0, 1), state))
    logits = logits.swapaxes(0, 1)
    return functional.cross_entropy(logits.flatten(0, 1), numbers[:, 1:].flatten()), logits


THEIRS = {
    "straw_none": of_images,
    "straw_trained": of_images,
    "standalone": of_images,
    "weight_predictor": of_weights,
    "lstm": of_text,
    "hyper_lstm": of_text,
}


def compute(name: str, case: parity.Case) -> dict[str, np.ndarray]:
    """Return what PyTorch computes of a model, by name of the array to store."""
    drawn = parity.draw(case)
    params, inputs = jax.tree.map(torch.from_numpy, drawn)
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        leaf.requires_grad_()
    loss, outputs = THEIRS[name](params, inputs)
    gradient = torch.autograd.grad(loss, leaves)
    gradient = jax.tree.unflatten(jax.tree.structure(params), [leaf.numpy() for leaf in gradient])
    return {
        f"{name}/checksum": np.array(parity.checksum(drawn)),
        f"{name}/loss": loss.detach().numpy(),
        f"{name}/outputs": outputs.detach().numpy(),
        **{f"{name}/gradient/{k}": v for k, v in parity.fingerprint(gradient).items()},
    }


def main() -> None:
    arrays: dict[str, Any] = {}
    for name, case in parity.cases().items():
        arrays |= compute(name, case)
    parity.STORED.parent.mkdir(exist_ok=True)
    np.savez_compressed(parity.STORED, **arrays)


if __name__ == "__main__":
    main()
