"""Statistics over the batch, and state, of models whose samples have their own weights."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from lifting import random_factors
from reference import (
    TOLERANCE,
    assert_close,
    largest_intermediate,
    random_array,
    random_params,
    to_float32,
)

from straw_jax import Factors, Network, linen, make_straw, materialize, modulate
from straw_jax.factors import named_leaves

SAMPLES = 4
AXIS = "batch"


class ResNet(nn.Module):
    axis_name: str | None = None
    channels: int = 4
    dtype: str | None = None

    @nn.compact
    def __call__(self, x, *, train=True):
        conv = partial(nn.Conv, self.channels, (3, 3), use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        x = nn.relu(norm(name="norm0")(conv(name="conv0")(x)))
        y = nn.relu(norm(name="norm1")(conv(name="conv1")(x)))
        y = norm(name="norm2")(conv(name="conv2")(y))
        return nn.Dense(3, name="head", dtype=self.dtype)(nn.relu(x + y).mean((1, 2)))


IMAGES = random_array(0, (SAMPLES, 5, 5, 2))
LABELS = np.array([0, 2, 1, 2])
RANKS = {"*kernel": 2, "norm*/*": "whole", "head/bias": "whole"}


def network(axis_name=AXIS, **options):
    return linen(ResNet(axis_name, **options), mutable=["batch_stats"])


def variables(images=IMAGES, **options):
    found = random_params(ResNet(**options).init, images)
    return found["params"], {"batch_stats": jax.tree.map(np.abs, found["batch_stats"])}


def without_change(params):
    """Updates with random factors `B`, and zero for the rest."""

    def zero(entry):
        parts = jax.tree.map(np.zeros_like, entry)
        return Factors(entry.B, parts.A) if isinstance(entry, Factors) else parts

    factors = random_factors(params, RANKS, (SAMPLES,))
    return jax.tree.map(zero, factors, is_leaf=lambda leaf: isinstance(leaf, Factors))


def lifted(apply=None, **options):
    apply = network().apply if apply is None else apply
    return modulate(apply, axis_name=AXIS, out_axes=(0, None), **options)


def trained(call, params, state):
    """Return what three steps and an evaluation compute."""

    def loss(params, state):
        y, state = call(params, state, train=True)
        rows = jax.nn.log_softmax(y)
        return -jnp.mean(jnp.take_along_axis(rows, LABELS[:, None], 1)), (y, state)

    @jax.jit
    def step(params, state):
        gradient, (y, state) = jax.grad(loss, has_aux=True)(params, state)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), state, y

    seen = []
    for _ in range(3):
        params, state, y = step(params, state)
        seen.append((y, params, state))
    return seen, jax.jit(partial(call, train=False))(params, state)


def test_a_resnet_without_change_is_the_plain_one_in_training_and_evaluation():
    params, state = variables()
    factors = without_change(params)

    def plain(params, state, train):
        return ResNet().apply({"params": params, **state}, IMAGES, train=train,
                              mutable=["batch_stats"])  # fmt: skip

    def ours(params, state, train):
        return lifted()(params, factors, IMAGES, state=state, train=train)

    got, want = trained(ours, params, state), trained(plain, params, state)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    error = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), got, want)
    assert max(jax.tree.leaves(error)) < 1e-6  # of numbers about 1
    first, last = state["batch_stats"], got[0][-1][-1]["batch_stats"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, last)
    assert min(jax.tree.leaves(moved)) > 1e-2  # three updates of the running statistics


def by_hand(params, factors, images, state):
    """The training mode of `ResNet` with every sample's weights formed."""
    weights = jax.vmap(lambda own: materialize(params, own))(factors)

    def conv(name, x):
        def one(x, kernel):
            dims = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=dims,
                                            precision="highest")[0]  # fmt: skip

        return jax.vmap(one)(x, weights[name]["kernel"])

    updated = {}

    def norm(name, x):
        mean, running = jnp.mean(x, (0, 1, 2)), state["batch_stats"][name]
        var = jnp.mean((x - mean[None, None, None]) ** 2, (0, 1, 2))
        updated[name] = {
            key: 0.9 * running[key] + 0.1 * each for key, each in (("mean", mean), ("var", var))
        }
        x = (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None]
        scale, bias = weights[name]["scale"], weights[name]["bias"]
        return x * scale[:, None, None] + bias[:, None, None]

    x = nn.relu(norm("norm0", conv("conv0", images)))
    y = norm("norm2", conv("conv2", nn.relu(norm("norm1", conv("conv1", x)))))
    x = jnp.mean(nn.relu(x + y), (1, 2))
    head = weights["head"]
    y = jnp.einsum("bi,bio->bo", x, head["kernel"], precision="highest") + head["bias"]
    return y, {"batch_stats": updated}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_statistics_are_over_the_batch_although_samples_have_own_weights(dtype):
    params, state = variables()
    factors = random_factors(params, RANKS, (SAMPLES,))
    of_norms = lambda path: path[0].key.startswith("norm")  # noqa: E731
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf if of_norms(path) else leaf.astype(jnp.dtype(dtype)), params
    )
    images, factors = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), (IMAGES, factors))
    weights = random_array(1, (SAMPLES, 3))

    def loss(call):
        def value(params, factors, images, state):
            y, state = call(params, factors, images, state)
            of_state = [jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(state)]
            return jnp.sum(y.astype(jnp.float32) * weights) + sum(of_state), (y, state)

        return jax.jit(jax.grad(value, (0, 1, 2, 3), has_aux=True))

    def ours(params, factors, images, state):
        apply = network(dtype=dtype).apply
        return lifted(apply)(params, factors, images, state=state)

    with jax.numpy_dtype_promotion("standard"):  # Flax's statistics are float32
        got, values = loss(ours)(params, factors, images, state)
    want, expected = loss(by_hand)(*to_float32((params, factors, images)), state)
    assert_close(values, expected, TOLERANCE[dtype])
    # ReLUs near zero are on either side of it in bfloat16.
    assert_close(got, want, {"float32": 1e-5, "bfloat16": 1e-1}[dtype])


