"""Fast weights: what a sequence of keys and values writes into a weight matrix, as factors.

    W_t = g_t W_{t-1} + b_t k_t^T (v_t - g_t k_t W_{t-1})      delta rule
    W_t = g_t W_{t-1} + k_t^T v_t                              Hebb's rule

Keys `k_t` and values `v_t` are rows, `b_t` is the strength of a step and `g_t` the share that is
kept, 1 without forgetting. With `G_ts = g_{s+1} ... g_t`, the weights after `t` steps are

    W_t = G_t0 W_0 + sum_{s <= t} G_ts k_s^T u_s

where `u_t = b_t (v_t - g_t k_t W_{t-1})` is what the delta rule writes in step `t`. With `W_{t-1}`
put in, the rows `u_t` solve a system of equations whose matrix is triangular:

    u_t + b_t sum_{s < t} G_ts (k_t . k_s) u_s = b_t (v_t - G_t0 k_t W_0)

So no `W_t` is formed, and the update after `T` steps is `B @ A` of rank `T`: the columns of `B` are
`G_Ts k_s`, the rows of `A` are `u_s`. All sums are in float32 or wider.

The functions take one sequence; `jax.vmap` adds samples.
"""

from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from straw_jax import expect
from straw_jax.kinds import Factors, Gains
from straw_jax.lowrank import accumulator_dtype


@overload
def delta_rule(
    keys: Array,
    values: Array,
    strengths: ArrayLike,
    base: Array | None = None,
    *,
    forgetting: None = None,
    chunk: int | None = None,
) -> Factors: ...


@overload
def delta_rule(
    keys: Array,
    values: Array,
    strengths: ArrayLike,
    base: None = None,
    *,
    forgetting: ArrayLike,
    chunk: int | None = None,
) -> Factors: ...


@overload
def delta_rule(
    keys: Array,
    values: Array,
    strengths: ArrayLike,
    base: Array,
    *,
    forgetting: ArrayLike,
    chunk: int | None = None,
) -> tuple[Gains, Factors]: ...


def delta_rule(
    keys: Array,
    values: Array,
    strengths: ArrayLike,
    base: Array | None = None,
    *,
    forgetting: ArrayLike | None = None,
    chunk: int | None = None,
) -> Factors | tuple[Gains, Factors]:
    """Return the update that the delta rule makes of a sequence of keys and values.

    Each step corrects what the weights return for its key: the error is multiplied by
    `1 - b |k|^2`. Keys are used as they are; give them length 1, and strengths from 0 to 1.

    Args:
        keys: `[T, in]`, one a step.
        values: `[T, out]`, what the weights should return for them.
        strengths: `[T]`, or a number: the step sizes `b_t`.
        base: the weights `[in, out]` before the first step, which the sequence corrects; if
            omitted, it starts from zero weights.
        forgetting: `[T]`, or a number: the factors `g_t` of the weights before each step. None is
            1: nothing is forgotten.
        chunk: number of steps that are solved together. By default all are, with `[T, T]` numbers
            and no array `[in, out]` besides the base. In chunks the numbers are `[T, chunk]`, and
            weights `[in, out]` are formed and passed from chunk to chunk.

    Returns:
        Factors of rank `T`, in the dtype to which the arguments promote. With a base that is
        forgotten, a pair: the gain `g_1 ... g_T` of the base, and the factors. Both are entries of
        a tree of factors, for this base.

    Raises:
        ValueError: if shapes do not fit, or an argument has no real numbers.

    References:
        Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers" (2021), section
        4.2. The triangular system: Yang et al., "Parallelizing Linear Transformers with the Delta
        Rule over Sequence Length" (2024), section 3. With forgetting: Yang et al., "Gated Delta
        Networks" (2024), equation 10 and appendix A.

    Example:
        Two tasks have the same images, and the labels are others. The context says which label is
        which, so the layer's own weights are zero.

        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import delta_rule, modulate
        >>> images = jnp.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
        >>> keys = jnp.stack([images, images])
        >>> values = jax.nn.one_hot(jnp.array([[0, 1, 2], [2, 0, 1]]), 3)
        >>> factors = jax.vmap(delta_rule)(keys, values, jnp.ones((2, 3)))
        >>> layer = modulate(lambda params, x: x @ params["W"])
        >>> layer({"W": jnp.zeros((3, 3))}, {"W": factors}, keys).argmax(axis=-1).tolist()
        [[0, 1, 2], [2, 0, 1]]
    """
    where = "delta_rule"
    _check(
        where,
        keys=(keys, "T", "in"),
        values=(values, "T", "out"),
        strengths=(strengths, "T"),
        base=(base, "in", "out"),
        forgetting=(forgetting, "T"),
    )
    if chunk is not None:
        expect.positive(where, chunk=chunk)
    dtype = canonicalize_dtype(keys, values, strengths, base, forgetting)
    wide = accumulator_dtype(dtype)
    steps = _steps(keys, values, strengths, forgetting, wide)
    start = None if base is None else jnp.asarray(base, wide)
    factors, share = _delta_rule(steps, start, chunk, dtype)
    if base is None or forgetting is None:
        return factors
    return Gains(outputs=jnp.broadcast_to(share, factors.A.shape[-1:])), factors


