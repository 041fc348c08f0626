"""Training of character models in PyTorch: a loop of cells over the characters."""

from collections.abc import Callable

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


def build(
    contender: str, features: int, hyper: int, characters: int, batch: int, length: int
) -> Callable[[], object]:
    """Return what takes a training step.

    Args:
        contender: "lstm", a loop of `nn.LSTMCell`; "lstm_fused", PyTorch's own `nn.LSTM`; "hyper".
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
    model = nn.ModuleDict({"cell": cells[contender](), "output": nn.Linear(features, characters)})
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    cross_entropy, drop = nn.CrossEntropyLoss(), nn.Dropout(0.1)
    numbers = torch.randint(characters, (length + 1, batch))
    sizes = [features, features] + [hyper, hyper] * (contender == "hyper")
    state: State = tuple(torch.zeros(batch, size) for size in sizes)

    def read(x: Tensor) -> tuple[Tensor, State]:
        carried = tuple(part.detach() for part in state)
        if contender == "lstm_fused":
            outputs, carried = model["cell"](x, tuple(part[None] for part in carried))
            return outputs, tuple(part[0] for part in carried)
        outputs = []
        for each in x:
            carried = model["cell"](each, carried)
            outputs.append(carried[0])
        return torch.stack(outputs), carried

    def take_step() -> int:
        nonlocal state
        optimizer.zero_grad()
        x = drop(nn.functional.one_hot(numbers[:-1], characters).float())
        outputs, state = read(x)
        logits = model["output"](drop(outputs))
        cross_entropy(logits.flatten(0, 1), numbers[1:].flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return sum(parameter.numel() for parameter in parameters)

    return take_step
