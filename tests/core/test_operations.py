"""Model code on a structured kernel against the same code on the dense kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from reference import TOLERANCE, assert_close, largest_intermediate, random_array, random_params

from straw_jax import Factors, materialize, modulate
from straw_jax.kinds import Gains

SAMPLES = 3
W, X, V = random_array(0, (6, 5)), random_array(1, (SAMPLES, 4, 6)), random_array(2, (6, 5))
ROW, COLUMN = random_array(3, (5,)), random_array(4, (6,))
SQUARE = random_array(5, (6, 6))


@pytest.fixture(autouse=True)
def as_users_write():
    """Model code here promotes ranks and dtypes as NumPy does."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def low_rank(seed=6, shape=(6, 5), rank=2):
    B = 0.3 * random_array(seed, (SAMPLES, shape[0], rank))
    A = 0.3 * random_array(seed + 1, (SAMPLES, rank, shape[1]))
    return Factors(B.astype("float32"), A.astype("float32"))


SPLIT = PartitionSpec(None, "data")

UPDATES = {
    "low-rank": low_rank(),
    "gained": (
        low_rank(),
        Gains(1 + 0.3 * random_array(8, (SAMPLES, 6)), 1 + 0.3 * random_array(9, (SAMPLES, 5))),
    ),
}

