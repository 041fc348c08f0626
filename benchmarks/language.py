#!/usr/bin/env python
"""Time training steps of character models beside loops of PyTorch's cells.

python benchmarks/language.py --batch-sizes 32 128
"""

import argparse
import sys
from importlib import util

from cells import Case
from measure import free_memory, side_by_side, summary
from tables import columns

from straw_experiments.runner import limits
from straw_experiments.runner.limits import SIZE
from straw_experiments.runner.readers import whole
from straw_experiments.runner.settings import Parser

# (its name in the module, module, label, length of the state for a million parameters)
MODELS = {
    "straw_lstm": ("lstm", "jax_language", "LSTM, straw_jax", 469),
    "torch_lstm": ("lstm", "torch_language", "LSTM, a loop of nn.LSTMCell", 469),
    "torch_lstm_fused": ("lstm_fused", "torch_language", "LSTM, PyTorch's nn.LSTM", 469),
    "straw_hyper": ("hyper", "jax_language", "HyperLSTM, straw_jax", 426),
    "torch_hyper": ("hyper", "torch_language", "HyperLSTM, a loop in PyTorch", 426),
    "straw_lowrank": ("lowrank", "jax_language", "low-rank LSTM, straw_jax", 398),
}
HYPER, CHARACTERS = 64, 50


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = Parser("language.py", __doc__.splitlines()[0])
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--batch-sizes", nargs="+", type=whole(1, SIZE), default=[32, 128], metavar="N")
    add("--length", type=whole(1, SIZE), default=100, metavar="N", help="characters of each piece")
    add("--repeats", type=whole(1, 10**6), default=10, metavar="N", help="steps")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    args = parser.parse_args()
    if util.find_spec("torch") is None and any("torch" in name for name in args.models):
        parser.error('PyTorch is missing: pip install -e ".[benchmarks]", or name --models')
    for batch in args.batch_sizes:
        needs = 4 * batch * args.length * 4 * min(MODELS[name][3] for name in args.models)
        try:
            limits.check(f"argument --batch-sizes, --length: {batch}", needs, "a step's gates")
        except ValueError as error:
            parser.error(str(error))
    return args


def main() -> None:
    """Time all models in turn, and print a table for each batch."""
    args = parse()
    for batch in args.batch_sizes:
        sizes = {"hyper": HYPER, "characters": CHARACTERS, "batch": batch, "length": args.length}
        cases = []
        for name in args.models:
            kind, module, _, features = MODELS[name]
            arguments = {"name": kind, "features": features, **sizes}
            cases.append(Case(name, module, arguments))
        results = side_by_side(cases, args.repeats, float("inf"), free_memory())
        rows = [[f"{batch} x {args.length} characters", "characters/s", "median"]]
        timed = summary(results, args.models[0])
        for name, result in results.items():
            label = MODELS[name][2]
            if name in timed:
                read = batch * args.length
                rates = [f"{read / timed[name][key]:,.0f}" for key in ("min", "median")]
                rows.append([label, *rates])
            else:
                rows.append([label, result["reason"], ""])
        print(columns(rows), end="\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
