"""Which leaves of a parameter tree are generated: shapes, counts, packing, and a table."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax.lowrank import Factor, Factors, factor_shape, form

Rank: TypeAlias = int | Literal["whole"]
FactorTree: TypeAlias = Mapping[str, Factors | Array]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a parameter tree's leaves by path, such as `"Dense_0/kernel"`, in tree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@dataclass(frozen=True)
class GeneratedLeaf:
    """One generated leaf of a parameter tree.

    Attributes:
        path: its name in the tree.
        shape: of the leaf; `[*rows, out]` where it is low-rank.
        rank: of the update `B @ A`, or "whole" where every number is generated.
    """

    path: str
    shape: tuple[int, ...]
    rank: Rank

    @property
    def rows(self) -> int:
        """Rows of the leaf read as a matrix, `in`."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the leaf read as a matrix, `out`."""
        return self.shape[-1]

    @property
    def dense_size(self) -> int:
        """Numbers in the leaf."""
        return math.prod(self.shape)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what is generated: `B` and `A`, or the whole leaf."""
        if self.rank == "whole":
            return {"whole": self.shape}
        return {"B": (self.rows, self.rank), "A": (self.rank, self.columns)}

    @property
    def generated_size(self) -> int:
        """Numbers that a generator writes for one sample."""
        return sum(map(math.prod, self.parts.values()))

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return the generated parts, by name, as this leaf's entry in a tree of factors."""
        return parts["whole"] if self.rank == "whole" else Factors(**parts)


