#!/usr/bin/env python
"""Model text character by character: `python experiments/char_lm.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["char-lm", *sys.argv[1:]]))
