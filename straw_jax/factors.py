"""Which leaves of a parameter tree are generated, with their shapes, sizes and packing."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from straw_jax import expect
from straw_jax.kinds import Kind, LowRank, Pose, Shared, Start, Update, Whole, Written
from straw_jax.kinds.whole import WholeLeaf
from straw_jax.lowrank import Generated, factor_shape, form
from straw_jax.quantised import as_quantised, is_quantised
from straw_jax.readings import matrix_shape, read_as

Rank: TypeAlias = int | Literal["whole", "pose"] | Kind | Sequence["Rank"]
"""What is generated for a leaf: a rank, a word, a kind, or several of them."""

Entry: TypeAlias = Update | Array | tuple["Entry", ...]
FactorTree: TypeAlias = Mapping[str, Entry]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a parameter tree's leaves by path.

    Args:
        tree: any tree; a quantised array is one leaf, a `Quantised`.

    Returns:
        Leaves in tree order; paths are joined by "/".

    Example:
        >>> from straw_jax.factors import named_leaves
        >>> named_leaves({"Dense_0": {"kernel": 1.0, "bias": 2.0}})
        {'Dense_0/bias': 2.0, 'Dense_0/kernel': 1.0}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantised)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            as_quantised(leaf) if is_quantised(leaf) else leaf
        )
        for path, leaf in leaves
    }


@dataclass(frozen=True)
class GeneratedLeaf:
    """One generated leaf of a parameter tree.

    Attributes:
        path: its name in the tree.
        shape: of the leaf.
        rank: of the update `B @ A`; or "whole", where every number of the leaf is generated; or
            "pose", where the kernel is composed with a resampling of its layer's input images; or
            a kind of `straw_jax.kinds`; or several, applied in their order.
        axes: how the leaf is read as a matrix, as in `factor_spec`; if empty, all axes but the last
            are rows.
        plain: mean and standard deviation of the leaf in the untrained plain model, if they are
            known; see `starts`.

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
    plain: tuple[float, float] | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its updates, in the order in which they are applied."""
        return _kinds(self.rank, self.path)

    @property
    def label(self) -> str:
        """The kinds in words."""
        return " + ".join(kind.label for kind in self.kinds)

    @property
    def reading(self) -> str:
        """How the leaf is read as a matrix, one letter per axis."""
        return read_as(self.axes, len(self.shape))

    @property
    def rows(self) -> int:
        """Rows of the leaf read as a matrix, `in`."""
        return matrix_shape(self.shape, self.reading)[0]

    @property
    def columns(self) -> int:
        """Columns of the leaf read as a matrix, `out`."""
        return matrix_shape(self.shape, self.reading)[1]

    @property
    def stacked(self) -> int:
        """Stacked layers that the leaf has, each with arrays of its own."""
        return math.prod(self.shape[: self.axes.count("s")])

    @property
    def summed(self) -> int:
        """Numbers over which a product with the leaf sums."""
        return self.rows // self.stacked

    @property
    def dense_size(self) -> int:
        """Numbers in the leaf."""
        return math.prod(self.shape)

    @property
    def written(self) -> dict[str, Written]:
        """The arrays that are generated for each sample, by name."""
        return self._named(lambda kind: kind.written(self))

    @property
    def shared(self) -> dict[str, Shared]:
        """The arrays that all samples share and the generator owns, by name."""
        return self._named(lambda kind: kind.shared(self))

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the arrays that are generated for each sample."""
        return {name: part.shape for name, part in self.written.items()}

    @property
    def generated_size(self) -> int:
        """Numbers generated per sample."""
        return sum(map(math.prod, self.parts.values()))

    def starts(self, start_at_base: bool = False) -> dict[str, Start]:
        """Return the sizes of the arrays before training, by name, written and shared.

        Args:
            start_at_base: whether they shall change nothing. Otherwise the first kind that is a
                weight without a base has mean and deviation of the plain model's leaf, by default
                those of weights that keep the variance of their inputs; further kinds change
                nothing.
        """
        plain = self.plain or (0.0, self.summed**-0.5 if len(self.shape) > 1 else 0.0)
        alone = (i for i, kind in enumerate(self.kinds) if kind.stands_alone)
        first = None if start_at_base else next(alone, None)
        return {
            names[own]: each
            for i, (kind, names) in enumerate(self._names())
            for own, each in kind.start(self, plain if i == first else None).items()
        }

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return this leaf's entry in a tree of factors.

        Args:
            parts: arrays by name, as in `parts` and `shared`; leading axes are kept.

        Returns:
            `Factors`, `Posed`, another update, the whole leaf, or a tuple of them.
        """
        updates = tuple(
            kind.update(self, {own: parts[name] for own, name in names.items()})
            for kind, names in self._names()
        )
        return updates if len(updates) > 1 else updates[0]

    def disassemble(self, entry: Any) -> dict[str, Any]:
        """Return the arrays of this leaf's entry by name: the inverse of `assemble`."""
        updates = entry if len(self.kinds) > 1 else (entry,)
        parts: dict[str, Any] = {}
        for (kind, names), update in zip(self._names(), updates, strict=True):
            parts |= {names[own]: array for own, array in kind.parts(update).items()}
        return parts

    def _names(self) -> list[tuple[Kind, dict[str, str]]]:
        """Return each kind with its own names of arrays, and those in this leaf."""
        taken: set[str] = set()
        named = []
        for i, kind in enumerate(self.kinds):
            own = [*kind.written(self), *kind.shared(self)]
            names = {name: f"{name}{i + 1}" if name in taken else name for name in own}
            taken |= set(names.values())
            named.append((kind, names))
        return named

    def _named(self, arrays: Callable[[Kind], dict[str, Any]]) -> dict[str, Any]:
        return {
            names[own]: array
            for kind, names in self._names()
            for own, array in arrays(kind).items()
        }


