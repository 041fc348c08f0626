"""Generators of every form, vectors, options of the parts, and how they start."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import assert_close as assert_within
from reference import moved, random_array, random_params

from straw_jax import (
    DoRA,
    FactorSpec,
    Gain,
    GeneratedLeaf,
    Heads,
    LowRank,
    Mixture,
    Network,
    PerceiverEncoder,
    Pose,
    SharedHeads,
    SharedLowRank,
    TokenHeads,
    Whole,
    factor_spec,
    form,
    make_straw,
    materialize,
)
from straw_jax.layers import attention
from straw_jax.lift import take

assert_close = partial(assert_within, tolerance=1e-5)

SHAPES = {
    "conv": (3, 3, 2, 4),
    "first": (6, 8),
    "second": (6, 8),
    "square": (6, 6),
    "stacked": (3, 6, 5),
    "norm": (8,),
}
UPDATES = {
    "conv": [LowRank(2), Pose()],
    "first": [LowRank(2), Gain(inputs=True)],
    "second": DoRA(2),
    "square": SharedLowRank(3),
    "stacked": LowRank(2),
    "norm": Mixture(2),
}
SPEC = factor_spec(
    {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()},
    UPDATES,
    axes={"stacked": "src"},
)
SMALL = {
    "L": partial(SharedHeads, form="L", hidden=8),
    "M": partial(SharedHeads, form="M", hidden=8),
    "S": partial(SharedHeads, form="S", hidden=8),
    "tokens": partial(TokenHeads, width=8, heads=2, layers=1),
}


def written(factors):
    return {
        f"{leaf.path}/{name}": form(array)
        for leaf in SPEC
        for name, array in leaf.disassemble(factors[leaf.path]).items()
    }


@pytest.mark.parametrize("name", ["L", "tokens"])
def test_generators_write_every_kind_and_start_at_the_base(name):
    module = SMALL[name](SPEC, start_at_base=True)
    style = random_array(0, (2, 3, 4) if name == "tokens" else (2, 4))
    factors, _ = jax.jit(module.init_with_output)(jax.random.key(0), style)
    SPEC.check(factors)
    base = {path: random_array(len(path), shape) for path, shape in SHAPES.items()}
    kernels = {path: each for path, each in factors.items() if path != "norm"}
    of_one = jax.tree.map(lambda leaf: leaf[0] if leaf.shape[:1] == (2,) else leaf, kernels)
    of_one["conv"] = of_one["conv"][0]  # a pose of a convolution has no kernel
    same = materialize({path: base[path] for path in of_one}, of_one)
    for path in of_one:
        assert_close(same[path], base[path])
    arrays = written(factors)
    assert not np.any(arrays["norm/weights"])
    assert_close(arrays["conv/pose"][0], np.eye(2, 3))
    B = arrays["first/B"]
    assert np.abs(B[0] - B[1]).max() > 1e-3  # of the sample
    assert np.abs(B - arrays["second/B"]).max() > 1e-3  # and of the leaf
    layers = arrays["stacked/B"].reshape(2, 3, 6, 2)
    assert np.abs(layers[:, 0] - layers[:, 1]).max() > 1e-3  # and of the layer
    assert np.abs(layers[..., 0] - layers[..., 1]).max() > 1e-3  # and of the row


def test_arrays_of_one_shape_have_one_head():
    def heads(name):
        variables = jax.eval_shape(
            SMALL[name](SPEC, start_at_base=True).init, jax.random.key(0), jnp.zeros((1, 4))
        )
        return {key for key in variables["params"] if key.startswith("head")}

    whole = {"head_3.zero", "head_2.zero", "head_6.zero", "head_8.zero", "head_6.zero.exact"}
    A = {"head_2x4.zero", "head_2x8.zero", "head_2x5.zero"}
    assert heads("M") == {"head_2x18", "head_2x6"} | A | whole
    assert heads("S") == {"head_18", "head_6", "head_4.zero", "head_5.zero"} | whole


@pytest.mark.parametrize("row", [False, True])
def test_a_shared_head_writes_rows_columns_and_layers_where_they_belong(row):
    """Beside a loop over layers and rows, with the head applied by hand."""
    leaf = GeneratedLeaf("W", (3, 6, 6), LowRank(2), "src")
    module = SharedHeads(FactorSpec((leaf,)), hidden=4, form="S" if row else "M")
    z = random_array(1, (2, 3))
    params = random_params(module.init, z, by=0.5)["params"]
    factors = jax.jit(module.apply)({"params": params}, z)
    names, signs = params["names"], params["signs"]
    head = params["head_6" if row else "head_2x6"]

    def unit(x):
        return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6)

    soft = lambda x: x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 0.01)  # noqa: E731
    style = soft(z) @ params["style"]["kernel"] + params["style"]["bias"]
    own = 0.2 / 0.96**0.5
    for layer in range(3):
        for word, name in enumerate("AB"):
            for k in range(2):
                asked = names["layer"][layer] + names["array"][word]
                sign = signs["layer"][layer] * signs["array"][word]
                if row:
                    asked, sign = asked + names["row"][k], sign * signs["row"][2 * word + k]
                else:
                    sign = sign * signs["row"][word]
                hidden = np.maximum(style + asked, 0)
                mixed = soft(hidden) @ params["mixed"]["kernel"] + params["mixed"]["bias"]
                hidden = unit(sign * (1 + own * unit(np.maximum(hidden + mixed, 0)))) / 4
                numbers = hidden @ head["kernel"] + head["bias"]
                numbers = numbers if row else numbers[:, 6 * k : 6 * k + 6]
                numbers = numbers * leaf.starts()[name].scale
                if name == "B":
                    got = factors["W"].B.reshape(2, 3, 6, 2)[:, layer, :, k]
                else:
                    got = factors["W"].A.reshape(2, 2, 3, 6)[:, k, layer]
                assert_close(got, numbers)


def test_heads_for_a_language_model_have_few_parameters():
    shapes = {"q": (30, 576, 576), "v": (30, 576, 192), "down": (30, 1536, 576)}
    spec = factor_spec(
        {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()},
        {"*": LowRank(8)},
        axes={"*": "src"},
    )

    def count(module, style):
        params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(style))
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    counts = [count(SharedHeads(spec, form=each, start_at_base=True), (1, 64)) for each in "LMS"]
    assert counts == [4_194_304, 3_006_208, 408_384]
    assert count(TokenHeads(spec, start_at_base=True), (1, 16, 128)) < 5_000_000


class Layer(nn.Module):
    """One that takes an argument of a name that `apply` has, and draws."""

    @nn.compact
    def __call__(self, x, context=0.0, deterministic=True):
        x = nn.Dense(3, name="dense")(x) + context
        return nn.Dropout(0.5)(x, deterministic=deterministic)


X = np.asarray(random_array(3, (4, 6)))
CONTEXT = np.asarray(random_array(4, (4, 5, 2)))


def made(**options):
    return make_straw(Layer(), X, **{"rank": 2, "base": "trained", "context": CONTEXT} | options)


class Dropped(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dense(self.features, name="dense")(x)
        return nn.Dropout(0.5)(x, deterministic=deterministic)


def test_parts_get_keyword_arguments_and_keys():
    straw = made(encoder=Dropped(4), context=X, generator=Dropped(21))
    params = jax.eval_shape(straw.init, jax.random.key(0))
    params = moved(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params), 0.5)

    @jax.jit
    def outputs(key):
        drop = {"deterministic": False, "rngs": {"dropout": key}}
        run = partial(straw.apply, params, X)
        styles = straw.styles(params, X, encoder_kwargs=drop)
        options = {"generator_kwargs": drop, "executor_kwargs": {"context": 1.0}}
        both = {"encoder_kwargs": drop, "generator_kwargs": drop}
        return {
            "plain": run(),
            "added": run(executor_kwargs={"context": 1.0}),
            "both": run(encoder_kwargs=drop, **options),
            "of styles": straw.apply_styles(params, styles, X, **options),
            "factors": straw.factors(params, X, **both)["dense/kernel"],
            "merged": straw.merge(params, X[0], **both)["dense"],
        }

    one, other = outputs(jax.random.key(1)), outputs(jax.random.key(2))
    assert_close(one["plain"], other["plain"])
    assert_close(one["added"], one["plain"] + 1)
    assert_close(one["both"], one["of styles"])
    for name in ("both", "factors", "merged"):
        for array, another in zip(*map(jax.tree.leaves, (one[name], other[name])), strict=True):
            assert np.abs(array - another).max() > 1e-3
    with pytest.raises(ValueError, match=r"once, got \['deterministic'\]"):
        straw.apply(params, X, deterministic=True, executor_kwargs={"deterministic": True})


def test_attention_drops_with_a_key():
    straw = made(
        encoder=PerceiverEncoder(queries=2, width=4, heads=1, layers=1, dropout=0.5),
        generator=partial(TokenHeads, width=4, heads=1, layers=1, dropout=0.5),
    )
    params = jax.eval_shape(straw.init, jax.random.key(0))

    drop = {"deterministic": False, "rngs": {"dropout": jax.random.key(0)}}

    def draws(**options):
        run = partial(straw.apply, x=X, context=CONTEXT, **options)
        return "random_bits" in str(jax.make_jaxpr(run)(params))

    assert not draws()
    assert draws(encoder_kwargs=drop)
    assert draws(generator_kwargs=drop)


@pytest.mark.parametrize("start", [None, "plain"])
def test_a_generator_of_vectors_is_unpacked(start):
    updates = {"*kernel": [LowRank(2), Gain()], "*bias": Mixture(2)}
    size = 2 * (6 + 3) + 3 + 2
    straw = made(encoder=nn.Dense(4), context=X, updates=updates, generator=nn.Dense(size),
                 start=start)  # fmt: skip
    assert straw.spec.size == size
    params = jax.jit(straw.init)(jax.random.key(0))
    own = params["generator"]
    assert {path: array.shape for path, array in own["shared"].items()} == {
        "dense/bias/templates": (2, 3)
    }
    assert set(own["gates"]) == {"dense/kernel/A", "dense/kernel/outputs", "dense/bias/weights"}
    merged = straw.merge(params, X[0])["dense"]
    assert_close(merged["kernel"], params["executor"]["dense"]["kernel"])
    own["gates"] = jax.tree.map(lambda gate: gate + 0.5, own["gates"])
    styles = np.asarray(straw.styles(params, X))
    own = jax.tree.map(np.asarray, own)
    vector = styles @ own["network"]["kernel"] + own["network"]["bias"]
    # In the order of the leaves: the bias first.
    weights, B, A, outputs = np.split(np.asarray(vector), [2, 14, 20], axis=-1)
    factors = straw.factors(params, X)
    lowrank, gains = factors["dense/kernel"]
    scales = (1, 1, 1) if start is None else (2**-0.5, 6**-0.5, 2**-0.5)
    assert_close(factors["dense/bias"].weights, 0.5 * scales[0] * weights)
    assert_close(lowrank.B, scales[1] * B.reshape(4, 6, 2))
    assert_close(lowrank.A, 0.5 * scales[2] * A.reshape(4, 2, 3))
    assert_close(gains.outputs, 1 + 0.5 * outputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": nn.Dense(7)}, r"\[4, 21\], got float32 \[4, 7\].*spec.size"),
        ({"generator": "heads"}, "SharedHeads, a Linen module"),
        ({"generator": SharedHeads, "hidden": 4}, "got both"),
        ({"generator": SharedHeads, "start": "article"}, "start of .'plain',. or None"),
        ({"start": "other"}, "got 'other'"),
        ({"generator": partial(SharedHeads, form="X")}, "got 'X'"),
        ({"generator": partial(TokenHeads, width=6, heads=4)}, "multiple of the heads"),
        ({"generator": lambda spec, **_: Network(lambda key, z: {}, lambda params, z: {})},
         "got none for"),
        ({"encoder": PerceiverEncoder(), "context": CONTEXT, "generator": SharedHeads},
         r"PerceiverEncoder\(style=64\)"),
    ],
)  # fmt: skip
def test_wrong_generators_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**{"encoder": nn.Dense(4), "context": X} | options)


def test_masked_attention_is_that_over_what_is_left():
    query, key, value = (random_array(i, (2, n, 2, 3)) for i, n in enumerate((4, 5, 5)))
    mask = np.array([[True, False, True, True, False], [False] * 5])
    got = attention(query, key, value, jnp.asarray(mask))
    for head in range(2):
        scores = query[0, :, head] @ key[0, mask[0], head].T / 3**0.5
        weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        assert_close(got[0, :, head], weights @ value[0, mask[0], head])
    assert not np.any(got[1])


def test_what_is_masked_has_no_influence():
    encoder = PerceiverEncoder(style=3, queries=2, width=4, heads=2, layers=1)
    x = np.asarray(random_array(0, (2, 5, 3)))
    mask = np.arange(5)[None] < np.array([[3], [0]])
    wild = np.where(mask[..., None], x, np.nan)
    variables = random_params(encoder.init, x)

    @jax.jit
    def value_and_gradient(x, mask):
        return jax.value_and_grad(lambda x: encoder.apply(variables, (x, mask)).sum())(x)

    values = [value_and_gradient(each, mask) for each in (np.nan_to_num(wild), x, wild)]
    for value, gradient in values[1:]:
        assert_close(value, values[0][0])
        assert_close(gradient, values[0][1])
        assert not np.any(np.where(mask[..., None], 0, gradient))
    assert np.any(values[0][1][0])
    assert np.isfinite(values[0][0])


# Layers of 60 inputs, each of its own kind; plain ones have a deviation of 1 for inputs of 1.
KINDS = {
    "low-rank": LowRank,
    "shared": SharedLowRank,
    "mixture": Mixture,
    "softmax": partial(Mixture, softmax=True),
    "DoRA": DoRA,
    "whole": lambda rank: Whole(),
}
TOKENS = np.asarray(random_array(8, (2, 4)))


def started(generator, rank):
    """Deviations of what each kind's layer returns, without a base, for inputs of deviation 1."""
    spec = FactorSpec(
        tuple(
            GeneratedLeaf(name, (60, 50), kind(rank), plain=(0.0, 0.5 * 60**-0.5))
            for name, kind in KINDS.items()
        )
    )
    like = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in spec}
    module = generator(spec)

    @jax.jit
    def kernels(key):
        factors, _ = module.init_with_output(key, TOKENS)
        return materialize(like, take(like, factors, 0))

    x = random_array(0, (200, 60))
    return {
        name: (x @ np.asarray(kernel)).std() for name, kernel in kernels(jax.random.key(0)).items()
    }


