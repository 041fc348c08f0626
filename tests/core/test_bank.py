"""Adapters of a bank by index, beside each sample's weights formed."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from reference import TOLERANCE, assert_close, largest_intermediate, random_array, to_numpy

from straw_jax import (
    DoRA,
    Factors,
    Gain,
    LowRank,
    Mixture,
    SharedLowRank,
    factor_spec,
    make_straw,
    materialize,
    modulate,
    stack_adapters,
)
from straw_jax.kinds import Gains, InBasis, Update
from straw_jax.lift import take
from straw_jax.lowrank import indexed_dot, rows_of_block
from straw_jax.operators import Contraction
from straw_jax.parts import Part

ADAPTERS = 3


def bank_of(params, updates, axes=None, dtype="float32"):
    spec = factor_spec(params, updates, axes=axes)
    shared = {
        f"{leaf.path}/{name}": 0.3 * random_array(5, part.shape, "float32").astype(dtype)
        for leaf in spec
        for name, part in leaf.shared.items()
    }
    vector = (0.5 * random_array(1, (ADAPTERS, spec.size))).astype(dtype)
    return spec.unpack(jnp.asarray(vector), jax.tree.map(jnp.asarray, shared))


def dense(apply, params, bank, x, ids):
    """Each sample with merged weights."""

    def one(i, x):
        return apply(materialize(params, take(params, bank, i)), x[None])[0]

    return jax.vmap(one)(ids, x)


def mlp(params, x, activation=jnp.tanh):
    h = x @ params["up"]
    return activation(h + params["bias"].reshape(*[1] * (h.ndim - 1), -1)) @ params["down"]


def stacked(params, x):
    @jax.checkpoint
    def layer(h, kernel):
        return jnp.tanh(h @ kernel), None

    return lax.scan(layer, x, params["W"])[0]


def convolutions(params, x):
    for name, strides in (("first", (1, 1)), ("second", (2, 2))):
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, params[name], strides, "SAME", dimension_numbers=layout)
    return x.mean((1, 2))


def tied(params, x):
    rows = params["table"][jnp.asarray(x[..., 0] * 3, jnp.int32)]  # some are clipped
    return jnp.tanh(rows * x) @ params["table"].T


def force(params, x):
    """A gradient within the model."""
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ params["up"]) @ params["down"]))(x)


MLP = {"up": (6, 8), "bias": (8,), "down": (8, 5)}
COMPOSED = {"up": [LowRank(2), Gain(inputs=True)], "bias": "whole", "down": SharedLowRank(2)}
CASES = {
    "mlp": (mlp, MLP, {"up": 2, "down": [Mixture(2), DoRA(1)]}, (10, 6), {}),
    "composed": (mlp, MLP, COMPOSED, (10, 6), {}),
    "tokens": (mlp, MLP, {"up": 2, "down": 3}, (4, 3, 6), {}),
    "stacked": (stacked, {"W": (3, 6, 6)}, {"W": 2}, (10, 6), {"W": "src"}),
    "conv": (convolutions, {"first": (3, 3, 2, 3), "second": (2, 2, 3, 4)}, 2, (4, 5, 5, 2), {}),
    "tied": (tied, {"table": (5, 6)}, {"table": 2}, (10, 6), {}),
    "force": (force, MLP, {"up": 2, "down": 2}, (10, 6), {}),
}


def parameters(shapes, dtype="float32"):
    return {name: random_array(len(name), shape, dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", CASES)
def test_index_equals_merged_weights(case):
    apply, shapes, updates, shape, axes = CASES[case]
    params = parameters(shapes)
    compare(apply, params, bank_of(params, updates, axes), random_array(2, shape), "float32")


def test_index_in_bfloat16():
    params = parameters(MLP, "bfloat16")
    bank = bank_of(params, COMPOSED, dtype="bfloat16")
    compare(mlp, params, bank, random_array(2, (10, 6), "bfloat16"), "bfloat16")


def compare(apply, params, bank, x, dtype):
    ids = np.arange(len(x)) ** 2 % ADAPTERS
    weights = random_array(3, jax.eval_shape(apply, params, x).shape)

    def loss(function):
        def total(params, bank, x):
            y = function(params, bank, x).astype(jnp.float32)
            return jnp.sum(y * weights), y

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))

    exact = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, bank, x))
    got = loss(lambda params, bank, x: modulate(apply)(params, bank, x, index=jnp.asarray(ids)))
    want = loss(lambda params, bank, x: dense(apply, params, bank, x, ids))(*exact)
    assert_close(got(params, bank, x), want, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize(("rows", "vectors", "count"), [(40, 1, 3), (9, 2, 4), (3, 5, 8)])
def test_a_product_by_index(rows, vectors, count):
    x, bank = random_array(1, (rows, vectors, 5)), random_array(2, (count, 5, 2))
    ids = np.random.default_rng(0).integers(0, count, rows)
    ids[ids == 1] = 0  # an adapter without rows
    got = jax.jit(indexed_dot)(x, bank, ids)
    assert_close(got, np.einsum("nvi,nio->nvo", x, bank[ids]), 1e-5)
    assert (rows_of_block(rows, vectors, count) > 1) == (rows >= 2 * count)


def test_factors_are_not_repeated_for_each_sample():
    params, n = {"W": np.zeros((64, 2), np.float32)}, 64
    bank, x = bank_of(params, 2), random_array(2, (n, 64))

    def loss(bank, x):
        return jnp.sum(modulate(lambda p, x: x @ p["W"])(params, bank, x, index=jnp.arange(n) % 2))

    assert largest_intermediate(jax.grad(loss, (0, 1)), bank, x) < n * bank["W"].B[0].size


def test_a_bank_of_stacked_layers_is_read_where_it_is():
    params = {"W": np.zeros((3, 6, 6), np.float32)}
    bank = jax.tree.map(lambda leaf: jnp.tile(leaf, (50, 1, 1)), bank_of(params, 2, {"W": "src"}))
    apply = jax.jit(lambda bank, x, ids: modulate(stacked)(params, bank, x, index=ids))
    compiled = apply.lower(bank, jnp.ones((2, 6)), jnp.array([0, 149])).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(bank))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * size


def test_numbers_without_an_adapter():
    # Sums of whole numbers are exact, whatever a CPU fuses in one of the two programs alone.
    params = jax.tree.map(lambda leaf: np.round(3 * leaf), parameters(MLP))
    x = np.round(3 * random_array(2, (6, 6)))
    bank = bank_of(params, {"up": [LowRank(2), Gain()], "down": Mixture(2), "bias": "whole"})
    model = partial(mlp, activation=jax.nn.relu)
    ids = jnp.array([-1, 0, 3, -2, 2, -1])
    y = jax.jit(lambda ids: modulate(model)(params, bank, x, index=ids))(ids)
    np.testing.assert_array_equal(y[::5], jax.jit(model)(params, x)[::5])
    np.testing.assert_array_equal(np.isnan(y).all(1), [False, False, True, True, False, False])
    np.testing.assert_array_equal(np.isnan(y).any(1), np.isnan(y).all(1))
    with pytest.raises(ValueError, match=r"index to be numbers from 0 to 2, .* or -1.*got 3"):
        modulate(mlp)(params, bank, x, index=np.array([0, 1, 2, 3, 0, 0]))
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    alone = bank_of(params, 2)
    with pytest.raises(ValueError, match=r"got index -1, and .* with no weights of its own"):
        modulate(mlp)(weights, alone, x, index=np.array([-1] * 6))
    traced = jax.jit(lambda ids: modulate(mlp)(weights, alone, x, index=ids))
    assert np.isnan(traced(jnp.array([-1] * 6))).all()


def test_a_kind_without_a_neutral_value_is_in_each_row():
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Shifted(Update):
        shift: jax.Array

        def shapes(self, shape):
            return {"shift": ()}

        def change(self, kernel, scale):
            return kernel.plus(Contraction((Part(self.shift, (), ()),)))

    layer = modulate(lambda params, x: x @ params["W"])
    params, x = {"W": np.zeros((2, 1), np.float32)}, np.ones((2, 2), np.float32)
    bank = {"W": Shifted(jnp.array([1.0, 2.0, 3.0]))}
    assert layer(params, bank, x, index=np.array([2, 0])).tolist() == [[6.0], [2.0]]
    with pytest.raises(ValueError, match="Shifted, which always changes it"):
        layer(params, bank, x, index=np.array([2, -1]))
    with pytest.raises(ValueError, match="of which there is no weighted sum"):
        layer(params, bank, x, index=(np.zeros((2, 1), int), np.ones((2, 1), np.float32)))


def test_mixtures_of_adapters():
    params, x = parameters(MLP), random_array(2, (4, 6))
    updates = {"up": [LowRank(2), Gain()], "bias": "whole", "down": SharedLowRank(2)}
    bank = bank_of(params, updates)
    ids = np.array([[0, 1], [2, 2], [1, -1], [2, 0]])
    weights = np.abs(random_array(4, ids.shape))

    (lowrank, gain), core = bank["up"], bank["down"]

    def merged(i):
        terms = [(w, j) for j, w in zip(ids[i], weights[i], strict=True) if j >= 0]
        up = params["up"] + sum(w * lowrank.B[j] @ lowrank.A[j] for w, j in terms)
        return {
            "up": up * (1 + sum(w * (gain.outputs[j] - 1) for w, j in terms)),
            "bias": params["bias"] + sum(w * bank["bias"][j] for w, j in terms),
            "down": params["down"] + sum(w * core.U * core.core[j] @ core.V for w, j in terms),
        }

    got = jax.jit(lambda bank: modulate(mlp)(params, bank, x, index=(ids, weights)))(bank)
    bank, (lowrank, gain), core = to_numpy((bank, (lowrank, gain), core))
    with jax.numpy_rank_promotion("allow"):
        assert_close(got, np.stack([mlp(merged(i), x[i]) for i in range(4)]), 1e-5)


def test_a_bank_of_mixed_ranks():
    params, x = parameters(MLP), random_array(2, (5, 6))
    ranks = ({"up": 1, "down": 3}, {"up": 2}, {"up": 3, "down": 1})
    shapes = {"up": (6, 8), "down": (8, 5)}
    trees = [
        {
            name: Factors(
                random_array(i, (shapes[name][0], r)), random_array(i, (r, shapes[name][1]))
            )
            for name, r in each.items()
        }
        for i, each in enumerate(ranks)
    ]
    bank = stack_adapters(trees)
    assert bank["up"].B.shape == (3, 6, 3)
    ids = [0, 1, 2, 1, 0]

    def merged(tree):
        return params | {name: params[name] + each.B @ each.A for name, each in tree.items()}

    got = jax.jit(lambda bank: modulate(mlp)(params, bank, x, index=np.array(ids)))(bank)
    want = [mlp(merged(trees[i]), row) for i, row in zip(ids, x, strict=True)]
    assert_close(got, np.stack(want), 1e-5)


def test_what_does_not_stack():
    two = {"W": Factors(np.ones((3, 2)), np.ones((2, 4)))}
    other = {"W": Factors(np.ones((5, 2)), np.ones((2, 4)))}
    with pytest.raises(ValueError, match="expected B of W to be of one shape, but for the rank"):
        stack_adapters([two, other])
    with pytest.raises(ValueError, match=r"Factors\(B, A\)'\] in adapter 0 and \['Gains"):
        stack_adapters([two, {"W": Gains(outputs=np.ones(4))}])
    with pytest.raises(ValueError, match="a list of trees of factors"):
        stack_adapters(two)
    core = InBasis(np.ones(2), np.ones((3, 2)), np.ones((2, 4)))
    bank = stack_adapters([{"W": core}, {}])["W"]
    assert bank.core.tolist() == [[1, 1], [0, 0]]
    assert bank.U.shape == (3, 2)


def attention(params, x, dot=jnp.matmul):
    """Two layers that mix tokens, in the form of Linen and in the form of a language model."""
    bias = params["bias"]
    h = jnp.tanh(dot(x, params["up"]) + (bias if bias.ndim == 3 else bias.reshape(1, 1, -1)))
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", h, h))
    return dot(jnp.einsum("nqk,nkd->nqd", weights, h), params["down"])


def per_token(params, bank, x, ids, apply=attention):
    """Each token with merged weights of its own, `[n, tokens, in, out]`."""

    def one(i):
        merged = materialize(params, take(params, bank, jnp.maximum(i, 0)))
        return jax.tree.map(lambda own, base: jnp.where(i < 0, base, own), merged, params)

    weights = jax.vmap(jax.vmap(one))(jnp.asarray(ids))
    return apply(weights, x, lambda x, W: jnp.einsum("nti,ntio->nto", x, W))


PACKED = {"up": [LowRank(2), Gain(inputs=True)], "bias": ["whole", Gain()], "down": 2}
TOKEN_IDS = np.array([[0, 2, -1, 1, 1], [2, 2, 0, -1, 1]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_for_each_token(dtype):
    params = parameters(MLP, dtype)
    bank, x = bank_of(params, PACKED, dtype=dtype), random_array(2, (2, 5, 6), dtype)
    weights = random_array(3, (2, 5, 5))

    def loss(function):
        def total(params, bank, x):
            y = function(params, bank, x).astype(jnp.float32)
            return jnp.sum(y * weights), y

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))

    exact = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, bank, x))
    got = loss(lambda *given: modulate(attention)(*given, index=TOKEN_IDS))(params, bank, x)
    want = loss(lambda *given: per_token(*given, TOKEN_IDS))(*exact)
    assert_close(got, want, 5 * TOLERANCE[dtype])


def test_tokens_of_one_number_are_a_sample_of_it():
    params, x = parameters({"W": (3, 6, 6)}), random_array(2, (4, 2, 3, 6))
    bank, ids = bank_of(params, 2, {"W": "src"}), np.array([0, 2, 1, 2])
    apply = jax.jit(lambda ids: modulate(stacked)(params, bank, x, index=ids))
    for axes in (1, 2):  # also of several axes
        each = np.broadcast_to(ids.reshape(-1, *[1] * axes), x.shape[: axes + 1])
        if axes == 2:
            assert_close(apply(each), apply(ids), TOLERANCE["float32"])
        else:
            with pytest.raises(ValueError, match=r"each of 2 vectors of a sample, got \[1, 2, 3\]"):
                apply(each)


def test_numbers_of_tokens_that_are_not_known():
    params, x = parameters(MLP), random_array(2, (2, 5, 6))
    bank = bank_of(params, PACKED)
    apply = jax.jit(lambda ids: modulate(mlp)(params, bank, x, index=ids))
    with pytest.raises(ValueError, match="index to be numbers from 0 to 2"):
        modulate(mlp)(params, bank, x, index=TOKEN_IDS + 1)
    y = np.asarray(apply(TOKEN_IDS))
    assert_close(y, modulate(mlp)(params, bank, x, index=TOKEN_IDS), TOLERANCE["float32"])
    assert_close(y[TOKEN_IDS < 0], mlp(params, x)[TOKEN_IDS < 0], TOLERANCE["float32"])
    wrong = np.where(TOKEN_IDS == 1, 3, TOKEN_IDS)
    assert np.array_equal(np.isnan(apply(wrong)).all(-1), wrong == 3)


@pytest.mark.parametrize("rank", [4, 32])  # products with all adapters, and with sorted tokens
def test_no_factor_is_there_for_each_token(rank):
    tokens, apply = 512, modulate(lambda params, x: x @ params["W"])
    params = {"W": random_array(0, (64, 48))}
    bank, x = bank_of(params, rank), random_array(2, (1, tokens, 64))
    ids = np.arange(tokens)[None] ** 2 % ADAPTERS
    weights = random_array(3, (1, tokens, 48))

    def by_index(bank, x):
        return jnp.sum(weights * apply(params, bank, x, index=ids))

    def formed(bank, x):
        B, A = bank["W"].B[ids], bank["W"].A[ids]
        update = jnp.einsum("nti,ntir,ntro->nto", x, B, A)
        return jnp.sum(weights * (x @ params["W"] + update))

    own, other = (jax.jit(jax.value_and_grad(each, (0, 1))) for each in (by_index, formed))
    assert_close(own(bank, x), other(bank, x), 10 * TOLERANCE["float32"])
    assert largest_intermediate(jax.grad(by_index, (0, 1)), bank, x) <= 2 * x.size


def test_what_tokens_cannot_have_numbers_of():
    params, x = parameters(MLP), random_array(2, (2, 5, 6))

    def refused(message, function, updates, params=params, x=x, ids=TOKEN_IDS):
        with pytest.raises(ValueError, match=message):
            modulate(function)(params, bank_of(params, updates), x, index=ids)

    refused("got InBasis for down", mlp, {"down": SharedLowRank(2)})
    refused(r"or one for each vector of a sample, \[2, 5\]", mlp, 2, ids=TOKEN_IDS[:, :4])
    refused(r"each of 5 vectors of a sample, got \[1\]", lambda p, x: mlp(p, x[:, 0]), {"up": 2})
    refused("got a look-up of rows", tied, {"table": 2}, parameters({"table": (50, 6)}))
    shapes, images = CASES["conv"][1], random_array(2, (2, 5, 5, 2))
    refused("got a convolution", convolutions, 2, parameters(shapes), images, TOKEN_IDS)
    refused("needs the whole kernel", lambda p, x: x @ jnp.tanh(p["up"]), {"up": 2})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.zeros(3, int), r"whole numbers \[2\] of adapters"),
        (np.zeros(2, np.float32), r"whole numbers \[2\] of adapters"),
        ([0, 1], "Convert lists"),
        ((np.zeros((2, 2), int), np.zeros((2, 1), np.float32)), "weights of a mixture"),
    ],
)
def test_refused_numbers(index, message):
    params = {"W": np.zeros((3, 1), np.float32)}
    layer = modulate(lambda params, x: x @ params["W"])
    with pytest.raises(ValueError, match=message):
        layer(params, bank_of(params, 1), np.ones((2, 3), np.float32), index=index)


def test_refused_banks():
    params, x, ids = {"W": np.zeros((3, 1), np.float32)}, np.ones((2, 3)), np.zeros(2, int)
    one = Factors(np.ones((3, 1)), np.ones((1, 1)))
    layer = modulate(lambda params, x: x @ params["W"])
    with pytest.raises(ValueError, match="an axis of adapters in front"):
        layer(params, {"W": one}, x, index=ids)
    uneven = {"W": Factors(np.ones((2, 3, 1)), np.ones((4, 1, 1)))}
    with pytest.raises(ValueError, match="one number of adapters in front"):
        layer(params, uneven, x, index=ids)

    def shifted(params, x, index):
        return x @ params["W"] + index

    bank, x = {"W": Factors(np.ones((2, 3, 1)), np.ones((2, 1, 1)))}, np.ones((2, 3))
    with pytest.raises(ValueError, match=r"modulate\(apply, index='adapter'\)"):
        modulate(shifted)(params, bank, x, index=ids)
    renamed = modulate(shifted, index="adapter")
    assert renamed(params, bank, x, index=5.0, adapter=ids).tolist() == [[8.0], [8.0]]


def test_contexts_by_index():
    x, contexts = random_array(1, (6, 4)), random_array(2, (3, 5))
    straw = make_straw(
        nn.Dense(3), x, rank=2, base="none", encoder=nn.Dense(4), context=contexts, hidden=6
    )
    params = jax.jit(straw.init)(jax.random.key(0))
    ids = np.array([2, 0, 1, 0, 2, 2])

    @jax.jit
    def both(params):
        factors = straw.factors(params, contexts)
        one = straw.factors(params, contexts[:1])
        return {
            "by index": straw.apply(params, x, context=contexts, index=ids),
            "written": straw.apply_factors(params, factors, x, index=ids),
            "of one": straw.apply(params, x, context=contexts[:1]),
            "of one, written": straw.apply_factors(params, one, x),
            "each": straw.apply(params, x, context=contexts[ids]),
            "first": straw.apply(params, x, context=np.repeat(contexts[:1], 6, axis=0)),
        }

    got = both(params)
    for name in ("by index", "written"):
        assert_close(got[name], got["each"], 1e-5)
    for name in ("of one", "of one, written"):
        assert_close(got[name], got["first"], 1e-5)

    def loss(params):
        return straw.apply(params, x, context=contexts[:1]).sum()

    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert largest_intermediate(jax.grad(loss), params) <= max(*sizes, x.size)
    with pytest.raises(ValueError, match="contexts to which the numbers"):
        straw.apply(params, x, index=ids)


def test_a_cache_with_a_scalar():
    """Positions step by step, as Linen's cache does, beside all of them at once."""

    def apply(params, x, *, cache):
        at = cache["position"]
        kept = lax.dynamic_update_slice(cache["values"], (x @ params["W"])[:, None], (0, at, 0))
        return kept.sum(1), {"values": kept, "position": at + 1}

    params, x = {"W": random_array(1, (3, 2))}, random_array(2, (4, 5, 3))
    bank, ids = bank_of(params, 1), np.array([0, 2, -1, 2])
    step = modulate(apply, per_sample="cache")
    first = {"values": jnp.zeros((4, 5, 2)), "position": jnp.zeros((), jnp.int32)}

    @jax.jit
    def decode(x):
        def body(cache, x):
            y, cache = step(params, bank, x, index=ids, cache=cache)
            return cache, y

        return lax.scan(body, first, x.swapaxes(0, 1))

    cache, y = decode(x)
    want = modulate(lambda p, x: jnp.cumsum(x @ p["W"], 1))(params, bank, x, index=ids)
    assert cache["position"] == 5
    assert_close(y.swapaxes(0, 1), want, 1e-5)