def _kinds(rank: Any, path: str) -> tuple[Kind, ...]:
    """Return the kinds that a rank, a word, a kind or a list of them stand for."""
    if isinstance(rank, (tuple, list)):
        return tuple(kind for each in rank for kind in _kinds(each, path))
    if isinstance(rank, Kind):
        return (rank,)
    words = {"whole": Whole(), "pose": Pose()}
    if isinstance(rank, str) and rank in words:
        return (words[rank],)
    return (LowRank(rank),)


@dataclass(frozen=True)
class FactorSpec:
    """The generated leaves of a parameter tree, in the tree's order.

    A tree of factors is a plain dict by path. It holds `Factors` for a low-rank leaf, an array of
    the leaf's shape for one generated whole, `Posed` for one of rank "pose", the update of another
    kind (`straw_jax.kinds`), or a tuple of them; what is per sample has a sample axis in front.
    `str(spec)` is a table.

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

    @property
    def shared_size(self) -> int:
        """Numbers that all samples share and the generator owns."""
        return sum(math.prod(part.shape) for leaf in self for part in leaf.shared.values())

    def unpack(self, vector: Array, shared: Mapping[str, Array] | None = None) -> dict[str, Entry]:
        """Cut a generator's flat output into factors.

        Args:
            vector: `[..., size]`, of any dtype; leading axes, such as a sample axis, are kept.
            shared: what all samples share, by path and name, `"W/templates"`; needed for kinds such
                as `Mixture` only.

        Returns:
            A tree of factors, of the same dtype.

        Raises:
            ValueError: if the last axis is not `size` long, or a shared array is missing.
        """
        expect.arrays("FactorSpec.unpack", "the vector", vector)
        if vector.ndim < 1 or vector.shape[-1] != self.size:
            raise ValueError(
                f"FactorSpec.unpack: expected a last axis of {self.size} numbers, got shape "
                f"{vector.shape}. A generator's output must be FactorSpec.size wide."
            )
        given = shared or {}
        needed = [f"{leaf.path}/{name}" for leaf in self for name in leaf.shared]
        if missing := [name for name in needed if name not in given]:
            raise ValueError(
                f"FactorSpec.unpack: expected the arrays that all samples share, got none for"
                f" {missing}. Give shared={{name: array}}."
            )
        ends = itertools.accumulate(
            math.prod(shape) for leaf in self for shape in leaf.parts.values()
        )

        def cut(shape: tuple[int, ...]) -> Array:
            end = next(ends)
            part = vector[..., end - math.prod(shape) : end]
            return part.reshape((*vector.shape[:-1], *shape))

        return {
            leaf.path: leaf.assemble(
                {name: cut(shape) for name, shape in leaf.parts.items()}
                | {name: given[f"{leaf.path}/{name}"] for name in leaf.shared}
            )
            for leaf in self
        }

    def pack(self, factors: FactorTree) -> Array:
        """Join factors into one flat vector: the inverse of `unpack`.

        Args:
            factors: a tree of factors, of one dtype, all with the same leading axes or none.

        Returns:
            `[..., size]`, of the same dtype; what all samples share is left out.

        Raises:
            ValueError: if a factor is missing, unknown, or does not fit, or leading axes differ.
        """
        self.check(factors)
        flat = [
            _flat(form(arrays[name]), len(shape))
            for leaf in self
            for arrays in (leaf.disassemble(factors[leaf.path]),)
            for name, shape in leaf.parts.items()
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
            arrays: dict[str, Written | Shared] = {**leaf.written, **leaf.shared}
            like = leaf.assemble(
                {name: jax.ShapeDtypeStruct(part.shape, jnp.float32) for name, part in
                 arrays.items()}
            )  # fmt: skip
            entry = factors[leaf.path]
            expected, shapes = _shapes(like), _shapes(entry)
            fits = (
                _types(entry) == _types(like)
                and len(shapes) == len(expected)
                and all(
                    got[max(len(got) - len(want), 0) :] == want
                    for got, want in zip(shapes, expected, strict=True)
                )
            )
            if not fits:
                raise ValueError(
                    f"FactorSpec: expected {leaf.path} to end in shapes {expected} "
                    f"(rank {leaf.label}), got {shapes}. Was it generated for another layer or "
                    "rank?"
                )

    def __str__(self) -> str:
        rows = [("leaf", "shape", "rank", "dense", "generated", "ratio", "")]
        for leaf in self:
            note = leaf.axes
            if isinstance(leaf.rank, int) and leaf.rank > (full := min(leaf.rows, leaf.columns)):
                note = f"above full rank {full}"
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            counts = _counts(leaf.dense_size, leaf.generated_size)
            rows.append((leaf.path, shape, leaf.label, *counts, note))
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
    kernels_alone: bool = False,
) -> FactorSpec:
    """Specify which leaves of a parameter tree are generated, and with which rank.

    Args:
        params: any tree of arrays or `jax.ShapeDtypeStruct`.
        ranks: one rank for all kernels (leaves of at least two axes that are not called "bias");
            all other leaves are then generated whole. Or a mapping from path patterns, as in
            `fnmatch` (`"*/kernel"`, `"Dense_?/bias"`), to a rank, to "whole", or, for the kernel
            of a convolution over two axes, to "pose", to a kind of `straw_jax.kinds`, or to a list
            of them, applied in its order. The first pattern that matches a leaf counts; a leaf that
            no pattern matches is not generated. A leaf at the top, `"kernel"`, matches
            `"*/kernel"` too.
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
        kernels_alone: with one rank for all kernels, leave all other leaves as they are.

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
        if kernels_alone:
            chosen = {path: rank for path, rank in chosen.items() if path not in whole}
    if not chosen:
        raise ValueError("factor_spec: nothing would be generated. Name at least one leaf.")
    kinds = {path: _kinds(rank, path) for path, rank in chosen.items()}
    read = [path for path in chosen if any(not isinstance(kind, (Whole, Pose))
                                           for kind in kinds[path])]  # fmt: skip
    _check_patterns(axes, read, "low-rank leaves")
    letters = {path: _first_match(path, axes) or "" for path in read}
    spec = FactorSpec(
        tuple(
            GeneratedLeaf(path, tuple(leaves[path].shape), _frozen(rank), letters.get(path, ""))
            for path, rank in chosen.items()
        )
    )
    for leaf in spec:
        if not leaf.kinds:
            raise ValueError(
                f"factor_spec: expected at least one kind of update for {leaf.path}, got none."
                " Leave it out to keep the leaf as it is."
            )
        for kind in leaf.kinds:
            kind.check(leaf)
    return spec


