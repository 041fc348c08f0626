"""Recurrent cells for `nn.RNN` whose state is a weight matrix, or a network's weights.

    DeltaCell               W_t = g_t W_{t-1} + b_t k_t^T (v_t - g_t k_t W_{t-1})
    SelfReferentialCell     W_t = W_{t-1} + k_t^T (b_t * (q_t - k_t) W_{t-1})
    WeightSpaceCell         w_t = a * w_{t-1} + (x_t - x_{t-1}) C

Keys, values and queries are rows. Those of the delta cell, and its strengths, are made of the input
by layers that do not change in time; those of the self-referential cell by `W_{t-1}` itself. `w_t`
are the packed numbers of a `FactorSpec`, which are read as the weights of an executor.

Parameters stay float32, and so does the state, a sum over all steps: in 16 bits it would lose small
additions.

What a step writes is sown as "written" into the collection "intermediates": keys, values, strengths
and forgetting of each head, as `delta_rule` takes them; keys and queries; the numbers `w_t`.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype, promote_dtype
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.factors import FactorSpec, GeneratedLeaf, named_leaves
from straw_jax.fast_weights import delta_rule_outputs
from straw_jax.kinds import Whole
from straw_jax.lift import modulate
from straw_jax.lowrank import accumulator_dtype, dot
from straw_jax.network import Network, as_network, zeros_like
from straw_jax.starts import cast, shared_init

OwnBase: TypeAlias = Literal["none", "trained"]


class DeltaCell(nn.RNNCellBase):
    """A matrix of fast weights for each head, which the delta rule changes at every step.

    Linear layers make a query, a key and a value of each head from the input, and the strength of
    the step, from 0 to 1. What the weights return for the key moves towards the value by this
    share. The output is what the changed weights return for the query. Keys and queries go through
    SiLU and have length 1.

    Attributes:
        features: length of the output, all heads joined.
        heads: number of matrices; it divides `features`.
        key_features: length of a head's keys and queries; by default that of its values.
        forgetting: multiply the weights by a number from 0 to 1 before each step, one for each
            head, made of the input.
        forget_bias: initial bias of the layer before its sigmoid.
        dtype: of computation and outputs, as in Flax; the state and its sums are float32. None: the
            dtype to which input and weights promote.

    References:
        Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers" (2021), section
        4.2. SiLU and length 1: Yang et al., "Parallelizing Linear Transformers with the Delta Rule
        over Sequence Length" (2024). Forgetting: Yang et al., "Gated Delta Networks" (2024),
        equation 10; its number is here the sigmoid of a linear layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.weight_cells import DeltaCell
        >>> cell, x = DeltaCell(8, heads=2), jnp.ones((2, 5, 3))  # [batch, time, in]
        >>> outputs, params = jax.jit(nn.RNN(cell).init_with_output)(jax.random.key(0), x)
        >>> outputs.shape
        (2, 5, 8)

        All steps at once, in chunks:

        >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
        >>> own = {"params": params["params"]["cell"]}
        >>> carry, again = cell.apply(own, carry, x, method="sequence")
        >>> carry.shape, bool(jnp.allclose(again, outputs, atol=1e-5))
        ((2, 2, 4, 4), True)
    """

    features: int
    heads: int = 1
    key_features: int | None = None
    forgetting: bool = False
    forget_bias: float = 4.0
    dtype: DTypeLike | None = None

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """Compute one step.

        Args:
            carry: the weights `[..., heads, key_features, features / heads]`.
            inputs: `[..., in]`.

        Returns:
            The next carry, and the output `[..., features]`.
        """
        self._check(inputs, carry)
        steps, dtype = self._read(inputs)
        queries, keys, values, strengths, kept = (cast(each, carry.dtype) for each in steps)
        state = carry if not self.forgetting else kept[..., None, None] * carry
        errors = strengths[..., None] * (values - _read_out(keys, state))
        state = state + _outer(keys, errors)
        return state, self._joined(_read_out(queries, state), dtype)

    def sequence(self, carry: Array, inputs: Array, *, chunk: int = 64) -> tuple[Array, Array]:
        """Compute all steps of a sequence, a chunk of them at once: the same but for rounding.

        Args:
            carry: as in a step.
            inputs: `[..., time, in]`.
            chunk: number of steps that are computed together, as in `delta_rule_outputs`.

        Returns:
            The carry after the last step, and the outputs `[..., time, features]`.
        """
        expect.arrays(type(self).__name__, "inputs", inputs)
        of_step = jax.ShapeDtypeStruct((*inputs.shape[:-2], *inputs.shape[-1:]), inputs.dtype)
        self._check(of_step, carry)
        if inputs.ndim < 2 or not inputs.shape[-2]:
            raise ValueError(
                f"DeltaCell: expected inputs [..., time, in] of one step or more, got"
                f" {expect.describe(inputs)}. For one step, call the cell."
            )
        steps, dtype = self._read(inputs)
        lead = inputs.ndim - 2

        def by_head(array: Array) -> Array:  # [..., T, heads, *rest] to [all heads, T, *rest]
            array = jnp.moveaxis(cast(array, carry.dtype), lead, lead + 1)
            return array.reshape(-1, *array.shape[lead + 1 :])

        def outputs(steps: Any, state: Array) -> tuple[Array, Array]:
            queries, keys, values, strengths, kept = steps
            own = kept if self.forgetting else None
            return delta_rule_outputs(
                queries, keys, values, strengths, state, forgetting=own, chunk=chunk
            )

        state = carry.reshape(-1, *carry.shape[-2:])
        found, state = jax.vmap(outputs)(jax.tree.map(by_head, steps), state)
        found = found.reshape(*carry.shape[:-2], *found.shape[1:])
        found = self._joined(jnp.moveaxis(found, lead, lead + 1), dtype)
        return state.reshape(carry.shape).astype(carry.dtype), found

    @nn.compact
    def _read(self, inputs: Array) -> tuple[tuple[Array, ...], DTypeLike]:
        """Return what is made of inputs: queries, keys, values, strengths, shares that are kept."""

        def dense(name: str, size: int | None = None, bias: float | None = None) -> Array:
            numbers: Array = nn.Dense(
                self.heads * (size or 1),
                use_bias=bias is not None,
                bias_init=nn.initializers.constant(bias or 0.0),
                dtype=self.dtype,
                name=name,
            )(inputs)
            return numbers.reshape(*inputs.shape[:-1], self.heads, *([size] if size else []))

        size, of_values = self._sizes()
        queries, keys = (_unit(nn.silu(dense(name, size))) for name in ("query", "key"))
        values = dense("value", of_values)
        strengths = nn.sigmoid(dense("strength", bias=0.0))
        kept = jnp.ones_like(strengths)
        if self.forgetting:
            kept = nn.sigmoid(dense("forget", bias=self.forget_bias))
        steps = {"keys": keys, "values": values, "strengths": strengths, "forgetting": kept}
        self.sow("intermediates", "written", steps)  # as `delta_rule` takes them
        return (queries, *steps.values()), values.dtype

    @nn.nowrap
    def _sizes(self) -> tuple[int, int]:
        """Return the lengths of a head's keys and values."""
        of_values = self.features // self.heads
        return of_values if self.key_features is None else self.key_features, of_values

    @nn.nowrap
    def _joined(self, by_head: Array, dtype: DTypeLike) -> Array:
        """Return the heads' outputs as one."""
        return by_head.reshape(*by_head.shape[:-2], self.features).astype(dtype)

    @nn.nowrap
    def _check(self, inputs: Any, carry: Any) -> None:
        name = type(self).__name__
        expect.finite(name, forget_bias=self.forget_bias)
        expect.carry(name, self, inputs, carry)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Return weights of zeros for inputs of shape `input_shape`."""
        del rng
        name = type(self).__name__
        expect.positive(name, features=self.features, heads=self.heads)
        expect.positive(name, key_features=1 if self.key_features is None else self.key_features)
        expect.divides(name, heads=self.heads, width=self.features)
        return _zeros(name, self.dtype, (*input_shape[:-1], self.heads, *self._sizes()))

    @property
    def num_feature_axes(self) -> int:
        """Number of the input's feature axes."""
        return 1


