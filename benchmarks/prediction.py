#!/usr/bin/env python
"""Time training steps of weight predictors beside the post's, in PyTorch.

python benchmarks/prediction.py --batch-sizes 128 1024
"""

import argparse
import itertools
import sys
from importlib import util

from cells import Case
from measure import free_memory, side_by_side, summary
from tables import columns

MODELS = {
    "straw": ("jax_prediction", "straw_jax, the post's recipe"),
    "straw_muon": ("jax_prediction", "straw_jax, Muon, 64 inputs"),
    "torch_pairwise": ("torch_prediction", "PyTorch, pair by pair"),
    "torch": ("torch_prediction", "PyTorch, drawn at once"),
    "torch_compile": ("torch_prediction", "the same, compiled"),
}
STEPS = 5  # a call of each model


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["2-5-1", "4-10-1"], metavar="SIZES", help="of 3 layers")
    add("--pairs", type=int, default=2, metavar="N", help="an unknown")
    add("--batch-sizes", nargs="+", type=int, default=[128, 1024], metavar="N")
    add("--repeats", type=int, default=20, metavar="N", help=f"of {STEPS} steps")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    args = parser.parse_args()
    if util.find_spec("torch") is None and any("torch" in name for name in args.models):
        parser.error('PyTorch is missing: pip install -e ".[benchmarks]", or name --models')
    for text in args.networks:
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            parser.error(f"argument --networks: expected sizes such as 2-5-1, got {text!r}")
    if min(args.pairs, args.repeats, *args.batch_sizes) < 1:
        parser.error("expected numbers of at least 1")
    return args


def main() -> None:
    """Time all models in turn, and print a table for each network and batch."""
    args = parse()
    for text, batch in itertools.product(args.networks, args.batch_sizes):
        sizes = [int(part) for part in text.split("-")]
        pairs = args.pairs * (sizes[0] * sizes[1] + sizes[1] * sizes[2])
        arguments = {"sizes": sizes, "pairs": pairs, "batch": batch, "steps": STEPS}
        cases = [Case(name, MODELS[name][0], {"name": name, **arguments}) for name in args.models]
        results = side_by_side(cases, args.repeats, float("inf"), free_memory())
        rows = [[f"{text}, {pairs} pairs, batch {batch}", "steps/s", "median", "x min", "x median"]]
        timed = summary(results, "straw")
        for name, result in results.items():
            if name not in timed:
                rows.append([MODELS[name][1], result["reason"], "", "", ""])
                continue
            row = timed[name]
            ratios = [f"{row.get(key, 0):.2f}" for key in ("min_ratio", "median_ratio")]
            rates = [f"{STEPS / row[key]:.1f}" for key in ("min", "median")]
            rows.append([MODELS[name][1], *rates, *ratios])
        print(columns(rows), end="\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
