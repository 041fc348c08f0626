"""Generators: from style vectors to factors."""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.factors import Entry, FactorSpec, GeneratedLeaf
from straw_jax.kinds import Start, Written
from straw_jax.layers import AttentionBlock, bias_init, dense, kernel_init, sized_init
from straw_jax.lowrank import Generated, accumulator_dtype
from straw_jax.network import Network, Params, as_network, zeros_like
from straw_jax.starts import (
    StartName,
    averaged,
    balanced,
    cast,
    check_start,
    finished,
    own_share,
    shared_init,
    unit_init,
)

Form: TypeAlias = Literal["L", "M", "S"]


class Heads(nn.Module):
    """Generate a tree of factors from each style vector: dense, ReLU, one linear head per factor.

    The heads together are the one wide dense layer of the article, cut at the borders of the
    factors: the same number of parameters, the same distribution of initial values, and no flat
    vector to cut.

    Attributes:
        spec: the leaves to generate.
        hidden: length of the hidden vector.
        start_at_base: initialise `A` and whole updates with 0, so that an untrained generator does
            not change the executor. Poses always start as the identity.
        dtype: of the hidden vector, of factors and of whole leaves, as in Flax: parameters stay
            float32. Poses are float32 or wider: coordinates need more than 8 bits. None: the one to
            which style vectors and parameters promote.
        start: "article", by default: all heads as PyTorch initialises a dense layer, whatever is
            written. "plain": style and hidden vectors are normalised, and what is written has the
            sizes of `GeneratedLeaf.starts`.

    References:
        The STRAW article, "Weight Generation", and its released code. For the start "plain": Chang
        et al., "Principled Weight Initialization for Hypernetworks" (2020); Ortiz et al.,
        "Magnitude Invariant Parametrizations Improve Hypernetwork Learning" (2023).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import Heads, factor_spec, form
        >>> spec = factor_spec({"W": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}, 2)
        >>> init = jax.jit(Heads(spec).init_with_output)
        >>> factors, _ = init(jax.random.key(0), jnp.ones((8, 16)))
        >>> form(factors["W"].B).shape, factors["bias"].shape
        ((8, 6, 2), (8, 5))
    """

    spec: FactorSpec
    hidden: int = 128
    start_at_base: bool = False
    dtype: DTypeLike | None = None
    start: StartName | None = None

    @nn.compact
    def __call__(self, z: Array) -> dict[str, Any]:
        """Generate factors.

        Args:
            z: style vectors `[batch, style]`.

        Returns:
            A tree of factors with a sample axis; the factors of kernels are `Generated`.
        """
        expect.positive("Heads", hidden=self.hidden)
        expect.compute_dtype("Heads", self.dtype)
        expect.styles("Heads", z, axes=(2,))
        check_start("Heads", self.start)
        plain = self.start == "plain"
        z = balanced(z) if plain else z
        hidden = nn.relu(dense(self.hidden, z.shape[-1], "hidden", self.dtype)(z))
        hidden = averaged(hidden) if plain else hidden
        return {
            leaf.path: leaf.assemble(
                {
                    name: self._head(f"{leaf.path}/{name}", part, starts.get(name), hidden)
                    for name, part in leaf.written.items()
                }
                | _shared(self, leaf, starts)
            )
            for leaf in self.spec
            for starts in (leaf.starts(self.start_at_base) if plain else {},)
        }

    def _head(self, path: str, part: Written, start: Start | None, hidden: Array) -> Any:
        zero = start.zero if start else part.always_zero or (self.start_at_base and part.zero)
        name = path.replace("/", ".")
        if part.factor:
            scale = None if start is None else start.scale
            own = own_share(self.start_at_base)
            return _FactorHead(part.shape, zero, self.dtype, scale, own, name=name)(hidden)
        kernel, bias = kernel_init, bias_init(self.hidden)
        if start is not None:
            own = own_share(self.start_at_base)
            kernel, bias = unit_init(own), nn.initializers.normal((1 - own**2) ** 0.5)
        whole = nn.Dense(
            math.prod(part.shape),
            kernel_init=nn.initializers.zeros if zero else kernel,
            bias_init=nn.initializers.zeros if zero else bias,
            dtype=_dtype_of(part, self.dtype),
            name=name,
        )(hidden)
        if start is not None:
            return finished(whole, part, start)
        if np.any(part.offset):
            offset = jnp.broadcast_to(jnp.asarray(part.offset, whole.dtype), part.shape)
            whole = whole + offset.reshape(1, -1)
        return whole.reshape(*hidden.shape[:-1], *part.shape)