def test_no_kernel_of_a_sample_is_formed():
    images = random_array(0, (SAMPLES, 3, 3, 2))
    options = {"channels": 32}
    params, state = variables(images, **options)
    factors = random_factors(params, RANKS, (SAMPLES,))

    def loss(params, factors):
        apply = network(**options).apply
        y, new = lifted(apply)(params, factors, images, state=state)
        return jnp.sum(y**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(new))

    size = SAMPLES * params["conv1"]["kernel"].size
    assert largest_intermediate(jax.grad(loss, (0, 1)), params, factors) < size


def test_statistics_folded_into_a_kernel_do_not_form_it():
    params = {"W": random_array(0, (6, 5)), "b": random_array(1, (5,))}
    factors = random_factors(params, {"W": 1}, (SAMPLES,))
    x = random_array(2, (SAMPLES, 6))

    def apply(params, x):
        mean = lax.pmean(jnp.mean(x**2, 0), AXIS)
        return x @ (params["W"] / jnp.sqrt(mean)[:, None])

    call = lambda factors: modulate(apply, axis_name=AXIS)(params, factors, x)  # noqa: E731
    weights = jax.vmap(lambda own: materialize(params, own)["W"])(factors)
    want = np.einsum("bi,bio->bo", x / np.sqrt(np.mean(x**2, 0)), weights)
    assert_close(jax.jit(call)(factors), want, 1e-5)
    assert largest_intermediate(call, factors) < SAMPLES * params["W"].size


# Collectives.


def dense_model():
    params = {"W": random_array(0, (6, 5)), "b": random_array(1, (5,))}
    factors = random_factors(params, {"W": 2, "b": "whole"}, (SAMPLES,))
    return params, factors, random_array(2, (SAMPLES, 3, 6))


def linear(params, x):
    y = x @ params["W"]
    return y + jnp.broadcast_to(params["b"], y.shape)


def mean_of(y):
    return lax.pmean(jnp.mean(y, (0, 1)), AXIS)


def centred(y):
    return y - jnp.broadcast_to(mean_of(y), y.shape)


def dense_centred(y):
    return y - np.mean(y, (0, 1), keepdims=True)


