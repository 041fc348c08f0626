"""Which leaves of a parameter tree are generated, with their shapes, sizes and packing."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax import expect
from straw_jax.geometry import Posed
from straw_jax.lowrank import Factor, Factors, factor_shape, form

Rank: TypeAlias = int | Literal["whole", "pose"]
Update: TypeAlias = Factors | Posed | Array
FactorTree: TypeAlias = Mapping[str, Update]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a parameter tree's leaves by path.

    Args:
        tree: any tree.

    Returns:
        Leaves in tree order; paths are joined by "/".

    Example:
        >>> from straw_jax.factors import named_leaves
        >>> named_leaves({"Dense_0": {"kernel": 1.0, "bias": 2.0}})
        {'Dense_0/bias': 2.0, 'Dense_0/kernel': 1.0}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def all_axes(ndim: int) -> list[str]:
    """Return every way to read a kernel as a matrix, the default first.

    Args:
        ndim: number of the kernel's axes.

    Returns:
        One letter per axis, as for the argument `axes` of `factor_spec`.

    Example:
        >>> from straw_jax.factors import all_axes
        >>> all_axes(3)
        ['rrc', 'rcc', 'src']
    """
    return [
        "s" * stacked + "r" * rows + "c" * (ndim - stacked - rows)
        for stacked in range(ndim - 1)
        for rows in range(ndim - stacked - 1, 0, -1)
    ]


def matrix_axes(axes: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which of a kernel's axes belong to factor B, and which to A.

    Args:
        axes: one letter per axis, as in `factor_spec`.

    Returns:
        Two tuples of axes. A stacked axis ("s") belongs to both.

    Example:
        >>> from straw_jax.factors import matrix_axes
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
        >>> from straw_jax.factors import matrix_shape
        >>> matrix_shape((3, 3, 8, 16), "rrrc")
        (72, 16)
    """
    rows, columns = (math.prod(shape[i] for i in part) for part in matrix_axes(axes))
    return rows, columns


@dataclass(frozen=True)
class GeneratedLeaf:
    """One generated leaf of a parameter tree.

    Attributes:
        path: its name in the tree.
        shape: of the leaf.
        rank: of the update `B @ A`; or "whole", where every number of the leaf is generated; or
            "pose", where the kernel is composed with a resampling of its layer's input images.
        axes: how the leaf is read as a matrix, as in `factor_spec`; if empty, all axes but the last
            are rows.

    Example:
        >>> from straw_jax import GeneratedLeaf
        >>> leaf = GeneratedLeaf("conv/kernel", (3, 3, 8, 16), rank=2)
        >>> leaf.parts
        {'B': (72, 2), 'A': (2, 16)}
        >>> leaf.dense_size, leaf.generated_size
        (1152, 176)
    """

    path: str
    shape: tuple[int, ...]
    rank: Rank
    axes: str = ""

    @property
    def rows(self) -> int:
        """Rows of the leaf read as a matrix, `in`."""
        return self._matrix_shape[0]

    @property
    def columns(self) -> int:
        """Columns of the leaf read as a matrix, `out`."""
        return self._matrix_shape[1]

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        return matrix_shape(self.shape, self.axes or all_axes(len(self.shape))[0])

    @property
    def dense_size(self) -> int:
        """Numbers in the leaf."""
        return math.prod(self.shape)

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the generated arrays: `B` and `A`, the whole leaf, or the pose."""
        if self.rank == "whole":
            return {"whole": self.shape}
        if self.rank == "pose":
            return {"pose": (2, 3)}
        return {"B": (self.rows, self.rank), "A": (self.rank, self.columns)}

    @property
    def generated_size(self) -> int:
        """Numbers generated per sample."""
        return sum(map(math.prod, self.parts.values()))

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return this leaf's entry in a tree of factors.

        Args:
            parts: the generated arrays by name, as in `parts`; leading axes are kept.

        Returns:
            `Factors`, `Posed`, or the whole leaf.
        """
        if self.rank == "pose":
            return Posed(parts["pose"])
        return parts["whole"] if self.rank == "whole" else Factors(**parts)


