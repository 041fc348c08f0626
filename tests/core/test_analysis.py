"""Updates in factored form, compared with whole matrices in float64."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, intermediates, random_array, random_params, to_numpy

from straw_jax import (
    CNN,
    Factors,
    Generated,
    Posed,
    analysis,
    factor_spec,
    make_straw,
    materialize,
    modulate,
)
from straw_jax.kinds import (
    Decomposed,
    DoRA,
    Gain,
    Gains,
    InBasis,
    Kind,
    LowRank,
    Mixed,
    Mixture,
    SharedLowRank,
    Update,
    Whole,
    Written,
)
from straw_jax.operators import Contraction
from straw_jax.parts import Part

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


# Every kind, beside plain NumPy.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Swayed(Update):
    """`W + W diag(a) + b c`: a kind of one's own, which depends on the base."""

    a: jax.Array
    b: jax.Array
    c: jax.Array

    def shapes(self, shape):
        return {"a": shape[1:], "b": shape[:1], "c": shape[1:]}

    def change(self, kernel, scale):
        outer = Contraction((Part(self.b, (0,), self.b.shape), Part(self.c, (1,), self.c.shape)))
        return kernel.times(1 + self.a, (1,)).plus(outer)


class Sway(Kind):
    def written(self, leaf):
        rows, columns = leaf.shape
        return {"a": Written((columns,)), "b": Written((rows,)), "c": Written((columns,))}

    def update(self, leaf, parts):
        return Swayed(**parts)


def in_numpy(update, weights, i):
    """The weights of sample `i` after an update, in float64; None for no base."""

    def array(value, ndim):
        value = np.asarray(value, np.float64)
        return value[i] if value.ndim > ndim else value

    def plus(change):
        return change if weights is None else weights + change

    match update:
        case Factors():
            return plus((array(update.B, 2) @ array(update.A, 2)).reshape(SHAPE))
        case InBasis():
            core = array(update.core, 2 if update.full else 1)
            core = core if update.full else np.diag(core)
            return plus((array(update.U, 2) @ core @ array(update.V, 2)).reshape(SHAPE))
        case Mixed():
            return plus(np.tensordot(array(update.weights, 1), array(update.templates, 3), 1))
        case Gains():
            inputs = 1.0 if update.inputs is None else array(update.inputs, 1)[:, None]
            return weights * inputs * array(update.outputs, 1)
        case Decomposed():
            changed = plus(array(update.B, 2) @ array(update.A, 2))
            norms = 1.0 if weights is None else np.linalg.norm(weights, axis=0)
            return changed * array(update.gains, 1) * norms / np.linalg.norm(changed, axis=0)
        case Swayed():
            outer = np.outer(array(update.b, 1), array(update.c, 1))
            return weights * (1 + array(update.a, 1)) + outer
        case _:
            return plus(array(update, 2))


SHAPE = 6, 5
N = 4
KINDS = {
    "low-rank": LowRank(2),
    "shared": SharedLowRank(3),
    "shared, full": SharedLowRank(2, full=True),
    "whole": Whole(),
    "gain": Gain(),
    "gains of both": Gain(inputs=True),
    "mixture": Mixture(3),
    "softmax": Mixture(3, softmax=True),
    "DoRA": DoRA(2),
    "one's own": Sway(),
    "low-rank twice": [LowRank(1), SharedLowRank(2)],
    "several": [LowRank(1), Whole(), Gain(inputs=True)],
}
LOWRANK = {"low-rank", "shared", "shared, full", "low-rank twice"}
BASE = {"W": random_array(5, SHAPE)}


def updates_of(rank, seed, size=0.3, params=BASE, n=N, axes=None):
    """Updates of random numbers, about what changes nothing; what samples share is seed 0's."""
    spec = factor_spec(params, {"W": rank}, axes=axes)
    (leaf,) = spec
    shared = {name: random_array([0, i], part.shape)
              for i, (name, part) in enumerate(leaf.shared.items())}  # fmt: skip
    written = {
        name: np.float32(size) * random_array([seed, i], (n, *part.shape)) + np.float32(part.offset)
        for i, (name, part) in enumerate(leaf.written.items())
    }
    return spec, {"W": jax.tree.map(np.asarray, leaf.assemble(written | shared))}


def changes(tree, base=BASE, n=N):
    """Every sample's change, in float64."""
    entry = tree["W"]
    start = None if isinstance(base["W"], jax.ShapeDtypeStruct) else np.float64(base["W"])
    found = []
    for i in range(n):
        weights = start
        for update in entry if isinstance(entry, tuple) else (entry,):
            weights = in_numpy(update, weights, i)
        found.append(weights if start is None else weights - start)
    return np.stack(found)


