"""Measures of novelty, compared with whole matrices in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, intermediates, random_array, to_numpy

from straw_jax import Factors, factor_spec, materialize, novelty
from straw_jax.kinds import DoRA, Gain, LowRank, Mixture, Posed
from straw_jax.lift import take

PARAMS = {"W": random_array(5, (6, 5)), "bias": random_array(6, (5,))}
KINDS = {
    "low-rank": LowRank(2),
    "gain": Gain(inputs=True),
    "mixture": Mixture(3),
    "DoRA": DoRA(2),
    "several": [LowRank(1), Gain()],
}
BOOLEANS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=9)


def updates_of(kind, seed, n, size=0.3, params=PARAMS):
    """Updates of random numbers, about what changes nothing; what samples share is seed 0's."""
    ranks = {"W": kind, "bias": "whole"}
    spec = factor_spec(params, {path: ranks[path] for path in params})
    tree = {}
    for leaf in spec:
        parts = {name: random_array([0, i], part.shape)
                 for i, (name, part) in enumerate(leaf.shared.items())}  # fmt: skip
        for i, (name, part) in enumerate(leaf.written.items()):
            numbers = np.float32(size) * random_array([seed, i], (n, *part.shape))
            parts[name] = numbers + np.float32(part.offset)
        tree[leaf.path] = jax.tree.map(np.asarray, leaf.assemble(parts))
    return tree


