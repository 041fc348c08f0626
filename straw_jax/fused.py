"""A Pallas kernel that generates and applies factors without writing them to device memory.

A factor of one sample is `F = bias + sum_h hidden[h] * kernel[:, :, h]` (see `Generated`). The
Pallas kernel forms a row of `F` for a tile of samples, multiplies it by the layer's input, and
discards it; the backward pass forms it again. Only inputs, results, and the sums of some grid steps
are in device memory.

Off by default; `modulate(..., fused=True)` and `make_straw(..., fused=True)` use it. On one H100,
with 128 samples and a factor [16, 8192], or 512 and [64, 8192], its forward pass took 0.77 and 0.42
of the time of the plain products, but forward and backward together 1.02 and 1.04. On GPUs the
kernel runs through Pallas's Triton backend (of which JAX 0.12 warns that it will be removed), on
TPUs through Mosaic; elsewhere JAX interprets it, which is correct but slow. It can be faster only
where factors are large compared with the layer's input and output: few positions per sample, and
factors with at most as many rows as the hidden vector has numbers (`A` of a wide layer). For one
vector per sample and more rows, `apply_factor` does not form the factor either; at hundreds of
positions (convolutions), patches are larger than factors.

How it works: samples are in the last axis and columns of `F` in the one before. So one row of `F`,
for all samples of a tile, is one matrix product, `kernel[row] @ hidden`, `[columns, samples]`, and
all else is elementwise. No grid step depends on another, as GPUs require: sums across steps are
computed outside. The gradient has two kernels: one for the per-sample arrays (x and hidden), and
one for the shared arrays (kernel and bias), which sums over samples inside.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from straw_jax.lowrank import Generated, accumulator_dtype, apply_factor

_REGISTERS = 2**13  # numbers in the arrays that a kernel computes with, between products
_TPU_REGISTERS = 2**15
_OPERAND = 2**14  # numbers in an operand of a product: 64 KiB of a GPU's shared memory
_BLOCK_BYTES = 2**21  # of one array in a TPU's fast memory of 16 MiB, which holds each twice
_GRID_STEPS = 128  # wanted, to keep a GPU busy


class Tiles(NamedTuple):
    """Tile sizes; `x` becomes `[steps, m, positions, samples]`.

    Attributes:
        samples: per tile; a power of two.
        positions: per tile; a power of two.
        columns: of the factor per tile; a power of two.
        rows: of the factor per grid step, forward and for the gradients of x and hidden.
        shared_rows: of the factor per grid step, for the gradients of kernel and bias.
        group: tiles of samples and positions over which one grid step of that kernel sums.

    Example:
        >>> from straw_jax.fused import choose_tiles
        >>> choose_tiles(batch=128, positions=1, m=16, h=128, n=8192, tpu=False)
        Tiles(samples=64, positions=1, columns=128, rows=16, shared_rows=8, group=2)
    """

    samples: int
    positions: int
    columns: int
    rows: int
    shared_rows: int
    group: int


def choose_tiles(batch: int, positions: int, m: int, h: int, n: int, *, tpu: bool) -> Tiles:
    """Choose tiles that fit registers and fast memory, with enough grid steps for a GPU.

    Args:
        batch: number of samples.
        positions: number of vectors per sample.
        m: rows of the factor.
        h: length of the hidden vector.
        n: columns of the factor.
        tpu: for a TPU, where the last axis of a tile must be whole or a multiple of 128.

    Returns:
        The tile sizes.

    Example:
        >>> from straw_jax.fused import choose_tiles
        >>> choose_tiles(batch=128, positions=1, m=16, h=128, n=8192, tpu=True).columns
        128
    """
    longest = max(16, _OPERAND // _pad(h))
    columns = min(128, _pad(n)) if tpu else min(128, _pad(n), longest)
    at_once, samples = min(32, pl.next_power_of_2(positions)), min(128, _pad(batch), longest)
    while at_once * samples * columns > (_TPU_REGISTERS if tpu else _REGISTERS):
        if at_once > 1 and (tpu or at_once >= samples or samples == 16):
            at_once //= 2
        else:
            samples //= 2
    steps = pl.cdiv(batch, samples) * pl.cdiv(positions, at_once)
    column_steps = pl.cdiv(n, columns)
    row_bytes = 4 * max(_tpu_size(_pad(h), columns), _tpu_size(at_once, samples))
    rows = pl.cdiv(m, pl.cdiv(_GRID_STEPS, steps * column_steps))
    rows = min(pl.align_to(rows, 8), max(8, _BLOCK_BYTES // row_bytes // 8 * 8), m)
    shared_rows = min(8, m)
    tile_bytes = 4 * max(
        at_once * _tpu_size(columns, samples), shared_rows * _tpu_size(at_once, samples)
    )
    groups = pl.cdiv(_GRID_STEPS, pl.cdiv(m, shared_rows) * column_steps)
    group = min(pl.cdiv(steps, groups), max(1, _BLOCK_BYTES // tile_bytes))
    return Tiles(samples, at_once, columns, rows, shared_rows, group)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def generate_and_apply(
    x: Array, hidden: Array, kernel: Array, bias: Array, precision: lax.PrecisionLike = None
) -> Array:
    """Multiply each sample's `x` by the factor that its hidden vector generates.

    Computes `x @ (bias + sum_h hidden[h] * kernel[:, :, h])` with one Pallas kernel. Has gradients
    of first order, in reverse mode. All arrays have one floating dtype; products of 16-bit numbers
    are summed in float32.

    Args:
        x: `[batch, positions, m]`.
        hidden: `[batch, h]`.
        kernel: `[m, n, h]`, shared by all samples.
        bias: `[m, n]`, shared by all samples.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[batch, positions, n]`, float32 or wider.

    Raises:
        ValueError: if shapes or dtypes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.fused import generate_and_apply
        >>> x, hidden = jnp.ones((5, 2, 3)), jnp.ones((5, 8))
        >>> generate_and_apply(x, hidden, jnp.ones((3, 4, 8)), jnp.ones((3, 4))).shape
        (5, 2, 4)
    """
    _check(x, hidden, kernel, bias)
    return _on_this_device(functools.partial(_forward, precision), x, hidden, kernel, bias)


def _generate_and_apply_fwd(
    x: Array, hidden: Array, kernel: Array, bias: Array, precision: lax.PrecisionLike
) -> tuple[Array, tuple[Array, ...]]:
    return generate_and_apply(x, hidden, kernel, bias, precision), (x, hidden, kernel, bias)


def _generate_and_apply_bwd(
    precision: lax.PrecisionLike, residuals: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    x, hidden, kernel, bias = residuals
    function = functools.partial(_gradients, precision)
    gradients = _on_this_device(function, x, hidden, kernel, bias, dy)
    return tuple(g.astype(p.dtype) for g, p in zip(gradients, residuals, strict=True))


generate_and_apply.defvjp(_generate_and_apply_fwd, _generate_and_apply_bwd)


def apply_generated(x: Array, factor: Generated, precision: lax.PrecisionLike = None) -> Array:
    """Multiply the vectors of one sample by its factor, as `lowrank.apply_factor`.

    Under `jax.vmap` over samples (`x` and the hidden vector mapped, kernel and bias not) this is
    `generate_and_apply`; otherwise it is `apply_factor`. Differentiate outside of `jax.vmap`: JAX
    raises an error for reverse mode inside of it or without it.

    Args:
        x: `[..., m]`.
        factor: `[m, n]`.
        precision: of the matrix products, as in `jax.lax.dot_general`.

    Returns:
        `[..., n]`, float32 or wider.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax import Generated
        >>> from straw_jax.fused import apply_generated
        >>> kernel, bias = jnp.ones((3, 4, 8)), jnp.ones((3, 4))
        >>> one = lambda x, hidden: apply_generated(x, Generated(hidden, kernel, bias))
        >>> jax.vmap(one)(jnp.ones((5, 2, 3)), jnp.ones((5, 8))).shape
        (5, 2, 4)
    """
    return _per_sample(precision)(x, *factor)


@functools.cache
def _per_sample(precision: lax.PrecisionLike) -> Callable[..., Array]:
    def plain(x: Array, *factor: Array) -> Array:
        return apply_factor(x, Generated(*factor), precision)

    @custom_vmap
    def apply(x: Array, hidden: Array, kernel: Array, bias: Array) -> Array:
        return plain(x, hidden, kernel, bias)

    @apply.def_vmap
    def _(size: int, mapped: list[bool], x: Array, *factor: Array) -> tuple[Array, bool]:
        if mapped == [True, False, False, False]:  # more vectors of one sample
            return apply(x, *factor), True
        if mapped == [True, True, False, False] and x.size:
            y = generate_and_apply(x.reshape(size, -1, x.shape[-1]), *factor, precision)
            return y.reshape(*x.shape[:-1], y.shape[-1]), True
        axes = [0 if each else None for each in mapped]
        return jax.vmap(plain, axes)(x, *factor), True

    return apply


def _check(x: Array, hidden: Array, kernel: Array, bias: Array) -> None:
    arrays = {"x": x, "hidden": hidden, "kernel": kernel, "bias": bias}
    for (name, array), ndim in zip(arrays.items(), (3, 2, 3, 2), strict=True):
        if array.ndim != ndim:
            raise ValueError(
                f"generate_and_apply: expected {name} with {ndim} axes, got shape {array.shape}. "
                "x is [batch, positions, m], hidden [batch, h], kernel [m, n, h], bias [m, n]."
            )
        if array.dtype != x.dtype:
            raise ValueError(
                f"generate_and_apply: expected {name} of x's dtype {x.dtype}, got {array.dtype}. "
                "Cast them to one."
            )
    m, n, h = kernel.shape
    fitting = {"x": (*x.shape[:2], m), "hidden": (len(x), h), "bias": (m, n)}
    for name, expected in fitting.items():
        if (got := arrays[name].shape) != expected:
            raise ValueError(
                f"generate_and_apply: expected {name} of shape {expected}, got {got}, with x "
                f"{x.shape} and kernel {kernel.shape}. Was the factor generated for another layer?"
            )


class _Device(NamedTuple):
    """How a kind of device runs a kernel.

    Attributes:
        call: its `pallas_call`.
        tpu: whether arrays have the memory layout of a TPU.
    """

    call: Callable[..., Any]
    tpu: bool


_GPU = _Device(
    functools.partial(
        pl.pallas_call, compiler_params=triton.CompilerParams(num_warps=8, num_stages=1)
    ),
    tpu=False,
)
_TPU = _Device(pl.pallas_call, tpu=True)
_INTERPRETED = _Device(functools.partial(pl.pallas_call, interpret=True), tpu=False)


def _on_this_device(function: Callable[..., Any], *arrays: Array) -> Any:
    """Call `function(device, *arrays)` with the device for which it is compiled."""
    return lax.platform_dependent(
        *arrays,
        cuda=functools.partial(function, _GPU),
        rocm=functools.partial(function, _GPU),
        tpu=functools.partial(function, _TPU),
        default=functools.partial(function, _INTERPRETED),
    )


class _Problem(NamedTuple):
    """Padded and tiled arrays, and the sizes of a grid over them."""

    tiles: Tiles
    x: Array  # [steps, m, positions, samples]
    hidden: Array  # [sample tiles, h, samples]
    kernel: Array  # [m, n, h]
    bias: Array  # [m, n], of the accumulator's dtype
    steps: int  # tiles of samples times tiles of positions
    position_steps: int
    column_steps: int


def _prepare(device: _Device, x: Array, hidden: Array, kernel: Array, bias: Array) -> _Problem:
    (batch, positions, m), (_, n, h) = x.shape, kernel.shape
    tiles = choose_tiles(batch, positions, m, h, n, tpu=device.tpu)
    hidden = _grow(hidden, (pl.align_to(batch, tiles.samples), _pad(h)))
    hidden = hidden.reshape(-1, tiles.samples, _pad(h)).swapaxes(1, 2)
    columns = pl.align_to(n, tiles.columns)
    kernel = _grow(kernel, (m, columns, _pad(h)))
    # 32-bit, since a TPU cannot read single rows of a 16-bit array.
    bias = _grow(bias.astype(accumulator_dtype(x.dtype)), (m, columns))
    x = _tile(x, tiles).swapaxes(1, 2)
    position_steps, column_steps = len(x) // len(hidden), columns // tiles.columns
    return _Problem(tiles, x, hidden, kernel, bias, len(x), position_steps, column_steps)


def _tile(x: Array, tiles: Tiles) -> Array:
    """Cut `[batch, positions, c]` into tiles `[steps, positions, c, samples]`."""
    batch, positions, c = x.shape
    x = _grow(x, (pl.align_to(batch, tiles.samples), pl.align_to(positions, tiles.positions), c))
    x = x.reshape(-1, tiles.samples, x.shape[1] // tiles.positions, tiles.positions, c)
    return x.transpose(0, 2, 3, 4, 1).reshape(-1, tiles.positions, c, tiles.samples)


def _untile(tiled: Array, shape: tuple[int, ...], position_steps: int) -> Array:
    """Undo `_tile`, padding included."""
    _, at_once, c, samples = tiled.shape
    x = tiled.reshape(-1, position_steps, at_once, c, samples).transpose(0, 4, 1, 2, 3)
    return _shrink(x.reshape(-1, position_steps * at_once, c), shape)


def _forward(
    precision: lax.PrecisionLike,
    device: _Device,
    x: Array,
    hidden: Array,
    kernel: Array,
    bias: Array,
) -> Array:
    problem = _prepare(device, x, hidden, kernel, bias)
    samples, positions, columns, rows, *_ = problem.tiles
    m, n = problem.bias.shape
    row_steps = pl.cdiv(m, rows)

    def body(x_ref: Any, hidden_ref: Any, kernel_ref: Any, bias_ref: Any, y_ref: Any) -> None:
        hidden = hidden_ref[0]

        def add_row(row: Array, y: Array) -> Array:
            factor = _product(kernel_ref[row], hidden, (1, 0), precision)
            factor = factor + bias_ref[row][:, None]
            return y + x_ref[0, row].astype(y.dtype)[:, None, :] * factor[None]

        zeros = jnp.zeros(y_ref.shape[2:], y_ref.dtype)
        y_ref[0, 0] = lax.fori_loop(0, _present(m, rows, 2), add_row, zeros)

    y = device.call(
        body,
        grid=(problem.steps, problem.column_steps, row_steps),
        in_specs=_in_specs(problem, lambda step, column, row: (step, row, column)),
        out_specs=pl.BlockSpec(
            (1, 1, positions, columns, samples), lambda step, column, row: (row, step, 0, column, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(
            (row_steps, problem.steps, positions, n, samples), problem.bias.dtype
        ),
        name="generate_and_apply",
    )(problem.x, problem.hidden, problem.kernel, problem.bias)
    shape = (*x.shape[:2], kernel.shape[1])
    return _untile(y.sum(0), shape, problem.position_steps)


def _gradients(
    precision: lax.PrecisionLike,
    device: _Device,
    x: Array,
    hidden: Array,
    kernel: Array,
    bias: Array,
    dy: Array,
) -> tuple[Array, Array, Array, Array]:
    problem = _prepare(device, x, hidden, kernel, bias)
    dy = _tile(_grow(dy, (*dy.shape[:2], problem.bias.shape[1])), problem.tiles)
    dx, dhidden = _gradients_of_own(precision, device, problem, dy)
    dkernel, dbias = _gradients_of_shared(precision, device, problem, dy)
    return (
        _untile(dx, x.shape, problem.position_steps),
        _shrink(dhidden, hidden.shape),
        _shrink(dkernel, kernel.shape),
        _shrink(dbias, bias.shape),
    )


def _gradients_of_own(
    precision: lax.PrecisionLike, device: _Device, problem: _Problem, dy: Array
) -> tuple[Array, Array]:
    """Return the gradients of x, in tiles, and of hidden, padded."""
    samples, positions, columns, rows, *_ = problem.tiles
    m, h = problem.bias.shape[0], problem.hidden.shape[1]
    row_steps, column_steps, steps = pl.cdiv(m, rows), problem.column_steps, problem.steps

    def body(
        x_ref: Any, hidden_ref: Any, kernel_ref: Any, bias_ref: Any, dy_ref: Any,
        dx_ref: Any, dhidden_ref: Any,
    ) -> None:  # fmt: skip
        hidden, dy = hidden_ref[0], dy_ref[0]

        def add_row(row: Array, dhidden: Array) -> Array:
            generator = kernel_ref[row]
            factor = _product(generator, hidden, (1, 0), precision)
            factor = factor + bias_ref[row][:, None]
            dx_ref[0, 0, row] = jnp.sum(dy * factor[None], axis=1)
            dfactor = _gradient_of_row(x_ref[0, row], dy).astype(generator.dtype)
            return dhidden + _product(generator, dfactor, (0, 0), precision)

        zeros = jnp.zeros((h, samples), dy.dtype)
        dhidden_ref[0, 0, 0] = lax.fori_loop(0, _present(m, rows, 1), add_row, zeros)

    dx, dhidden = device.call(
        body,
        grid=(steps, row_steps, column_steps),
        in_specs=[
            *_in_specs(problem, lambda step, row, column: (step, row, column)),
            pl.BlockSpec(
                (1, positions, columns, samples), lambda step, row, column: (step, 0, column, 0)
            ),
        ],
        out_specs=[
            pl.BlockSpec(
                (1, 1, rows, positions, samples),
                lambda step, row, column: (column, step, row, 0, 0),
            ),
            pl.BlockSpec(
                (1, 1, 1, h, samples), lambda step, row, column: (column, row, step, 0, 0)
            ),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((column_steps, steps, m, positions, samples), dy.dtype),
            jax.ShapeDtypeStruct((column_steps, row_steps, steps, h, samples), dy.dtype),
        ],
        name="generate_and_apply_gradients_of_own",
    )(problem.x, problem.hidden, problem.kernel, problem.bias, dy)
    dhidden = dhidden.sum((0, 1)).reshape(-1, problem.position_steps, h, samples).sum(1)
    return dx.sum(0).swapaxes(1, 2), dhidden.swapaxes(1, 2).reshape(-1, h)


def _gradients_of_shared(
    precision: lax.PrecisionLike, device: _Device, problem: _Problem, dy: Array
) -> tuple[Array, Array]:
    """Return the gradients of kernel and bias, padded, each summed over samples."""
    samples, positions, columns, _, rows, group = problem.tiles
    (m, n), h = problem.bias.shape, problem.hidden.shape[1]
    steps, position_steps = problem.steps, problem.position_steps
    groups = pl.cdiv(steps, group)

    def body(x_ref: Any, hidden_ref: Any, dy_ref: Any, dkernel_ref: Any, dbias_ref: Any) -> None:
        first = pl.program_id(2) * group
        present = _present(steps, group, 2)

        def write_row(row: Array, _: None) -> None:
            def add_tile(step: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                dkernel, dfactor = sums
                own = _gradient_of_row(x_ref[step, row], dy_ref[step])
                hidden = hidden_ref[lax.div(first + step, position_steps)]
                product = _product(own.astype(hidden.dtype), hidden, (1, 1), precision)
                return dkernel + product, dfactor + own

            zeros = jnp.zeros((columns, h), dy.dtype), jnp.zeros((columns, samples), dy.dtype)
            dkernel, dfactor = lax.fori_loop(0, present, add_tile, zeros)
            dkernel_ref[0, row] = dkernel
            dbias_ref[0, row] = jnp.sum(dfactor, axis=1)

        lax.fori_loop(0, _present(m, rows, 0), write_row, None)

    dkernel, dbias = device.call(
        body,
        grid=(pl.cdiv(m, rows), problem.column_steps, groups),
        in_specs=[
            pl.BlockSpec(
                (group, rows, positions, samples), lambda row, column, step: (step, row, 0, 0)
            ),
            pl.BlockSpec(problem.hidden.shape, lambda row, column, step: (0, 0, 0)),
            pl.BlockSpec(
                (group, positions, columns, samples), lambda row, column, step: (step, 0, column, 0)
            ),
        ],
        out_specs=[
            pl.BlockSpec((1, rows, columns, h), lambda row, column, step: (step, row, column, 0)),
            pl.BlockSpec((1, rows, columns), lambda row, column, step: (step, row, column)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((groups, *problem.kernel.shape), dy.dtype),
            jax.ShapeDtypeStruct((groups, m, n), dy.dtype),
        ],
        name="generate_and_apply_gradients_of_shared",
    )(problem.x, problem.hidden, dy)
    return dkernel.sum(0), dbias.sum(0)


def _in_specs(problem: _Problem, steps: Callable[..., tuple[Any, Any, Any]]) -> list[pl.BlockSpec]:
    """Return the blocks of x, hidden, kernel and bias.

    `steps` returns the grid's indices in the order step, row, column.
    """
    samples, positions, columns, rows, *_ = problem.tiles
    h, position_steps = problem.hidden.shape[1], problem.position_steps

    def at(index: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda *grid: index(*steps(*grid))

    return [
        pl.BlockSpec((1, rows, positions, samples), at(lambda step, row, _: (step, row, 0, 0))),
        pl.BlockSpec((1, h, samples), at(lambda step, *_: (lax.div(step, position_steps), 0, 0))),
        pl.BlockSpec((rows, columns, h), at(lambda _, row, column: (row, column, 0))),
        pl.BlockSpec((rows, columns), at(lambda _, row, column: (row, column))),
    ]


# Inside kernels.


def _gradient_of_row(x: Array, dy: Array) -> Array:
    """Return the gradient of one row of the factor, `[columns, samples]`.

    Of `x [positions, samples]` and `dy [positions, columns, samples]`.
    """
    return jnp.sum(x.astype(dy.dtype)[:, None, :] * dy, axis=0)


def _product(
    left: Array, right: Array, axes: tuple[int, int], precision: lax.PrecisionLike
) -> Array:
    """Contract an axis of each of two matrices."""
    return lax.dot_general(
        left,
        right,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=accumulator_dtype(left.dtype),
    )


def _present(total: int, block: int, axis: int) -> Array | int:
    """Return how many entries of a block exist: the last block may be partly outside."""
    if total % block == 0:
        return block
    return jnp.minimum(block, total - pl.program_id(axis) * block)


# Padding and sizes. Triton needs powers of two, of at least 16 in a product.


def _pad(size: int) -> int:
    return max(16, pl.next_power_of_2(size))


def _grow(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, want - have) for have, want in zip(x.shape, shape, strict=True)])


def _shrink(x: Array, shape: tuple[int, ...]) -> Array:
    return x[tuple(slice(size) for size in shape)]


def _tpu_size(a: int, b: int) -> int:
    """Return the padded size, on a TPU, of an array's last two axes, the longer of them last."""
    return pl.align_to(min(a, b), 8) * pl.align_to(max(a, b), 128)