class _FactorHead(nn.Module):
    """A dense layer from the hidden vector to a factor `[m, n]`, returned without applying it."""

    shape: tuple[int, ...]
    zero: bool
    dtype: DTypeLike | None
    scale: float | None
    own_share: float

    @nn.compact
    def __call__(self, hidden: Array) -> Generated:
        m, n = self.shape
        h = hidden.shape[-1]
        uniform = nn.initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", in_axis=2, out_axis=1, batch_axis=0
        )
        own, first = uniform, bias_init(h)
        if self.scale is not None:
            own = nn.initializers.normal(self.own_share * h**0.5)
            first = nn.initializers.normal((1 - self.own_share**2) ** 0.5)
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros if self.zero else own, (m, n, h))
        bias = self.param("bias", zeros if self.zero else first, (m, n))
        if self.dtype is not None:
            kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.scale is not None:  # of the small arrays, not of the kernel
            hidden, bias = (each * jnp.asarray(self.scale, each.dtype) for each in (hidden, bias))
        return Generated(hidden, kernel, bias)


class SharedHeads(nn.Module):
    """Generate factors with heads that all arrays of one shape share, in all layers.

    Learned embeddings say what is to be written: which leaf, which of its stacked layers (axes such
    as "src"), and which array. They are added to the style vector, an MLP mixes both, and a linear
    head for each shape writes. So parameters grow with the number of shapes, not of layers.

    Attributes:
        spec: the leaves to generate.
        hidden: length of the hidden vectors.
        start_at_base: whether an untrained generator does not change the executor.
        dtype: as that of `Heads`; parameters stay float32.
        start: "plain", which is the default and the only one, as in `Heads`.
        form: what a head writes at once. "L": all arrays of a leaf; "M": one array, so that `B` and
            `A` of one size have one head (two, if `A` starts at 0); "S": one row of the rank,
            named by an embedding, too. L has the most parameters, and S the most hidden vectors.
        dropout: rate, of hidden vectors; with `deterministic=False` and a key, see `make_straw`.

    References:
        Charakorn et al., "Text-to-LoRA" (2025), for the forms.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import LowRank, SharedHeads, factor_spec
        >>> layers = {"q": jnp.zeros((4, 6, 6)), "v": jnp.zeros((4, 6, 2))}
        >>> spec = factor_spec(layers, 2, axes={"*": "src"})
        >>> init = jax.jit(SharedHeads(spec, hidden=8, form="S").init_with_output)
        >>> factors, params = init(jax.random.key(0), jnp.ones((3, 5)))
        >>> factors["v"].B.shape  # 4 layers of 6 rows
        (3, 24, 2)
        >>> sorted(name for name in params["params"] if name.startswith("head"))
        ['head_2', 'head_6']
    """

    spec: FactorSpec
    hidden: int = 128
    start_at_base: bool = False
    dtype: DTypeLike | None = None
    start: StartName | None = None
    form: Form = "M"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, z: Array, *, deterministic: bool = True) -> dict[str, Any]:
        """Generate factors from style vectors `[batch, style]`, with a sample axis."""
        expect.positive("SharedHeads", hidden=self.hidden)
        expect.compute_dtype("SharedHeads", self.dtype)
        expect.styles("SharedHeads", z, axes=(2,))
        check_start("SharedHeads", self.start, only="plain")
        if self.form not in get_args(Form):
            raise ValueError(
                f"SharedHeads: expected a form of {get_args(Form)}, got {self.form!r}."
            )
        places = _Places.of(self.spec, self.form, self.start_at_base)
        # Of twice the size of names: encoders get gradients through what differs by sample alone.
        wide = nn.initializers.variance_scaling(4, "fan_in", "uniform")
        style = dense(self.hidden, z.shape[-1], "style", self.dtype, wide)(balanced(z))
        asked = _Names(places, self.hidden, self.dtype, name="names")()
        hidden = nn.relu(style[:, None] + asked.astype(style.dtype)[None])
        mixed = dense(self.hidden, self.hidden, "mixed", self.dtype, sized_init)(balanced(hidden))
        mixed = nn.Dropout(self.dropout)(mixed, deterministic=deterministic)
        return _write(self, places, nn.relu(hidden + mixed), own_share(self.start_at_base))


