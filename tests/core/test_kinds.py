"""Every kind of update with every sort of executor, beside dense weights."""

from dataclasses import dataclass

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from reference import TOLERANCE, assert_close, largest_intermediate, random_array, random_params

from straw_jax import (
    DoRA,
    Gain,
    LowRank,
    Mixture,
    Network,
    Pose,
    SharedLowRank,
    Whole,
    affine,
    factor_spec,
    linen,
    load_exported,
    make_straw,
    materialize,
    modulate,
    multiply_adds,
    save_exported,
)
from straw_jax.factors import is_kernel, named_leaves
from straw_jax.kinds import Gains, Kind, Posed, Update, Written
from straw_jax.operators import Contraction
from straw_jax.parts import Part

SAMPLES = 3

KINDS = {
    "low-rank": LowRank(2),
    "shared": SharedLowRank(2),
    "shared, full": SharedLowRank(2, full=True),
    "whole": Whole(),
    "gain": Gain(),
    "gains": Gain(inputs=True),
    "mixture": Mixture(2),
    "softmax": Mixture(2, softmax=True),
    "DoRA": DoRA(2),
    "low-rank and gain": [LowRank(1), Gain()],
    "gain and shared": [Gain(inputs=True, outputs=False), SharedLowRank(2)],
    "mixture and DoRA": [Mixture(2), DoRA(1)],
}


def entries(spec, seed=1, dtype="float32"):
    """Random updates of all kinds, near those that change nothing."""
    vector = 0.3 * random_array(seed, (SAMPLES, spec.size))
    offsets = np.concatenate(
        [np.broadcast_to(part.offset, part.shape).ravel() for leaf in spec
         for part in leaf.written.values()]
    )  # fmt: skip
    shared = {
        f"{leaf.path}/{name}": 0.3 * random_array(len(name), part.shape)
        for leaf in spec
        for name, part in leaf.shared.items()
    }
    cast = lambda array: jnp.asarray(array, dtype)  # noqa: E731
    return spec.unpack(cast(vector + offsets), jax.tree.map(cast, shared))


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv")(x))
        x = nn.relu(nn.Conv(4, (2, 2), feature_group_count=2, name="grouped")(x))
        x = nn.relu(nn.ConvTranspose(3, (2, 2), strides=(2, 2), name="up")(x))
        return nn.Dense(5, name="dense")(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=4, name="attention")(x)
        return nn.Dense(5, name="mlp")(nn.LayerNorm(use_bias=False, name="norm")(x))


def linear(in_features, out_features):
    return nnx.Linear(in_features, out_features, use_bias=False, rngs=nnx.Rngs(0))


def nnx_model():
    class Model(nnx.Module):
        def __init__(self):
            self.first, self.second = linear(6, 7), linear(7, 5)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Model())
    params = jax.tree.map(
        lambda leaf: 0.3 * random_array(leaf.size, leaf.shape), nnx.to_pure_dict(state)
    )

    def apply(params, x):
        own = nnx.clone(state) if hasattr(nnx, "clone") else state
        own = jax.tree.map(lambda leaf: leaf, own)
        nnx.replace_by_pure_dict(own, params)
        return nnx.merge(graph, own)(x)

    return apply, params, random_array(0, (SAMPLES, 6)), {}


def equinox_model():
    model = equinox.nn.MLP(6, 5, 7, 2, use_final_bias=False, use_bias=False, key=jax.random.key(0))
    arrays, static = equinox.partition(model, equinox.is_array)
    params = jax.tree.map(lambda leaf: 0.3 * random_array(leaf.size, leaf.shape), arrays)

    def apply(params, x):
        return jax.vmap(equinox.combine(params, static))(x)

    return apply, params, random_array(0, (SAMPLES, 6)), {}


def stacked_model():
    params = {"W": 0.5 * random_array(0, (2, 6, 6)), "V": 0.5 * random_array(1, (2, 6, 6))}

    def layer(x, kernels):
        return jnp.tanh(x @ kernels["W"]) @ kernels["V"], None

    apply = lambda params, x: lax.scan(layer, x, params)[0]  # noqa: E731
    return apply, params, random_array(2, (SAMPLES, 4, 6)), {"*": "src"}


