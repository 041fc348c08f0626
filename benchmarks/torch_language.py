"""Training of character models in PyTorch: a loop of cells over the characters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class HyperLSTMCell(nn.Module):
    """The HyperNetworks paper's cell (appendix A.2), as a reader of it would write it."""

    def __init__(self, inputs: int, features: int, hyper: int, embedding: int = 4) -> None:
        super().__init__()
        self.hyper = nn.LSTMCell(inputs + features, hyper)
        self.of_input = nn.Linear(inputs, 4 * features, bias=False)
        self.of_state = nn.Linear(features, 4 * features, bias=False)
        self.embeddings = nn.ModuleList(
            nn.Linear(hyper, 4 * embedding, bias=bias) for bias in (True, True, False)
        )
        shape = 4, embedding, features
        self.projections = nn.ParameterList(nn.Parameter(0.02 * torch.randn(shape)) for _ in "123")
        self.bias = nn.Parameter(torch.zeros(4 * features))

    def forward(self, x: Tensor, state: State) -> State:
        """Return the next state: of the cell, and of the smaller one, outputs first."""
        output, memory, *hyper = state
        hyper = self.hyper(torch.cat([x, output], dim=1), hyper)
        for_input, for_state, change = (
            torch.einsum("bge,gef->bgf", make(hyper[0]).view(len(x), 4, -1), kernel).flatten(1)
            for make, kernel in zip(self.embeddings, self.projections, strict=True)
        )
        gates = for_input * self.of_input(x) + for_state * self.of_state(output)
        enter, candidate, forget, leave = (gates + change + self.bias).chunk(4, dim=1)
        memory = (forget + 1).sigmoid() * memory + enter.sigmoid() * candidate.tanh()
        return (leave.sigmoid() * memory.tanh(), memory, *hyper)


class CharacterModel(nn.Module):
    """A cell, applied to one character after the other, and a layer that names the next."""

    def __init__(self, cell: nn.Module, features: int, characters: int) -> None:
        super().__init__()
        self.cell, self.output = cell, nn.Linear(features, characters)

    def forward(self, x: Tensor, state: State, drop: float = 0.0) -> tuple[Tensor, State]:
        """Return logits and the next state of `x [time, batch, characters]`, outputs first."""
        x, outputs = nn.functional.dropout(x, drop), []
        if isinstance(self.cell, nn.LSTM):
            joined, state = self.cell(x, tuple(part[None] for part in state))
            state = tuple(part[0] for part in state)
        else:
            for each in x:
                state = self.cell(each, state)
                outputs.append(state[0])
            joined = torch.stack(outputs)
        return self.output(nn.functional.dropout(joined, drop)), state


def lstm_weights(gates: Any, inputs: int) -> dict[str, Tensor]:
    """Return an `nn.LSTMCell`'s weights by name, of the library's gates (as tensors).

    PyTorch has the gates in another order, and nothing added to the forget gate's sigmoid.
    """
    kernel, bias = gates["kernel"], gates["bias"]
    enter, candidate, forget, leave = bias.chunk(4)
    return {
        "weight_ih": _reordered(kernel[:inputs].T),
        "weight_hh": _reordered(kernel[inputs:].T),
        "bias_ih": torch.cat([enter, forget + 1, candidate, leave]),
        "bias_hh": torch.zeros_like(bias),
    }


def hyper_weights(params: Any) -> dict[str, Tensor]:
    """Return a `HyperLSTMCell`'s weights by name, of the library's parameters (as tensors)."""
    characters, features = (params[name]["kernel"].shape[0] for name in ("input", "state"))
    hyper = lstm_weights(params["hyper"]["gates"], characters + features)
    weights = {f"hyper.{name}": weight for name, weight in hyper.items()}
    for i, name in enumerate(("input", "state", "bias")):
        embeddings = params[f"{name}_embeddings"]
        weights[f"embeddings.{i}.weight"] = embeddings["kernel"].T
        if "bias" in embeddings:
            weights[f"embeddings.{i}.bias"] = embeddings["bias"]
    for i, name in enumerate(("input_factors", "state_factors", "bias_change")):
        weights[f"projections.{i}"] = params[name]
    return weights | {
        "of_input.weight": params["input"]["kernel"].T,
        "of_state.weight": params["state"]["kernel"].T,
        "bias": params["bias"],
    }


def _reordered(gates: Tensor) -> Tensor:
    """Bring input, candidate, forget, output into PyTorch's order."""
    enter, candidate, forget, leave = gates.chunk(4)
    return torch.cat([enter, forget, candidate, leave])


def build(
    name: str, features: int, hyper: int, characters: int, batch: int, length: int
) -> Callable[[], object]:
    """Return what takes a training step.

    Args:
        name: "lstm", a loop of `nn.LSTMCell`; "lstm_fused", PyTorch's own `nn.LSTM`; "hyper".
        features: length of the state.
        hyper: of the smaller LSTM's state.
        characters: different ones.
        batch: pieces of text side by side.
        length: characters of each.
    """
    cells = {
        "lstm": lambda: nn.LSTMCell(characters, features),
        "lstm_fused": lambda: nn.LSTM(characters, features),
        "hyper": lambda: HyperLSTMCell(characters, features, hyper),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CharacterModel(cells[name](), features, characters).to(device)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    cross_entropy = nn.CrossEntropyLoss()
    numbers = torch.randint(characters, (length + 1, batch), device=device)
    sizes = [features, features] + [hyper, hyper] * (name == "hyper")
    state: State = tuple(torch.zeros(batch, size, device=device) for size in sizes)

    def take_step() -> int:
        nonlocal state
        optimizer.zero_grad()
        x = nn.functional.one_hot(numbers[:-1], characters).float()
        logits, state = model(x, tuple(part.detach() for part in state), drop=0.1)
        cross_entropy(logits.flatten(0, 1), numbers[1:].flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return sum(parameter.numel() for parameter in parameters)

    return take_step
