"""Kinds of damage to a file, each drawn from a random generator.

Every kind changes one file in place and returns in a few words what it did; the same generator on
the same file does the same again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Damage = Callable[[np.random.Generator, Path], str]

_BLOCK = 512  # Bytes, at most, that one zeroed or repeated block has: a disk's sector.


def flip_bit(rng: np.random.Generator, path: Path) -> str:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    place, bit = int(rng.integers(len(content))), int(rng.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"flipped bit {bit} of byte {place}"


def truncate(rng: np.random.Generator, path: Path) -> str:
    """Cut the end off: at least one byte, at most all."""
    content = path.read_bytes()
    length = int(rng.integers(len(content)))
    path.write_bytes(content[:length])
    return f"cut {len(content)} bytes to {length}"


def zero_block(rng: np.random.Generator, path: Path) -> str:
    """Write zeros over a block."""
    content = bytearray(path.read_bytes())
    block = _block(rng, len(content))
    content[block] = bytes(block.stop - block.start)
    path.write_bytes(content)
    return f"zeroed bytes {block.start} to {block.stop - 1}"


def repeat_block(rng: np.random.Generator, path: Path) -> str:
    """Append a copy of a block of the file to its end."""
    content = path.read_bytes()
    block = _block(rng, len(content))
    path.write_bytes(content + content[block])
    return f"appended a copy of bytes {block.start} to {block.stop - 1}"


def delete(_rng: np.random.Generator, path: Path) -> str:
    """Delete the file."""
    path.unlink()
    return "deleted it"


def exchange(path: Path, other: Path) -> str:
    """Exchange the contents of two files."""
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return f"exchanged it with {other}"


KINDS: tuple[Damage, ...] = (flip_bit, truncate, zero_block, repeat_block, delete)


def damage(rng: np.random.Generator, path: Path, others: Sequence[Path] = ()) -> str:
    """Do one kind of damage, each as likely as any other.

    Args:
        rng: Draws the kind, and where in the file it strikes.
        path: Of a file.
        others: Files with one of which `path` may be exchanged.

    Returns:
        What was done.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "numbers")
        >>> _ = path.write_bytes(bytes(range(100)))
        >>> damage(np.random.default_rng(1), path)
        'zeroed bytes 51 to 99'
        >>> folder.cleanup()
    """
    kinds = KINDS if path.stat().st_size else (delete,)  # An empty file has no bit to flip.
    chosen = int(rng.integers(len(kinds) + bool(others)))
    if chosen == len(kinds):
        return exchange(path, others[int(rng.integers(len(others)))])
    return kinds[chosen](rng, path)


def _block(rng: np.random.Generator, size: int) -> slice:
    """Draw where a block begins, and how long it is: 1 to 512 bytes, within the file."""
    start = int(rng.integers(size))
    return slice(start, min(size, start + int(rng.integers(1, _BLOCK + 1))))