@dataclass(frozen=True)
class FactorSpec:
    """The generated leaves of a parameter tree, in the tree's order.

    A tree of factors is a plain dict by path. It holds `Factors` for a low-rank leaf, an array of
    the leaf's shape for one generated whole, and `Posed` for one of rank "pose"; per-sample ones
    have a sample axis in front. `str(spec)` is a table.

    Attributes:
        leaves: the generated leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> spec = factor_spec({"W": jnp.zeros((64, 32)), "bias": jnp.zeros(32)}, 4)
        >>> print(spec)
        leaf   shape   rank  dense  generated  ratio
        W      64x32      4  2,048        384  0.188
        bias   32     whole     32         32  1.000
        total                2,080        416  0.200
        >>> spec.unpack(jnp.zeros((8, spec.size)))["W"].A.shape
        (8, 4, 32)
    """

    leaves: tuple[GeneratedLeaf, ...]

    def __iter__(self) -> Iterator[GeneratedLeaf]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)

    @property
    def size(self) -> int:
        """Numbers generated per sample."""
        return sum(leaf.generated_size for leaf in self)

    def unpack(self, vector: Array) -> dict[str, Update]:
        """Cut a generator's flat output into factors.

        Args:
            vector: `[..., size]`, of any dtype; leading axes, such as a sample axis, are kept.

        Returns:
            A tree of factors, of the same dtype.

        Raises:
            ValueError: if the last axis is not `size` long.
        """
        expect.arrays("FactorSpec.unpack", "the vector", vector)
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
            factors: a tree of factors, of one dtype, all with the same leading axes or none.

        Returns:
            `[..., size]`, of the same dtype.

        Raises:
            ValueError: if a factor is missing, unknown, or does not fit, or leading axes differ.
        """
        self.check(factors)
        flat = [
            _flat(form(part), len(shape))
            for leaf in self
            for part, shape in zip(_parts(factors[leaf.path]), leaf.parts.values(), strict=True)
        ]
        leading = {part.shape[:-1] for part in flat}
        if len(leading) > 1:
            raise ValueError(
                "FactorSpec.pack: expected all factors to have the same leading axes, got "
                f"{sorted(leading)}. Give those of a shared leaf a sample axis, jnp.broadcast_to."
            )
        return jnp.concatenate(flat, axis=-1)

    def check(self, factors: FactorTree) -> None:
        """Check that a tree of factors has this specification's paths and shapes.

        Args:
            factors: a tree of factors; leading axes are not checked.

        Raises:
            ValueError: if a factor is missing, unknown, or does not fit.
        """
        expect.factors("FactorSpec", factors)
        missing = [leaf.path for leaf in self if leaf.path not in factors]
        unknown = sorted(map(str, set(factors) - {leaf.path for leaf in self}))
        if missing or unknown:
            raise ValueError(
                f"FactorSpec: expected a factor for each of its {len(self)} leaves and no other, "
                f"got none for {missing} and unknown {unknown}. Make both from one specification."
            )
        for leaf in self:
            shapes = [factor_shape(part) for part in _parts(factors[leaf.path])]
            expected = list(leaf.parts.values())
            posed = isinstance(factors[leaf.path], Posed) == (leaf.rank == "pose")
            fits = (
                posed
                and len(shapes) == len(expected)
                and all(
                    got[max(len(got) - len(want), 0) :] == want
                    for got, want in zip(shapes, expected, strict=True)
                )
            )
            if not fits:
                raise ValueError(
                    f"FactorSpec: expected {leaf.path} to end in shapes {expected} "
                    f"(rank {leaf.rank}), got {shapes}. Was it generated for another layer or rank?"
                )

    def __str__(self) -> str:
        rows = [("leaf", "shape", "rank", "dense", "generated", "ratio", "")]
        for leaf in self:
            note = leaf.axes
            if isinstance(leaf.rank, int) and leaf.rank > (full := min(leaf.rows, leaf.columns)):
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


def factor_spec(
    params: Any,
    ranks: int | Mapping[str, Rank],
    *,
    axes: Mapping[str, str] | None = None,
    added: Collection[str] = (),
) -> FactorSpec:
    """Specify which leaves of a parameter tree are generated, and with which rank.

    Args:
        params: any tree of arrays or `jax.ShapeDtypeStruct`.
        ranks: one rank for all kernels (leaves of at least two axes that are not called "bias");
            all other leaves are then generated whole. Or a mapping from path patterns, as in
            `fnmatch` (`"*/kernel"`, `"Dense_?/bias"`), to a rank, to "whole", or, for the kernel
            of a convolution over two axes, to "pose". The first pattern that matches a leaf
            counts; a leaf that no pattern matches is not generated. A leaf at the top, `"kernel"`,
            matches `"*/kernel"` too.
        axes: path patterns to how a kernel is read as a matrix: one letter per axis, "r" for rows,
            then "c" for columns. The default `"r...rc"` takes all axes but the last as rows. Any
            reading computes the right result; the one that separates summed axes (rows) from the
            others (columns) needs the fewest numbers and operations. For example `"rcc"` for a
            kernel `[d, heads, d_head]` that is summed over `d`, as in Linen's attention. Leading
            letters "s" are for stacked layers, each with its own factors: `"src"` for kernels
            `[layers, in, out]` of `nn.scan`. Then `B` is `[stacked * rows, r]`, `A` is
            `[r, stacked * columns]`, and the update of layer `i` is the `i`-th block on the
            diagonal of `B @ A`.
        added: paths of leaves that are no kernels although they have two axes or more, such as
            embeddings of positions, which a model adds. `make_straw` finds them.

    Returns:
        The specification, in the order of the tree's leaves.

    Raises:
        ValueError: if a rank is below 1, a pattern matches no leaf, a low-rank leaf has fewer than
            two axes, a leaf of rank "pose" is not a kernel `[h, w, in, out]`, axes are not of this
            form, or nothing is generated.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import factor_spec
        >>> params = {"query": jnp.zeros((32, 4, 8)), "bias": jnp.zeros(32)}
        >>> spec = factor_spec(params, {"query": 2}, axes={"query": "rcc"})
        >>> [(leaf.path, leaf.parts) for leaf in spec]
        [('query', {'B': (32, 2), 'A': (2, 32)})]
    """
    leaves = named_leaves(params)
    axes = {} if axes is None else axes
    _check_mapping("axes", axes)
    if isinstance(ranks, Mapping):
        _check_mapping("ranks", ranks)
        _check_patterns(ranks, leaves, "leaves")
        chosen = {path: _first_match(path, ranks) for path in leaves}
        chosen = {path: _whole_number(rank) for path, rank in chosen.items() if rank is not None}
    else:
        chosen = dict.fromkeys(leaves, _whole_number(ranks))
    for path in chosen:
        expect.arrays("factor_spec", f"the leaf {path}", leaves[path])
    if not isinstance(ranks, Mapping):
        whole = [path for path in chosen if path in added or not is_kernel(path, leaves[path])]
        chosen |= dict.fromkeys(whole, "whole")
    if not chosen:
        raise ValueError("factor_spec: nothing would be generated. Name at least one leaf.")
    lowrank = [path for path, rank in chosen.items() if str(rank) not in ("whole", "pose")]
    _check_patterns(axes, lowrank, "low-rank leaves")
    letters = {path: _first_match(path, axes) or "" for path in lowrank}
    spec = FactorSpec(
        tuple(
            GeneratedLeaf(path, tuple(leaves[path].shape), rank, letters.get(path, ""))
            for path, rank in chosen.items()
        )
    )
    for leaf in spec:
        if leaf.path in lowrank:
            _check_lowrank(leaf)
        elif leaf.rank == "pose" and len(leaf.shape) != 4:
            raise ValueError(
                f"factor_spec: expected a leaf of rank 'pose' to be a convolution's kernel of four"
                f" axes, got {leaf.path} of shape {leaf.shape}. Choose a convolution of images, or"
                " give `modulate` a `Posed` with a grid."
            )
    return spec


def is_kernel(path: str, leaf: Any) -> bool:
    """Return whether one rank for all kernels is this leaf's rank, by its name and axes.

    Args:
        path: its name in the tree.
        leaf: an array or `jax.ShapeDtypeStruct`.

    Returns:
        Whether it has at least two axes, and is not called "bias".

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.factors import is_kernel
        >>> [is_kernel(path, jnp.ones((6, 4))) for path in ("query/kernel", "query/bias")]
        [True, False]
    """
    return len(leaf.shape) >= 2 and path.split("/")[-1] != "bias"


def _whole_number(rank: Any) -> Any:
    """Return a rank, as an int of Python where it is a whole number of another kind."""
    return int(rank) if expect.is_whole(rank) else rank


def _matches(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a path; a leaf at the top is in the folder ""."""
    return fnmatchcase(path, pattern) or ("/" not in path and fnmatchcase(f"/{path}", pattern))


