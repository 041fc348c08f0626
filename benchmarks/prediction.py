#!/usr/bin/env python
"""Time training steps of weight predictors beside the post's, in PyTorch.

python benchmarks/prediction.py --batch-sizes 128 1024
"""

import argparse
import itertools
import re
import sys
from importlib import util

from cells import Case
from measure import free_memory, side_by_side, summary
from tables import columns

from straw_experiments.runner import limits
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import whole
from straw_experiments.runner.settings import Parser

MODELS = {
    "straw": ("jax_prediction", "straw_jax, the post's recipe"),
    "straw_muon": ("jax_prediction", "straw_jax, Muon, 64 inputs"),
    "torch_pairwise": ("torch_prediction", "PyTorch, pair by pair"),
    "torch": ("torch_prediction", "PyTorch, drawn at once"),
    "torch_compile": ("torch_prediction", "the same, compiled"),
}
STEPS = 5  # a call of each model
_FEATURES = 128  # numbers that the encoder makes of each pair, at least


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = Parser("prediction.py", __doc__.splitlines()[0])
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--networks", nargs="+", default=["2-5-1", "4-10-1"], metavar="SIZES", help="of 3 layers")
    add("--pairs", type=whole(1, SIZE), default=2, metavar="N", help="an unknown")
    add("--batch-sizes", nargs="+", type=whole(1, SIZE), default=[128, 1024], metavar="N")
    add("--repeats", type=whole(1, 10**6), default=20, metavar="N", help=f"of {STEPS} steps")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    args = parser.parse_args()
    if util.find_spec("torch") is None and any("torch" in name for name in args.models):
        parser.error('PyTorch is missing: pip install -e ".[benchmarks]", or name --models')
    try:
        for text in args.networks:
            if not re.fullmatch("[1-9][0-9]{0,11}(-[1-9][0-9]{0,11}){2}", text):
                raise ValueError(f"argument --networks: expected sizes such as 2-5-1, got {text!r}")
            needs = 4 * max(args.batch_sizes) * (_pairs(text, args.pairs) + 1) * _FEATURES
            sizes = "argument --networks, --pairs, --batch-sizes"
            limits.check(f"{sizes}: {text}", needs, "a step's pairs")
    except ValueError as error:
        parser.error(str(error))
    return args


def _pairs(network: str, ratio: int) -> int:
    """Count the pairs of a set."""
    inputs, hidden, outputs = map(int, network.split("-"))
    return ratio * (inputs * hidden + hidden * outputs)


def main() -> None:
    """Time all models in turn, and print a table for each network and batch."""
    args = parse()
    for text, batch in itertools.product(args.networks, args.batch_sizes):
        sizes = [int(part) for part in text.split("-")]
        pairs = _pairs(text, args.pairs)
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
