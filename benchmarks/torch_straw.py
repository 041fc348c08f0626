"""The author's algorithm in PyTorch: what a user would take instead.

A generator writes factors for each sample, every sample's kernels are formed whole, and
`torch.func.vmap` runs the executor over the samples. PyTorch's own layouts: images `[b, c, h, w]`,
weights `[out, in, *window]`, so that a weight is `left [out, r] @ right [r, in]`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from article import CLASSES, HIDDEN, IMAGE, LEARNING_RATE, STYLE
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

# Positions whose channels one input of the layer joins: there the layouts' orders differ.
_POSITIONS = {"conv1": 9, "conv2": 9, "fc1": 12 * 12, "fc2": 1}


class Executor(nn.Module):
    """The article's CNN."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[batch, classes]` of images `[batch, 1, 28, 28]`."""
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        x = functional.max_pool2d(x, 2)
        x = functional.dropout(x, 0.25, self.training).flatten(1)
        x = functional.relu(self.fc1(x))
        x = functional.dropout(x, 0.5, self.training)
        return self.fc2(x)


class Straw(nn.Module):
    """Encoder, generator and executor.

    The weights are `left @ right`, the generated ones alone, or with base "trained"
    `W0 + left @ right` (which here starts anywhere, not at `W0`).
    """

    def __init__(self, classes: int, rank: int, base: str = "none") -> None:
        super().__init__()
        self.base = base
        if base == "trained":
            self.executor = Executor(classes)
        else:
            with torch.device("meta"):  # only its shapes are used, its own weights never
                self.executor = Executor(classes).requires_grad_(False)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, STYLE),
            nn.Tanh(),
        )
        self.parts = {
            name: _parts(weight.shape, rank) for name, weight in self.executor.named_parameters()
        }
        sizes = [math.prod(shape) for parts in self.parts.values() for shape in parts]
        self.sizes = sizes
        self.generator = nn.Sequential(
            nn.Linear(STYLE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, sum(sizes))
        )

    def weights(self, images: Tensor) -> dict[str, Tensor]:
        """Return every sample's own weights, with a sample axis in front."""
        flat = self.generator(self.encoder(images))
        pieces = iter(flat.split(self.sizes, dim=1))
        weights = {}
        for name, weight in self.executor.named_parameters():
            factors = [next(pieces).reshape(-1, *shape) for shape in self.parts[name]]
            product = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
            update = product.reshape(-1, *weight.shape)
            weights[name] = weight + update if self.base == "trained" else update
        return weights

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[batch, classes]` of images `[batch, 1, 28, 28]`."""

        def one_sample(weights: dict[str, Tensor], image: Tensor) -> Tensor:
            return functional_call(self.executor, weights, (image[None],))[0]

        return vmap(one_sample, randomness="different")(self.weights(images), images)


def build(name: str, work: str, batch: int, rank: int, base: str) -> Callable[[], object]:
    """Return the step to time, as `make_call`; it returns when its work is done."""
    call = make_call(name, work, batch, rank, base)
    if work == "training":
        return lambda: call().item()
    return lambda: call().cpu()


def make_call(name: str, work: str, batch: int, rank: int, base: str) -> Callable[[], Tensor]:
    """Return the step to time; it returns the loss or the logits, which an accelerator may owe.

    Images are noise, normalised beforehand, as PyTorch's loaders do.

    Args:
        name: "torch", or "torch_compile".
        work: "training" or "inference".
        batch: Images.
        rank: Of the generated kernels.
        base: "none" or "trained".
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    straw = Straw(CLASSES, rank, base)
    if base == "none":  # its executor has shapes alone
        straw.encoder.to(device)
        straw.generator.to(device)
    else:
        straw.to(device)
    model: Any = torch.compile(straw) if name == "torch_compile" else straw
    images = torch.randn(batch, 1, *IMAGE[:2], device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    if work == "training":
        train_step = make_train_step(model, LEARNING_RATE)
        return lambda: train_step(images, labels)
    model.eval()

    def logits() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return logits


def as_input(images: np.ndarray) -> Tensor:
    """Return normalised images `[b, 28, 28, 1]` in PyTorch's layout `[b, 1, 28, 28]`."""
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()


def make_train_step(model: nn.Module, learning_rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `(images, labels) -> loss`, which takes one step of Adam."""
    optimizer = torch.optim.Adam(trained(model), lr=learning_rate)
    model.train()

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def load_params(model: Straw, params: Any) -> None:
    """Give a model the parameters of a STRAW of the library with the same base.

    Args:
        model: changed in place.
        params: what the library's `Straw.init` returns.
    """
    model.load_state_dict(straw_weights(as_tensors(params)), strict=model.base == "trained")


def as_tensors(params: Any) -> Any:
    """Return the library's parameters as nested dicts of tensors."""
    if hasattr(params, "items"):
        return {name: as_tensors(part) for name, part in params.items()}
    return torch.tensor(np.asarray(params))


def straw_weights(params: Any) -> dict[str, Tensor]:
    """Return a `Straw`'s weights by name, of the library's parameters (as tensors)."""
    encoder, generator = params["encoder"], params["generator"]
    weights = {}
    for layer, name, positions in ((0, "conv1", 9), (2, "conv2", 9), (5, "style", 7 * 7)):
        weights |= _layer(f"encoder.{layer}", encoder[name], positions)
    if "executor" in params:
        executor = executor_weights(params["executor"])
        weights |= {f"executor.{name}": weight for name, weight in executor.items()}
    weights |= _layer("generator.0", generator["hidden"], 1)
    heads = [_head(generator, layer, leaf) for layer in _POSITIONS for leaf in ("weight", "bias")]
    weights["generator.2.weight"] = torch.cat([weight for weight, _ in heads])
    weights["generator.2.bias"] = torch.cat([bias for _, bias in heads])
    return weights


def executor_weights(params: Any) -> dict[str, Tensor]:
    """Return an `Executor`'s weights by name, of the library's parameters (as tensors)."""
    weights = {}
    for name, positions in _POSITIONS.items():
        weights |= _layer(name, params[name], positions)
    return weights


def _parts(shape: torch.Size, rank: int) -> list[tuple[int, ...]]:
    """Return the shapes of a weight's two factors, or a bias's own."""
    return [(shape[0], rank), (rank, math.prod(shape[1:]))] if len(shape) > 1 else [tuple(shape)]


def _layer(name: str, ours: Any, positions: int) -> dict[str, Tensor]:
    kernel = ours["kernel"]
    *window, _, out = kernel.shape
    matrix = _channels_first(kernel.reshape(-1, out), positions).T
    weight = matrix.reshape(out, -1, *window) if window else matrix
    return {f"{name}.weight": weight, f"{name}.bias": ours["bias"]}


def _head(generator: Any, layer: str, leaf: str) -> tuple[Tensor, Tensor]:
    """Return the generator's rows `[n, hidden]` and biases `[n]` that write one weight."""
    if leaf == "bias":
        whole = generator[f"{layer}.bias.whole"]
        return whole["kernel"].T, whole["bias"]
    # The library's `B [in, r]` is the right factor, and `A [r, out]` the left one, transposed.
    left, right = generator[f"{layer}.kernel.A"], generator[f"{layer}.kernel.B"]
    kernels = [left["kernel"], _channels_first(right["kernel"], _POSITIONS[layer])]
    biases = [left["bias"], _channels_first(right["bias"], _POSITIONS[layer])]
    return (
        torch.cat([kernel.swapaxes(0, 1).reshape(-1, HIDDEN) for kernel in kernels]),
        torch.cat([bias.T.reshape(-1) for bias in biases]),
    )


def _channels_first(rows: Tensor, positions: int) -> Tensor:
    """Reorder rows from `positions, channels` to `channels, positions`."""
    return rows.reshape(positions, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)
