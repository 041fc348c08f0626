import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from straw_jax import CNN, Factors, factor_spec, linen
from straw_jax.factors import named_leaves

TREE = {
    "conv": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)},
    "dense": {"kernel": jnp.zeros((50, 10)), "bias": jnp.zeros(10)},
    "scale": jnp.zeros(()),
}


def article_params():
    return jax.eval_shape(lambda: linen(CNN()).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))))


def test_counts_are_the_articles():
    """straw article, released code: 158,863 generated numbers at rank 16."""
    spec = factor_spec(article_params(), 16)
    assert spec.size == 158_863
    sizes = {leaf.path: leaf.generated_size for leaf in spec}
    assert sizes["conv1/kernel"] == 656
    assert sizes["conv2/kernel"] == 5_632
    assert sizes["fc1/kernel"] == 149_504
    assert sizes["fc2/kernel"] == 2_800
    assert sum(n for path, n in sizes.items() if path.endswith("bias")) == 271
    assert sum(leaf.dense_size for leaf in spec) == 1_204_655


def test_one_rank_means_kernels_low_rank_and_all_else_whole():
    spec = factor_spec(TREE, 2)
    ranks = {leaf.path: leaf.rank for leaf in spec}
    assert ranks == {
        "conv/kernel": 2, "dense/kernel": 2,
        "conv/bias": "whole", "dense/bias": "whole", "scale": "whole",
    }  # fmt: skip


def test_patterns_choose_leaves_and_ranks_and_the_first_counts():
    spec = factor_spec(TREE, {"conv/kernel": 3, "*/kernel": 5, "dense/bias": "whole"})
    assert {leaf.path: leaf.rank for leaf in spec} == {
        "conv/kernel": 3,
        "dense/kernel": 5,
        "dense/bias": "whole",
    }
    assert [leaf.path for leaf in spec] == [p for p in named_leaves(TREE) if p in str(spec)]


@given(st.integers(1, 3), st.sampled_from([(), (3,), (2, 4)]))
def test_unpack_and_pack_are_inverse(rank, leading):
    spec = factor_spec(TREE, rank)
    vector = np.arange(spec.size * math.prod(leading), dtype=np.float32)
    vector = vector.reshape(*leading, spec.size)
    factors = spec.unpack(vector)
    B, A = factors["conv/kernel"]
    assert B.shape == (*leading, 36, rank)
    assert A.shape == (*leading, rank, 8)
    assert factors["dense/bias"].shape == (*leading, 10)
    assert factors["scale"].shape == leading
    assert jnp.array_equal(spec.pack(factors), vector)


def test_unpack_keeps_the_order_of_leaves_with_b_before_a():
    spec = factor_spec({"W": jnp.zeros((2, 3))}, 1)
    B, A = spec.unpack(jnp.arange(5.0))["W"]
    assert B.tolist() == [[0], [1]]
    assert A.tolist() == [[2, 3, 4]]


def test_table_has_every_leaf_and_says_what_is_above_full_rank():
    table = str(factor_spec(TREE, 16))
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert set(named_leaves(TREE)) <= set(lines)
    assert "3x3x4x8" in lines["conv/kernel"]
    assert "above full rank 8" in lines["conv/kernel"]
    assert "above full rank 10" in lines["dense/kernel"]
    assert "above" not in lines["dense/bias"]
    dense, generated, ratio = lines["dense/kernel"].split()[3:6]
    assert (dense, generated, ratio) == ("500", "960", "1.920")
    assert lines["total"].split()[1:3] == ["807", f"{factor_spec(TREE, 16).size:,}"]
    assert "above" not in str(factor_spec(TREE, 8))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (0, "rank of conv/kernel to be a whole number of at least 1"),
        ({"dense/kernel": -1}, "rank of dense/kernel"),
        ({"dense/kernel": 1.5}, "got 1.5"),
        ({"dense/kernel": "all"}, "got 'all'"),
        ({"dense/weight": 2}, "'dense/weight' matches none of the leaves"),
        ({"*/bias": 2}, "Generate it whole"),
        ({}, "nothing would be generated"),
    ],
)
def test_errors_in_ranks(ranks, message):
    with pytest.raises(ValueError, match="factor_spec: .*" + message):
        factor_spec(TREE, ranks)