def standardised(y):
    count = lax.psum(1, AXIS) * y.shape[0] * y.shape[1]
    sums = jnp.stack([jnp.sum(y, (0, 1)), jnp.sum(y**2, (0, 1))])
    mean, square = lax.psum(sums, AXIS) / count
    of_all = lambda array: jnp.broadcast_to(array, y.shape)  # noqa: E731
    return (y - of_all(mean)) / jnp.sqrt(of_all(square - mean**2))


def nested(y):
    def one(row):
        return row - jnp.broadcast_to(lax.pmean(jnp.mean(row, 0), ("row", AXIS)), row.shape)

    return jax.vmap(one, axis_name="row")(y)


COLLECTIVES = {
    "mean": (centred, dense_centred),
    "jit": (jax.jit(centred), dense_centred),
    "remat": (jax.checkpoint(centred), dense_centred),
    "scan": (
        lambda y: lax.scan(lambda y, _: (2 * centred(y), None), y, length=2)[0],
        lambda y: 4 * dense_centred(y),
    ),
    "cond": (
        lambda y: lax.cond(lax.pmax(y[0, 0, 0], AXIS) > 1e3, jnp.sin, centred, y),
        dense_centred,
    ),
    "sums": (standardised, lambda y: dense_centred(y) / np.std(y, (0, 1), keepdims=True)),
    "max": (
        lambda y: y - jnp.broadcast_to(lax.pmax(jnp.max(y, 0), AXIS), y.shape),
        lambda y: y - np.max(y, 0, keepdims=True),
    ),
    "min": (
        lambda y: y - jnp.broadcast_to(lax.pmin(jnp.min(y, 0), AXIS), y.shape),
        lambda y: y - np.min(y, 0, keepdims=True),
    ),
    "gather": (
        lambda y: jnp.einsum("aif,bif->ab", y, lax.all_gather(y[0], AXIS)),
        lambda y: np.einsum("aif,bif->ab", y, y),
    ),
    "nested vmap": (nested, dense_centred),
}


@pytest.mark.accelerator
@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_are_over_all_samples(name):
    ours, dense = COLLECTIVES[name]
    params, factors, x = dense_model()
    apply = modulate(lambda params, x: ours(linear(params, x)), axis_name=AXIS)
    weights = jax.vmap(lambda own: materialize(params, own))(factors)
    y = np.einsum("bti,bio->bto", x, weights["W"]) + np.asarray(weights["b"])[:, None]
    assert_close(jax.jit(apply)(params, factors, x), dense(y), 1e-5)


@pytest.mark.parametrize(
    "mean",
    [
        lambda y: lax.pmean(y, (AXIS, "group")),
        lambda y: lax.pmean(lax.pmean(y, "group"), AXIS),
        lambda y: lax.pmean(lax.pmean(y, AXIS), "group"),
    ],
    ids=["at once", "group first", "group last"],
)
def test_statistics_may_be_over_another_axis_too(mean):
    params, factors, x = dense_model()
    x = np.stack([x, 2 * x])

    def apply(params, x):
        y = linear(params, x)
        return y - mean(jnp.mean(y, 0))[None], mean(jnp.mean(y, 0))

    call = jax.vmap(lambda x: lifted(apply)(params, factors, x), axis_name="group")
    weights = jax.vmap(lambda own: materialize(params, own))(factors)
    y = np.einsum("gbti,bio->gbto", x, weights["W"]) + np.asarray(weights["b"])[:, None]
    got, of_groups = jax.jit(call)(x)
    assert_close(got, y - y.mean((0, 1)), 1e-5)
    assert_close(of_groups[1], y.mean((0, 1)), 1e-5)


def test_a_generated_array_has_a_mean_over_samples():
    params, factors, x = dense_model()

    def apply(params, x):
        mean = lax.pmean(params["b"], AXIS)
        return x - jnp.tile(mean, 2)[None, None, :6], mean

    y, mean = jax.jit(lifted(apply))(params, {"b": factors["b"]}, x)
    want = params["b"] + np.mean(factors["b"], 0)
    assert_close(mean, want, 1e-6)
    assert_close(y, x - np.tile(want, 2)[None, None, :6], 1e-6)


def test_an_axis_name_changes_no_program_that_does_not_use_it():
    params, factors, x = dense_model()

    def program(**options):
        return str(jax.make_jaxpr(modulate(linear, **options))(params, factors, x))

    assert program() == program(axis_name=AXIS)