def flat_changes(tree, n, params=PARAMS):
    """Each sample's changes by path, `[n, numbers]`, in float64; weights are formed by the lift."""
    formed = [to_numpy(materialize(params, take(params, tree, i))) for i in range(n)]
    return {
        path: np.stack([np.float64(each[path]) - np.float64(params[path]) for each in formed])
        .reshape(n, -1)
        for path in tree
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_compared_as_its_dense_change(kind):
    left, right = updates_of(KINDS[kind], 1, 3), updates_of(KINDS[kind], 2, 7)
    u, v = flat_changes(left, 3), flat_changes(right, 7)
    joined = [np.concatenate([*each.values()], axis=1) for each in (u, v)]
    distances = np.linalg.norm(joined[0][:, None] - joined[1], axis=-1)
    number, distance = novelty.nearest(left, right, params=PARAMS, chunk=3)
    np.testing.assert_array_equal(number, distances.argmin(axis=1))
    norms = np.linalg.norm(joined[0], axis=1)
    np.testing.assert_allclose(distance, distances.min(axis=1) / norms, rtol=1e-4)
    found = novelty.rotations(PARAMS, left)
    for path, base in PARAMS.items():
        w = np.float64(base).ravel()
        changed = w + u[path]
        cosine = changed @ w / np.linalg.norm(w) / np.linalg.norm(changed, axis=1)
        np.testing.assert_allclose(found[path], 1 - cosine, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["low-rank", "mixture"])
def test_a_planted_copy_has_distance_0(kind):
    stored, new = updates_of(KINDS[kind], 1, 9), updates_of(KINDS[kind], 2, 3)
    at = {1: 8, 2: 0}  # the first of the new ones is no copy

    def planted(own, theirs):
        if len(own) != 3 or len(theirs) != 9:  # shared
            return own
        own = own.copy()
        own[[*at]] = theirs[[*at.values()]]
        return own

    number, distance = novelty.nearest(jax.tree.map(planted, new, stored), stored, params=PARAMS)
    assert number[1:].tolist() == [*at.values()]
    assert distance[1:].tolist() == [0.0, 0.0]
    assert distance[0] > 0.3
    number, distance = novelty.nearest(stored, stored, params=PARAMS, leave_one_out=True)
    assert np.all(number != np.arange(9))
    assert np.all(distance > 0.1)


def test_the_nearest_of_many_that_hardly_differ():
    """Inner products alone cannot tell them apart."""
    one = updates_of(KINDS["low-rank"], 1, 1)
    steps = np.float32([3e-4, 1e-5, 1e-2, 1e-4])
    stored = jax.tree.map(lambda x: x + steps.reshape(4, *[1] * (x.ndim - 1)), one)
    number, distance = novelty.nearest(one, stored)
    assert number.tolist() == [1]
    u = np.concatenate([*flat_changes(one, 1).values()], axis=1)
    v = np.concatenate([*flat_changes(stored, 4, PARAMS).values()], axis=1)
    # The reference rounds weights to float32.
    assert distance[0] == pytest.approx(np.linalg.norm(u - v[1]) / np.linalg.norm(u), rel=0.05)


def test_a_copy_in_other_factors_is_as_near_as_rounding():
    B, A = random_array(0, (2, 6, 3)), random_array(1, (2, 3, 5))
    turn = np.linalg.qr(random_array(2, (3, 3)))[0]
    number, distance = novelty.nearest(
        {"W": Factors(B @ turn, turn.T @ A)}, {"W": Factors(B[::-1], A[::-1])}
    )
    assert number.tolist() == [1, 0]
    assert np.all(distance < 1e-3)


@settings(max_examples=6)
@given(st.tuples(*[st.integers(1, 6)] * 5), st.booleans())
def test_utilised_ranks(sizes, own):
    n, points, rows, rank, columns = sizes
    B, A = random_array(0, (n, rows, rank)), random_array(1, (n, rank, columns))
    x = random_array(2, (n, points, rows) if own else (points, rows))
    got = novelty.utilised_ranks({"W": Factors(B, A)}, {"W": x})
    added = np.float64(x) @ np.float64(B) @ np.float64(A)
    values = np.linalg.svd(added, compute_uv=False)
    shares = np.maximum(values / values.sum(1, keepdims=True), 1e-300)
    assert_close(got, {"W": np.exp(-(shares * np.log(shares)).sum(1))}, 1e-4)


def test_data_use_part_of_a_rank():
    tree = {"W": Factors(np.eye(6, 4, dtype="f")[None], np.eye(4, 5, dtype="f")[None])}
    x = np.eye(6, dtype="f")
    for directions in (1, 2, 4):
        (found,) = novelty.utilised_ranks(tree, {"W": x[:directions]})["W"]
        assert found == pytest.approx(directions, rel=1e-4)
    assert novelty.utilised_ranks(tree, {"W": x[4:]})["W"].tolist() == [0.0]  # nothing is added


def test_other_kinds_are_formed_where_asked():
    tree, x = updates_of(KINDS["mixture"], 1, 3), random_array(3, (3, 4, 6))
    found = novelty.utilised_ranks(tree, {"W": x}, params=PARAMS, allow_materialise=True)["W"]
    values = np.linalg.svd(x @ flat_changes(tree, 3)["W"].reshape(3, 6, 5), compute_uv=False)
    shares = values / values.sum(1, keepdims=True)
    np.testing.assert_allclose(found, np.exp(-(shares * np.log(shares)).sum(1)), rtol=1e-4)
    with pytest.raises(ValueError, match="allow_materialise"):
        novelty.utilised_ranks(tree, {"W": x}, params=PARAMS)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_rotations_are_accurate(size):
    tree = {"W": np.float32(size) * random_array(1, (3, 6, 5))}
    w, u = np.float64(PARAMS["W"]).ravel(), np.float64(tree["W"]).reshape(3, -1)
    sine = (u**2).sum(1) - (u @ w) ** 2 / (w @ w)  # times |W_s|^2
    want = 1 - np.sqrt(1 - sine / ((w + u) ** 2).sum(1)) if size > 1e-3 else sine / 2 / (
        (w + u) ** 2).sum(1)  # fmt: skip
    np.testing.assert_allclose(novelty.rotations(PARAMS, tree)["W"], want, rtol=1e-3)


def test_scaling_and_turning_round():
    w = PARAMS["W"]
    found = novelty.rotations(PARAMS, {"W": np.stack([w, np.float32(-0.5) * w, -3 * w])})["W"]
    np.testing.assert_allclose(found, [0, 0, 2], atol=1e-6)


@given(BOOLEANS)
def test_overlap_of_errors(pairs):
    one, other = np.array(pairs).T
    shared, consistency = novelty.error_overlap(one, other)
    if (one | other).any():
        np.testing.assert_allclose(shared, (one & other).sum() / (one | other).sum(), rtol=1e-6)
    p, q = one.mean(), other.mean()
    expected = p * q + (1 - p) * (1 - q)
    if expected < 1:
        want = ((one == other).mean() - expected) / (1 - expected)
        np.testing.assert_allclose(consistency, want, atol=1e-5)
    else:
        assert np.isnan(consistency)


def test_one_model_with_several():
    errors = np.random.default_rng(0).random((4, 50)) < 0.3
    shared, consistency = novelty.error_overlap(errors[2], errors)
    assert int(shared.argmax()) == int(consistency.argmax()) == 2
    assert (float(shared[2]), float(consistency[2])) == (1.0, pytest.approx(1.0))
    assert np.all(np.abs(np.delete(consistency, 2)) < 0.4)


def test_no_kernel_of_a_sample_is_formed():
    rows, columns = 60, 50
    params, x = {"W": random_array(0, (rows, columns))}, {"W": random_array(1, (4, rows))}
    for kind in (KINDS["low-rank"], KINDS["gain"], KINDS["DoRA"]):
        left, right = (updates_of(kind, seed, n, params=params) for seed, n in ((1, 7), (2, 9)))
        shapes = intermediates(partial(novelty.nearest, params=params), left, right)
        shapes += intermediates(partial(novelty.rotations, params), left)
        if kind == KINDS["low-rank"]:
            shapes += intermediates(lambda tree: novelty.utilised_ranks(tree, x), left)
        assert not [shape for shape in shapes if {rows, columns} <= {*shape} and len(shape) > 2]


def test_bfloat16_is_measured_in_float32():
    tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), updates_of(KINDS["low-rank"], 1, 3))
    wide = jax.tree.map(lambda x: x.astype("f"), tree)
    x = {"W": np.ones((4, 6), jnp.bfloat16)}
    for measure in (
        partial(novelty.rotations, PARAMS),
        lambda tree: novelty.nearest(tree, wide),
        lambda tree: novelty.utilised_ranks(tree, x),
    ):
        jax.tree.map(np.testing.assert_array_equal, measure(tree), measure(wide))


