"""The idx format of MNIST and its kin: a header of big-endian integers, then the bytes."""

import struct
from typing import Protocol

import numpy as np

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
    """Read a whole idx file.

    Args:
        file: Open at its start.
        magic: `IMAGES` or `LABELS`.
        source: Names the file in an error.

    Returns:
        uint8, of the shape that the header gives.

    Raises:
        ValueError: The header is wrong, or the file ends early.
    """
    shape = read_shape(file, magic, source)
    values = np.frombuffer(file.read(), np.uint8)
    if values.size != np.prod(shape):
        raise ValueError(
            f"{source}: expected {np.prod(shape)} bytes after the header {list(shape)}, "
            f"got {values.size}. The file is damaged: fetch it again."
        )
    return values.reshape(shape)
