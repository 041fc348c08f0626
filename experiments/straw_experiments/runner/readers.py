"""Readers of single values for command lines: each says what it expected."""

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a reader of whole numbers, for argparse."""
    wanted = f"a whole number of at least {least}" + (f", at most {most}" if most else "")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return convert


def number(wanted: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a reader of numbers, for argparse.

    Args:
        wanted: What is expected, for the message.
        is_valid: Whether a number is that; never asked of what is no number.
    """

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # No comparison with it holds.
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return convert


positive = number("a number above 0", lambda value: 0 < value < math.inf)
"""Read a number above 0."""