class SelfReferentialCell(nn.RNNCellBase):
    """A weight matrix for each head that computes how it changes itself, by its own delta rule.

    The matrix before a step makes four things of its input: the output, a query, a key and four
    strengths. Then what it returns for the key moves towards what it returns for the query, by a
    share from 0 to 1, of its own for the columns that make outputs, queries, keys and strengths.
    Inputs, keys and queries go through a softmax. Each head has its part of the input. The first
    matrix is trained; the carry is how far it has changed.

    Attributes:
        features: length of the output, all heads joined.
        heads: number of matrices; it divides `features` and the length of the input.
        dtype: of inputs and outputs, as in Flax; the matrix, its products and sums are float32.
            None: the dtype to which input and weights promote.

    References:
        Irie et al., "A Modern Self-Referential Weight Matrix That Learns to Modify Itself" (2022),
        equations 5 to 8, and initial values of its code. The code's layers leave the softmax of
        inputs out by default.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.weight_cells import SelfReferentialCell
        >>> init = jax.jit(nn.RNN(SelfReferentialCell(8, heads=2)).init_with_output)
        >>> outputs, _ = init(jax.random.key(0), jnp.ones((2, 5, 6)))  # [batch, time, in]
        >>> outputs.shape
        (2, 5, 8)
    """

    features: int
    heads: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """Compute one step.

        Args:
            carry: change of the matrix, `[..., heads, in, out + 2 * in + 4]`, with `in` and `out`
                those of a head.
            inputs: `[..., in]`.

        Returns:
            The next carry, and the output `[..., features]`.
        """
        expect.carry(type(self).__name__, self, inputs, carry)
        rows, columns = carry.shape[-2], self._columns(carry.shape[-2])
        first = [
            self.param(name, _shifted_normal(mean, rows**-0.5), (self.heads, rows, size))
            for (name, size), mean in zip(columns.items(), (0.0, 0.0, 0.0, -1.0), strict=True)
        ]
        dtype = canonicalize_dtype(inputs, *first, dtype=self.dtype)
        matrix = jnp.concatenate([cast(each, carry.dtype) for each in first], axis=-1)
        matrix = jnp.broadcast_to(matrix, carry.shape) + carry

        def cut(numbers: Array) -> list[Array]:
            ends = [sum([*columns.values()][: i + 1]) for i in range(len(columns) - 1)]
            return jnp.split(numbers, ends, axis=-1)

        x = inputs.astype(dtype).astype(carry.dtype)
        x = x.reshape(*inputs.shape[:-1], self.heads, rows)
        y, query, key, strengths = cut(_read_out(nn.softmax(x), matrix))
        query, key = nn.softmax(query), nn.softmax(key)
        self.sow("intermediates", "written", {"keys": key, "queries": query})
        errors = zip(
            cut(_read_out(query - key, matrix)), jnp.split(strengths, 4, axis=-1), strict=True
        )
        change = jnp.concatenate([error * nn.sigmoid(strength) for error, strength in errors], -1)
        y = y.reshape(*inputs.shape[:-1], self.features).astype(dtype)
        return carry + _outer(key, change), y

    @nn.nowrap
    def _columns(self, rows: int) -> dict[str, int]:
        """Return what a head's matrix makes of its input, and how many numbers each has."""
        out = self.features // self.heads
        return {"outputs": out, "queries": rows, "keys": rows, "strengths": 4}

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """Return changes of zero for inputs of shape `input_shape`."""
        del rng
        name = type(self).__name__
        expect.positive(name, features=self.features, heads=self.heads)
        for width in (self.features, input_shape[-1]):
            expect.divides(name, heads=self.heads, width=width)
        rows = input_shape[-1] // self.heads
        shape = (*input_shape[:-1], self.heads, rows, sum(self._columns(rows).values()))
        return _zeros(name, self.dtype, shape)

    @property
    def num_feature_axes(self) -> int:
        """Number of the input's feature axes."""
        return 1


