#!/usr/bin/env python
"""Reproduce every published result: `python experiments/reproduce.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