def flax_model(module, x, axes=None):
    params = random_params(module.init, x)["params"]
    return (lambda params, x: module.apply({"params": params}, x)), params, x, axes or {}


def executors():
    heads = {"attention/[qkv]*/kernel": "rcc", "attention/out/kernel": "rrc"}
    return {
        "CNN": lambda: flax_model(Convolutions(), random_array(0, (SAMPLES, 6, 6, 2))),
        "ViT": lambda: flax_model(Attention(), random_array(0, (SAMPLES, 3, 4)), heads),
        "NNX": nnx_model,
        "Equinox": equinox_model,
        "stacked": stacked_model,
        "recurrent": lambda: flax_model(
            nn.RNN(nn.SimpleCell(5)), random_array(0, (SAMPLES, 4, 6))
        ),
    }  # fmt: skip


def kernels(params):
    return [path for path, leaf in named_leaves(params).items() if is_kernel(path, leaf)]


# Each executor takes all kinds, several at a time, one for each of its kernels.
COUNTS = {"CNN": 4, "ViT": 5, "NNX": 2, "Equinox": 3, "stacked": 2, "recurrent": 2}
PLANS = [(name, start) for name, count in COUNTS.items() for start in range(0, len(KINDS), count)]
# Also in bfloat16: every kind once, and every executor.
HALF = {"CNN": [0], "ViT": [0], "NNX": [4, 6], "Equinox": [6], "stacked": [8], "recurrent": [10]}


def plan(params, start):
    """Kinds by path: those from one place on, one for each kernel."""
    paths, names = kernels(params), list(KINDS)
    return {path: KINDS[names[(start + i) % len(names)]] for i, path in enumerate(paths)}


def dense(apply, params, factors, x, scale=1.0):
    def one(factors, x):
        return apply(materialize(params, factors, scale=scale), x[None])[0]

    axes = {path: sample_axes(entry) for path, entry in factors.items()}
    return jax.vmap(one, in_axes=(axes, 0))(factors, x)


def sample_axes(entry):
    """What all samples share has no sample axis."""
    if isinstance(entry, tuple):
        return tuple(map(sample_axes, entry))
    if not isinstance(entry, Update):
        return 0
    shared = ("templates", "U", "V")
    fields = {name: None if name in shared else 0 for name in vars(entry)}
    static = {name: getattr(entry, name) for name in ("axes", "full") if hasattr(entry, name)}
    return type(entry)(**(fields | static))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), PLANS)
def test_every_kind_in_every_executor(name, start):
    apply, params, x, axes = executors()[name]()
    assert len(kernels(params)) == COUNTS[name]
    spec = factor_spec(params, plan(params, start), axes=axes)
    factors = entries(spec)

    def structured(params, factors, x):
        return modulate(apply, scale=0.7)(params, factors, x)

    def reference(params, factors, x):
        return dense(apply, params, factors, x, 0.7)

    def grad(function, *arguments):
        def value(*arguments):
            y = function(*arguments)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        return jax.grad(value, (0, 1, 2), has_aux=True)(*arguments)

    def to_bfloat16(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree)

    @jax.jit
    def both(params, factors, x):
        arguments = params, factors, x
        half = None
        if start in HALF[name]:
            with jax.numpy_dtype_promotion("standard"):  # a recurrent cell's carry is float32
                half = structured(*to_bfloat16(arguments))
        return grad(structured, *arguments), grad(reference, *arguments), half

    got, want, half = both(params, factors, x)
    jax.tree.map(lambda got, want: near(got, want, 3e-5), got, want)
    if half is not None:
        assert half.dtype == (jnp.float32 if name == "recurrent" else jnp.bfloat16)
        assert_close(half, want[1], 2 * TOLERANCE["bfloat16"])


