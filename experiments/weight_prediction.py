#!/usr/bin/env python
"""Predict the weights of networks from pairs: `python experiments/weight_prediction.py --help`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main(["weight-prediction", *sys.argv[1:]]))
