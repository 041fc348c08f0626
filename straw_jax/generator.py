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
from straw_jax.factors import FactorSpec, GeneratedLeaf
from straw_jax.kinds import Shared, Start, Written
from straw_jax.layers import AttentionBlock, bias_init, dense, kernel_init
from straw_jax.lowrank import Generated, accumulator_dtype

StartName: TypeAlias = Literal["article", "plain"]
"""How a generator starts: as the article's, or with the plain model's sizes at every rank."""

Form: TypeAlias = Literal["L", "M", "S"]


def own_share(start_at_base: bool) -> float:
    """Return how far what is written differs from sample to sample at first, in deviations.

    Encoders take large steps at first, and what depends on the sample moves with them. With a base
    it is multiplied by a factor that starts at 0.
    """
    return 0.5**0.5 if start_at_base else 0.2


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
                | self._shared(leaf, starts)
            )
            for leaf in self.spec
            for starts in (leaf.starts(self.start_at_base) if plain else {},)
        }

    def _head(self, path: str, part: Written, start: Start | None, hidden: Array) -> Any:
        zero = start.zero if start else part.always_zero or (self.start_at_base and part.zero)
        name, dtype = path.replace("/", "."), self.dtype
        if part.factor:
            scale = None if start is None else start.scale
            own = own_share(self.start_at_base)
            return _FactorHead(part.shape, zero, dtype, scale, own, name=name)(hidden)
        if part.exact and dtype is not None:
            dtype = accumulator_dtype(dtype)
        kernel, bias = kernel_init, bias_init(self.hidden)
        if start is not None:
            own = own_share(self.start_at_base)
            kernel, bias = unit_init(own), nn.initializers.normal((1 - own**2) ** 0.5)
        whole = nn.Dense(
            math.prod(part.shape),
            kernel_init=nn.initializers.zeros if zero else kernel,
            bias_init=nn.initializers.zeros if zero else bias,
            dtype=dtype,
            name=name,
        )(hidden)
        if start is not None:
            return finished(whole, part, start)
        if np.any(part.offset):
            offset = jnp.broadcast_to(jnp.asarray(part.offset, whole.dtype), part.shape)
            whole = whole + offset.reshape(1, -1)
        return whole.reshape(*hidden.shape[:-1], *part.shape)

    def _shared(self, leaf: GeneratedLeaf, starts: Mapping[str, Start]) -> dict[str, Array]:
        return {
            name: cast(
                self.param(
                    f"{leaf.path}/{name}".replace("/", "."),
                    shared_init(part, starts.get(name), self.start_at_base),
                    part.shape,
                ),
                self.dtype,
            )
            for name, part in leaf.shared.items()
        }


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
        style = dense(self.hidden, z.shape[-1], "style", self.dtype)(balanced(z))
        asked = _Names(places, self.hidden, self.dtype, name="names")()
        hidden = nn.relu(style[:, None] + asked.astype(style.dtype)[None])
        mixed = dense(self.hidden, self.hidden, "mixed", self.dtype)(balanced(hidden))
        mixed = nn.Dropout(self.dropout)(mixed, deterministic=deterministic)
        return _write(self, places, nn.relu(hidden + mixed))


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
        style = dense(self.width, z.shape[-1], "style", self.dtype)(balanced(z))
        asked = _Names(places, self.width, self.dtype, name="names")()
        x = jnp.broadcast_to(asked.astype(style.dtype), (z.shape[0], *asked.shape))
        for i in range(1, self.layers + 1):
            for name, context in (("cross", style), ("self", None)):
                block = AttentionBlock(self.heads, self.dropout, self.dtype, name=f"{name}{i}")
                x = block(x, context, None, deterministic)
        return _write(self, places, x)


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


