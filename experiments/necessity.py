#!/usr/bin/env python
"""Compare kinds of weights that are written for a context, and what is used in their place.

`python experiments/necessity.py --help` explains the flags.
"""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["necessity", *sys.argv[1:]]))