def _first_match(path: str, patterns: Mapping[str, Any]) -> Any:
    return next((value for pattern, value in patterns.items() if _matches(path, pattern)), None)


def _check_mapping(name: str, patterns: Any) -> None:
    strings = isinstance(patterns, Mapping) and all(isinstance(key, str) for key in patterns)
    if not strings:
        raise ValueError(
            f"factor_spec: expected {name} to be a dict from path patterns, such as '*/kernel', got"
            f" {patterns!r}."
        )


def _check_patterns(patterns: Iterable[str], paths: Iterable[str], what: str) -> None:
    for pattern in patterns:
        if not any(_matches(path, pattern) for path in paths):
            raise ValueError(
                f"factor_spec: pattern {pattern!r} matches none of the {what} {list(paths)}. "
                "Patterns are matched against whole paths; '*' also matches '/'."
            )


def _check_lowrank(leaf: GeneratedLeaf) -> None:
    if not isinstance(leaf.rank, int) or leaf.rank < 1 or isinstance(leaf.rank, bool):
        raise ValueError(
            f"factor_spec: expected the rank of {leaf.path} to be a whole number of at least "
            f"1, or 'whole', or 'pose', got {leaf.rank!r}."
        )
    if len(leaf.shape) < 2:
        raise ValueError(
            f"factor_spec: expected a low-rank leaf to have at least two axes, got {leaf.path} "
            f"of shape {leaf.shape}. Generate it whole."
        )
    if leaf.axes and leaf.axes not in (readings := all_axes(len(leaf.shape))):
        raise ValueError(
            f"factor_spec: expected the axes of {leaf.path}, of shape {leaf.shape}, to be one of "
            f"{readings}, got {leaf.axes!r}."
        )


def _parts(factor: Update) -> list[Factor]:
    if isinstance(factor, Posed):  # an update adds parts, which no specification has
        return [factor.matrix, *([] if factor.update is None else _parts(factor.update))]
    return list(factor) if isinstance(factor, Factors) else [factor]


def _flat(part: Array, axes: int) -> Array:
    """Join the last `axes` axes into one."""
    return part.reshape((*part.shape[: part.ndim - axes], -1))


def _counts(dense: int, generated: int) -> tuple[str, str, str]:
    return f"{dense:,}", f"{generated:,}", f"{generated / dense:.3f}"
