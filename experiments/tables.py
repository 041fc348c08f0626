#!/usr/bin/env python
"""Write classifiers from tables' labelled rows: `python experiments/tables.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["tables", *sys.argv[1:]]))
