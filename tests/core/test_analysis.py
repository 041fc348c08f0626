"""Updates in factored form, compared with whole matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, intermediates, random_array, random_params, to_numpy

from straw_jax import CNN, Factors, Generated, analysis, factor_spec, make_straw, materialize

SIZES = st.tuples(*[st.integers(1, 7)] * 4)  # samples, rows, rank, columns


def tree_of(seed, n, rows, rank, columns, dtype="float32"):
    shapes = (n, rows, rank), (n, rank, columns), (n, 2, columns)
    B, A, bias = (random_array([seed, i], shape, dtype) for i, shape in enumerate(shapes))
    return {"kernel": Factors(B, A), "bias": bias}


def dense(tree):
    """Every sample's update, `[n, numbers]`, in float64."""
    B, A = (np.asarray(part, np.float64) for part in tree["kernel"])
    whole = {"kernel": B @ A, "bias": np.asarray(tree["bias"], np.float64)}
    return {path: update.reshape(len(update), -1) for path, update in whole.items()}


@settings(max_examples=6)
@given(SIZES, st.integers(1, 5))
def test_inner_products(sizes, other_rank):
    n, rows, _, columns = sizes
    left, right = tree_of(0, *sizes), tree_of(1, n, rows, other_rank, columns)
    got = to_numpy(analysis.inner_products(left, right))
    u, v = dense(left), dense(right)
    for path in u:
        size = np.linalg.norm(u[path], axis=1) * np.linalg.norm(v[path], axis=1)
        np.testing.assert_array_less(abs(got[path] - (u[path] * v[path]).sum(1)), 1e-5 * size)


@settings(max_examples=6)
@given(SIZES, st.sampled_from(["float32", "bfloat16"]))
def test_squared_norms(sizes, dtype):
    tree = tree_of(0, *sizes, dtype)
    want = {path: (update**2).sum(1) for path, update in dense(tree).items()}
    assert_close(analysis.squared_norms(tree), want, 1e-5)


@settings(max_examples=6)
@given(SIZES, st.sampled_from([1.0, 1e-3, 1e-6]))
def test_distances_also_of_updates_that_hardly_differ(sizes, step):
    left = tree_of(0, *sizes)
    right = jax.tree.map(lambda u, v: u + np.float32(step) * v, left, tree_of(1, *sizes))
    got = analysis.squared_norms(analysis.differences(left, right))
    u, v = dense(left), dense(right)
    assert_close(got, {path: ((u[path] - v[path]) ** 2).sum(1) for path in u}, 1e-4)


def test_updates_do_not_differ_from_themselves():
    tree = tree_of(0, 4, 5, 3, 6)
    distances = analysis.squared_norms(analysis.differences(tree, tree))
    assert all(not distance.any() for distance in to_numpy(distances).values())


@settings(max_examples=6)
@given(SIZES)
def test_singular_values_and_effective_ranks(sizes):
    tree = tree_of(0, *sizes)
    B, A = (np.asarray(part, np.float64) for part in tree["kernel"])
    k = min(sizes[1:])
    values = np.linalg.svd(B @ A, compute_uv=False)[:, :k]
    assert_close(analysis.singular_values(tree), {"kernel": values}, 1e-5)
    shares = values / values.sum(1, keepdims=True)
    shares = np.maximum(shares, 1e-300)
    ranks = np.exp(-(shares * np.log(shares)).sum(1))
    assert_close(analysis.effective_ranks(tree), {"kernel": ranks}, 1e-4)


def test_effective_rank_counts_equal_singular_values():
    unit = np.eye(6, dtype="float32")
    B = np.stack([unit[:, :4], unit[:, :4] * np.float32([1, 1, 0, 0]), 0 * unit[:, :4]])
    A = np.stack([unit[:4]] * 3)
    ranks = analysis.effective_ranks({"kernel": Factors(B, A)})["kernel"]
    np.testing.assert_allclose(ranks, [4, 2, 0], rtol=1e-5)


@settings(max_examples=6)
@given(SIZES)
def test_means(sizes):
    tree = tree_of(0, *sizes)
    B, A = (np.asarray(part, np.float64) for part in tree["kernel"])
    want = {"kernel": (B @ A).mean(0), "bias": np.asarray(tree["bias"]).mean(0)}
    got = to_numpy(analysis.means(tree))
    size = np.sqrt((np.asarray(B @ A) ** 2).mean())
    assert got["kernel"].shape == want["kernel"].shape
    assert abs(got["kernel"] - want["kernel"]).max() < 1e-5 * max(size, 1) * sizes[2]
    assert abs(got["bias"] - want["bias"]).max() < 1e-6


def split(tree, labels):
    return [
        jax.tree.map(lambda leaf, chosen=labels == label: leaf[chosen], tree)
        for label in np.unique(labels)
    ]


@settings(max_examples=6)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_variance(rows, rank, seed):
    labels = np.random.default_rng(seed).integers(0, 4, 20)
    labels[:8] = [0, 0, 1, 1, 2, 2, 3, 3]
    tree = tree_of(seed, 20, rows, rank, 3)
    tree["bias"] = tree["bias"] + labels.astype("float32")[:, None, None]
    got = analysis.variance(split(tree, labels))
    for path, updates in dense(tree).items():
        mean = updates.mean(0)
        total = ((updates - mean) ** 2).sum()
        centres = np.stack([updates[labels == label].mean(0) for label in range(4)])
        within = ((updates - centres[labels]) ** 2).sum()
        found = got[path]
        np.testing.assert_allclose(found.total, total / 20, rtol=1e-4)
        np.testing.assert_allclose(found.mean_norm, np.linalg.norm(mean), rtol=1e-4)
        np.testing.assert_allclose(found.between, 1 - within / total, atol=1e-4)
        assert found.chance == 3 / 19
        # Epsilon squared by its usual formula, of mean squares.
        epsilon = 1 - (within / 16) / (total / 19)
        np.testing.assert_allclose(found.corrected, epsilon, atol=1e-4)


