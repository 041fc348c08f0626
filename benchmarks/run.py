#!/usr/bin/env python
"""Measure the library beside what users would take instead.

`python benchmarks/run.py` takes training steps and forward passes of the article's system with all
models, and compares the library's with the least time that the machine could need.
`python benchmarks/run.py layers` does so with single layers of growing width.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import util
from pathlib import Path
from typing import Any

import tables
from cells import (
    BASES,
    LAYERS,
    MODELS,
    OURS,
    WIDTHS,
    WORKS,
    Case,
    Cell,
    layer_cells,
    model_cells,
)
from floor import Rates, phases
from measure import SETTINGS, WorkerError, free_memory, side_by_side
from results import Results

from straw_experiments.runner import limits
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import number, whole
from straw_experiments.runner.settings import Parser, check_writable

FULL = {"batch_sizes": [1, 32, 128, 512], "ranks": [4, 16, 64], "bases": list(BASES)}
PRODUCT, COPY = 4096, 20_000_000  # rows and columns of a matrix; numbers, 80 MB


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line; a mistake ends the process with exit code 2."""
    parser = Parser(
        "run.py",
        __doc__.splitlines()[0],
        "Without flags: all models at batch 128, rank 16, base none, with the floor.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("models", "layers"),
        default="models",
        help="the article's system, or single layers (default: models)",
    )
    models = parser.add_argument_group("models")
    add = models.add_argument
    add("--batch-sizes", nargs="+", type=whole(1, SIZE), default=[128], metavar="N", help="(128)")
    add("--ranks", nargs="+", type=whole(1, SIZE), default=[16], metavar="N", help="(16)")
    add("--bases", nargs="+", choices=BASES, default=["none"], help="(none)")
    add(
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        metavar="NAME",
        help="any of " + ", ".join(f"{name} ({label})" for name, label in MODELS.items()),
    )
    add("--works", nargs="+", choices=WORKS, default=list(WORKS), help="(both)")
    grid = "; ".join(f"{name.replace('_', ' ')} {values}" for name, values in FULL.items())
    add("--full", action="store_true", help=f"the whole grid: {grid}")
    layers = parser.add_argument_group("layers")
    add = layers.add_argument
    add("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="(all)")
    add(
        "--widths",
        nargs="+",
        type=whole(1, SIZE),
        default=list(WIDTHS),
        metavar="N",
        help="features",
    )
    add = parser.add_argument
    add("--repeats", type=whole(1, 10**6), default=12, metavar="N", help="timed steps a case (12)")
    add(
        "--seconds",
        type=number("a number of at least 0", lambda value: value >= 0),
        default=30.0,
        help="for the timed steps of one case in one cell: then it stops, but after 3 steps at the"
        " earliest, 1 of the slowest models (30)",
    )
    add(
        "--out",
        type=Path,
        help="JSON file, written after every cell; a file of the same command is continued"
        " (results/ and a name with the time)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.full:
        vars(parsed).update(FULL)
    needs_torch = parsed.what == "models" and any("torch" in name for name in parsed.models)
    if needs_torch and util.find_spec("torch") is None:
        others = " ".join(name for name in parsed.models if "torch" not in name)
        parser.error(
            'PyTorch is missing: pip install -e ".[benchmarks]", or leave it out: '
            f"--models {others or OURS}"
        )
    if parsed.out is None:
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        parsed.out = Path("results", f"benchmark_{parsed.what}_{now}.json")
    try:
        check_memory(parsed)
        check_writable(parsed.out.parent)
    except ValueError as error:
        parser.error(str(error))
    return parsed


def check_memory(args: argparse.Namespace) -> None:
    """Refuse a cell of which no case can be timed, by the estimates that skip single ones.

    Raises:
        ValueError: There is one.
    """
    for cell in cells_of(args):
        sizes = "--batch-sizes, --ranks" if args.what == "models" else "--widths"
        needs = min(case.needs for case in cell.cases)
        limits.check(f"argument {sizes}: {cell.key}", needs, "any of its cases")


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """List what the command line asks for, each once."""
    if args.what == "layers":
        return layer_cells(list(dict.fromkeys(args.layers)), sorted(set(args.widths)))
    models = list(dict.fromkeys(args.models))
    return model_cells(args.works, args.batch_sizes, args.ranks, args.bases, models)


def main() -> int:
    """Run the benchmark that the command line describes.

    Returns:
        The exit code: 0 finished, 1 a check or the rates failed, 2 bad input, 130 stopped.
    """
    args = parse(sys.argv[1:])
    fixed = ("what", "models", "repeats", "seconds")
    try:
        results = Results(args.out, {name: getattr(args, name) for name in fixed})
        environment = describe_start()
        results.start(environment)
    except (ValueError, OSError) as error:
        return _fail(f"argument --out: {error}", 2)
    except subprocess.CalledProcessError as error:
        return _fail(error, 1)
    print(json.dumps(environment, indent=2))
    try:
        (run_models if args.what == "models" else run_layers)(args, results)
    except (WorkerError, subprocess.CalledProcessError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail(f"stopped; what is finished is in {args.out}", 130)
    print(f"\n{args.out}")
    return 0


def run_models(args: argparse.Namespace, results: Results) -> None:
    """Measure and print the article's system, cell by cell."""
    cells = cells_of(args)
    if any("torch" in name for name in args.models):
        for rank in args.ranks:
            for base in args.bases:
                key = f"same model, rank {rank}, base {base}"
                found = _once(results, key, lambda r=rank, b=base: same_model(r, b))
                print(f"{key}: {json.dumps(found)}")
    rates = None
    if OURS in args.models:
        if any(cell.key not in results.cells for cell in cells):
            results.add("rates", measure_rates(args.seconds, results.cells.get("rates", {})))
        rates = best_rates(results.cells["rates"])
        print(tables.rates_line(rates))
    for cell in cells:
        found = measure_cell(cell, args, results)
        print(f"\n{cell.title}\n{tables.model_table(found)}", flush=True)
        if rates and (times := found.get(OURS, {}).get("seconds")):
            parts = phases(**cell.settings)
            print(f"\n{MODELS[OURS]}, floor\n{tables.floor_table(parts, rates, min(times))}")


def run_layers(args: argparse.Namespace, results: Results) -> None:
    """Measure and print single layers: a table when a layer's last width is done."""
    found: dict[str, dict[int, Any]] = {}
    widths = sorted(set(args.widths))
    for cell in cells_of(args):
        by_width = found.setdefault(cell.title, {})
        by_width[cell.settings["width"]] = measure_cell(cell, args, results)
        if len(by_width) == len(widths):
            print(f"\n{cell.title}\n{tables.layer_table(by_width)}", flush=True)


def measure_cell(cell: Cell, args: argparse.Namespace, results: Results) -> dict[str, Any]:
    """Return a cell's results by case, measured now or earlier."""

    def measure() -> dict[str, Any]:
        print(f"measuring {cell.key} ...", file=sys.stderr, flush=True)
        return side_by_side(cell.cases, args.repeats, args.seconds, free_memory())

    return _once(results, cell.key, measure)


def measure_rates(seconds: float, before: dict[str, list[float]]) -> dict[str, list[float]]:
    """Time a large matrix product and a large copy; return these seconds after earlier starts'."""
    cases = [
        Case("product", "rates", {"what": "product", "size": PRODUCT}),
        Case("copy", "rates", {"what": "copy", "size": COPY}),
    ]
    found = side_by_side(cases, repeats=10, seconds=seconds, free=free_memory())
    for name, result in found.items():
        if "reason" in result:
            raise WorkerError(f"rates, {name}: {result['reason']}")
    return {name: before.get(name, []) + result["seconds"] for name, result in found.items()}


def best_rates(seconds: dict[str, list[float]]) -> Rates:
    """Return the best of what was timed, as rates."""
    product, copy = min(seconds["product"]), min(seconds["copy"])
    return Rates(flops=2 * PRODUCT**3 / product, bytes=2 * 4 * COPY / copy)


def same_model(rank: int, base: str) -> dict[str, Any]:
    """Check that PyTorch's version is the same model, in a process of its own."""
    return _script("same_model.py", "--rank", str(rank), "--base", base)


def describe_start() -> dict[str, Any]:
    """Return what decides the figures: device, versions, threads, and how busy the machine is."""
    load = os.getloadavg()[0]  # before anything of this benchmark runs
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        **_script("environment.py"),
        "load_average_at_start": load,
        **{name: os.environ.get(name, "") for name in ("XLA_FLAGS", "GLIBC_TUNABLES")},
        "settings_of_workers": SETTINGS,
    }


def _once(results: Results, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if key not in results.cells:
        results.add(key, measure())
    return results.cells[key]


def _script(name: str, *arguments: str) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    done = subprocess.run(words, env=os.environ | SETTINGS, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _fail(message: object, code: int) -> int:
    print(f"run.py: {' '.join(str(message).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
