"""The weight prediction post's training in PyTorch: what a reader of it would write."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightPredictor(nn.Module):
    """Encode pairs, take the mean over each set, decode it as weights of a network."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        inputs, hidden, outputs = sizes
        self.shapes = [(inputs, hidden), (hidden, outputs)]
        self.encoder = nn.Sequential(
            nn.Linear(inputs + outputs, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
        )
        self.decoder = nn.Sequential(
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, sum(map(math.prod, self.shapes))),
        )

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return weights `[batch, in, out]` by layer of pairs `[batch, n, in]` and `[..., out]`."""
        flat = self.decoder(self.encoder(torch.cat([x, y], dim=-1)).mean(dim=1))
        parts = flat.split([*map(math.prod, self.shapes)], dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


def predictor_weights(params: Any) -> dict[str, Tensor]:
    """Return a `WeightPredictor`'s weights by name, of the library's parameters (as tensors)."""
    encoder, generator = params["encoder"], params["generator"]
    heads = [generator[f"layer{i}.whole"] for i in (1, 2)]
    layers = {
        **{f"encoder.{2 * i}": encoder[f"element{i + 1}"] for i in range(3)},
        "decoder.0": encoder["decoder1"],
        "decoder.2": generator["hidden"],
        "decoder.4": {
            "kernel": torch.cat([head["kernel"] for head in heads], dim=1),
            "bias": torch.cat([head["bias"] for head in heads]),
        },
    }
    weights = {}
    for name, layer in layers.items():
        weights |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    return weights


def compute(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """Return outputs `[batch, n, out]` of networks of the batch's own weights."""
    return torch.relu(x @ weights[0]) @ weights[1]


def build(
    name: str, sizes: Sequence[int], pairs: int, batch: int, steps: int
) -> Callable[[], object]:
    """Return what takes training steps.

    Args:
        name: "torch_pairwise" draws pair after pair, as the post does; "torch" draws them at
            once, and "torch_compile" compiles the loss.
        sizes: inputs, hidden units and outputs of the networks.
        pairs: shown of each.
        batch: networks a step.
        steps: a call.
    """
    model = WeightPredictor(sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mean_squared = nn.MSELoss()

    def draw(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if name != "torch_pairwise":
            x = torch.randn(batch, pairs, sizes[0])
            return x, compute(weights, x)
        drawn = [torch.randn(batch, 1, sizes[0]) for _ in range(pairs)]
        return torch.cat(drawn, dim=1), torch.cat([compute(weights, x) for x in drawn], dim=1)

    def loss_of(x: Tensor, y: Tensor, fresh: Tensor, wanted: Tensor) -> Tensor:
        return mean_squared(compute(model(x, y), fresh), wanted)

    if name == "torch_compile":
        loss_of = torch.compile(loss_of)

    def step() -> None:
        weights = [torch.randn(batch, *shape) / math.sqrt(shape[0]) for shape in model.shapes]
        x, y = draw(weights)
        optimizer.zero_grad()
        fresh = torch.randn(batch, 1, sizes[0])
        loss_of(x, y, fresh, compute(weights, fresh)).backward()
        optimizer.step()

    def take_steps() -> int:
        for _ in range(steps):
            step()
        return sum(parameter.numel() for parameter in model.parameters())

    return take_steps
