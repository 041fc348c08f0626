#!/usr/bin/env python
"""Measure the library on a GPU or TPU in one process of some minutes, section by section.

python benchmarks/accelerator.py --out results/card.json
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import alone  # noqa: F401  It goes first: then the experiments need no extra.
from results import Results
from tables import columns

from straw_experiments.runner.readers import positive
from straw_experiments.runner.settings import Parser, check_writable


class Section(NamedTuple):
    """What `sections.py` measures.

    Attributes:
        help: What it is, in one line.
        function: Its name there; the section's own if empty.
        arguments: Of the function.
    """

    help: str
    function: str = ""
    arguments: Mapping[str, Any] = {}


# In this order: what is most wanted comes first, since the time may not suffice for all.
SECTIONS = {
    "rates": Section("product in TF32, float32 and bfloat16, and copy"),
    "compilation": Section("first call, and first call with the programs on disk"),
    "step": Section("training step one by one, queued and in one program; both bases", "steps"),
    "floor": Section("least time of the step and its phases, and the ratio to it"),
    "inference": Section("forward pass of several batches"),
    "correctness": Section("logits and gradients against float64 on the host"),
    "set_1": Section("images a second in training, and ten epochs of set 1"),
    "step_bfloat16": Section("step with dtype bfloat16", "steps", {"dtype": "bfloat16"}),
    "step_large": Section("step with a batch of 1,024", "steps", {"large": True}),
    "adapters": Section("8, 32 and 128 adapters in a batch of 4,096 tokens, width 2,048"),
    "language": Section("characters a second of LSTM and HyperLSTM, 1,000 units"),
    "prediction": Section("steps a second of weight predictors"),
    "documents": Section("training step of a reader of documents, SmolLM2's sizes, random weights"),
    "documents_bfloat16": Section("as documents, in bfloat16", "documents", {"dtype": "bfloat16"}),
    "seeds": Section("step of three seeds, one after the other and as one program"),
    "torch": Section("step and forward pass of the author's algorithm in PyTorch"),
    "torch_language": Section("characters a second of PyTorch's nn.LSTM"),
    "torch_compile": Section("as torch, compiled", "torch", {"compiled": True}),
    "step_large_bfloat16": Section(
        "step with 1,024 and bfloat16", "steps", {"large": True, "dtype": "bfloat16"}
    ),
    "step_highest": Section("step with precision highest", "steps", {"precision": "highest"}),
    "step_large_highest": Section(
        "step with 1,024 and precision highest", "steps", {"large": True, "precision": "highest"}
    ),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line; a mistake ends the process with exit code 2."""
    listed = "\n".join(f"  {name:<20}  {section.help}" for name, section in SECTIONS.items())
    parser = Parser("accelerator.py", __doc__.splitlines()[0])
    parser.epilog = f"sections, in their order:\n{listed}"
    add = parser.add_argument
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help="these alone (all)")
    add(
        "--seconds",
        type=positive,
        default=240.0,
        metavar="N",
        help="a section that would begin later is skipped (240)",
    )
    add(
        "--out",
        type=Path,
        help="JSON file, written after every section; sections are added to a file that is there"
        " (results/ and a name with the time)",
    )
    add("--tiny", action="store_true", help="tiny sizes, which test this program alone")
    parsed = parser.parse_args(arguments)
    if parsed.out is None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        parsed.out = Path("results", f"accelerator_{now}.json")
    try:
        check_writable(parsed.out.parent)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def main(arguments: Sequence[str], start: float) -> int:
    """Measure what a command line asks for, that began at `start` of `time.perf_counter`.

    Returns:
        The exit code: 0 finished, 1 a section failed, 2 bad input, 130 stopped.
    """
    args = parse(arguments)
    # PyTorch needs memory beside JAX.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        results = Results(args.out, {"tiny": args.tiny})
        sections = import_module("sections")
        found = sections.environment()
        results.start(found)
    except (ValueError, OSError) as error:
        print(f"accelerator.py: argument --out: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    sizes = sections.TINY if args.tiny else sections.FULL
    chosen = [name for name in SECTIONS if name in (args.only or SECTIONS)]
    measures = {}
    for name in chosen:
        function = getattr(sections, SECTIONS[name].function or name)
        measures[name] = lambda f=function, s=SECTIONS[name]: f(sizes, **s.arguments)
    try:
        return run(measures, results, start + args.seconds, sections.UnavailableError)
    except KeyboardInterrupt:
        print(f"accelerator.py: stopped; what is finished is in {args.out}", file=sys.stderr)
        return 130


def run(
    measures: Mapping[str, Callable[[], dict[str, Any]]],
    results: Results,
    end: float,
    unavailable: type[Exception],
) -> int:
    """Measure section by section; print and keep the figures of each as soon as they are there.

    Args:
        measures: By name what returns a section's figures.
        results: Where they are kept: under "figures", or why there are none, under "error" or
            "skipped".
        end: Time, as `time.perf_counter` has it, after which no section begins.
        unavailable: What a section raises that cannot be measured here.

    Returns:
        1 if a section raised anything else, else 0.
    """
    failed, late = [], []
    for name, measure in measures.items():
        begin = time.perf_counter()
        if begin > end:
            late.append(name)
            if name not in results.cells:  # an earlier run may have measured it
                results.add(name, {"skipped": "the time was spent"})
            continue
        try:
            cell = {"figures": measure()}
        except unavailable as error:
            cell = {"skipped": str(error)}
        except Exception as error:  # whatever a section raises: the next may work
            failed.append(name)
            cell = {"error": traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}
        seconds = time.perf_counter() - begin
        results.add(name, {**cell, "seconds": seconds})
        print(f"\n{name} ({seconds:.1f} s)\n{table(cell)}", flush=True)
    print()
    if late:
        print(f"skipped, since the time was spent: --only {' '.join(late)}")
    if failed:
        print(f"failed: {' '.join(failed)}")
    print(results.path)
    return 1 if failed else 0


def table(cell: Mapping[str, Any]) -> str:
    """Lay a section's figures out, or say why there are none. Times are in ms, with their range."""
    if "figures" not in cell:
        return "\n".join(f"{key}: {text}" for key, text in cell.items())
    rows = cell["figures"]
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    timed = {name for row in rows.values() for name, figure in row.items() if is_time(figure)}
    header = ["", *(f"{name}, ms" if name in timed else name for name in names)]
    lines = [[title, *(_text(row.get(name)) for name in names)] for title, row in rows.items()]
    return columns([header, *lines])


def is_time(figure: Any) -> bool:
    """Say whether a figure is seconds with their spread."""
    return isinstance(figure, dict)


def _text(figure: Any) -> str:
    if figure is None:
        return ""
    if is_time(figure):
        median, least, most = (f"{1e3 * figure[key]:.4g}" for key in ("median", "min", "max"))
        return f"{median} ({least} to {most})"
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], time.perf_counter()))