def test_errors():
    tree, other = updates_of(KINDS["low-rank"], 1, 3), {"W": np.ones((3, 6, 5), "f")}
    x = {"W": np.ones((4, 6), "f")}
    wrong = {
        "same leaves": lambda: novelty.nearest(tree, other),
        "at least one stored": lambda: novelty.nearest(
            tree, jax.tree.map(lambda x: x[:2], tree), leave_one_out=True
        ),
        "chunk": lambda: novelty.nearest(tree, tree, chunk=0),
        "floating-point numbers .points, 6": lambda: novelty.utilised_ranks(tree, {"W": x["W"].T}),
        "inputs of layers by path": lambda: novelty.utilised_ranks(tree, x["W"]),
        "with updates": lambda: novelty.utilised_ranks(tree, {"V": x["W"]}),
        "nothing to turn": lambda: novelty.rotations(
            {"W": jax.ShapeDtypeStruct((6, 5), "f")}, other
        ),
        "a pose": lambda: novelty.rotations(
            {"W": np.ones((3, 3, 6, 5), "f")}, {"W": Posed(np.ones((3, 2, 3), "f"))}
        ),
        "predictions != labels": lambda: novelty.error_overlap(np.ones(3), np.ones(3)),
        "same inputs": lambda: novelty.error_overlap(np.ones(3, bool), np.ones(4, bool)),
    }
    for message, call in wrong.items():
        with pytest.raises(ValueError, match=message):
            call()