class TokenHeads(nn.Module):
    """Generate factors from several style vectors, by a small transformer over layers.

    It has a token of its own for each row of the rank of each leaf and stacked layer (for what has
    no rank, for each array). They attend to the style vectors and to each other, and each writes
    its row of `A` and its column of `B`, or its array, by heads that all of one shape share.

    Attributes:
        spec: the leaves to generate.
        width: of a token's vector; a multiple of `heads`.
        start_at_base: whether an untrained generator does not change the executor.
        dtype: as that of `Heads`; parameters stay float32.
        start: "plain", which is the default and the only one, as in `Heads`.
        layers: of the transformer.
        heads: number of attention heads.
        dropout: rate; with `deterministic=False` and a key, see `make_straw`.

    References:
        Chen and Wang, "Transformers as Meta-Learners for Implicit Neural Representations" (2022).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import TokenHeads, factor_spec
        >>> spec = factor_spec({"W": jnp.zeros((6, 5)), "bias": jnp.zeros(5)}, 2)
        >>> init = jax.jit(TokenHeads(spec, width=8, heads=2, layers=1).init_with_output)
        >>> factors, _ = init(jax.random.key(0), jnp.ones((3, 10, 4)))  # 10 style vectors each
        >>> factors["W"].B.shape, factors["bias"].shape
        ((3, 6, 2), (3, 5))
    """

    spec: FactorSpec
    width: int = 128
    start_at_base: bool = False
    dtype: DTypeLike | None = None
    start: StartName | None = None
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, z: Array, *, deterministic: bool = True) -> dict[str, Any]:
        """Generate factors from style vectors `[batch, tokens, d]`, or one each, `[batch, d]`."""
        expect.positive("TokenHeads", width=self.width, layers=self.layers, heads=self.heads)
        expect.compute_dtype("TokenHeads", self.dtype)
        expect.divides("TokenHeads", heads=self.heads, width=self.width)
        expect.styles("TokenHeads", z, axes=(2, 3))
        check_start("TokenHeads", self.start, only="plain")
        places = _Places.of(self.spec, "T", self.start_at_base)
        z = z if z.ndim == 3 else z[:, None]
        style = dense(self.width, z.shape[-1], "style", self.dtype, sized_init)(balanced(z))
        asked = _Names(places, self.width, self.dtype, name="names")()
        x = jnp.broadcast_to(asked.astype(style.dtype), (z.shape[0], *asked.shape))
        for i in range(1, self.layers + 1):
            for name, context in (("cross", style), ("self", None)):
                block = AttentionBlock(
                    self.heads, self.dropout, self.dtype, sized_init, name=f"{name}{i}"
                )
                x = block(x, context, None, deterministic)
        own = own_share(self.start_at_base)
        if not self.start_at_base:  # first steps change blocks in part alike, and so their sum
            own = own / (2 * self.layers) ** 0.75
        return _write(self, places, x, own)


