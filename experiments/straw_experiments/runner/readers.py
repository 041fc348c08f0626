"""Readers of single values for command lines: each says what it expected."""

import argparse
import math
from collections.abc import Callable

_GREATEST = 1e30  # of all numbers; greater ones are none in float32
_SHOWN = 40  # characters of a wrong value


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers, for argparse."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # no number, or more digits than Python reads
            value = most + 1 if text.isdecimal() else least - 1
        if value < least:
            raise _mistake(f"a whole number of at least {least}", text)
        if value > most:
            raise _mistake(f"a whole number of at most {most}", text)
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
            raise _mistake(wanted, text)
        if value > _GREATEST:
            raise _mistake(f"a number of at most {_GREATEST:g}", text)
        return value

    return convert


positive = number("a number above 0", lambda value: value > 0)
"""Read a number above 0."""


def _mistake(wanted: str, text: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return argparse.ArgumentTypeError(f"expected {wanted}, got {shown!r}")