def _write(module: Any, places: _Places, hidden: Array) -> dict[str, Any]:
    """Return a tree of factors that the vectors `[batch, vectors, width]` of a module write.

    They change embeddings of what is asked for, which alone write what all samples share.
    """
    width = hidden.shape[-1]
    own = own_share(module.start_at_base)
    own = own / (1 - own**2) ** 0.5
    signs = _Names(places, width, module.dtype, product=True, name="signs")()
    change = 1 + averaged(hidden) * jnp.asarray(own * width, hidden.dtype)
    hidden = averaged(signs.astype(hidden.dtype)[None] * change)
    unit = unit_init(1.0)
    heads: dict[str, nn.Dense] = {}
    written: dict[str, dict[str, Any]] = {}
    for place in places.each:
        dtype = module.dtype
        if place.part.exact and dtype is not None:
            dtype = accumulator_dtype(dtype)
        if place.head not in heads:
            heads[place.head] = nn.Dense(
                place.shape[-1],
                kernel_init=nn.initializers.zeros if place.start.zero else unit,
                dtype=dtype,
                name=place.head,
            )
        array = place.array(heads[place.head](hidden[:, place.vectors]))
        written.setdefault(place.leaf.path, {})[place.name] = finished(
            array, place.part, place.start
        )
    shared = {
        leaf.path: {
            name: cast(
                module.param(
                    f"{leaf.path}/{name}".replace("/", "."),
                    shared_init(part, leaf.starts(module.start_at_base)[name]),
                    part.shape,
                ),
                module.dtype,
            )
            for name, part in leaf.shared.items()
        }
        for leaf in module.spec
    }
    return {
        leaf.path: leaf.assemble(written.get(leaf.path, {}) | shared[leaf.path])
        for leaf in module.spec
    }


def unit_init(deviation: float) -> Any:
    """Return the initialiser of a dense layer from `averaged` vectors to a deviation."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(
            deviation * shape[0] ** 0.5, dtype
        )

    return init


def shared_init(part: Shared, start: Start | None, start_at_base: bool = False) -> Any:
    """Return the initialiser of what all samples share: the article's without a start."""
    if start is not None:

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            drawn = 0.0 if start.zero else start.scale * jax.random.normal(key, shape)
            return jnp.full(shape, start.mean) + drawn

        return init
    bound = part.fan_in**-0.5

    def uniform(key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return nn.initializers.zeros if start_at_base and part.zero else uniform


def finished(numbers: Array, part: Written, start: Start) -> Array:
    """Return what is written, `[batch, *shape]`, of numbers of deviation 1 or 0 at the start."""
    array = numbers.reshape(numbers.shape[0], *part.shape)
    array = array * jnp.asarray(start.scale, array.dtype)
    added = np.asarray(part.offset, np.float32) + np.float32(start.mean)
    if np.any(added):
        array = array + jnp.broadcast_to(jnp.asarray(added, array.dtype), array.shape)
    return array


def balanced(x: Array) -> Array:
    """Return vectors of about the norm of random ones, whatever their own is.

    Numbers below 0.1 count as small: so vectors of one number keep more than their sign.
    """
    wide = x.astype(accumulator_dtype(x.dtype))
    mean = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + 0.01)).astype(x.dtype)


def averaged(x: Array) -> Array:
    """Return hidden vectors whose products with a kernel are averages, not sums.

    Their numbers have a mean square of `1 / width ** 2`. So one step of Adam changes what a head
    writes by about the learning rate, for any width.
    """
    wide = x.astype(accumulator_dtype(x.dtype))
    mean = jnp.mean(wide**2, axis=-1, keepdims=True)
    return (wide * (jax.lax.rsqrt(mean + 1e-6) / x.shape[-1])).astype(x.dtype)


def cast(array: Array, dtype: DTypeLike | None) -> Array:
    """Return an array in a dtype, or as it is."""
    return array if dtype is None else array.astype(dtype)


def check_start(where: str, start: Any, only: str | None = None) -> None:
    """Raise unless a start is known, and one that a generator has."""
    known = get_args(StartName) if only is None else (only,)
    if start is not None and start not in known:
        raise ValueError(f"{where}: expected a start of {known} or None, got {start!r}.")
