"""How a kernel is read as a matrix: which of its axes are rows, and which are columns."""

import math
from collections.abc import Sequence


def all_axes(ndim: int) -> list[str]:
    """Return every way to read a kernel as a matrix, the default first.

    Args:
        ndim: number of the kernel's axes.

    Returns:
        One letter per axis, as for the argument `axes` of `factor_spec`.

    Example:
        >>> from straw_jax.readings import all_axes
        >>> all_axes(3)
        ['rrc', 'rcc', 'src']
    """
    return [
        "s" * stacked + "r" * rows + "c" * (ndim - stacked - rows)
        for stacked in range(ndim - 1)
        for rows in range(ndim - stacked - 1, 0, -1)
    ]


def read_as(axes: str, ndim: int) -> str:
    """Return how a kernel is read as a matrix: as it is said, or the default.

    Args:
        axes: one letter per axis, as in `factor_spec`, or none.
        ndim: number of the kernel's axes.

    Returns:
        One letter per axis; none for a kernel of fewer than two axes.

    Example:
        >>> from straw_jax.readings import read_as
        >>> read_as("", 3), read_as("rcc", 3)
        ('rrc', 'rcc')
    """
    return axes or next(iter(all_axes(ndim)), "")


def matrix_axes(axes: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which of a kernel's axes belong to factor B, and which to A.

    Args:
        axes: one letter per axis, as in `factor_spec`.

    Returns:
        Two tuples of axes. A stacked axis ("s") belongs to both.

    Example:
        >>> from straw_jax.readings import matrix_axes
        >>> matrix_axes("src")
        ((0, 1), (0, 2))
    """
    rows, columns = (
        tuple(i for i, letter in enumerate(axes) if letter in kind) for kind in ("sr", "sc")
    )
    return rows, columns


def matrix_shape(shape: Sequence[int], axes: str) -> tuple[int, int]:
    """Return the number of rows of a kernel's factor B, and of columns of A.

    Args:
        shape: of the kernel.
        axes: one letter per axis, as in `factor_spec`.

    Returns:
        Rows and columns.

    Example:
        >>> from straw_jax.readings import matrix_shape
        >>> matrix_shape((3, 3, 8, 16), "rrrc")
        (72, 16)
    """
    rows, columns = (math.prod(shape[i] for i in part) for part in matrix_axes(axes))
    return rows, columns