@dataclass(frozen=True)
class _Place:
    """Which vectors write one array, with which head."""

    leaf: GeneratedLeaf
    name: str
    part: Written
    start: Start
    vectors: slice
    shape: tuple[int, ...]  # [stacked layers, rows of the rank, numbers], the second may be 1
    head: str

    def array(self, numbers: Array) -> Array:
        """Return an array `[batch, *part.shape]` of `[batch, vectors, numbers]`."""
        part, batch = self.part, numbers.shape[0]
        stacked = self.leaf.stacked if part.stack_axis is not None else 1
        own = list(part.shape)
        if part.stack_axis is None or part.rank_axis is None:
            own = [math.prod(part.shape) // stacked]
        else:
            own[part.stack_axis] //= stacked
        if part.rank_axis == 1:  # written in rows of the rank, as A is
            x = numbers.reshape(batch, stacked, own[1], own[0]).swapaxes(2, 3)
        else:
            x = numbers.reshape(batch, stacked, *own)
        if part.stack_axis == 1:
            x = x.swapaxes(1, 2)
        return x.reshape(batch, *part.shape)


@dataclass(frozen=True)
class _Places:
    """The arrays of a specification, and what the vectors that write them are asked for."""

    each: tuple[_Place, ...]
    asked: np.ndarray  # [vectors, 4]: numbers of leaf, stacked layer, array and row of the rank

    @classmethod
    def of(cls, spec: FactorSpec, form: str, start_at_base: bool) -> "_Places":
        names = sorted({name for leaf in spec for name in leaf.written})
        places: list[_Place] = []
        asked: list[tuple[int, int, int, int]] = []
        for number, leaf in enumerate(spec):
            starts, begun = leaf.starts(start_at_base), {}
            for name, part in leaf.written.items():
                stacked = leaf.stacked if part.stack_axis is not None else 1
                rank = 1 if part.rank_axis is None else part.shape[part.rank_axis]
                rows = rank if form in "ST" else 1
                size = math.prod(part.shape) // stacked // rows
                # In form L all arrays of a leaf come of one vector, in T all of one row.
                kind = {"L": (stacked,), "T": (stacked, rows) if rows > 1 else (name,)}
                key = kind.get(form, (name,))
                if key not in begun:
                    begun[key] = len(asked)
                    word = names.index(name) if form in "MS" or (form == "T" and rows == 1) else 0
                    asked += [
                        (number, layer, word, row)
                        for layer in range(stacked)
                        for row in range(rows)
                    ]
                head = _head_name(leaf, name, part, size, rank if rows == 1 else 1, form)
                head += ".zero" * starts[name].zero + ".exact" * part.exact
                vectors = slice(begun[key], begun[key] + stacked * rows)
                places.append(
                    _Place(leaf, name, part, starts[name], vectors, (stacked, rows, size), head)
                )
        return cls(tuple(places), np.array(asked))


def _head_name(
    leaf: GeneratedLeaf, name: str, part: Written, size: int, rank: int, form: str
) -> str:
    """Return what arrays of one head have in common: "head_8x576"."""
    shape = f"{rank}x{size // rank}" if rank > 1 else str(size)
    if form == "L":  # one vector writes several arrays, which must differ
        sizes = "_".join(
            "x".join(map(str, _of_one_layer(leaf, each))) for each in leaf.written.values()
        )
        return f"head_{sizes}.{name}"
    return f"head_{shape}.{name}" if form == "T" and part.rank_axis is not None else f"head_{shape}"


def _of_one_layer(leaf: GeneratedLeaf, part: Written) -> Iterator[int]:
    stacked = leaf.stacked if part.stack_axis is not None else 1
    return (
        size // stacked if axis == part.stack_axis else size for axis, size in enumerate(part.shape)
    )


class _Names(nn.Module):
    """Embeddings of what vectors are asked for, `[vectors, width]`: summed, or multiplied.

    Products of random signs have no correlation if they differ in one name only. So arrays that one
    head writes are as different at the start as those of heads of their own.
    """

    places: _Places
    width: int
    dtype: DTypeLike | None
    product: bool = False

    @nn.compact
    def __call__(self) -> Array:
        asked = self.places.asked
        if self.product:  # rows of B and of A have no correlation, either
            asked = asked.copy()
            asked[:, 3] += asked[:, 2] * (asked[:, 3].max() + 1)
        tables = ("leaf", "layer", "array", "row")
        varied = [i for i in range(len(tables)) if asked[:, i].max()] or [0]
        normal = nn.initializers.normal(len(varied) ** -0.5)
        found = [
            self.param(
                tables[i],
                jax.random.rademacher if self.product else normal,
                (int(asked[:, i].max()) + 1, self.width),
                jnp.float32,
            )[asked[:, i]]
            for i in varied
        ]
        total = functools.reduce(jnp.multiply if self.product else jnp.add, found)
        return cast(total, self.dtype)


def _write(module: Any, places: _Places, hidden: Array, own: float) -> dict[str, Any]:
    """Return a tree of factors that the vectors `[batch, vectors, width]` of a module write.

    They change embeddings of what is asked for, which alone write what all samples share. `own` is
    the share of the vectors, as that of `own_share`.
    """
    width = hidden.shape[-1]
    own = own / (1 - own**2) ** 0.5
    signs = _Names(places, width, module.dtype, product=True, name="signs")().astype(hidden.dtype)
    change = 1 + averaged(hidden) * jnp.asarray(own * width, hidden.dtype)
    hidden = averaged(signs[None] * change)
    unit = unit_init(1.0)
    heads: dict[str, nn.Dense] = {}
    written: dict[str, dict[str, Any]] = {}
    arrays: dict[int, int] = {}  # so far, by their first vectors
    for place in places.each:
        if place.head not in heads:
            heads[place.head] = nn.Dense(
                place.shape[-1],
                kernel_init=nn.initializers.zeros if place.start.zero else unit,
                dtype=_dtype_of(place.part, module.dtype),
                name=place.head,
            )
        vectors = hidden[:, place.vectors]
        number = arrays[place.vectors.start] = arrays.get(place.vectors.start, -1) + 1
        if number and place.shape[1] > 1:
            # Signs of another row: of one row's in B and A, products would add up over the rank.
            others = jnp.roll(signs[place.vectors], number, axis=0)
            vectors = averaged(others[None] * change[:, place.vectors])
        array = place.array(heads[place.head](vectors))
        written.setdefault(place.leaf.path, {})[place.name] = finished(
            array, place.part, place.start
        )
    return {
        leaf.path: leaf.assemble(
            written.get(leaf.path, {}) | _shared(module, leaf, leaf.starts(module.start_at_base))
        )
        for leaf in module.spec
    }


def _shared(module: Any, leaf: GeneratedLeaf, starts: Mapping[str, Start]) -> dict[str, Array]:
    """Return what all samples share, parameters of a module; without starts the article's."""
    return {
        name: cast(
            module.param(
                f"{leaf.path}/{name}".replace("/", "."),
                shared_init(part, starts.get(name), module.start_at_base),
                part.shape,
            ),
            module.dtype,
        )
        for name, part in leaf.shared.items()
    }


def _dtype_of(part: Written, dtype: DTypeLike | None) -> DTypeLike | None:
    """Return the dtype in which an array is written, of a module that computes in another."""
    return accumulator_dtype(dtype) if part.exact and dtype is not None else dtype


def writer_of(
    generator: Any, spec: FactorSpec, options: dict[str, Any], style: jax.ShapeDtypeStruct
) -> Network:
    """Return a generator as a `Network` from styles to a tree of factors.

    Args:
        generator: as for `make_straw`, and not None.
        spec: what is generated.
        options: `start_at_base`, `start` and `dtype`, for a function of the specification.
        style: shape and dtype of styles.

    Returns:
        Its pure functions.

    Raises:
        ValueError: if it is none, or writes something else than the specification says.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import SharedHeads, factor_spec
        >>> from straw_jax.generator import writer_of
        >>> spec = factor_spec({"W": jnp.zeros((6, 5))}, 2)
        >>> options = {"start_at_base": True, "start": None, "dtype": None}
        >>> style = jax.ShapeDtypeStruct((1, 16), jnp.float32)
        >>> type(writer_of(SharedHeads, spec, options, style)).__name__
        'Network'
    """
    if isinstance(generator, nn.Module | Network):
        return _of_vectors(as_network(generator), spec, style, **options)
    if not callable(generator):
        raise ValueError(
            "make_straw: expected a generator, a function of the specification such as SharedHeads,"
            f" a Linen module (an instance) or a Network, got {expect.describe(generator)}."
        )
    writer = as_network(generator(spec, **options))
    written = jax.eval_shape(
        lambda: writer.apply(writer.init(jax.random.key(0), zeros_like(style)), zeros_like(style))
    )
    spec.check(written)
    return writer


def _of_vectors(
    network: Network,
    spec: FactorSpec,
    style: jax.ShapeDtypeStruct,
    *,
    start_at_base: bool,
    start: StartName | None,
    dtype: DTypeLike | None,
) -> Network:
    """Return a network from styles to vectors as one to a tree of factors."""
    vectors = jax.eval_shape(
        lambda: network.apply(network.init(jax.random.key(0), zeros_like(style)), zeros_like(style))
    )
    if not expect.is_array(vectors) or vectors.shape != (style.shape[0], spec.size):
        raise ValueError(
            f"make_straw: expected a generator from styles {expect.describe(style)} to vectors"
            f" [{style.shape[0]}, {spec.size}], got {expect.describe(vectors)}. Its last layer has"
            " spec.size outputs, factor_spec(params, ranks).size; a class that takes the"
            " specification is given as it is, generator=SharedHeads."
        )
    plain = {} if start != "plain" else {
        f"{leaf.path}/{name}": each
        for leaf in spec
        for name, each in leaf.starts(start_at_base).items()
    }  # fmt: skip
    starts = plain or {
        f"{leaf.path}/{name}": Start(1.0, zero=part.always_zero or (start_at_base and part.zero))
        for leaf in spec
        for name, part in leaf.written.items()
    }
    shared = {f"{leaf.path}/{name}": part for leaf in spec for name, part in leaf.shared.items()}
    gated = [f"{leaf.path}/{name}" for leaf in spec for name in leaf.written]

    def init(key: Array, z: Any) -> Params:
        keys = jax.random.split(key, len(shared) + 1)
        return {
            "network": network.init(keys[0], z),
            # What starts at 0 is multiplied by a number that does: a network's first vectors may
            # not all be 0, or nothing would learn.
            "gates": {path: jnp.zeros(()) for path in gated if starts[path].zero},
            "shared": {
                path: shared_init(part, plain.get(path), start_at_base)(own, part.shape)
                for own, (path, part) in zip(keys[1:], shared.items(), strict=True)
            },
        }

    def apply(params: Params, z: Array, **kwargs: Any) -> dict[str, Entry]:
        vector = network.apply(params["network"], z, **kwargs)
        entries, end = {}, 0
        for leaf in spec:
            parts = {name: cast(params["shared"][f"{leaf.path}/{name}"], dtype) for name in
                     leaf.shared}  # fmt: skip
            for name, part in leaf.written.items():
                path = f"{leaf.path}/{name}"
                numbers = vector[:, end : (end := end + math.prod(part.shape))]
                own = numbers.dtype if dtype is None else dtype
                numbers = numbers.astype(accumulator_dtype(own) if part.exact else own)
                if path in params["gates"]:
                    numbers = numbers * params["gates"][path].astype(numbers.dtype)
                parts[name] = finished(numbers, part, starts[path])
            entries[leaf.path] = leaf.assemble(parts)
        return entries

    return Network(init, apply)