def near(got, want, tolerance):
    """Of gradients of norms that do not matter, rounding is left."""
    assert got.shape == want.shape
    error = np.abs(np.asarray(got) - np.asarray(want)).max(initial=0)
    assert error < tolerance * max(np.abs(want).max(initial=0), 0.05)


# Each kind by its formula.


def formulas(W, parts):
    """One sample's kernel by hand, `[6, 5]`."""
    B, A, p = parts.get("B"), parts.get("A"), parts.get("weights")
    yield "low-rank", lambda: W + 0.7 * B @ A
    yield "shared", lambda: W + 0.7 * parts["U"] @ np.diag(parts["core"]) @ parts["V"]
    yield "shared, full", lambda: W + 0.7 * parts["U"] @ parts["core"] @ parts["V"]
    yield "whole", lambda: W + parts["whole"]
    yield "gain", lambda: W * parts["outputs"]
    yield "gains", lambda: parts["inputs"][:, None] * W * parts["outputs"]
    yield "mixture", lambda: W + np.einsum("k,kio->io", p, parts["templates"])
    yield (
        "softmax",
        lambda: W + np.einsum("k,kio->io", np.exp(p) / np.exp(p).sum(), parts["templates"]),
    )
    yield "DoRA", lambda: decomposed(W, W + 0.7 * B @ A, parts["gains"])
    yield "low-rank and gain", lambda: (W + 0.7 * B @ A) * parts["outputs"]
    yield (
        "gain and shared",
        lambda: (
            parts["inputs"][:, None] * W + 0.7 * parts["U"] @ np.diag(parts["core"]) @ parts["V"]
        ),
    )
    yield "mixture and DoRA", lambda: mixed_and_decomposed(W, B, A, p, parts)


def mixed_and_decomposed(W, B, A, p, parts):
    mixed = W + np.einsum("k,kio->io", p, parts["templates"])
    return decomposed(mixed, mixed + 0.7 * B @ A, parts["gains"])