def refused(function, message, **options):
    params, factors, x = dense_model()
    with pytest.raises(ValueError, match=message):
        modulate(lambda params, x: function(linear(params, x)), **options)(params, factors, x)


@pytest.mark.parametrize(
    "incomplete",
    [
        lambda y: y - jnp.mean(y, (0, 1), keepdims=True),
        lambda y: y * lax.psum(jnp.sum(y, 0, keepdims=True) ** 2, AXIS),
        lambda y: y * lax.pmean(jnp.sum(y, 0, keepdims=True) / jnp.sum(y, 0, keepdims=True), AXIS),
        lambda y: y * lax.psum(jnp.max(y, 0, keepdims=True), AXIS),
        lambda y: y * lax.pmax(jnp.sum(y, 0, keepdims=True), AXIS),
        lambda y: y * lax.pmax(-jnp.max(y, 0, keepdims=True), AXIS),
        lambda y: y * lax.pmean(jnp.mean((y - jnp.mean(y, 0, keepdims=True)) ** 2, 0), AXIS)[None],
        lambda y: y * lax.psum(1 + jnp.sum(y, 0, keepdims=True), AXIS),
        lambda y: jax.vmap(lambda row: row - lax.pmean(row, "row"), axis_name="row")(y),
    ],
    ids=["none", "square", "ratio", "sum of maxima", "maximum of sums", "minus maximum",
         "own variance", "plus one", "nested"],
)  # fmt: skip
def test_statistics_that_no_collective_completes_are_refused(incomplete):
    refused(incomplete, r"over the batch axis .* complete the sum.*'batch'", axis_name=AXIS)


def test_without_an_axis_name_the_way_out_is_named():
    refused(
        lambda y: y - jnp.mean(y, (0, 1), keepdims=True),
        r"BatchNorm\(axis_name='batch'\) and modulate or make_straw\(..., axis_name='batch'\)",
    )


def test_a_masked_norm_is_refused():
    params, factors, x = dense_model()
    norm = nn.BatchNorm(use_running_average=False, axis_name=AXIS)
    stats = {"batch_stats": {"mean": np.zeros(5), "var": np.ones(5)}}

    def apply(params, x):
        y = linear(params, x)
        own = {"params": {"scale": np.ones(5), "bias": np.zeros(5)}, **stats}
        return norm.apply(own, y, mask=y > 0, mutable=["batch_stats"])

    with pytest.raises(ValueError, match=r"over the batch axis .* without a mask"):
        lifted(apply)(params, factors, x)


# Outputs that all samples have in common.


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: (y, {"cache": y}), "expected 1/cache to be the same for all samples"),
        (lambda y: (y, jnp.mean(y)), "expected 1 to be the same for all samples"),
        (lambda y: (y, lax.pmean(y, "other")), "expected 1 to be the same for all samples"),
        (lambda y: (mean_of(y), y), r"got 0 of shape \(5,\).* None in modulate\(..., out_axes"),
        (lambda y: y, r"expected out_axes to be a tree .* float32 \[1, 3, 5\], got \(0, None\)"),
    ],
)
def test_what_cannot_be_merged_is_refused(output, message):
    params, factors, x = dense_model()
    call = lifted(lambda params, x: output(linear(params, x)))
    with pytest.raises(ValueError, match=message):
        jax.vmap(call, in_axes=(None, None, 0), axis_name="other")(params, factors, x[None])


def test_generated_weights_are_no_state():
    params, factors, x = dense_model()
    with pytest.raises(ValueError, match=r"expected 1 to be the same .* or its weights"):
        lifted(lambda params, x: (linear(params, x), params["b"]))(params, factors, x)


def test_what_does_not_depend_on_samples_is_returned_once():
    params, factors, x = dense_model()

    def apply(params, x, *, state):
        y = linear(params, x)
        return y, {"count": state["count"] + 1, "one": jnp.ones((1, 2))}

    y, state = lifted(apply)(params, factors, x, state={"count": jnp.zeros((), jnp.int32)})
    assert (y.shape, state["count"].item(), state["one"].shape) == ((SAMPLES, 3, 5), 1, (1, 2))