class WeightSpaceCell(nn.RNNCellBase):
    """A linear recurrence over an executor's packed weights, driven by differences of inputs.

    The state `w_t = a * w_{t-1} + (x_t - x_{t-1}) C` are the numbers of a specification: whole
    weights, low-rank factors, gains, or any other kinds. The output is that of the executor with
    the weights that they are unpacked to, which `modulate` applies to each sample without forming a
    kernel.

    The numbers before the first step are trained, and `x` before it is 0. The carry is how far the
    numbers are from these, and the last input. With an initial network as in the paper, `w_0 =
    phi(x_0)`, give `nn.RNN` the `initial_carry=(phi(x[:, 0]), x[:, 0])`: numbers start at `phi`
    plus the trained ones, and the first difference is 0.

    Attributes:
        executor: a Linen module or a `Network`.
        spec: which of its leaves the numbers are, `factor_spec(executor's params, ranks)`.
        base: "none": the numbers alone are the weights, as in the paper, and all leaves must be in
            the specification; whole leaves start as `executor.init` makes them. "trained": what the
            numbers say is added to trained weights `W0`, which it leaves as they are at the start.
        read: function from a step's inputs `[n, in]` to the executor's, `[n, ...]`. By default they
            are the same. `lambda x: x[:, -1:]` reads at a coordinate, such as the time, that the
            inputs have in the last place.
        full: whether `a` is a matrix `[size, size]`, as in the paper, in place of one number for
            each number of the state. It starts as the identity, and `C` as 0.
        dtype: in which differences are multiplied by `C`, as in Flax; the state is float32. The
            executor computes in its own. None: the dtype to which inputs and weights promote.

    References:
        Nzoyem et al., "Weight-Space Linear Recurrent Neural Networks" (2025), which calls it WARP,
        with a full matrix, whole weights and no base.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax import factor_spec, linen
        >>> from straw_jax.weight_cells import WeightSpaceCell
        >>> executor = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])
        >>> x = jnp.ones((4, 5, 3))  # [batch, time, in]
        >>> weights = jax.eval_shape(linen(executor).init, jax.random.key(0), x[:, 0])
        >>> cell = WeightSpaceCell(executor, factor_spec(weights, 1))  # kernels of rank 1
        >>> outputs, _ = jax.jit(nn.RNN(cell).init_with_output)(jax.random.key(0), x)
        >>> outputs.shape
        (4, 5, 2)
    """

    executor: nn.Module | Network
    spec: FactorSpec
    base: OwnBase = "none"
    read: Callable[[Array], Any] | None = None
    full: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], inputs: Array) -> tuple[Any, Any]:
        """Compute one step.

        Args:
            carry: numbers, less those before the first step, `[..., size]`, and the last inputs,
                `[..., in]`.
            inputs: `[..., in]`.

        Returns:
            The next carry, and the executor's output, `[..., *its shape]`.
        """
        expect.carry(type(self).__name__, self, inputs, carry)
        network = self._network()
        change, before = carry
        (inputs,) = promote_dtype(inputs, dtype=self.dtype)
        rows = inputs.reshape(-1, inputs.shape[-1])
        seen = rows if self.read is None else self.read(rows)
        sample = zeros_like(seen, type(self).__name__, "what is read")
        shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), sample))
        self._check_leaves(shapes)
        start = self.param("start", lambda key: self._first_numbers(key, network, sample))
        start = cast(start, change.dtype)
        numbers = self._step(change + jnp.broadcast_to(start, change.shape), before, inputs)
        self.sow("intermediates", "written", numbers)
        weights = shapes
        if self.base == "trained":
            weights = self.param("weights", lambda key: network.init(key, sample))
        factors = self.spec.unpack(numbers.reshape(-1, self.spec.size), self._shared())
        y = modulate(network.apply)(weights, factors, seen)
        y = jax.tree.map(lambda leaf: leaf.reshape(*inputs.shape[:-1], *leaf.shape[1:]), y)
        change = numbers - jnp.broadcast_to(start, numbers.shape)
        return (change, inputs.astype(before.dtype)), y

    def _step(self, numbers: Array, before: Array, inputs: Array) -> Array:
        """Return the next numbers `[..., size]`."""
        size = self.spec.size
        drive = self.param("drive", nn.initializers.zeros, (inputs.shape[-1], size))
        moved = inputs.astype(before.dtype) - before
        moved, drive = promote_dtype(moved, drive, dtype=self.dtype)
        added = dot(moved, drive, None).astype(numbers.dtype)
        if self.full:
            decay = self.param("decay", lambda key, size: jnp.eye(size), size)
            return dot(numbers, cast(decay, numbers.dtype), None) + added
        decay = self.param("decay", nn.initializers.ones, (size,))
        return numbers * jnp.broadcast_to(cast(decay, numbers.dtype), numbers.shape) + added

    def _first_numbers(self, key: Array, network: Network, sample: Any) -> Array:
        """Return the numbers before the first step, `[size]`."""
        first, *keys = jax.random.split(key, 1 + sum(len(leaf.written) for leaf in self.spec))
        plain = named_leaves(network.init(first, sample))
        drawn, numbers = iter(keys), []
        for leaf in self.spec:
            starts = leaf.starts(self.base == "trained")
            for name, part in leaf.written.items():
                own, start = next(drawn), starts[name]
                if self.base == "none" and name == "whole" and isinstance(leaf.kinds[0], Whole):
                    array = cast(plain[leaf.path], jnp.float32)
                else:
                    scale = 0.0 if start.zero else start.scale
                    array = scale * jax.random.normal(own, part.shape) + start.mean
                    array = array + jnp.broadcast_to(
                        jnp.asarray(part.offset, array.dtype), part.shape
                    )
                numbers.append(array.reshape(-1))
        return jnp.concatenate(numbers)

    def _shared(self) -> dict[str, Array]:
        """Return what all samples share, by path and name."""

        def own(leaf: GeneratedLeaf, name: str) -> Array:
            part, with_base = leaf.shared[name], self.base == "trained"
            init = shared_init(part, leaf.starts(with_base).get(name), with_base)
            array: Array = self.param(f"{leaf.path}/{name}".replace("/", "."), init, part.shape)
            return array

        return {
            f"{leaf.path}/{name}": own(leaf, name) for leaf in self.spec for name in leaf.shared
        }

    @nn.nowrap
    def _network(self) -> Network:
        """Return the executor's functions; of a module, apart from this one's parameters."""
        executor = self.executor
        if isinstance(executor, nn.Module):
            executor = executor.clone(parent=None)
        return as_network(executor)

    @nn.nowrap
    def _check_leaves(self, shapes: Any) -> None:
        alone = {leaf.path for leaf in self.spec if any(kind.stands_alone for kind in leaf.kinds)}
        missing = sorted(set(named_leaves(shapes)) - alone)
        if self.base == "none" and missing:
            raise ValueError(
                f"WeightSpaceCell: expected a specification of all leaves, base 'none', got none of"
                f" {missing}, or one that changes weights only. Name them in factor_spec, or give"
                " base='trained'."
            )

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Return changes and inputs of zero for inputs of shape `input_shape`."""
        del rng
        name = type(self).__name__
        if not isinstance(self.spec, FactorSpec):
            raise ValueError(
                f"{name}: expected a FactorSpec, got {expect.describe(self.spec)}. Make it with"
                " factor_spec(params, ranks)."
            )
        if self.base not in get_args(OwnBase):
            raise ValueError(f"{name}: expected a base of {get_args(OwnBase)}, got {self.base!r}.")
        shapes = (*input_shape[:-1], self.spec.size), input_shape
        change, before = (_zeros(name, self.dtype, shape) for shape in shapes)
        return change, before

    @property
    def num_feature_axes(self) -> int:
        """Number of the input's feature axes."""
        return 1


def _zeros(where: str, dtype: DTypeLike | None, shape: tuple[int, ...]) -> Array:
    """Return a state of zeros, of the dtype in which a cell's sums are."""
    expect.compute_dtype(where, dtype)
    return jnp.zeros(shape, accumulator_dtype(jnp.dtype(dtype or jnp.float32)))


def _unit(x: Array) -> Array:
    """Return vectors of length 1, or less if they are almost 0."""
    wide = x.astype(accumulator_dtype(x.dtype))
    return wide * jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + 1e-6)


def _read_out(rows: Array, matrix: Array) -> Array:
    """Return what matrices `[..., in, out]` return for rows `[..., in]`."""
    return jnp.einsum("...i,...io->...o", rows, matrix)


def _outer(rows: Array, columns: Array) -> Array:
    """Return products `[..., in, out]` of rows `[..., in]` and columns `[..., out]`."""
    return jnp.einsum("...i,...o->...io", rows, columns)


def _shifted_normal(mean: float, deviation: float) -> Callable[..., Array]:
    def init(key: Array, shape: tuple[int, ...]) -> Array:
        return mean + deviation * jax.random.normal(key, shape)

    return init