# From a kernel [6, 5], vectors x [4, 6] and another kernel of this shape.
CASES = {
    "gain of columns": lambda w, x, v: x @ (w * ROW),
    "gain of rows": lambda w, x, v: x @ (w * COLUMN[:, None]),
    "gains of both": lambda w, x, v: x @ (COLUMN[:, None] * w * ROW),
    "divided by a vector": lambda w, x, v: x @ (w / (2 + jnp.abs(ROW))),
    "divided by a number": lambda w, x, v: x @ (w / 3),
    "times an array": lambda w, x, v: x @ (w * V),
    "negative": lambda w, x, v: x @ (-w),
    "stop_gradient": lambda w, x, v: x @ lax.stop_gradient(w),
    "copy": lambda w, x, v: x @ jnp.array(w),
    "plus an array": lambda w, x, v: x @ (w + V),
    "plus a vector": lambda w, x, v: x @ (w + ROW),
    "minus an array": lambda w, x, v: x @ (w - V),
    "one minus": lambda w, x, v: x @ (1 - w),
    "plus a kernel": lambda w, x, v: x @ (w + v),
    "minus a kernel": lambda w, x, v: x @ (w - v),
    "a kernel plus itself": lambda w, x, v: x @ (w + w),
    "times a kernel": lambda w, x, v: x @ (w * v),
    "product of kernels": lambda w, x, v: x @ w @ v.T,
    "product of kernels first": lambda w, x, v: x @ (w @ v.T),
    "product with an array": lambda w, x, v: x @ (w @ V.T),
    "array first": lambda w, x, v: x @ (SQUARE @ w),
    "checkpoint_name": lambda w, x, v: x @ checkpoint_name(w, "w"),
    "optimization_barrier": lambda w, x, v: x @ lax.optimization_barrier((w, v))[0],
    "reduce_precision": lambda w, x, v: x @ lax.reduce_precision(w, 8, 23),
    "constrained": lambda w, x, v: x @ lax.with_sharding_constraint(w, sharding("data", None)),
    "sharded": lambda w, x, v: jax.shard_map(
        lambda x, w: x @ (2 * w), mesh=sharding().mesh, in_specs=(PartitionSpec(), SPLIT),
        out_specs=SPLIT,
    )(x, w),
    "transposed": lambda w, x, v: x[:, :5] @ w.T,
    "transposed twice": lambda w, x, v: x @ w.T.T,
    "split axis": lambda w, x, v: jnp.einsum("tab,abo->to", x.reshape(-1, 2, 3), split(w)),
    "joined axes": lambda w, x, v: x @ split(w).reshape(6, 5),
    "padded": lambda w, x, v: x @ jnp.pad(w, ((0, 0), (0, 2))),
    "padded before": lambda w, x, v: jnp.pad(x, ((0, 0), (0, 1))) @ jnp.pad(w, ((0, 1), (1, 0))),
    "padded with ones": lambda w, x, v: x @ jnp.pad(w, ((0, 0), (0, 2)), constant_values=1),
    "concatenated": lambda w, x, v: x @ jnp.concatenate([w, v, V], axis=1),
    "concatenated rows": lambda w, x, v: jnp.tile(x, (1, 2)) @ jnp.concatenate([V, w]),
    "stacked": lambda w, x, v: jnp.einsum("ti,kio->tko", x, jnp.stack([w, V, v])),
    "stacked last": lambda w, x, v: jnp.einsum("ti,iok->tko", x, jnp.stack([w, V], axis=-1)),
    "rolled": lambda w, x, v: x @ jnp.roll(w, 2, axis=0),
    "flipped": lambda w, x, v: x @ w[::-1, ::2],
    "tiled": lambda w, x, v: x @ jnp.tile(w, (1, 2)),
    "repeated": lambda w, x, v: x @ jnp.repeat(w, 2, axis=1),
    "gathered rows": lambda w, x, v: x[:, :3] @ w[jnp.array([4, 0, 2])],
    "gathered columns": lambda w, x, v: x @ w[:, jnp.array([1, 1, 4, 0])],
    "gathered in two axes": lambda w, x, v: jnp.einsum("ti,ioab->toab", x[:, :1], pairs(w)),
    "looked up by data": lambda w, x, v: w[jnp.argmax(x, axis=-1)],
    "columns by data": lambda w, x, v: w[:, jnp.argmax(x[:, :5], axis=-1)].T,
    "a slice by data": lambda w, x, v: x[:, :2] @ lax.dynamic_slice(w, (first(x), 0), (2, 5)),
    "chosen": lambda w, x, v: x @ jnp.where(V > 0, w, v),
    "masked": lambda w, x, v: x @ jnp.where((ROW > 0)[None], w, 0.0),
    "chosen by data": lambda w, x, v: x @ lax.select(jnp.sum(x) > 0, w, v),
    "scaled by data": lambda w, x, v: x @ (w * jnp.max(x)),
    "sum": lambda w, x, v: x + jnp.sum(w),
    "mean of columns": lambda w, x, v: x @ w - jnp.mean(w, axis=0),
    "norm": lambda w, x, v: x @ (w / jnp.linalg.norm(w)),
    "norms of columns": lambda w, x, v: x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)),
    "squares": lambda w, x, v: jnp.square(x) @ jnp.square(w) + jnp.sum(w**2),
    "DoRA by hand": lambda w, x, v: x @ (ROW * (w + v) / jnp.sqrt(jnp.sum((w + v) ** 2, axis=0))),
    "standardised": lambda w, x, v: x @ ((w - jnp.mean(w, 0)) * lax.rsqrt(jnp.var(w, 0) + 1e-3)),
    "added to data": lambda w, x, v: jnp.sin(x[:, :5] + w[:4]),
    "in a loop": lambda w, x, v: lax.fori_loop(0, 2, lambda i, x: jnp.sin(x @ w @ v.T), x),
    "layers of a stack": lambda w, x, v: lax.scan(step, x, jnp.stack([w @ v.T, SQUARE]))[0],
    "in a branch": lambda w, x, v: lax.cond(jnp.sum(x) > 0, lambda w: x @ -w, lambda w: x @ w, w),
    "remat": lambda w, x, v: jax.checkpoint(lambda w: jnp.sin(x @ (w * ROW)))(w),
    "jit": lambda w, x, v: jax.jit(lambda w: x @ (w * ROW))(w),
    "convolution": lambda w, x, v: lax.conv_general_dilated(
        x[:, :, None], w[:3, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "gained convolution": lambda w, x, v: lax.conv_general_dilated(
        x.reshape(-1, 3, 2), (w * ROW).reshape(3, 2, 5) * COLUMN[:2, None], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "gain of the window": lambda w, x, v: lax.conv_general_dilated(
        x.reshape(-1, 3, 2), w.reshape(3, 2, 5) * COLUMN[:3, None, None], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "grouped convolution": lambda w, x, v: lax.conv_general_dilated(
        x.reshape(-1, 3, 2), (w[:3] * ROW)[:, None, :4], (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2,
    ),
    "transposed convolution": lambda w, x, v: lax.conv_transpose(
        x.reshape(-1, 3, 2), (w * ROW).reshape(3, 2, 5), (2,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
}  # fmt: skip


def split(w):
    return w.reshape(2, 3, 5)


def pairs(w):
    return w[:, jnp.array([[1, 0], [3, 3]])][:1, None]


def first(x):
    return jnp.clip(jnp.sum(x).astype(jnp.int32), 0, 3)


def step(x, kernel):
    return jnp.sin(x @ kernel), None


def sharding(*names):
    return NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec(*names))


def both(case, updates, dtype="float32"):
    """Values and gradients of structured and of dense kernels, in one program."""
    params = {"w": W, "v": V}

    def apply(params, x):
        rows = [case(params["w"], row, params["v"]) for row in x]
        return jnp.stack(rows)

    shape = jax.eval_shape(jax.vmap(case, (None, 0, None)), W, X, V).shape
    weights = random_array(11, shape)

    def structured(params, factors, x):
        return modulate(apply, scale=0.7)(params, factors, x)

    def dense(params, factors, x):
        def one(factors, x):
            own = materialize(params, factors, scale=0.7)
            return case(own["w"], x, own["v"])

        return jax.vmap(one)(factors, x)

    def loss(function):
        def value(*args):
            y = function(*args)
            return jnp.sum(y.astype(jnp.float32) * weights), y

        return jax.grad(value, (0, 1, 2), has_aux=True)

    arguments = (params, updates, X)
    got_arguments = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), arguments)
    return jax.jit(
        lambda got, want: (loss(structured)(*got), loss(dense)(*want))
    )(got_arguments, arguments)  # fmt: skip


def assert_near(got, want, tolerance):
    """Of a gradient that is zero, as behind a normalisation, rounding is left."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want[0]))

    def compare(got, want):
        assert got.shape == want.shape
        scale = max(np.abs(want).max(), 1e-2 * largest)
        assert np.abs(np.asarray(got) - np.asarray(want)).max() < tolerance * scale

    jax.tree.map(compare, got[0], want[0])
    assert_close(got[1], want[1], tolerance)


# A gained kernel has all sorts of parts; without gains some operations take a shorter way.
SHORTER = (
    "gain of columns", "plus a kernel", "product of kernels first", "transposed", "concatenated",
    "looked up by data", "norms of columns", "in a loop", "layers of a stack", "convolution",
    "grouped convolution", "transposed convolution",
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "update"),
    [*((case, "gained") for case in CASES), *((case, "low-rank") for case in SHORTER)],
)
def test_an_operation_equals_the_dense_one(case, update):
    updates = {"w": UPDATES[update], "v": low_rank(20)}
    assert_near(*both(CASES[case], updates), 2e-5)


@pytest.mark.parametrize("case", ["minus a kernel", "plus a kernel", "norms of columns"])
def test_an_operation_in_bfloat16(case):
    (_, got), (_, want) = both(CASES[case], {"w": UPDATES["gained"], "v": low_rank(20)}, "bfloat16")
    assert got.dtype == jnp.bfloat16
    assert_close(got, want, TOLERANCE["bfloat16"])


def big(case):
    """A model of kernels [48, 40], its parameters, updates, and samples of two vectors."""
    w, v = random_array(0, (48, 40)), random_array(1, (48, 40))
    updates = {"w": low_rank(2, w.shape, 1), "v": low_rank(4, w.shape, 1)}
    x = random_array(6, (SAMPLES, 2, 48))
    apply = lambda params, x: jnp.stack([case(params["w"], row, params["v"]) for row in x])  # noqa: E731
    return apply, {"w": w, "v": v}, updates, x


WIDE = {
    "gain": lambda w, x, v: x @ (w * jnp.sum(v, axis=0)),
    "sum": lambda w, x, v: x @ (w - v),
    "norms": lambda w, x, v: x @ (w / jnp.linalg.norm(w, axis=0)),
    "product": lambda w, x, v: x @ (w @ v.T),
    "concatenated": lambda w, x, v: x @ jnp.concatenate([w, v], axis=1),
    "rolled": lambda w, x, v: x @ jnp.roll(w, 3, axis=0),
    "mean": lambda w, x, v: x @ (w - jnp.mean(w, 0)),
    "padded": lambda w, x, v: x @ jnp.pad(w, ((0, 0), (0, 5))),
}


@pytest.mark.parametrize("case", WIDE)
def test_no_operation_forms_a_kernel_for_each_sample(case):
    apply, params, updates, x = big(WIDE[case])

    def loss(params, updates, x):
        return jnp.sum(modulate(apply)(params, updates, x) ** 2)

    size = largest_intermediate(jax.grad(loss, (0, 1, 2)), params, updates, x)
    assert size <= max(SAMPLES * 48 * 40 - 1, 2 * 48 * 45)


REFUSED = {
    "cast to integers": lambda w, x: x @ (10 * w).astype(jnp.int32).astype(jnp.float32),
    "absolute values": lambda w, x: x @ jnp.abs(w),
    "maximum": lambda w, x: x @ (w / jnp.max(w)),
    "cube": lambda w, x: x @ w**3,
    "rounded": lambda w, x: x @ jnp.round(w),
    "compared": lambda w, x: x @ (w > 0).astype(jnp.float32),
    "cumulated": lambda w, x: x @ jnp.cumsum(w, axis=0),
    "sorted": lambda w, x: x @ jnp.sort(w, axis=0),
    "inverse": lambda w, x: x @ (1 / w),
    "polynomial": lambda w, x: x @ _polynomial(w, 12),
}


def _polynomial(w, degree):
    y = w
    for _ in range(degree - 1):
        y = y * w + 1.0
    return y


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_linear_is_an_error_that_names_layer_operation_line_and_way_out(case):
    apply = lambda params, x: jnp.stack([REFUSED[case](params["w"], row) for row in x])  # noqa: E731
    message = r"^w: expected .* linear .*, got the operation '\w+' \(in .*test_operations.*allow_ma"
    with pytest.raises(ValueError, match=message):
        modulate(apply)({"w": W}, {"w": UPDATES["low-rank"]}, X)


def test_a_polynomial_is_formed_before_it_has_too_many_terms():
    params, updates = {"w": 0.1 * W}, {"w": UPDATES["low-rank"]}
    apply = lambda params, x: x @ _polynomial(params["w"], 30)  # noqa: E731
    got = modulate(apply, allow_materialise=True)(params, updates, X)
    dense = jax.vmap(lambda update: materialize(params, {"w": update})["w"])(UPDATES["low-rank"])
    want = np.einsum("nti,nio->nto", X, _polynomial(np.asarray(dense), 30))
    assert_close(got, want, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("x", "kernel", "dtype"),
    [("bfloat16", "float32", None), ("float32", "bfloat16", None), ("int32", "float32", None),
     ("bfloat16", "bfloat16", "float32"), ("float16", "bfloat16", None)],
)  # fmt: skip
def test_dtypes_are_those_of_the_dense_model(x, kernel, dtype):
    params = {"w": W.astype(jnp.dtype(kernel))}
    samples = (3 * X).astype(jnp.dtype(x))

    def apply(params, x):
        return lax.dot_general(
            x, params["w"], (((2,), (0,)), ((), ())), preferred_element_type=dtype
        )

    if x == "int32":
        apply = lambda params, x: x @ params["w"]  # noqa: E731
    got = jax.jit(modulate(apply))(params, {"w": UPDATES["low-rank"]}, samples)
    want = jax.eval_shape(apply, params, samples)
    assert got.dtype == want.dtype
    exact = jax.vmap(lambda f: materialize({"w": W}, {"w": f})["w"])(UPDATES["low-rank"])
    want = np.einsum("nti,nio->nto", np.asarray(samples, np.float32), np.asarray(exact))
    assert_close(got, want, TOLERANCE["bfloat16"])


# Layers of Flax that change their kernels.


def modules():
    x = random_array(0, (SAMPLES, 4, 6))
    yield "WeightNorm", nn.WeightNorm(nn.Dense(5)), x
    yield "LSTM", nn.RNN(nn.OptimizedLSTMCell(5)), x
    yield "attention", nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6), x
    yield "grouped", nn.Conv(6, (3,), feature_group_count=2), x
    yield "masked", nn.Dense(5, dot_general=lax.dot_general), x


class Quantised(nn.Module):
    """A layer that dequantises its own kernel: numbers of 8 bits and scales of columns."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (6, 5))
        scales = self.param("scales", nn.initializers.ones, (5,))
        blocks = kernel.reshape(3, 2, 5) * jnp.abs(scales)[None, None]
        return x @ blocks.reshape(6, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(name for name, *_ in modules()), "quantised"])
def test_layers_of_flax(name):
    by_name = {name: (module, x) for name, module, x in modules()}
    module, x = by_name.get(name, (Quantised(), X))
    params = random_params(module.init, x)["params"]
    from straw_jax import factor_spec

    spec = factor_spec(params, {"*kernel": 2, "*": "whole"})
    factors = spec.unpack(0.3 * random_array(1, (SAMPLES, spec.size)))
    apply = lambda params, x: module.apply({"params": params}, x)  # noqa: E731

    def structured(params, factors, x):
        return modulate(apply)(params, factors, x)

    def dense(params, factors, x):
        return jax.vmap(lambda f, x: apply(materialize(params, f), x[None])[0])(factors, x)

    def grad(function):
        def value(*args):
            y = function(*args)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(params, factors, x)

    assert_near(grad(structured), grad(dense), 3e-5)
