#!/usr/bin/env python
"""Train STRAW beside its baselines and report: `python experiments/run.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
