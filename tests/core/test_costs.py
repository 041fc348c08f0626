"""Multiply-adds as counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from straw_jax import factor_spec, hyperlora, modulate
from straw_jax.costs import multiply_adds
from straw_jax.kinds import DoRA, Gain, LowRank, Mixture, Pose, SharedLowRank, Whole


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


# Modulated models, every kind.

KINDS = {
    "low-rank": (LowRank(2), "2"),
    "shared": (SharedLowRank(2), "shared 2"),
    "shared, full": (SharedLowRank(2, full=True), "shared 2x2"),
    "whole": (Whole(), "whole"),
    "gain": (Gain(inputs=True), "gain"),
    "mixture": (Mixture(3), "mixture 3"),
    "DoRA": (DoRA(2), "DoRA 2"),
    "gain of low-rank": ([LowRank(2), Gain()], "2 + gain"),
    "pose": (Pose(), "pose"),
}


def mlp(params, x):
    return jnp.tanh(x @ params["W"]) @ params["V"]


def cnn(params, x):
    x = lax.conv_general_dilated(
        x, params["W"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x.reshape(x.shape[0], -1) @ params["V"]


MODELS = {
    "MLP": (mlp, {"W": _array(64, 48), "V": _array(48, 32)}, _array(4, 64)),
    "CNN": (cnn, {"W": _array(3, 3, 8, 16), "V": _array(6 * 6 * 16, 32)}, _array(4, 8, 8, 8)),
}


def ratio(model, kind):
    """Multiply-adds of the modulated model, given its updates, over the model's own."""
    apply, params, x = MODELS[model]
    spec = factor_spec(params, {"W" if kind == "pose" else "*": KINDS[kind][0]})

    def modulated(params, vector, shared, x):
        return modulate(apply)(params, spec.unpack(vector, shared), x)

    shared = {f"{leaf.path}/{name}": _array(*part.shape)
              for leaf in spec for name, part in leaf.shared.items()}  # fmt: skip
    count = multiply_adds(modulated, params, _array(4, spec.size), shared, x)
    return count / multiply_adds(apply, params, x)


@pytest.mark.parametrize("model", MODELS)
def test_a_gain_costs_no_more_than_the_executor(model):
    assert ratio(model, "gain") <= 1.01


def test_other_kinds_cost_what_the_documentation_says():
    found = {kind: [round(ratio(model, kind), 2) for model in MODELS
                    if (model, kind) != ("MLP", "pose")] for kind in KINDS}  # fmt: skip
    assert found == {
        "low-rank": [1.08, 1.15],
        "shared": [1.08, 1.13],
        "shared, full": [1.09, 1.13],
        "whole": [1.0, 1.0],
        "gain": [1.0, 1.0],
        "mixture": [4.05, 2.67],
        "DoRA": [3.82, 2.02],
        "gain of low-rank": [1.08, 1.15],
        "pose": [1.0],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_a_row_for_every_kind(kind):
    rank, label = KINDS[kind]
    spec = factor_spec({"W": _array(3, 3, 8, 16)}, {"W": rank})
    (leaf,) = spec
    _, row, total = str(spec).splitlines()
    counts = ["1,152", f"{spec.size:,}", f"{spec.size / 1152:.3f}"]
    assert row.split() == ["W", "3x3x8x16", *label.split(), *counts]
    assert total.split() == ["total", *row.split()[-3:]]
    assert leaf.label == label
