#!/usr/bin/env python
"""Write a coordinate network for each image: `python experiments/fields.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["fields", *sys.argv[1:]]))