@pytest.mark.parametrize("out_axes", [1, (0, 1), "batch"])
def test_other_axes_of_outputs_are_refused(out_axes):
    with pytest.raises(ValueError, match="expected out_axes of 0 and None"):
        modulate(linear, out_axes=out_axes)


@pytest.mark.parametrize("axis_name", [1, ("batch",)])
def test_an_axis_name_is_a_string(axis_name):
    with pytest.raises(ValueError, match="expected axis_name to be a string or None"):
        modulate(linear, axis_name=axis_name)


# Networks with state.


@cache
def straw_of(base):
    return make_straw(
        network(),
        IMAGES,
        rank=RANKS,
        base=base,
        encoder=nn.Dense(3),
        context=random_array(3, (SAMPLES, 4)),
        hidden=4,
        axis_name=AXIS,
    )


@pytest.mark.parametrize("base", ["trained", "frozen"])
def test_an_untrained_straw_is_its_executor_with_the_same_statistics(base):
    straw = straw_of(base)
    params = random_params(straw.init)
    of_executor, state = variables()
    untrained = jax.tree.map(np.zeros_like, params["generator"])
    params = {**params, "generator": untrained, "executor": of_executor}
    context = random_array(3, (SAMPLES, 4))

    @jax.jit
    def ours(params, state):
        y, state = straw.apply(params, IMAGES, context=context, state=state, train=True)
        return y, state, straw.apply(params, IMAGES, context=context, state=state, train=False)[0]

    @jax.jit
    def plain(params, state):
        y, state = network(None).apply(params, IMAGES, state=state, train=True)
        return y, state, network(None).apply(params, IMAGES, state=state, train=False)[0]

    assert_close(ours(params, state), plain(of_executor, state), 1e-6)


@pytest.mark.parametrize("base", ["none", "trained", "frozen"])
def test_a_straw_has_a_first_state_and_trains(base):
    straw = straw_of(base)
    first = jax.eval_shape(straw.init_state, jax.random.key(0))
    shapes = jax.tree.map(np.shape, variables()[1])
    assert jax.tree.map(lambda leaf: leaf.shape, first) == shapes
    assert "batch_stats" not in str(
        jax.tree.structure(jax.eval_shape(straw.init, jax.random.key(0)))
    )
    params = random_params(straw.init)
    executor, state = variables()
    context = random_array(3, (SAMPLES, 4))

    def loss(params):
        weights = {"executor": executor} if base == "frozen" else {}
        y, new = straw.apply(params | weights, IMAGES, context=context, state=state, train=True)
        return jnp.sum(y**2), new

    gradient, new = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert jax.tree.map(np.shape, new) == shapes
    assert all(np.abs(leaf).max() > 0 for path, leaf in named_leaves(gradient).items()
               if path.startswith(("encoder", "executor")))  # fmt: skip


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = nn.Dense(4, use_bias=False, name="dense")(x)
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9, axis_name=AXIS, name="norm")
        return jnp.sin(norm(x)), None


class Nested(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        made = {
            "plain": Block,
            "remat": nn.remat(Block),
            "jit": nn.jit(Block),
            "scan": nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2),
        }[self.kind]
        x, _ = made(name="block")(x, *[None] * (self.kind == "scan"))
        return nn.Dense(2, name="head")(x)