def _frozen(rank: Any) -> Any:
    """Return lists as tuples, so that a specification is hashable."""
    return tuple(map(_frozen, rank)) if isinstance(rank, (tuple, list)) else rank


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


def _types(entry: Any) -> Any:
    """Return the types of an entry and, of a tuple, of its parts."""
    if isinstance(entry, tuple) and not isinstance(entry, Generated):
        return tuple(map(_types, entry))
    return type(entry) if isinstance(entry, Update) else None


def _shapes(entry: Any) -> list[tuple[int, ...]]:
    """Return the shapes of an entry's arrays, once they are formed."""
    leaves = jax.tree.leaves(entry, is_leaf=lambda leaf: isinstance(leaf, Generated))
    return [factor_shape(leaf) for leaf in leaves]


def as_updates(entry: Entry) -> tuple[Update, ...]:
    """Return an entry of a tree of factors as updates, in their order.

    Args:
        entry: an update, a whole leaf, or a tuple of them.

    Returns:
        Updates.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import Factors
        >>> from straw_jax.factors import as_updates
        >>> factors = Factors(jnp.ones((3, 2)), jnp.ones((2, 4)))
        >>> [type(update).__name__ for update in as_updates((factors, jnp.ones((3, 4))))]
        ['Factors', 'WholeLeaf']
    """
    if isinstance(entry, (tuple, list)) and not isinstance(entry, Generated):
        return tuple(update for each in entry for update in as_updates(each))
    return entry.flat() if isinstance(entry, Update) else (WholeLeaf(entry),)


def _flat(part: Array, axes: int) -> Array:
    """Join the last `axes` axes into one."""
    return part.reshape((*part.shape[: part.ndim - axes], -1))


def _counts(dense: int, generated: int) -> tuple[str, str, str]:
    return f"{dense:,}", f"{generated:,}", f"{generated / dense:.3f}"