def hebb(keys: Array, values: Array, *, forgetting: ArrayLike | None = None) -> Factors:
    """Return the update that Hebb's rule makes of a sequence of keys and values.

    Args:
        keys: `[T, in]`, one a step.
        values: `[T, out]`, one a step; multiply them by the strengths of steps.
        forgetting: `[T]`, or a number: the factors `g_t` of the update before each step. The base,
            if there is one, is not forgotten. None is 1: nothing is forgotten.

    Returns:
        Factors of rank `T`, in the dtype to which the arguments promote.

    Raises:
        ValueError: if shapes do not fit, or an argument has no real numbers.

    References:
        Schlag et al., "Linear Transformers Are Secretly Fast Weight Programmers" (2021), section 3;
        with forgetting: Ba et al., "Using Fast Weights to Attend to the Recent Past" (2016).

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import hebb, materialize
        >>> keys, values = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[4.0], [1.0]])
        >>> W = {"W": jnp.zeros((2, 1))}
        >>> materialize(W, {"W": hebb(keys, values)})["W"].tolist()
        [[5.0], [1.0]]
        >>> materialize(W, {"W": hebb(keys, values, forgetting=0.5)})["W"].tolist()
        [[3.0], [1.0]]
    """
    _check(
        "hebb",
        keys=(keys, "T", "in"),
        values=(values, "T", "out"),
        forgetting=(forgetting, "T"),
    )
    dtype = canonicalize_dtype(keys, values, forgetting)
    return _hebb(_steps(keys, values, 1.0, forgetting, accumulator_dtype(dtype)), dtype)


def delta_rule_outputs(
    queries: Array,
    keys: Array,
    values: Array,
    strengths: ArrayLike,
    state: Array | None = None,
    *,
    forgetting: ArrayLike | None = None,
    chunk: int = 64,
) -> tuple[Array, Array]:
    """Return `q_t W_t` for a query of each step, where the delta rule makes `W_t`.

    Memory and cost grow with `T * chunk`, not with `T * T`. A sequence may come in pieces, or step
    by step: give the state that one call returns to the next.

    Args:
        queries: `[T, in]`. Query `t` sees the keys and values up to and with step `t`.
        keys: `[T, in]`, as are `values`, `strengths` and `forgetting` those of `delta_rule`.
        values: `[T, out]`.
        strengths: `[T]`, or a number.
        state: the weights `[in, out]` before the first step; zero if omitted.
        forgetting: `[T]`, or a number; None is 1.
        chunk: number of steps that are computed together; results are the same but for rounding.

    Returns:
        Outputs `[T, out]`, in the dtype to which the arguments without the state promote, and the
        weights `[in, out]` after the last step, in float32 or wider.

    Raises:
        ValueError: if shapes do not fit, or an argument has no real numbers.

    References:
        As for `delta_rule`; in chunks: Yang et al., "Gated Delta Networks" (2024), section 3.3.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax import delta_rule_outputs
        >>> keys, values = jnp.eye(2)[jnp.array([0, 1, 0])], jnp.array([[1.0], [2.0], [3.0]])
        >>> queries = jnp.ones((3, 2))
        >>> outputs, state = delta_rule_outputs(queries, keys, values, 1.0)
        >>> outputs.tolist(), state.tolist()
        ([[1.0], [3.0], [5.0]], [[3.0], [2.0]])
    """
    where = "delta_rule_outputs"
    _check(
        where,
        keys=(keys, "T", "in"),
        values=(values, "T", "out"),
        queries=(queries, "T", "in"),
        strengths=(strengths, "T"),
        state=(state, "in", "out"),
        forgetting=(forgetting, "T"),
    )
    expect.positive(where, chunk=chunk)
    dtype = canonicalize_dtype(queries, keys, values, strengths, forgetting)
    wide = accumulator_dtype(dtype)
    if state is not None:
        wide = jnp.promote_types(wide, accumulator_dtype(canonicalize_dtype(state)))
    steps = _steps(keys, values, strengths, forgetting, wide)
    start = None if state is None else jnp.asarray(state, wide)
    return _outputs(steps, jnp.asarray(queries, wide), start, chunk, dtype)


