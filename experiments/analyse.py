#!/usr/bin/env python
"""Look at what a trained STRAW does: `python experiments/analyse.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["analyse", *sys.argv[1:]]))