def measured(left, right, params=None):
    """All measures of one leaf, as one program."""

    def all_of(left, right):
        difference = analysis.differences(left, right)
        forms = {"params": params, "allow_materialise": True}
        return {
            "squares": analysis.squared_norms(left, params=params),
            "products": analysis.inner_products(left, right, params=params),
            "distances": analysis.squared_norms(difference, params=params),
            "mean": analysis.means(left, params=params),
            "mean difference": analysis.means(difference, params=params),
            "values": analysis.singular_values(left, **forms),
            "unasked": analysis.effective_ranks(left, params=params),
        }

    found = to_numpy(jax.jit(all_of)(left, right))
    return {name: by_path.get("W") for name, by_path in found.items()}


def assert_measures(found, u, v, matrix=SHAPE, tolerance=1e-5):
    flat = u.reshape(len(u), -1), v.reshape(len(v), -1)
    values = np.linalg.svd(u.reshape(-1, *matrix), compute_uv=False)
    want = {
        "squares": (flat[0] ** 2).sum(1),
        "products": (flat[0] * flat[1]).sum(1),
        "distances": ((flat[0] - flat[1]) ** 2).sum(1),
        "mean": u.mean(0),
        "mean difference": (u - v).mean(0),
        "values": values[:, : found["values"].shape[1]],
    }
    assert abs(values[:, found["values"].shape[1] :]).max(initial=0) < 1e-6
    for name, each in want.items():
        assert_close(found[name].reshape(each.shape), each, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_measured_as_its_dense_change(kind):
    (_, left), (_, right) = updates_of(KINDS[kind], 1), updates_of(KINDS[kind], 2)
    found = measured(left, right, BASE)
    u, v = changes(left), changes(right)
    assert_measures(found, u, v)
    assert (found["unasked"] is not None) == (kind in LOWRANK)
    parts = [jax.tree.map(lambda part, own=own: part[own] if len(part) == N else part, left)
             for own in (slice(0, 1), slice(1, N))]  # fmt: skip
    variance = analysis.variance(parts, params=BASE)["W"]
    np.testing.assert_allclose(variance.total, ((u - u.mean(0)) ** 2).sum() / N, rtol=1e-4)
    np.testing.assert_allclose(variance.mean_norm, np.linalg.norm(u.mean(0)), rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "mixture", "whole", "low-rank twice"])
def test_what_is_added_needs_no_base(kind):
    (_, left), (_, right) = updates_of(KINDS[kind], 1), updates_of(KINDS[kind], 2)
    assert_measures(measured(left, right), changes(left), changes(right))


def test_dora_without_a_base_is_low_rank():
    shapes = {"W": jax.ShapeDtypeStruct(SHAPE, np.float32)}
    (_, left), (_, right) = updates_of(DoRA(2), 1), updates_of(DoRA(2), 2)
    found = measured(left, right, shapes)
    assert_measures(found, changes(left, shapes), changes(right, shapes))
    assert found["unasked"] is not None


@settings(max_examples=4, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 3), st.sampled_from(["rcc", "rrc"]))
def test_kernels_of_any_shape_are_read_as_they_are_generated(shape, rank, axes):
    params = {"W": random_array(3, shape)}
    _, tree = updates_of([LowRank(rank), Gain()], 1, params=params, axes={"W": axes})
    factors, gains = tree["W"]
    update = (factors.B @ factors.A).reshape(N, *shape)
    outputs = gains.outputs.reshape(N, *[1] * (3 - axes.count("c")), *shape[axes.index("c") :])
    u = (params["W"] + update) * outputs - params["W"]
    got = analysis.squared_norms(tree, params=params)["W"]
    assert_close(got, (u.reshape(N, -1) ** 2).sum(1), 1e-4)


@pytest.mark.parametrize("kind", ["gain", "gains of both", "mixture", "DoRA", "one's own"])
@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_small_changes_and_differences_are_accurate(kind, size):
    (_, left), (_, right) = (updates_of(KINDS[kind], seed, size) for seed in (1, 2))
    got = jax.jit(
        lambda u, v: (
            analysis.squared_norms(u, params=BASE)["W"],
            analysis.squared_norms(analysis.differences(u, v), params=BASE)["W"],
        )
    )(left, right)
    u, v = changes(left), changes(right)
    want = (u**2).sum((1, 2)), ((u - v) ** 2).sum((1, 2))
    # The update itself rounds gains near 1 to 1e-7.
    assert_close(got, want, 1e-3 if kind in ("DoRA", "one's own") and size < 1e-3 else 1e-4)


