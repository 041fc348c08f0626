"""`python -m straw_experiments` is the console command `straw-jax`."""

import sys

from straw_experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