@pytest.mark.parametrize(
    ("generator", "rank"),
    [
        (partial(Heads, start="plain"), 256),
        (partial(SharedHeads, form="S", hidden=32), 64),
        (partial(TokenHeads, width=32, layers=1), 128),
    ],
)
def test_starts_do_not_depend_on_rank(generator, rank):
    deviations = started(generator, rank)
    assert all(0.25 < each < 1 for each in deviations.values()), deviations


def test_a_start_is_that_of_the_plain_model():
    """Its means, too: of a norm's scale, and of what is 0 at its start."""

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(40, name="dense", kernel_init=nn.initializers.normal(0.3))(x)
            return nn.LayerNorm(name="norm")(x)

    straw = make_straw(Normed(), X, rank=2, encoder=nn.Dense(4), start="plain")
    moments = {leaf.path: leaf.plain for leaf in straw.spec}
    assert (moments["norm/scale"], moments["norm/bias"]) == ((1, 0), (0, 0))
    assert moments["dense/kernel"][1] == pytest.approx(0.3, rel=0.2)
    params = straw.init(jax.random.key(0))
    factors = straw.factors(params, X)
    assert_close(factors["norm/scale"], np.ones((4, 40)))
    assert not np.any(factors["norm/bias"])
    kernel = np.asarray(factors["dense/kernel"].B @ factors["dense/kernel"].A)
    assert 0.15 < kernel.std() < 0.6


