"""Recurrent cells whose weights change at every step; they go wherever `nn.RNN` takes a cell.

All that a cell writes at a step comes from its small LSTM's state. That is sown as "seen" into the
collection "intermediates", and as "written" what comes of it; where the collection "replaced" has
"seen", this is read in its place. `nn.RNN(cell, variable_axes={"intermediates": 1, "replaced": 1})`
hands both through, for all steps of a sequence `[batch, time, ...]`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from straw_jax.functional import hyperlora

Carry: TypeAlias = Any
Initializer: TypeAlias = Callable[..., Array]

_GATES = 4  # along an axis of their own: input, candidate, forget, output


class LSTMCell(nn.RNNCellBase):
    """An LSTM, with or without layer norm: what the cells below modulate, and are measured by.

    At the start each gate's matrix, of input and state joined, is orthogonal.

    Attributes:
        features: length of the state.
        layer_norm: normalise each gate by itself before its non-linearity, as the sum of what comes
            of input, state and bias, and the memory before the output.
        dropout: share of the candidates that is dropped in training.
        deterministic: do not drop any; else an rng "dropout" is needed, which `nn.RNN` hands on
            with `split_rngs={"params": False, "dropout": True}`.
        forget_bias: added before the forget gate's sigmoid.
        dtype: of computation and state; by default the one to which input and weights promote.

    References:
        Hochreiter and Schmidhuber (1997). Ba et al., "Layer Normalization" (2016), which normalises
        what comes of input and of state each by itself; of their sum it is Ha et al.,
        "HyperNetworks" (2016), appendix A.2.2, equation 10. Semeniuta et al., "Recurrent Dropout
        without Memory Loss" (2016).
    """

    features: int
    layer_norm: bool = False
    dropout: float = 0.0
    deterministic: bool = True
    forget_bias: float = 1.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Take a step.

        Args:
            carry: memory and state, `[..., features]` each.
            inputs: `[..., in]`.

        Returns:
            The next carry, and the state.
        """
        memory, state = carry
        joined = jnp.concatenate([inputs, state], axis=-1)
        gates = nn.Dense(
            _GATES * self.features, dtype=self.dtype, kernel_init=_gate_init, name="gates"
        )(joined)
        return self._step(memory, gates)

    def _step(self, memory: Array, gates: Array) -> tuple[Carry, Array]:
        """Go from gates before their non-linearities, `[..., 4 * features]`, to the next carry."""
        gates = gates.reshape(*gates.shape[:-1], _GATES, self.features)
        if self.layer_norm:
            gates = nn.LayerNorm(
                reduction_axes=-1, feature_axes=(-2, -1), dtype=self.dtype, name="gates_norm"
            )(gates)
        enter, candidate, forget, leave = (gates[..., i, :] for i in range(_GATES))
        dropped = nn.Dropout(self.dropout, deterministic=self.deterministic)
        candidate = dropped(jnp.tanh(candidate))
        memory = nn.sigmoid(forget + self.forget_bias) * memory + nn.sigmoid(enter) * candidate
        shown = memory
        if self.layer_norm:
            shown = nn.LayerNorm(dtype=self.dtype, name="memory_norm")(memory)
        state = nn.sigmoid(leave) * jnp.tanh(shown)
        return (memory, state), state

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """Return memory and state of zeros for inputs of a shape."""
        del rng
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.dtype or jnp.float32)
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        """How many axes of the input are features."""
        return 1


class HyperLSTMCell(LSTMCell):
    """An LSTM the columns of whose kernels a smaller LSTM scales anew at every step.

    The small LSTM sees input and state. For each gate it writes three short embeddings; from two,
    linear layers make a factor for each of the gate's units, one for what comes of the input and
    one for what comes of the state; from the third the gate's bias. Embeddings come from the small
    LSTM's state of the same step, as the paper has it in words (section 3.2); its equation 11
    prints the state of the step before.

    At the start all factors are 0.1, as in the paper; but there the weights that make a factor of
    an embedding start equal, too, so that an embedding's numbers have the same gradients and stay
    copies of one. Here these weights differ, and their sum is the paper's. Each gate's matrices of
    input and of state are orthogonal, each by itself; those of the small LSTM joined, as in
    `LSTMCell`.

    Attributes:
        hyper_features: length of the small LSTM's state.
        embedding: length of each embedding.

    References:
        Ha et al., "HyperNetworks" (2016), appendices A.2.2 and A.2.3.
    """

    hyper_features: int = 128
    embedding: int = 4

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Take a step; the carry is the main LSTM's, and the small one's."""
        (memory, state), hyper = carry
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
        shape = (*input_shape[:-1], self.hyper_features)
        hyper = jnp.zeros(shape, self.dtype or jnp.float32)
        return main, (hyper, hyper)


class LowRankLSTMCell(LSTMCell):
    """An LSTM to whose weights a smaller LSTM adds a low-rank update at every step.

    The small LSTM sees input and state; from its state linear layers write `B` and `A`, and the
    gates are those of `kernel + B @ A`, never formed. At the start `A` is 0: an ordinary LSTM, its
    matrices and the small LSTM's as in `LSTMCell`.

    Attributes:
        hyper_features: length of the small LSTM's state.
        rank: of the update.
        scale: of `B`. Without layer norm an update of scale 1 may drive gates to where the memory
            grows without end, and the network no longer leaves.
    """

    hyper_features: int = 128
    rank: int = 1
    scale: float = 0.1

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Take a step; the carry is the main LSTM's, and the small one's."""
        (memory, state), hyper = carry
        joined = jnp.concatenate([inputs, state], axis=-1)
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
    """Return the small LSTM's state, or what stands in its place; sow it for whoever asks."""
    cell.sow("intermediates", "seen", seen)
    return cell.get_variable("replaced", "seen", seen)


def _factor_init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Initialise `[gates, embedding, features]` with numbers that add up to 0.1 for each unit."""
    numbers = jax.random.normal(key, shape, dtype)
    numbers -= numbers.mean(axis=1, keepdims=True)
    return 0.1 / shape[1] * (1 + numbers)


def _gate_init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Initialise `[in, 4 * out]`, each gate's `[in, out]` by itself, orthogonally."""
    rows, columns = shape
    init = nn.initializers.orthogonal()
    keys = jax.random.split(key, _GATES)
    return jnp.concatenate([init(k, (rows, columns // _GATES), dtype) for k in keys], axis=1)
