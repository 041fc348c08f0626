"""Bytes of STRAW's training step, part by part: the least, and what a compiled program moves.

`python benchmarks/bytes.py [--compiler cpu] [--batch 128] [--rank 16]`; `--compiler tpu` needs
`pip install "jax[tpu]"`, but no TPU.

The least is that of `floor.py`, from shapes. Of the program, each operation counts with the arrays
that it reads and writes, even where a cache or a TPU's VMEM holds them; of an array that it only
slices, the slices count. A fusion is wholly in the part that XLA names it after, and a loop counts
as one operation.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from article import (
    CLASSES,
    ENCODER,
    EXECUTOR,
    HIDDEN,
    IMAGE,
    LEARNING_RATE,
    STYLE,
    Layer,
    parameters,
    weights,
)

PARTS = ("encoder", "generator", *EXECUTOR, "ReLU and dropout", "loss", "optimiser", "unnamed")
Work: TypeAlias = tuple[str, str]  # a part, and "forward", "backward" or "update"

# These move nothing, or bring an array near, which the operation that uses it then counts.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_FREE |= {"copy-start", "copy-done", "slice-start", "slice-done", "ConcatBitcast", "AllocateBuffer"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)")


class Operation(NamedTuple):
    """One instruction of a compiled program."""

    name: str
    kind: str
    size: int
    operands: tuple[str, ...]
    calls: str
    op_name: str


def least(batch: int, rank: int) -> Counter[Work]:
    """Return the bytes that a step (base "none") must move, in float32; `floor.py` says why.

    A layer of the executor includes the generator's kernels that write its factors.
    """
    found: Counter[Work] = Counter()

    def count(part: str, numbers: int, layers: Iterable[Layer], written: int = 0) -> None:
        inputs = batch * sum(layer.inputs for layer in layers)
        found[part, "forward"] = 4 * (numbers + inputs + 2 * written)
        found[part, "backward"] = 4 * (2 * numbers + inputs + 3 * written)

    count("encoder", weights(ENCODER), ENCODER.values())
    count("generator", (STYLE + 1) * HIDDEN, [])
    for name, layer in EXECUTOR.items():
        factors = batch * layer.generated(rank) if layer.positions > 1 else 0
        count(name, (HIDDEN + 1) * layer.generated(rank), [layer], factors)
    found["optimiser", "update"] = 7 * 4 * parameters(rank, "none")
    return found


def moved(program: str) -> Counter[Work]:
    """Return the bytes that a compiled step moves.

    Args:
        program: its HLO, the text of `jax.stages.Compiled.as_text()`.
    """
    computations = parse(program)
    found: Counter[Work] = Counter()
    entry = computations[""]
    sizes = {operation.name: operation.size for operation in entry}
    for operation in entry:
        if operation.kind in _FREE:
            continue
        inside = computations[operation.calls] if operation.calls else []
        read = _read(inside, operation.kind == "fusion")
        names = [operation.op_name, *(each.op_name for each in reversed(inside))]
        work = part_of(next(filter(None, names), ""))
        found[work] += operation.size + sum(
            min(sizes[operand], read.get(number, sizes[operand]))
            for number, operand in enumerate(operation.operands)
        )
    return found


def parse(program: str) -> dict[str, list[Operation]]:
    """Return the operations of each computation by its name; that of the entry is ""."""
    computations: dict[str, list[Operation]] = {}
    current: list[Operation] = []
    for line in program.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = "" if line.startswith("ENTRY ") else line[1:].split(" ")[0]
            current = computations.setdefault(name, [])
            continue
        op_name, calls, target = (
            match[1] if (match := re.search(pattern, line)) else ""
            for pattern in (r'op_name="([^"]*)"', r"calls=%([^\s,]+)", r'call_target="([^"]*)"')
        )
        found = _INSTRUCTION.match(re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", line))
        if found is not None:
            result, shape, kind, arguments = found.groups()
            operands = tuple(re.findall(r"%([^\s,()]+)", arguments))
            if kind == "parameter":
                operands = (arguments,)  # its number
            kind = target or kind
            current.append(Operation(result, kind, _bytes(shape), operands, calls, op_name))
    return computations


def part_of(op_name: str) -> Work:
    """Return the part of a step that an operation belongs to, by the scopes in its name."""
    direction = "backward" if "transpose(" in op_name else "forward"
    if re.search(r"\bCNN\b", op_name):
        layer = re.search(rf"\b({'|'.join(EXECUTOR)})\b", op_name)
        return (layer[1] if layer else "ReLU and dropout"), direction
    for scope, part in (("ConvEncoder", "encoder"), ("Heads", "generator"), ("jvp", "loss")):
        if re.search(rf"\b{scope}\b", op_name):
            return part, direction
    return ("optimiser", "update") if op_name.startswith("jit(") else ("unnamed", "update")


def table(batch: int, wanted: Counter[Work], compiled: Counter[Work], compiler: str) -> str:
    """Return both as a Markdown table, in MB."""
    lines = [
        f"| batch {batch}, MB | least | compiled for {compiler} | forward | backward | times |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, keys: list[Work]) -> str:
        need, does = (sum(count[key] for key in keys) / 1e6 for count in (wanted, compiled))
        each = (
            sum(compiled[key] for key in keys if key[1] == way) / 1e6
            for way in ("forward", "backward")
        )
        cells = [f"{number:.1f}" for number in (need, does, *each)]
        return f"| {' | '.join([name, *cells, f'{does / need:.2f}' if need else ''])} |"

    keys = sorted({*wanted, *compiled})
    lines += [row(part, [key for key in keys if key[0] == part]) for part in PARTS]
    return "\n".join([*lines, row("all", keys)])


def _read(inside: list[Operation], fused: bool) -> dict[int, int]:
    """Return how many bytes a fusion reads at most of each operand of which it takes slices."""
    found = {}
    for parameter in inside if fused else []:
        if parameter.kind != "parameter":
            continue
        names, uses = {parameter.name}, []
        for operation in inside:  # in order of their use
            if names.isdisjoint(operation.operands):
                continue
            if operation.kind in ("bitcast", "reshape"):
                names.add(operation.name)
            else:
                uses.append(operation)
        if uses and all(use.kind in _SLICES and use.operands[0] in names for use in uses):
            found[int(parameter.operands[0])] = sum(use.size for use in uses)
    return found


def _bytes(shape: str) -> int:
    """Return the bytes of a shape such as `(f32[2,3], pred[])`."""
    total = 0
    for dtype, sides in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        bits = re.search(r"\d+", dtype)
        count = math.prod(int(side) for side in sides.split(",") if side)
        total += count * (int(bits[0]) // 8 if bits else 1)
    return total


def main() -> None:
    """Print the table."""
    # Only here: what stands above needs no JAX.
    import argparse
    from unittest import mock

    import jax
    import optax
    import tpu

    from straw_experiments.image_classification.models import build_model
    from straw_experiments.image_classification.step import lower_train_step
    from straw_experiments.runner.readers import whole

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", choices=("cpu", "tpu"), default="cpu", help="(%(default)s)")
    parser.add_argument("--batch", type=whole(1, 10**6), default=128, help="images (%(default)s)")
    parser.add_argument("--rank", type=whole(1, 4096), default=16, help="(%(default)s)")
    chosen = parser.parse_args()
    batch, rank = chosen.batch, chosen.rank
    model = build_model("straw", classes=CLASSES, rank=rank, base="none")
    mesh = tpu.one_chip() if chosen.compiler == "tpu" else None
    # What the library chooses for each backend, it chooses by this.
    with mock.patch.object(jax, "default_backend", return_value=chosen.compiler):
        optimizer = optax.adam(LEARNING_RATE)
        lowered = lower_train_step(model, optimizer, IMAGE, batch_size=batch, mesh=mesh)
        program = lowered.compile().as_text()
    print(table(batch, least(batch, rank), moved(program), chosen.compiler))


if __name__ == "__main__":
    main()