def test_the_articles_start_is_as_it_was():
    """Literal values: published figures and resumed runs depend on them."""
    straw = make_straw(Layer(), X, rank=2, encoder=nn.Dense(4), hidden=3, start="article")
    by_default = make_straw(Layer(), X, rank=2, encoder=nn.Dense(4), hidden=3)
    assert straw.spec == by_default.spec
    for each in (straw, by_default):
        generator = jax.jit(each.init)(jax.random.key(0))["generator"]
        assert list(generator) == ["dense.bias.whole", "dense.kernel.A", "dense.kernel.B", "hidden"]
        head = generator["dense.kernel.A"]
        assert head["kernel"].shape == (2, 3, 3)
        found = [float(head["kernel"][0, 0, 0]), float(generator["hidden"]["kernel"][0, 0])]
        assert found == PINNED


PINNED = [0.29997777938842773, -0.42759549617767334]


def test_a_straw_prints_its_parameters_by_part():
    straw = made(encoder=nn.Dense(4), context=X, generator=partial(SharedHeads, hidden=4))
    lines = str(straw).splitlines()
    assert lines[: len(str(straw.spec).splitlines())] == str(straw.spec).splitlines()
    table = lines[len(str(straw.spec).splitlines()) + 2 :]
    counts = dict(line.rsplit(None, 1) for line in table)
    assert (counts["encoder"], counts["executor"]) == ("28", "21")
    heads = [int(count) for name, count in counts.items() if name.startswith("  ")]
    assert sum(heads) == int(counts["generator"]) == int(counts["total"]) - 28 - 21