def test_errors_in_shapes_and_paths():
    spec = factor_spec(TREE, 2)
    factors = spec.unpack(jnp.zeros(spec.size))
    with pytest.raises(ValueError, match=rf"last axis of {spec.size} numbers, got shape \(7,\)"):
        spec.unpack(jnp.zeros(7))
    without = {path: factor for path, factor in factors.items() if path != "scale"}
    with pytest.raises(ValueError, match=r"got none for \['scale'\] and unknown \['other'\]"):
        spec.pack(without | {"other": jnp.zeros(3)})
    wrong = Factors(jnp.zeros((36, 3)), jnp.zeros((3, 8)))
    with pytest.raises(ValueError, match=r"conv/kernel to end in shapes \[\(36, 2\), \(2, 8\)\]"):
        spec.pack(factors | {"conv/kernel": wrong})
    with pytest.raises(ValueError, match=r"conv/kernel to end in shapes"):
        spec.pack(factors | {"conv/kernel": jnp.zeros((3, 3, 4, 8))})


def test_axes_choose_the_reading_of_a_kernel():
    tree = {"query": {"kernel": jnp.zeros((6, 2, 4)), "bias": jnp.zeros((2, 4))}}
    tree |= {"layers": jnp.zeros((3, 5, 2, 4))}
    spec = factor_spec(tree, 1, axes={"query/*": "rcc", "layers": "srrc"})
    leaves = {leaf.path: leaf for leaf in spec}
    assert leaves["query/kernel"].parts == {"B": (6, 1), "A": (1, 8)}
    assert leaves["layers"].parts == {"B": (30, 1), "A": (1, 12)}
    assert leaves["query/bias"].parts == {"whole": (2, 4)}  # is not a kernel
    assert "rcc" in str(spec)
    usual = {leaf.path: leaf.parts for leaf in factor_spec(tree, 1)}
    assert usual["query/kernel"] == {"B": (12, 1), "A": (1, 4)}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"dense/kernel": "rrc"}, r"axes of dense/kernel, of shape \(50, 10\), to be one of"),
        ({"dense/kernel": "cr"}, r"\['rc'\], got 'cr'"),
        ({"conv/kernel": "ssrr"}, "got 'ssrr'"),
        ({"*/bias": "rc"}, "'\\*/bias' matches none of the low-rank leaves"),
    ],
)
def test_errors_in_axes(axes, message):
    with pytest.raises(ValueError, match="factor_spec: .*" + message):
        factor_spec(TREE, 2, axes=axes)


def test_a_rank_may_be_a_whole_number_of_numpy():
    (leaf,) = factor_spec({"W": jnp.zeros((6, 5))}, np.int64(2))
    assert leaf.rank == 2
    assert type(leaf.rank) is int
    (leaf,) = factor_spec({"W": jnp.zeros((6, 5))}, {"W": np.uint8(2)})
    assert type(leaf.rank) is int


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*/kernel", ["dense/kernel", "kernel"]),
        ("*", ["dense/kernel", "kernel"]),
        ("kernel", ["kernel"]),
        ("dense/*", ["dense/kernel"]),
    ],
)
def test_a_leaf_at_the_top_is_in_any_folder(pattern, matched):
    tree = {"dense": {"kernel": jnp.zeros((6, 5))}, "kernel": jnp.zeros((5, 4))}
    assert [leaf.path for leaf in factor_spec(tree, {pattern: 2})] == matched
    with pytest.raises(ValueError, match="matches none of the leaves"):
        factor_spec(tree, {f"*/*/{pattern}": 2})


def test_leaves_that_a_model_adds_are_no_kernels():
    tree = {"W": jnp.zeros((6, 5)), "positions": jnp.zeros((9, 6))}
    spec = factor_spec(tree, 2, added=["positions"])
    assert {leaf.path: leaf.rank for leaf in spec} == {"W": 2, "positions": "whole"}
