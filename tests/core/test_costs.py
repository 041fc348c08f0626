"""Multiply-adds as counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from straw_jax import hyperlora
from straw_jax.costs import multiply_adds


def _array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_products():
    assert multiply_adds(jnp.matmul, _array(3, 4), _array(4, 5)) == 3 * 4 * 5
    assert multiply_adds(jax.vmap(jnp.matmul), _array(2, 3, 4), _array(2, 4, 5)) == 2 * 3 * 4 * 5
    assert multiply_adds(jnp.add, _array(3, 4), _array(3, 4)) == 0


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (3, 1)])
def test_convolutions(groups, stride):
    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    side = 1 + (9 - 5) // stride
    count = multiply_adds(conv, _array(2, 9, 9, 6), _array(5, 5, 6 // groups, 12))
    assert count == 2 * side * side * 12 * 25 * 6 // groups


def test_factored_product_costs_its_rank():
    x, B, A = _array(8, 30), _array(8, 30, 2), _array(8, 2, 40)
    assert multiply_adds(hyperlora, x, B, A) == 8 * 2 * (30 + 40)
    assert multiply_adds(jax.jit(hyperlora), x, B, A) == 8 * 2 * (30 + 40)


def test_loops_count_as_often_as_they_run_and_branches_once():
    def scanned(x, kernel):
        return lax.scan(lambda x, _: (x @ kernel, None), x, length=7)[0]

    def branched(x, kernel):
        return lax.cond(x[0, 0] > 0, lambda: x @ kernel @ kernel, lambda: x @ kernel)

    assert multiply_adds(scanned, _array(3, 4), _array(4, 4)) == 7 * 3 * 4 * 4
    assert multiply_adds(branched, _array(3, 4), _array(4, 4)) == 2 * 3 * 4 * 4
