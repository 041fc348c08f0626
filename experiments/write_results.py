#!/usr/bin/env python
"""Write the pages of results: `python experiments/write_results.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["write-results", *sys.argv[1:]]))
