"""The idx format of MNIST and its kin: a header of big-endian integers, then the bytes."""

import math
import struct
from typing import Protocol

import numpy as np

from straw_experiments.data.reading import check_memory

IMAGES, LABELS = 0x803, 0x801  # Magic numbers: unsigned bytes in three axes, or in one.


class Readable(Protocol):
    """A plain or compressed file, open for reading."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes, or all."""
        ...


def read_shape(file: Readable, magic: int, source: str) -> tuple[int, ...]:
    """Read the header of an idx file.

    Args:
        file: Open at its start; left at the first value.
        magic: `IMAGES` or `LABELS`.
        source: Names the file in an error.

    Returns:
        The shape that the header gives.

    Raises:
        ValueError: The file has no such header.
    """
    axes = magic & 0xFF
    header = file.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or struct.unpack_from(">I", header)[0] != magic:
        raise ValueError(
            f"{source}: expected an idx file with magic number {magic:#05x}, got a file that "
            f"begins with {header[:4].hex() or 'nothing'}. Is it complete, and the right file?"
        )
    return struct.unpack_from(f">{axes}I", header, 4)


def read(file: Readable, magic: int, source: str) -> np.ndarray:
    """Read a whole idx file, and never more of it than its header promises.

    Args:
        file: Open at its start.
        magic: `IMAGES` or `LABELS`.
        source: Names the file in an error.

    Returns:
        uint8, of the shape that the header gives.

    Raises:
        ValueError: The header is wrong, the file ends early or goes on, or the values do not fit
            into memory.
    """
    shape = read_shape(file, magic, source)
    size = math.prod(shape)
    check_memory(source, size)
    values = np.frombuffer(file.read(size + 1), np.uint8)  # A compressed file checks its end's sum.
    if values.size != size:
        got = "more" if values.size > size else values.size
        raise ValueError(
            f"{source}: expected {size} bytes after the header {list(shape)}, got {got}. The file "
            "is damaged: fetch it again."
        )
    return values.reshape(shape)
