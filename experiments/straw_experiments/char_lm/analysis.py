"""What a trained cell's generated weights are good for, and how far they move at each character.

All that a modulated cell generates comes from its smaller LSTM's state ("seen" in
`straw_jax.recurrent`). Of the HyperLSTM it is affine in it; of the low-rank cell both factors are
linear in it.
"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from straw_experiments.char_lm.evaluate import in_chunks
from straw_experiments.char_lm.networks import CharacterModel, Params
from straw_experiments.char_lm.train import Trainer
from straw_jax.recurrent import Carry

GATES = ("input", "candidate", "forget", "output")
"""In the order of the cells in `straw_jax.recurrent`."""

CONTROLS = ("own", "mean", "mean weights", "shuffled", "zero")
"""What stands in the place of what a smaller LSTM saw, or of what it wrote, see `analyse`."""

TESTED = 50_000  # characters on which controls are tested, and from which means are taken
_MOVED = 10_000  # characters over which movement is measured
_PIECE = 500  # of these, read from a carry of zeros
_OFTEN = 20  # characters that occur less often are left out
_STRETCH = 100  # characters in a row that are shown


def analyse(trainer: Trainer, params: Params, seed: int) -> dict[str, Any]:
    """Measure what a trained model's smaller LSTM contributes, and what it does.

    Args:
        trainer: The model, and its text.
        params: Trained.
        seed: Decides how moments are shuffled.

    Returns:
        "controls", bits a character on the first 50,000 characters of the test text, by what stands
        in the place of the smaller LSTM's state: "own", nothing; "mean", its mean over as many
        characters of the training text; "shuffled", its state at another moment of the test text;
        "zero". In "mean weights" it is what is written that has its mean over these characters:
        the HyperLSTM's factors and biases, the low-rank cell's `B @ A`. "movement" and "stretch",
        see `movement`.
    """
    text = trainer.text
    numbers = text.test[: TESTED + 1]
    real = in_chunks(numbers)[2]
    seen = _seen(trainer.model, params, numbers)
    moments = np.asarray(seen)[real]
    key = jax.random.fold_in(jax.random.key(seed), 3)
    shuffled = np.zeros(seen.shape, seen.dtype)
    shuffled[real] = moments[np.asarray(jax.random.permutation(key, len(moments)))]
    typical = text.train[: TESTED + 1]
    usual = np.asarray(_seen(trainer.model, params, typical))[in_chunks(typical)[2]]
    mean, zero = jnp.broadcast_to(usual.mean(axis=0), seen.shape), jnp.zeros_like(seen)
    cases = {
        "own": (params, None),
        "mean": (params, mean),
        "shuffled": (params, jnp.asarray(shuffled)),
        "zero": (params, zero),
    }
    if "kernel" in params["cell"]:  # without a state nothing is added to it
        scale = trainer.model.cell.scale
        cases["mean weights"] = _with_mean_update(params, usual, scale), zero
    controls = {name: trainer.bits(case[0], numbers, case[1]) for name, case in cases.items()}
    # What a HyperLSTM writes is affine in the state: its mean is what is written for the mean.
    controls.setdefault("mean weights", controls["mean"])
    return {"controls": {name: controls[name] for name in CONTROLS}, **movement(trainer, params)}


def _with_mean_update(params: Params, seen: np.ndarray, scale: float) -> Params:
    """Add to a low-rank cell's kernel the mean of `B @ A` over states `[n, hyper_features]`."""
    cell = params["cell"]
    rows, columns = cell["kernel"].shape
    B = cell["B"]["kernel"].reshape(seen.shape[1], rows, -1)
    A = cell["A"]["kernel"].reshape(seen.shape[1], -1, columns)
    # Both factors are linear in the state, their product in the products of its numbers.
    products = scale * (seen.T @ seen) / len(seen)
    kernel = cell["kernel"] + jnp.einsum("hir,hk,krc->ic", B, products, A)
    return {**params, "cell": {**cell, "kernel": kernel}}


def _seen(model: CharacterModel, params: Params, numbers: np.ndarray) -> Array:
    """Return what the smaller LSTM sees in a text, `[chunks, pieces, 100, hyper_features]`."""
    return _seen_in_chunks(model, params, in_chunks(numbers)[0])