class _Steps(NamedTuple):
    """A sequence, or a chunk of it."""

    keys: Array  # [T, in]
    values: Array  # [T, out]
    strengths: Array  # [T]
    forgetting: Array | None  # [T]

    def kept(self) -> Array:
        """Return the factors `G_ts` between steps, `[T, T]`, 0 above the diagonal."""
        count, dtype = len(self.keys), self.keys.dtype
        if self.forgetting is None:
            return jnp.tri(count, dtype=dtype)
        # A product of the factors themselves: a quotient of two products fails where one is 0.
        before = jnp.tri(count, k=-1, dtype=bool)
        factors = jnp.where(before, self.forgetting[:, None], 1)
        return jnp.tril(lax.cumprod(factors, axis=0))

    def kept_from_start(self) -> Array:
        """Return the factors `G_t0` of what was there before the first step, `[T]`."""
        if self.forgetting is None:
            return jnp.ones_like(self.strengths)
        return lax.cumprod(self.forgetting)

    def kept_to_end(self) -> Array:
        """Return the factors `G_Ts` of what each step writes, `[T]`."""
        if self.forgetting is None:
            return jnp.ones_like(self.strengths)
        later = jnp.append(self.forgetting[1:], jnp.ones_like(self.forgetting[:1]))
        return lax.cumprod(later, reverse=True)

    def written(self, kept: Array, start: Array | None) -> Array:
        """Return what each step of the delta rule writes, `[T, out]`."""
        errors = self.values
        if start is not None:
            errors = errors - self.kept_from_start()[:, None] * (self.keys @ start)
        strengths = self.strengths[:, None]
        system = strengths * kept * (self.keys @ self.keys.T)  # its diagonal counts as 1
        return lax.linalg.triangular_solve(
            system, strengths * errors, left_side=True, lower=True, unit_diagonal=True
        )

    def chunks(self, size: int) -> "_Steps":
        """Return chunks, `[T / size, size, ...]`; steps that do nothing fill the last one."""
        kept = self.forgetting
        return _Steps(
            _chunks(self.keys, size),
            _chunks(self.values, size),
            _chunks(self.strengths, size),
            None if kept is None else _chunks(kept, size, fill=1),
        )


def _chunks(array: Array, size: int, fill: int = 0) -> Array:
    missing = [(0, -len(array) % size), *[(0, 0)] * (array.ndim - 1)]
    return jnp.pad(array, missing, constant_values=fill).reshape(-1, size, *array.shape[1:])


# One program each where they are called outside of any, and the operations alone within others.
_program = partial(jax.jit, inline=True)


@partial(_program, static_argnums=(2, 3))
def _delta_rule(
    steps: _Steps, start: Array | None, chunk: int | None, dtype: DTypeLike
) -> tuple[Factors, Array]:
    """Return the factors, and the share of the base that is kept."""
    if chunk is None or chunk >= len(steps.keys):
        written = steps.written(steps.kept(), start)
    else:
        written, _, _ = _in_chunks(steps, None, start, chunk)
    factors = _factors(steps, written, dtype)
    return factors, steps.kept_from_start()[-1].astype(dtype)