def test_a_pose_with_a_grid_is_a_matrix():
    params = {"W": random_array(0, (2 * 2 * 3, 5))}
    matrix = np.stack([np.eye(2, 3, dtype="float32"), np.float32([[-1, 0, 0], [0, -1, 0]])])
    tree = {"W": Posed(matrix, grid=(2, 2))}
    turned = params["W"].reshape(2, 2, 3, 5)[::-1, ::-1].reshape(-1, 5)
    u = np.stack([0 * turned, turned - params["W"]])
    got = to_numpy(analysis.squared_norms(tree, params=params)["W"])
    assert_close(got, (u**2).sum((1, 2)), 1e-5)
    assert_close(analysis.means(tree, params=params)["W"], u.mean(0), 1e-5)
    values = analysis.singular_values(tree, params=params, allow_materialise=True)["W"]
    assert_close(values, np.linalg.svd(u, compute_uv=False), 1e-5)
    assert analysis.singular_values(tree, params=params) == {}


def test_no_kind_forms_a_samples_change():
    n, shape = 8, (40, 30)
    params = {"W": random_array(0, shape)}

    def all_of(left, right, params):
        difference = analysis.differences(left, right)
        return [
            analysis.squared_norms(left, params=params),
            analysis.inner_products(left, right, params=params),
            analysis.squared_norms(difference, params=params),
            analysis.means(left, params=params),
            analysis.effective_ranks(left, params=params),
        ]

    for name, kind in KINDS.items():
        if name in ("whole", "several"):
            continue  # every number of a kernel is generated
        (_, left), (_, right) = (updates_of(kind, i, params=params, n=n) for i in (1, 2))
        shapes = intermediates(all_of, left, right, params)
        assert max(np.prod(shape, dtype=int) for shape in shapes) < n * 40 * 30 / 2, name


STACKED = {
    "low-rank": LowRank(2),
    "shared": SharedLowRank(2),
    "mixture": Mixture(3),
    "several": [DoRA(2), Whole(), Gain(inputs=True)],
}


@pytest.mark.parametrize("kind", STACKED)
def test_stacked_layers_of_every_kind_are_taken_apart(kind):
    params = {"W": random_array(0, (3, 3, 4, 3)), "b": random_array(1, (3,))}
    spec, tree = updates_of(STACKED[kind], 1, params=params, axes={"W": "ssrc"})
    apart, bases = analysis.by_layer(spec, tree), analysis.params_by_layer(spec, params)
    assert list(apart) == [f"W[{i}]" for i in range(9)]
    assert set(bases) == {"b", *apart}

    @jax.jit
    def both(tree, apart):
        whole = analysis.squared_norms(tree, params=params)["W"]
        means = analysis.means(tree, params=params)["W"]
        layers = analysis.squared_norms(apart, params=bases)
        return whole, sum(layers.values()), means, analysis.means(apart, params=bases)

    whole, layers, means, each = to_numpy(both(tree, apart))
    assert_close(layers, whole, 1e-5)
    assert_close(np.stack([each[path] for path in apart]).reshape(means.shape), means, 1e-5)


def test_errors_of_other_kinds():
    (_, gains), (_, own) = updates_of(Gain(), 1), updates_of(Sway(), 1)
    with pytest.raises(ValueError, match=r"expected params=, with the weights of W that Gains"):
        analysis.squared_norms(gains)
    with pytest.raises(ValueError, match=r"weights of W that Swayed changes, got none"):
        analysis.means(own)
    with pytest.raises(ValueError, match=r"params with weights of W, got those of \['V'\]"):
        analysis.means(own, params={"V": BASE["W"]})
    shapes = {"W": jax.ShapeDtypeStruct(SHAPE, np.float32)}
    with pytest.raises(ValueError, match=r"W that Gains changes, got a shape only"):
        analysis.variance([gains], params=shapes)
    with pytest.raises(ValueError, match=r"W to have a sample axis, outputs \(n, 5\).*outputs \(3"):
        analysis.squared_norms({"W": Gains(outputs=np.ones((3, 4), "float32"))}, params=BASE)
    with pytest.raises(ValueError, match=r"differences: expected W to fit .*'Gains'.*'Swayed'"):
        analysis.differences(gains, own)
    with pytest.raises(ValueError, match="got a pose, which has no norm"):
        analysis.squared_norms({"W": Posed(np.zeros((4, 2, 3), "float32"))}, params=BASE)
    params = {"W": random_array(0, (2, 4, 3))}
    spec, stacked = updates_of(LowRank(2), 1, params=params, axes={"W": "src"})
    with pytest.raises(ValueError, match=r"W layer by layer, got those of stacked layers"):
        analysis.squared_norms(stacked)
    with pytest.raises(ValueError, match=r"expected matrices, got \['W'\], each of stacked"):
        analysis.singular_values(stacked, params=params)
    with pytest.raises(ValueError, match=r"params_by_layer.*W of shape \[2, 4, 3\]"):
        analysis.params_by_layer(spec, BASE)
    difference = analysis.differences(gains, gains)
    with pytest.raises(ValueError, match=r"Difference: expected a function of straw_jax\.analysis"):
        modulate(lambda params, x: x @ params["W"])(BASE, difference, np.ones((N, 6), "float32"))