@dataclass(frozen=True)
class FactorSpec:
    """The generated leaves of a parameter tree, in the tree's order.

    A tree of factors is a plain dict from path to `Factors` where a leaf is low-rank, or to an
    array of the leaf's shape where it is generated whole; each with a sample axis in front where
    samples have their own. `str(spec)` is a table.
    """

    leaves: tuple[GeneratedLeaf, ...]

    def __iter__(self) -> Iterator[GeneratedLeaf]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def size(self) -> int:
        """Numbers that a generator writes for one sample."""
        return sum(leaf.generated_size for leaf in self)

    def unpack(self, vector: Array) -> dict[str, Factors | Array]:
        """Cut a generator's flat output into factors.

        Args:
            vector: `[..., size]`, of any dtype; leading axes, such as a sample axis, are kept.

        Returns:
            Factors by path, of the same dtype.

        Raises:
            ValueError: if the last axis is not `size` long.
        """
        if vector.ndim < 1 or vector.shape[-1] != self.size:
            raise ValueError(
                f"FactorSpec.unpack: expected a last axis of {self.size} numbers, got shape "
                f"{vector.shape}. A generator's output must be FactorSpec.size wide."
            )
        ends = itertools.accumulate(
            math.prod(shape) for leaf in self for shape in leaf.parts.values()
        )

        def cut(shape: tuple[int, ...]) -> Array:
            end = next(ends)
            part = vector[..., end - math.prod(shape) : end]
            return part.reshape((*vector.shape[:-1], *shape))

        return {
            leaf.path: leaf.assemble({name: cut(shape) for name, shape in leaf.parts.items()})
            for leaf in self
        }

    def pack(self, factors: FactorTree) -> Array:
        """Join factors into one flat vector: the inverse of `unpack`.

        Args:
            factors: by path, of one dtype, all with the same leading axes or none.

        Returns:
            `[..., size]`, of the same dtype.

        Raises:
            ValueError: if a factor is missing, unknown, or does not fit.
        """
        self.check(factors)
        flat = [
            _flat(form(part), len(shape))
            for leaf in self
            for part, shape in zip(_parts(factors[leaf.path]), leaf.parts.values(), strict=True)
        ]
        return jnp.concatenate(flat, axis=-1)

    def check(self, factors: FactorTree) -> None:
        """Raise a ValueError unless `factors` has this specification's paths and shapes."""
        missing = [leaf.path for leaf in self if leaf.path not in factors]
        unknown = sorted(set(factors) - {leaf.path for leaf in self})
        if missing or unknown:
            raise ValueError(
                f"FactorSpec: expected a factor for each of its {len(self)} leaves and no other, "
                f"got none for {missing} and unknown {unknown}. Make both from one specification."
            )
        for leaf in self:
            shapes = [factor_shape(part) for part in _parts(factors[leaf.path])]
            expected = list(leaf.parts.values())
            fits = len(shapes) == len(expected) and all(
                got[max(len(got) - len(want), 0) :] == want
                for got, want in zip(shapes, expected, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"FactorSpec: expected {leaf.path} to end in shapes {expected} "
                    f"(rank {leaf.rank}), got {shapes}. Was it generated for another layer or rank?"
                )

    def __str__(self) -> str:
        rows = [("leaf", "shape", "rank", "dense", "generated", "ratio", "")]
        for leaf in self:
            note = ""
            if leaf.rank != "whole" and leaf.rank > (full := min(leaf.rows, leaf.columns)):
                note = f"above full rank {full}"
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            counts = _counts(leaf.dense_size, leaf.generated_size)
            rows.append((leaf.path, shape, str(leaf.rank), *counts, note))
        dense = sum(leaf.dense_size for leaf in self)
        rows.append(("total", "", "", *_counts(dense, self.size), ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = (0, 1, 6)
        lines = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def factor_spec(params: Any, ranks: int | Mapping[str, Rank]) -> FactorSpec:
    """Specify which leaves of a parameter tree are generated, and with which rank.

    Args:
        params: any tree of arrays or `jax.ShapeDtypeStruct`.
        ranks: one rank for all kernels (leaves of at least two axes); all other leaves are then
            generated whole. Or a mapping from path patterns, as in `fnmatch` (`"*/kernel"`,
            `"Dense_?/bias"`), to a rank or "whole"; of the patterns that match a leaf the first
            counts, and a leaf that none matches is not generated.

    Returns:
        The specification, in the order of the tree's leaves.

    Raises:
        ValueError: if a rank is below 1, a pattern matches no leaf, a low-rank leaf has fewer than
            two axes, or nothing is generated.
    """
    leaves = named_leaves(params)
    if isinstance(ranks, Mapping):
        for pattern in ranks:
            if not any(fnmatchcase(path, pattern) for path in leaves):
                raise ValueError(
                    f"factor_spec: pattern {pattern!r} matches none of the leaves {list(leaves)}. "
                    "Patterns are matched against whole paths; '*' also matches '/'."
                )

        def choose(path: str, shape: tuple[int, ...]) -> Rank | None:
            return next((r for pattern, r in ranks.items() if fnmatchcase(path, pattern)), None)
    else:

        def choose(path: str, shape: tuple[int, ...]) -> Rank | None:
            return ranks if len(shape) >= 2 else "whole"

    chosen = [
        GeneratedLeaf(path, tuple(leaf.shape), rank)
        for path, leaf in leaves.items()
        if (rank := choose(path, leaf.shape)) is not None
    ]
    if not chosen:
        raise ValueError("factor_spec: nothing would be generated. Name at least one leaf.")
    for leaf in chosen:
        if leaf.rank != "whole" and (not isinstance(leaf.rank, int) or leaf.rank < 1):
            raise ValueError(
                f"factor_spec: expected the rank of {leaf.path} to be a whole number of at least "
                f"1, or 'whole', got {leaf.rank!r}."
            )
        if leaf.rank != "whole" and len(leaf.shape) < 2:
            raise ValueError(
                f"factor_spec: expected a low-rank leaf to have at least two axes, got {leaf.path} "
                f"of shape {leaf.shape}. Generate it whole."
            )
    return FactorSpec(tuple(chosen))


def _parts(factor: Factors | Array) -> list[Factor]:
    return list(factor) if isinstance(factor, Factors) else [factor]


def _flat(part: Array, axes: int) -> Array:
    """Join the last `axes` axes into one."""
    return part.reshape((*part.shape[: part.ndim - axes], -1))


def _counts(dense: int, generated: int) -> tuple[str, str, str]:
    return f"{dense:,}", f"{generated:,}", f"{generated / dense:.3f}"
