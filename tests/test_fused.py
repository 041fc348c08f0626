import contextlib
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import TOLERANCE, assert_close, intermediates, random_array, to_float32

from straw_jax import Factors, Generated, fused, make_straw, modulate
from straw_jax.fused import apply_generated, choose_tiles, generate_and_apply
from straw_jax.lowrank import apply_factor

ALL = (0, 1, 2, 3)


def problem(batch, positions, m, h, n, dtype="float32"):
    shapes = [(batch, positions, m), (batch, h), (m, h, n), (m, n)]
    return [random_array(i, shape, dtype) for i, shape in enumerate(shapes)]


def plain(x, hidden, kernel, bias):
    product = functools.partial(jnp.einsum, precision="highest")
    factors = product("bh,mhn->bmn", hidden, kernel) + bias[None]
    return product("bpm,bmn->bpn", x, factors)


def value_and_gradients(function, arguments):
    weights = random_array(9, jax.eval_shape(function, *arguments).shape)

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(y * weights), y

    gradients, y = jax.jit(jax.grad(loss, ALL, has_aux=True))(*arguments)
    return y, gradients


def assert_equals_plain(function, arguments, tolerance):
    y, gradients = value_and_gradients(function, arguments)
    want, expected = value_and_gradients(plain, to_float32(arguments))
    assert y.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [a.dtype for a in arguments]
    assert_close(y, want, tolerance)
    assert_close(gradients, expected, tolerance)


@pytest.fixture(params=[False, True], ids=["as_on_gpu", "as_on_tpu"])
def kernel_layout(request, monkeypatch):
    """Interpret what a GPU runs, and what a TPU runs."""
    device = fused._INTERPRETED._replace(long_axis_last=request.param)
    monkeypatch.setattr(fused, "_INTERPRETED", device)


small = st.integers(1, 20)


@settings(max_examples=6)
@given(st.integers(1, 18), st.sampled_from([1, 2, 33]), small, small, small)
def test_values_and_gradients_equal_the_plain_formula(batch, positions, m, h, n):
    assert_equals_plain(generate_and_apply, problem(batch, positions, m, h, n), 1e-5)


@pytest.mark.usefixtures("kernel_layout")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("positions", "n", "overhangs"), [(1, 4, "rows"), (35, 3, "rows, groups"), (1, 130, "columns")]
)
def test_sizes_that_are_no_multiples_of_the_tiles(positions, n, overhangs, dtype, monkeypatch):
    """Several tiles along every axis, the last of them not full."""
    monkeypatch.setattr(fused, "_GRID_STEPS", 2)
    monkeypatch.setattr(fused, "_OPERAND", 16 * 32)
    monkeypatch.setattr(fused, "_BLOCK_BYTES", 2**15)
    size = (18, positions, 11, 20, n)
    tiles, steps = choose_tiles(*size), 2 * -(-positions // 32)
    assert tiles.samples == 16
    assert tiles.rows == tiles.shared_rows == 8
    assert n <= tiles.columns or n % tiles.columns
    assert ("groups" in overhangs) == (steps > tiles.group)
    assert_equals_plain(generate_and_apply, problem(*size, dtype), TOLERANCE[dtype])
