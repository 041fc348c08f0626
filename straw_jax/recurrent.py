"""Recurrent cells for `nn.RNN` whose weights change at every step.

All generated numbers of a step are a function of a small LSTM's state. A cell sows this state as
"seen" and the generated numbers as "written" into the collection "intermediates". Where the
collection "replaced" has an entry "seen", the cell uses it in place of the state. To pass both
collections for all steps of a sequence `[batch, time, ...]`, use
`nn.RNN(cell, variable_axes={"intermediates": 1, "replaced": 1})`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax import expect
from straw_jax.functional import hyperlora
from straw_jax.lowrank import accumulator_dtype

Carry: TypeAlias = Any
Initializer: TypeAlias = Callable[..., Array]

_GATES = 4  # along an axis of their own: input, candidate, forget, output


class LSTMCell(nn.RNNCellBase):
    """An LSTM, with or without layer norm: the baseline of the cells below, and what they modulate.

    Each gate's matrix, for input and state joined, is initialised as orthogonal.

    Attributes:
        features: length of the state.
        layer_norm: normalise each gate's pre-activation (the sum of input, state and bias terms),
            and the memory before the output.
        dropout: share of the candidates that is dropped in training.
        deterministic: drop nothing. Otherwise an rng "dropout" is needed, which `nn.RNN` passes on
            with `split_rngs={"params": False, "dropout": True}`.
        forget_bias: added before the forget gate's sigmoid.
        dtype: of computation and state, as in Flax: parameters stay float32, and so does the
            memory, a sum over all steps. None: the dtype to which input and weights promote.

    References:
        Hochreiter and Schmidhuber (1997). Ba et al., "Layer Normalization" (2016), normalise the
        terms of input and state separately; Ha et al., "HyperNetworks" (2016), appendix A.2.2,
        equation 10, normalise their sum, as here. Semeniuta et al., "Recurrent Dropout without
        Memory Loss" (2016).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.recurrent import LSTMCell
        >>> init = jax.jit(nn.RNN(LSTMCell(16, layer_norm=True)).init_with_output)
        >>> states, _ = init(jax.random.key(0), jnp.ones((2, 5, 3)))  # [batch, time, in]
        >>> states.shape
        (2, 5, 16)
    """

    features: int
    layer_norm: bool = False
    dropout: float = 0.0
    deterministic: bool = True
    forget_bias: float = 1.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Compute one step.

        Args:
            carry: memory and state, `[..., features]` each.
            inputs: `[..., in]`.

        Returns:
            The next carry, and the state.
        """
        self._check(inputs, carry)
        memory, state = carry
        joined = jnp.concatenate(self._cast(inputs, state), axis=-1)
        gates = nn.Dense(
            _GATES * self.features, dtype=self.dtype, kernel_init=_gate_init, name="gates"
        )(joined)
        return self._step(memory, gates)

    @nn.nowrap
    def _check(self, inputs: Any, carry: Carry, **sizes: Any) -> None:
        """Raise a `ValueError` unless sizes, inputs and carry are of the form that a step takes."""
        name = type(self).__name__
        expect.positive(name, features=self.features, **sizes)
        expect.finite(name, dropout=self.dropout, forget_bias=self.forget_bias)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"{name}: expected dropout from 0 to 1, got {self.dropout}.")
        expect.carry(name, self, inputs, carry)

    @nn.nowrap
    def _cast(self, *arrays: Array) -> list[Array]:
        """Return arrays in `dtype`, or as they are."""
        return [x if self.dtype is None else jnp.asarray(x, self.dtype) for x in arrays]

    def _step(self, memory: Array, gates: Array) -> tuple[Carry, Array]:
        """Return the next carry for the gates' pre-activations `[..., 4 * features]`."""
        gates = gates.reshape(*gates.shape[:-1], _GATES, self.features)
        if self.layer_norm:
            gates = nn.LayerNorm(
                reduction_axes=-1, feature_axes=(-2, -1), dtype=self.dtype, name="gates_norm"
            )(gates)
        enter, candidate, forget, leave = (gates[..., i, :] for i in range(_GATES))
        dropped = nn.Dropout(self.dropout, deterministic=self.deterministic)
        candidate = dropped(jnp.tanh(candidate))
        wider = max(memory.dtype, gates.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
        kept = nn.sigmoid(forget + self.forget_bias).astype(wider) * memory.astype(wider)
        memory = kept + (nn.sigmoid(enter) * candidate).astype(wider)
        shown = memory
        if self.layer_norm:
            shown = nn.LayerNorm(dtype=self.dtype, name="memory_norm")(memory)
        state = nn.sigmoid(leave) * jnp.tanh(shown.astype(leave.dtype))
        return (memory, state), state

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """Return memory and state of zeros for inputs of shape `input_shape`."""
        del rng
        return self._zeros(input_shape, self.features)

    @nn.nowrap
    def _zeros(self, input_shape: tuple[int, ...], features: int) -> tuple[Array, Array]:
        """Return the memory and the state of a cell, both 0."""
        expect.compute_dtype(type(self).__name__, self.dtype)
        dtype = jnp.dtype(self.dtype or jnp.float32)
        # Of 16 bits, a memory would lose small additions.
        memory = jnp.zeros((*input_shape[:-1], features), accumulator_dtype(dtype))
        return memory, memory.astype(dtype)

    @property
    def num_feature_axes(self) -> int:
        """Number of the input's feature axes."""
        return 1


class HyperLSTMCell(LSTMCell):
    """An LSTM whose kernel columns are scaled at every step by a smaller LSTM.

    The input of the small LSTM is the cell's input and state. For each gate, linear layers make
    three short embeddings from the small LSTM's state. Two of them give a factor for each unit of
    the gate, one for the input term and one for the state term; the third gives the gate's bias.
    Embeddings use the small LSTM's state of the same step, as the paper's section 3.2 describes;
    its equation 11 prints the state of the step before.

    All factors are initialised with 0.1, as in the paper. There the weights from an embedding to a
    factor start equal, so that the numbers of an embedding have the same gradients and stay equal.
    Here these weights differ, and their sum is the paper's. Each gate's matrices of input and of
    state are orthogonal, separately; those of the small LSTM jointly, as in `LSTMCell`.

    Attributes:
        hyper_features: length of the small LSTM's state.
        embedding: length of each embedding.

    References:
        Ha et al., "HyperNetworks" (2016), appendices A.2.2 and A.2.3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.recurrent import HyperLSTMCell
        >>> init = jax.jit(nn.RNN(HyperLSTMCell(16, hyper_features=8)).init_with_output)
        >>> states, _ = init(jax.random.key(0), jnp.ones((2, 5, 3)))  # [batch, time, in]
        >>> states.shape
        (2, 5, 16)
    """

    hyper_features: int = 128
    embedding: int = 4

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Compute one step; the carry is the main LSTM's and the small LSTM's."""
        self._check(inputs, carry, hyper_features=self.hyper_features, embedding=self.embedding)
        (memory, state), hyper = carry
        inputs, state = self._cast(inputs, state)
        cell = LSTMCell(self.hyper_features, self.layer_norm, dtype=self.dtype, name="hyper")
        hyper, seen = cell(hyper, jnp.concatenate([inputs, state], axis=-1))
        seen = _shown(self, seen)
        gates = self._bias(seen)
        factors = {}
        for name, vector in (("input", inputs), ("state", state)):
            product = nn.Dense(
                _GATES * self.features,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_gate_init,
                name=name,
            )(vector)
            factors[name] = self._factors(name, seen)
            gates += factors[name] * product
        self.sow("intermediates", "written", factors)
        main, state = self._step(memory, gates)
        return (main, hyper), state

    def _factors(self, name: str, seen: Array) -> Array:
        """Return a factor for each unit of each gate."""
        embeddings = self._embeddings(name, seen, nn.initializers.zeros, use_bias=True)
        return self._project(f"{name}_factors", embeddings, _factor_init)

    def _bias(self, seen: Array) -> Array:
        """Return the bias of each unit of each gate."""
        gaussian = nn.initializers.normal(0.01)
        embeddings = self._embeddings("bias", seen, gaussian, use_bias=False)
        base = self.param("bias", nn.initializers.zeros, (_GATES * self.features,))
        bias = self._project("bias_change", embeddings, nn.initializers.zeros)
        return bias + jnp.broadcast_to(base.astype(bias.dtype), bias.shape)

    def _embeddings(self, name: str, seen: Array, init: Initializer, *, use_bias: bool) -> Array:
        """Return an embedding for each gate, `[..., 4, embedding]`."""
        embeddings = nn.Dense(
            _GATES * self.embedding,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=init,
            bias_init=nn.initializers.ones,
            name=f"{name}_embeddings",
        )(seen)
        return embeddings.reshape(*seen.shape[:-1], _GATES, self.embedding)

    def _project(self, name: str, embeddings: Array, init: Initializer) -> Array:
        """Return a number for each unit of each gate, `[..., 4 * features]`."""
        kernel = self.param(name, init, (_GATES, self.embedding, self.features))
        kernel = kernel.astype(embeddings.dtype)
        if jax.default_backend() == "cpu":  # where XLA takes long over a batch of such products
            by_gate = [embeddings[..., gate, :] @ kernel[gate] for gate in range(_GATES)]
            return jnp.concatenate(by_gate, axis=-1)
        numbers = jnp.einsum("...ge,gef->...gf", embeddings, kernel)
        return numbers.reshape(*numbers.shape[:-2], -1)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """Return carries of zeros for inputs of a shape."""
        main = LSTMCell.initialize_carry(self, rng, input_shape)
        return main, self._zeros(input_shape, self.hyper_features)


class LowRankLSTMCell(LSTMCell):
    """An LSTM to whose kernel a smaller LSTM adds a low-rank update at every step.

    The input of the small LSTM is the cell's input and state. Linear layers make `B` and `A` from
    its state, and the gates use `kernel + B @ A`, never formed. `A` is initialised with 0, which
    gives an ordinary LSTM; all matrices are initialised as in `LSTMCell`.

    Attributes:
        hyper_features: length of the small LSTM's state.
        rank: of the update.
        scale: of `B`. Without layer norm, updates of scale 1 may saturate the gates so that the
            memory grows without bound and training does not recover.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from straw_jax.recurrent import LowRankLSTMCell
        >>> init = jax.jit(nn.RNN(LowRankLSTMCell(16, hyper_features=8, rank=2)).init_with_output)
        >>> states, _ = init(jax.random.key(0), jnp.ones((2, 5, 3)))  # [batch, time, in]
        >>> states.shape
        (2, 5, 16)
    """

    hyper_features: int = 128
    rank: int = 1
    scale: float = 0.1

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Compute one step; the carry is the main LSTM's and the small LSTM's."""
        self._check(inputs, carry, hyper_features=self.hyper_features, rank=self.rank)
        (memory, state), hyper = carry
        joined = jnp.concatenate(self._cast(inputs, state), axis=-1)
        cell = LSTMCell(self.hyper_features, self.layer_norm, dtype=self.dtype, name="hyper")
        hyper, seen = cell(hyper, joined)
        seen = _shown(self, seen)
        rows, columns = joined.shape[-1], _GATES * self.features
        kernel = self.param("kernel", _gate_init, (rows, columns))
        bias = self.param("bias", nn.initializers.zeros, (columns,))
        B = self.scale * self._factor("B", (rows, self.rank), seen, nn.initializers.lecun_normal())
        A = self._factor("A", (self.rank, columns), seen, nn.initializers.zeros)
        self.sow("intermediates", "written", {"B": B, "A": A})
        gates = hyperlora(joined, B, A, kernel, bias, dtype=self.dtype)
        main, state = self._step(memory, gates)
        return (main, hyper), state

    def _factor(self, name: str, shape: tuple[int, int], seen: Array, init: Initializer) -> Array:
        m, n = shape
        factor = nn.Dense(m * n, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)
        return factor(seen).reshape(*seen.shape[:-1], m, n)

    initialize_carry = HyperLSTMCell.initialize_carry


def _shown(cell: nn.Module, seen: Array) -> Array:
    """Sow the small LSTM's state, and return it or its replacement."""
    cell.sow("intermediates", "seen", seen)
    return cell.get_variable("replaced", "seen", seen).astype(seen.dtype)


def _factor_init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Initialise `[gates, embedding, features]` with numbers whose sum is 0.1 for each unit."""
    numbers = jax.random.normal(key, shape, dtype)
    numbers -= numbers.mean(axis=1, keepdims=True)
    return 0.1 / shape[1] * (1 + numbers)


def _gate_init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Initialise `[in, 4 * out]` orthogonally, each gate's `[in, out]` separately."""
    rows, columns = shape
    init = nn.initializers.orthogonal()
    keys = jax.random.split(key, _GATES)
    return jnp.concatenate([init(k, (rows, columns // _GATES), dtype) for k in keys], axis=1)