def decomposed(W, changed, gains):
    norms = [np.linalg.norm(matrix, axis=0) for matrix in (W, changed)]
    return gains * norms[0] * changed / norms[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_formula(kind):
    W = random_array(0, (6, 5))
    spec = factor_spec({"W": W}, {"W": KINDS[kind]})
    (leaf,) = spec
    factors = entries(spec)
    x = random_array(1, (SAMPLES, 4, 6))
    got = jax.jit(modulate(lambda params, x: x @ params["W"], scale=0.7))({"W": W}, factors, x)
    raw = dict.fromkeys(leaf.parts, 0) | raw_parts(spec)
    for i in range(SAMPLES):
        own = {name: part[i] if name in leaf.parts else part for name, part in raw.items()}
        kernel = dict(formulas(W, own))[kind]()
        assert_close(got[i], x[i] @ kernel, 1e-5)


def raw_parts(spec):
    """The arrays of `entries` before a kind sees them."""
    (leaf,) = spec
    vector = 0.3 * random_array(1, (SAMPLES, spec.size))
    parts, start = {}, 0
    for name, part in leaf.written.items():
        size = int(np.prod(part.shape))
        array = vector[:, start : start + size].reshape(SAMPLES, *part.shape)
        parts[name] = array + np.asarray(part.offset, np.float32)
        start += size
    for name, part in leaf.shared.items():
        parts[name] = 0.3 * random_array(len(name), part.shape)
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_packed_and_unpacked(kind):
    spec = factor_spec({"W": jnp.zeros((6, 5))}, {"W": KINDS[kind]})
    if "softmax" in kind:
        assert spec.size == 2
        return
    factors = entries(spec)
    spec.check(factors)
    shared = {
        f"{leaf.path}/{name}": leaf.disassemble(factors[leaf.path])[name]
        for leaf in spec
        for name in leaf.shared
    }
    again = spec.unpack(spec.pack(factors), shared)
    jax.tree.map(np.testing.assert_array_equal, again, factors)


# The promise: no kernel for each sample.


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_forms_a_kernel_for_each_sample(kind):
    if "whole" in kind:
        return  # it generates one
    W = random_array(0, (48, 40))
    spec = factor_spec({"W": W}, {"W": KINDS[kind]})
    factors = entries(spec)
    x = random_array(1, (SAMPLES, 2, 48))

    def loss(W, factors, x):
        return jnp.sum(modulate(lambda params, x: x @ params["W"])({"W": W}, factors, x) ** 2)

    # Two templates, which all samples share, and their gradients are smaller than three kernels.
    largest = largest_intermediate(jax.grad(loss, (0, 1, 2), allow_int=True), W, factors, x)
    assert largest < SAMPLES * 48 * 40


def test_a_mixture_is_formed_where_that_costs_less():
    """Many positions and few templates: a kernel of each sample, then one product."""
    W = random_array(0, (8, 6))
    spec = factor_spec({"W": W}, {"W": Mixture(3)})
    factors = entries(spec)
    counts = {}
    for positions in (1, 64):
        x = random_array(1, (SAMPLES, positions, 8))
        apply = modulate(lambda params, x: x @ params["W"])
        counts[positions] = multiply_adds(apply, {"W": W}, factors, x) / (SAMPLES * 48)
    assert counts[1] < 5  # the base and each of three templates
    assert counts[64] < 64 * 2.1  # the base, the kernel, and its sum


# The composed model.


def network():
    def init(key, x):
        keys = jax.random.split(key)
        return {"W": 0.3 * jax.random.normal(keys[0], (x.shape[-1], 7)),
                "V": 0.3 * jax.random.normal(keys[1], (7, 5))}  # fmt: skip

    return Network(init, lambda params, x: jnp.tanh(x @ params["W"]) @ params["V"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_modulator_does_not_change_the_executor(kind):
    x = random_array(0, (SAMPLES, 6))
    straw = make_straw(
        network(), x, updates={"W": KINDS[kind]}, base="trained", encoder=nn.Dense(4), hidden=3
    )

    @jax.jit
    def run(key, x):
        params = straw.init(key)
        return straw.apply(params, x), network().apply(params["executor"], x)

    got, want = run(jax.random.key(0), x)
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("kind", ["shared", "mixture", "low-rank and gain", "DoRA"])
def test_a_kind_alone_is_a_kernel(kind):
    x = random_array(0, (SAMPLES, 6))
    straw = make_straw(network(), x, updates={"*": KINDS[kind]}, encoder=nn.Dense(4), hidden=3)

    @jax.jit
    def run(key, x):
        params = straw.init(key)
        own = [straw.merge(params, x[i]) for i in range(SAMPLES)]
        return straw.apply(params, x), jnp.concatenate(
            [network().apply(weights, x[i : i + 1]) for i, weights in enumerate(own)]
        )

    got, want = run(jax.random.key(0), x)
    assert float(jnp.std(got)) > 0
    assert_close(got, want, 1e-5)


@pytest.mark.parametrize("kind", [Gain(), Pose()])
def test_a_gain_or_a_pose_alone_is_no_kernel(kind):
    images = random_array(0, (SAMPLES, 6, 6, 2))
    with pytest.raises(ValueError, match="every leaf must be generated, got no rank for"):
        make_straw(
            linen(nn.Conv(4, (3, 3), use_bias=False)), images, updates={"*": kind},
            encoder=nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(4)]),
        )  # fmt: skip


def test_a_pose_with_other_kinds():
    """Before it they are resampled with the kernel; after it a gain of the outputs is left."""
    x = random_array(0, (SAMPLES, 6, 6, 2))
    apply, params, _, _ = flax_model(nn.Conv(4, (3, 3), use_bias=False), x)
    spec = factor_spec(params, {"kernel": [LowRank(2), Pose(), Gain()]})
    factors = entries(spec)
    lowrank, posed, gains = factors["kernel"]
    posed = type(posed)(affine(jnp.array([0.0, 90.0, 180.0])))
    got = jax.jit(modulate(apply))(params, {"kernel": (lowrank, posed, gains)}, x)
    turned = np.stack([np.rot90(image, i) for i, image in enumerate(x)])
    want = jax.jit(modulate(apply))(params, {"kernel": (lowrank, gains)}, turned)
    assert_close(got, want, 1e-4)


def test_a_gain_of_pixels_comes_before_their_pose():
    posed = Posed(affine(jnp.array([0.0, 90.0, 180.0])), grid=(2, 3))
    gains = Gains(jnp.ones((SAMPLES, 6)))
    layer = modulate(lambda params, x: x @ params["W"])
    params, x = {"W": random_array(0, (6, 5))}, random_array(1, (SAMPLES, 6))
    assert layer(params, {"W": (gains, posed)}, x).shape == (SAMPLES, 5)
    with pytest.raises(ValueError, match="W: expected a gain of the outputs alone after a pose"):
        layer(params, {"W": (posed, gains)}, x)


# A kind of one's own.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OuterProduct(Update):
    u: jax.Array
    v: jax.Array

    def shapes(self, shape):
        return {"u": shape[:1], "v": shape[1:]}

    def change(self, kernel, scale):
        u, v = self.u.astype(kernel.dtype), self.v.astype(kernel.dtype)
        return kernel.plus(Contraction((Part(u, (0,), u.shape), Part(v, (1,), v.shape))))


@dataclass(frozen=True)
class Outer(Kind):
    """The outer product of two vectors."""

    @property
    def label(self):
        return "outer"

    def written(self, leaf):
        rows, columns = leaf.shape
        return {"u": Written((rows,)), "v": Written((columns,), zero=False)}

    def update(self, leaf, parts):
        return OuterProduct(**parts)


def test_a_kind_of_ones_own_is_generated_applied_merged_and_exported(tmp_path):
    x = random_array(0, (SAMPLES, 6))
    straw = make_straw(network(), x, updates={"W": Outer()}, base="trained", encoder=nn.Dense(4))
    assert "outer" in str(straw.spec)

    @jax.jit
    def run(key, x):
        params = straw.init(key)
        params["generator"] = jax.tree.map(lambda leaf: leaf + 0.1, params["generator"])
        factors = straw.factors(params, x)["W"]
        return params, straw.apply(params, x), factors, straw.merge(params, x[0])["W"]

    params, y, factors, merged = run(jax.random.key(0), x)
    W = params["executor"]["W"]
    assert_close(merged, W + jnp.outer(factors.u[0], factors.v[0]), 1e-5)
    kernels = W[None] + factors.u[:, :, None] * factors.v[:, None]
    want = jnp.tanh(jnp.einsum("ni,nio->no", x, kernels))
    assert_close(y, want @ params["executor"]["V"], 1e-5)
    save_exported(tmp_path / "model", straw.apply, params, x)
    assert_close(load_exported(tmp_path / "model")(x), y, 1e-5)


# Errors.


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"W": LowRank(0)}, "rank of W to be a whole number of at least 1, .* got 0"),
        ({"W": Mixture(0)}, "a mixture of one template or more for W, got 0"),
        ({"b": LowRank(1)}, r"at least two axes, got b of shape \(5,\)"),
        (
            {"b": Gain(inputs=True)},
            "two axes or more, or of one and with a gain of outputs, got b",
        ),
        ({"W": Gain(outputs=False)}, "a gain of inputs, outputs or both for W, got neither"),
        ({"W": Pose()}, "a convolution's kernel of four axes, got W"),
        ({"W": []}, "at least one kind of update for W, got none"),
        ({"W": "hole"}, "a whole number of at least 1, or 'whole', or 'pose', got 'hole'"),
    ],
)
def test_wrong_kinds_are_errors(updates, message):
    with pytest.raises(ValueError, match=f"factor_spec: expected .*{message}"):
        factor_spec({"W": jnp.zeros((6, 5)), "b": jnp.zeros(5)}, updates)


def test_shared_arrays_are_asked_for():
    spec = factor_spec({"W": jnp.zeros((6, 5))}, {"W": Mixture(2)})
    with pytest.raises(ValueError, match=r"all samples share, got none for \['W/templates'\]"):
        spec.unpack(jnp.zeros(spec.size))
