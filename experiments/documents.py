#!/usr/bin/env python
"""Write adapters of a language model from documents: `python experiments/documents.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["documents", *sys.argv[1:]]))