@partial(_program, static_argnums=1)
def _hebb(steps: _Steps, dtype: DTypeLike) -> Factors:
    return _factors(steps, steps.values, dtype)


@partial(_program, static_argnums=(3, 4))
def _outputs(
    steps: _Steps, queries: Array, start: Array | None, chunk: int, dtype: DTypeLike
) -> tuple[Array, Array]:
    _, outputs, state = _in_chunks(steps, queries, start, min(chunk, len(steps.keys)))
    return outputs.astype(dtype), state


def _factors(steps: _Steps, written: Array, dtype: DTypeLike) -> Factors:
    keys = steps.keys * steps.kept_to_end()[:, None]
    return Factors(B=keys.T.astype(dtype), A=written.astype(dtype))


def _in_chunks(
    steps: _Steps, queries: Array | None, start: Array | None, size: int
) -> tuple[Array, Any, Array]:
    """Return what each step writes, the outputs of queries, and the weights after the last step."""

    def one_chunk(state: Array, chunk: tuple[_Steps, Array | None]) -> tuple[Array, Any]:
        steps, queries = chunk
        kept = steps.kept()
        from_start = steps.kept_from_start()
        written = steps.written(kept, state)
        outputs = None
        if queries is not None:
            within = (kept * (queries @ steps.keys.T)) @ written
            outputs = from_start[:, None] * (queries @ state) + within
        state = from_start[-1] * state + (steps.keys * kept[-1][:, None]).T @ written
        return state, (written, outputs)

    count = len(steps.keys)
    if start is None:
        shape = steps.keys.shape[1], steps.values.shape[1]
        start = jnp.zeros(shape, steps.keys.dtype)
    chunks = steps.chunks(size), None if queries is None else _chunks(queries, size)
    state, of_chunks = lax.scan(one_chunk, start, chunks)
    written, outputs = jax.tree.map(
        lambda array: array.reshape(-1, *array.shape[2:])[:count], of_chunks
    )
    return written, outputs, state


def _steps(
    keys: Array, values: Array, strengths: ArrayLike, forgetting: ArrayLike | None, dtype: DTypeLike
) -> _Steps:
    def each(numbers: ArrayLike) -> Array:
        return jnp.broadcast_to(jnp.asarray(numbers, dtype), keys.shape[:1])

    return _Steps(
        jnp.asarray(keys, dtype),
        jnp.asarray(values, dtype),
        each(strengths),
        None if forgetting is None else each(forgetting),
    )


_OPTIONAL = "base", "state", "forgetting"


def _check(where: str, **arguments: tuple[Any, *tuple[str, ...]]) -> None:
    """Raise a ValueError unless arrays have the axes that are named, each of one size."""
    sizes: dict[str, int] = {}
    for name, (array, *axes) in arguments.items():
        if array is None and name in _OPTIONAL:
            continue
        one_for_all = axes == ["T"]  # a number is enough
        if not _is_real(array) or not (expect.is_array(array) or one_for_all):
            raise ValueError(
                f"{where}: expected {name} to be an array of real numbers [{', '.join(axes)}], got"
                f" {expect.describe(array)}. Convert lists with jnp.asarray."
            )
        shape = jnp.shape(array)
        if one_for_all and not shape:
            continue
        known = [f"{axis} = {sizes[axis]}" for axis in axes if axis in sizes]
        fits = len(shape) == len(axes) and all(
            size > 0 and sizes.setdefault(axis, size) == size
            for axis, size in zip(axes, shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{where}: expected {name} of shape [{', '.join(axes)}]"
                f"{' with ' * bool(known)}{' and '.join(known)}, at least 1 of each, got"
                f" {list(shape)}. Steps come first; for several samples, use jax.vmap."
            )


def _is_real(array: Any) -> bool:
    if not expect.is_number(array):
        return False
    kinds = np.floating, np.integer, np.bool_
    return any(jax.dtypes.issubdtype(jnp.result_type(array), kind) for kind in kinds)