@pytest.mark.parametrize("leaf", ["block/dense/kernel", "head/kernel"])
@pytest.mark.parametrize("kind", ["plain", "remat", "jit", "scan"])
def test_state_comes_out_of_nested_programs(kind, leaf):
    executor, x = linen(Nested(kind), mutable=["batch_stats"]), random_array(0, (SAMPLES, 4))
    params = random_params(executor.init, x)
    state = jax.tree.map(np.abs, random_params(executor.init_state, x))
    factors = random_factors(params, {leaf: 1}, (SAMPLES,))
    weights = jax.jit(jax.vmap(lambda own: materialize(params, own)))(factors)
    want, y = {"mean": [], "var": []}, x
    count = 2 if kind == "scan" else 1
    block = {key: np.asarray(each).reshape(SAMPLES, count, *each.shape[1 + (count > 1) :])
             for key, each in named_leaves(weights["block"]).items()}  # fmt: skip
    running = jax.tree.map(lambda each: each.reshape(count, 4), state["batch_stats"]["block"])
    for layer in range(count):
        y = np.einsum("bi,bio->bo", y, block["dense/kernel"][:, layer])
        for key, each in (("mean", y.mean(0)), ("var", y.var(0))):
            want[key].append(0.9 * running["norm"][key][layer] + 0.1 * each)
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        y = np.sin(y * block["norm/scale"][:, layer] + block["norm/bias"][:, layer])
    y = np.einsum("bi,bio->bo", y, weights["head"]["kernel"]) + np.asarray(weights["head"]["bias"])
    got, new = jax.jit(lifted(executor.apply))(params, factors, x, state=state)
    assert_close(got, y, 1e-5)
    new = jax.tree.map(lambda each: each.reshape(count, 4), new["batch_stats"]["block"]["norm"])
    assert_close(
        new, jax.tree.map(np.stack, want, is_leaf=lambda leaf: isinstance(leaf, list)), 1e-5
    )


def test_a_network_without_linen_has_state():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, axis_name=AXIS, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    graph, weights, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x, *, state):
        model = nnx.merge(graph, nnx.State(params), nnx.State(state), copy=True)
        y = model(x)
        return y, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    params, first = nnx.to_pure_dict(weights), nnx.to_pure_dict(rest)
    executor = Network(lambda key, x: params, apply, lambda key, x: first)
    x = random_array(0, (SAMPLES, 6))
    straw = make_straw(executor, x, rank=2, base="trained", encoder=nn.Dense(3), axis_name=AXIS)
    start = random_params(straw.init)
    factors = jax.jit(straw.factors)(start, x)
    factors = jax.tree.map(np.asarray, factors)
    kernels = start["executor"]["dense"]["kernel"] + np.matmul(*factors["dense/kernel"])
    y, state = jax.jit(straw.apply)(start, x, state=straw.init_state(jax.random.key(0)))
    hidden = np.einsum("bi,bio->bo", x, kernels)
    if "dense/bias" in factors:
        hidden = hidden + factors["dense/bias"]
    hidden = hidden + start["executor"]["dense"]["bias"]
    assert_close(state["norm"]["mean"], 0.01 * hidden.mean(0), 1e-5)
    assert_close(state["norm"]["var"], 0.99 + 0.01 * hidden.var(0), 1e-5)
    assert y.shape == (SAMPLES, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"with state=..., a dict of \['batch_stats'\], got none"),
        ({"state": {"cache": jnp.ones(3)}}, r"a dict of \['batch_stats'\], got cache"),
        (
            {"state": {"batch_stats": {}}, "mutable": ["x"]},
            r"got mutable too. .* said once, linen\(module",
        ),
        ({"state": {}}, r"a dict of \['batch_stats'\], got none"),
        (
            {"state": {"batch_stats": {}}},
            r"expected the state of ResNet to be batch_stats/norm0/mean: .* got none",
        ),
        (
            {"state": jax.tree.map(lambda leaf: leaf[:1], variables()[1])},
            r"the state .*norm0/mean: float32 \[4\].*, got .*norm0/mean: float32 \[1\]",
        ),
    ],
)
def test_a_call_has_the_whole_state(options, message):
    params, _ = variables()
    with pytest.raises(ValueError, match=message):
        network(None).apply(params, IMAGES, **options)


@pytest.mark.parametrize(
    ("mutable", "message"),
    [
        ("batch_stats", r"a list of collections of state, as \['batch_stats'\], got 'batch_stats'"),
        (True, "a list of collections of state"),
        (["params"], "got 'params' among them"),
    ],
)
def test_mutable_is_of_collections(mutable, message):
    with pytest.raises(ValueError, match=message):
        linen(ResNet(), mutable=mutable)


def test_collections_that_are_not_named_are_refused():
    with pytest.raises(
        ValueError, match=r"only, got also \['batch_stats'\]. Name them, linen\(mod"
    ):
        jax.eval_shape(linen(ResNet()).init, jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"and \['cache'\], got also \['batch_stats'\]"):
        jax.eval_shape(linen(ResNet(), mutable=["cache"]).init, jax.random.key(0), IMAGES)