def test_shares_of_groups_that_mean_nothing_and_everything():
    labels = np.arange(60) % 6
    tree = tree_of(0, 60, 5, 2, 4)
    generator = np.random.default_rng(0)
    shares = [
        analysis.variance(split(tree, generator.permutation(labels)))["kernel"] for _ in range(40)
    ]
    assert shares[0].chance == 5 / 59
    assert abs(np.mean([share.between for share in shares]) - 5 / 59) < 0.01
    assert abs(np.mean([share.corrected for share in shares])) < 0.01
    same = jax.tree.map(lambda leaf: leaf[labels], tree)
    assert analysis.variance(split(same, labels))["kernel"].corrected > 1 - 1e-4


def test_nothing_is_formed_of_a_samples_kernel():
    n, rows, rank, columns = 8, 40, 2, 30
    tree = {"kernel": tree_of(0, n, rows, rank, columns)["kernel"]}
    functions = [
        analysis.squared_norms,
        lambda updates: analysis.inner_products(updates, updates),
        lambda updates: analysis.squared_norms(analysis.differences(updates, updates)),
        analysis.effective_ranks,
        analysis.means,
    ]
    for function in functions:
        shapes = intermediates(function, tree)
        assert max(np.prod(shape, dtype=int) for shape in shapes) < n * rows * columns / 4
        assert (n, rows, columns) not in shapes
    assert (n, rows, columns) in intermediates(
        lambda factors: factors.B @ factors.A, tree["kernel"]
    )


def test_factors_of_a_straw_and_generated_ones():
    images = random_array(0, (3, 28, 28, 1))
    straw = make_straw(CNN(5), images, rank=2)
    factors = jax.jit(straw.factors)(random_params(straw.init), images)
    norms = jax.jit(analysis.squared_norms)(factors)
    assert {path: norm.shape for path, norm in norms.items()} == {
        leaf.path: (3,) for leaf in straw.spec
    }
    hidden, kernel, bias = (random_array(i, s) for i, s in enumerate([(3, 4), (6, 2, 4), (6, 2)]))
    B, A = Generated(hidden, kernel, bias), random_array(3, (3, 2, 5))
    formed = np.einsum("nh,irh->nir", hidden, kernel) + bias
    got = analysis.squared_norms({"kernel": Factors(B, A)})
    assert_close(got, analysis.squared_norms({"kernel": Factors(formed, A)}), 1e-5)


def test_errors():
    tree = tree_of(0, 4, 5, 3, 6)
    one = {"kernel": Factors(tree["kernel"].B[0], tree["kernel"].A[0])}
    with pytest.raises(ValueError, match=r"kernel to have a sample axis.*got B \(5, 3\) and A"):
        analysis.squared_norms(one)
    with pytest.raises(ValueError, match=r"expected bias to have a sample axis"):
        analysis.means({"bias": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"inner_products: expected the same leaves twice"):
        analysis.inner_products(tree, {"kernel": tree["kernel"]})
    with pytest.raises(ValueError, match=r"inner_products: expected kernel to fit \(4, 5, 6"):
        analysis.inner_products(tree, tree_of(0, 3, 5, 3, 6))
    with pytest.raises(ValueError, match=r"differences: expected kernel to fit .*rank 3.*rank 2"):
        analysis.differences(tree, tree_of(0, 4, 5, 2, 6))
    with pytest.raises(ValueError, match="variance: expected at least one group"):
        analysis.variance([])


def test_stacked_layers_are_taken_apart():
    shapes = {"W": (3, 4, 5), "V": (2, 2, 3, 2, 2), "b": (3, 5), "free": (4, 2)}
    params = {name: np.zeros(shape, "float32") for name, shape in shapes.items()}
    formed = jax.jit(materialize)
    ranks = {"[WV]": 2, "b": "whole", "free": 1}
    spec = factor_spec(params, ranks, axes={"W": "src", "V": "ssrcc"})
    factors = spec.unpack(random_array(0, (6, spec.size)))
    got = to_numpy(analysis.squared_norms(analysis.by_layer(spec, factors)))
    names = {"W": [f"W[{i}]" for i in range(3)], "V": [f"V[{i}]" for i in range(4)]}
    assert list(got) == [*names["V"], *names["W"], "b", "free"]
    for n in range(6):
        own = jax.tree.map(lambda part, n=n: part[n], factors)
        dense = to_numpy(formed(params, own))
        for name, layers in names.items():
            each = np.reshape(dense[name], (len(layers), -1))
            assert_close(np.stack([got[layer][n] for layer in layers]), (each**2).sum(1), 1e-5)
        assert got["free"][n] == pytest.approx((dense["free"] ** 2).sum(), rel=1e-5)
        alone = analysis.by_layer(spec, own)
        assert alone["V[3]"].B.shape == (3, 2)
    with pytest.raises(ValueError, match="expected a factor for each"):
        analysis.by_layer(spec, {"W": factors["W"]})