@functools.partial(jax.jit, static_argnums=0)
def _seen_in_chunks(model: CharacterModel, params: Params, inputs: Array) -> Array:
    def chunk(carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        carry, sown = _observed(model, params, inputs, carry)
        return carry, sown["seen"][0]

    return jax.lax.scan(chunk, model.initial_carry(inputs.shape[1]), inputs)[1]


def _observed(
    model: CharacterModel, params: Params, inputs: Array, carry: Carry
) -> tuple[Carry, Any]:
    """Read characters; return the carry, and what the cell has sown at each, in float32."""
    outputs: Any = model.apply(
        {"params": params}, inputs.astype(jnp.int32), carry, mutable=["intermediates"]
    )
    (carry, _), state = outputs
    sown = jax.tree.map(lambda x: x.astype(jnp.float32), state["intermediates"]["cell"])
    return carry, sown


# --- movement -----------------------------------------------------------------------------------


def movement(trainer: Trainer, params: Params) -> dict[str, Any]:
    """Measure how far the weights that a model writes move from one character to the next.

    A gate's weights are the matrix by which input and state are multiplied at a character: of the
    HyperLSTM with its columns scaled, of the low-rank cell with its update. They move by the
    Frobenius norm of their change, as a share of the norm of their mean.

    Args:
        trainer: The model, and its text; the first 10,000 characters of its test are read.
        params: Trained.

    Returns:
        "movement", the mean by "gates", and by "characters" that occur 20 times or more: at a
        character the weights move to those that read it (mean of the gates). "stretch": "text", 100
        characters or fewer, and "gates", the movement at each.
    """
    numbers = trainer.text.test[:_MOVED]
    each = min(_PIECE, len(numbers))
    pieces = numbers[: len(numbers) // each * each].reshape(-1, each)
    moved = np.asarray(_moved(trainer.model, params, jnp.asarray(pieces)))
    reached = pieces[:, 1:]
    by_character = {
        trainer.text.characters[number]: float(moved[reached == number].mean())
        for number, count in sorted(collections.Counter(reached.ravel().tolist()).items())
        if count >= _OFTEN
    }
    shown = slice(max(each - 1 - _STRETCH, 0), None)  # the end, where the carry is of long ago
    return {
        "movement": {
            "gates": _by_gate(moved.mean(axis=(0, 1), dtype=np.float64)),
            "characters": by_character,
        },
        "stretch": {
            "text": trainer.text.decode(reached[0, shown]),
            "gates": _by_gate(moved[0, shown].T),
        },
    }


def _by_gate(values: np.ndarray) -> dict[str, Any]:
    return dict(zip(GATES, values.tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _moved(model: CharacterModel, params: Params, pieces: Array) -> Array:
    """Return how far the weights move, `[pieces, time - 1, gates]`, as a share of their mean."""
    _, sown = _observed(model, params, pieces, model.initial_carry(len(pieces)))
    written, cell = sown["written"][0], params["cell"]
    if "kernel" in cell:
        change, mean = _low_rank_change(cell["kernel"], **written)
    else:
        change, mean = _scaled_change({name: cell[name]["kernel"] for name in written}, written)
    return jnp.sqrt(jnp.maximum(change, 0) / jnp.expand_dims(mean, (0, 1)))


def _scaled_change(kernels: dict[str, Array], factors: dict[str, Array]) -> tuple[Array, Array]:
    """Return squared norms, by gate, of the changes of scaled kernels, and of their mean.

    Args:
        kernels: `[in, 4 * features]` each.
        factors: of their columns, `[pieces, time, 4 * features]` each.
    """
    change, mean = jnp.zeros(()), jnp.zeros(())
    for name, kernel in kernels.items():
        size = jnp.sum(kernel**2, axis=0)
        moved = jnp.diff(factors[name], axis=1) ** 2
        change += _sum_by_gate(moved * jnp.expand_dims(size, (0, 1)))
        mean += _sum_by_gate(jnp.mean(factors[name], axis=(0, 1)) ** 2 * size)
    return change, mean


def _low_rank_change(kernel: Array, B: Array, A: Array) -> tuple[Array, Array]:
    """Return squared norms, by gate, of the changes of `kernel + B @ A`, and of their mean.

    Args:
        kernel: `[in, 4 * features]`.
        B: `[pieces, time, in, r]`.
        A: `[pieces, time, r, 4 * features]`.
    """
    # The change is the product of twice as many columns and rows, and is never formed.
    columns = jnp.concatenate([B[:, 1:], -B[:, :-1]], axis=-1)
    rows = jnp.concatenate([A[:, 1:], A[:, :-1]], axis=-2)
    rows = rows.reshape(*rows.shape[:-1], len(GATES), -1)
    of_columns = jnp.einsum("ntir,ntis->ntrs", columns, columns)
    of_rows = jnp.einsum("ntrgf,ntsgf->ntgrs", rows, rows)
    change = jnp.einsum("ntrs,ntgrs->ntg", of_columns, of_rows)
    count = B.shape[0] * B.shape[1]
    mean = kernel + jnp.einsum("ntir,ntrc->ic", B, A) / count
    return change, _sum_by_gate(jnp.sum(mean**2, axis=0))


def _sum_by_gate(columns: Array) -> Array:
    """Sum `[..., 4 * features]` to `[..., 4]`."""
    return jnp.sum(columns.reshape(*columns.shape[:-1], len(GATES), -1), axis=-1)
