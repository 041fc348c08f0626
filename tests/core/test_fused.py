import contextlib
import functools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    TOLERANCE,
    assert_close,
    intermediates,
    random_array,
    random_params,
    to_float32,
)

from straw_jax import Factors, Generated, fused, make_straw, modulate
from straw_jax.fused import apply_generated, choose_tiles, generate_and_apply
from straw_jax.lowrank import apply_factor

ALL = (0, 1, 2, 3)


def problem(batch, positions, m, h, n, dtype="float32"):
    shapes = [(batch, positions, m), (batch, h), (m, n, h), (m, n)]
    return [random_array(i, shape, dtype) for i, shape in enumerate(shapes)]


def plain(x, hidden, kernel, bias):
    product = functools.partial(jnp.einsum, precision="highest")
    factors = product("bh,mnh->bmn", hidden, kernel) + bias[None]
    return product("bpm,bmn->bpn", x, factors)


def value_and_gradients(function, arguments):
    weights = random_array(9, jax.eval_shape(function, *arguments).shape)

    def loss(*arguments):
        y = function(*arguments)
        return jnp.sum(y * weights), y

    gradients, y = jax.jit(jax.grad(loss, ALL, has_aux=True))(*arguments)
    return y, gradients


def assert_equals_plain(function, arguments, tolerance):
    y, gradients = value_and_gradients(function, arguments)
    want, expected = value_and_gradients(plain, to_float32(arguments))
    assert y.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [a.dtype for a in arguments]
    assert_close(y, want, tolerance)
    assert_close(gradients, expected, tolerance)


small = st.integers(1, 20)


@pytest.mark.accelerator
@settings(max_examples=3)
@given(st.integers(1, 18), st.sampled_from([1, 2, 33]), small, small, small)
def test_values_and_gradients_equal_the_plain_formula(batch, positions, m, h, n):
    assert_equals_plain(generate_and_apply, problem(batch, positions, m, h, n), 1e-5)


@pytest.mark.parametrize("tpu", [pytest.param(False, marks=pytest.mark.accelerator), True])
@pytest.mark.parametrize(
    ("positions", "n", "dtype"),
    [(35, 3, "float32"), (1, 130, "float32"), (35, 20, "bfloat16")],
)
def test_several_tiles_along_every_axis(positions, n, dtype, tpu, monkeypatch):
    """None of the sizes is a multiple of its tile; on CPU, what a GPU runs and what a TPU runs."""
    monkeypatch.setattr(fused, "_INTERPRETED", fused._INTERPRETED._replace(tpu=tpu))
    monkeypatch.setattr(fused, "_GRID_STEPS", 2)
    monkeypatch.setattr(fused, "_OPERAND", 16 * 32)
    monkeypatch.setattr(fused, "_BLOCK_BYTES", 2**15)
    size = (34, positions, 11, 20, n)
    tiles = choose_tiles(*size, tpu=tpu)
    assert (tiles.samples, tiles.rows, tiles.shared_rows) == (16, 8, 8)
    assert tiles.positions == 1 or positions % tiles.positions
    assert n % tiles.columns
    assert_equals_plain(generate_and_apply, problem(*size, dtype), TOLERANCE[dtype])


@given(
    st.integers(1, 512), st.integers(1, 1000), st.integers(1, 9216), st.integers(1, 1024),
    st.integers(1, 8192), st.booleans(),
)  # fmt: skip
def test_tiles_fit_their_bounds(batch, positions, m, h, n, tpu):
    tiles = choose_tiles(batch, positions, m, h, n, tpu=tpu)
    for size in (tiles.samples, tiles.positions, tiles.columns):
        assert size & (size - 1) == 0  # a power of two, as Triton needs
    assert min(tiles.samples, tiles.columns) >= 16
    assert tiles.columns >= min(n, 128) or not tpu
    assert 1 <= tiles.rows <= m
    assert tiles.rows % 8 == 0 or tiles.rows == m
    h = max(16, 2 ** (h - 1).bit_length())
    assert h * tiles.samples * 4 <= 2**16
    assert h * tiles.columns * 4 <= 2**16 or tpu
    assert tiles.samples * tiles.positions * tiles.columns <= 2**15
    assert tiles.rows * h * max(tiles.columns, 128) * 4 <= 2**24  # above 8 rows: 2 MiB


def per_sample(x, hidden, kernel, bias):
    return jax.vmap(lambda x, hidden: apply_generated(x, Generated(hidden, kernel, bias)))(
        x, hidden
    )


@pytest.mark.accelerator
def test_under_vmap_over_samples_it_is_one_kernel():
    arguments = problem(5, 3, 7, 8, 4)
    assert str(jax.make_jaxpr(per_sample)(*arguments)).count("generate_and_apply") > 0
    assert_equals_plain(per_sample, arguments, 1e-5)


def test_vmap_over_seeds_too():
    """Kernels differ from seed to seed; also where the gradient is taken inside."""
    seeds = [problem(3, 2, 5, 4, 6), [2 * a for a in problem(3, 2, 5, 4, 6)]]
    stacked = [np.stack(pair) for pair in zip(*seeds, strict=True)]

    def value_and_gradient(function):
        def loss(*arguments):
            y = function(*arguments)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.vmap(jax.grad(loss, ALL, has_aux=True)))(*stacked)

    assert_close(value_and_gradient(per_sample), value_and_gradient(plain), 1e-5)


@pytest.mark.accelerator
@pytest.mark.parametrize(
    "axes", [(0, None, None, None), (None, 0, None, None), (0, 0, 0, None), (0, 0, None, 0)]
)
def test_any_other_vmap_is_the_plain_product(axes):
    x, hidden, kernel, bias = problem(3, 2, 5, 4, 6)
    kernels, biases = np.stack([kernel, -kernel, kernel]), np.stack([bias, bias, -bias])
    single, batched = (x[0], hidden[0], kernel, bias), (x, hidden, kernels, biases)
    arguments = [b if axis == 0 else s for s, b, axis in zip(single, batched, axes, strict=True)]

    def mapped(function):
        return jax.jit(jax.vmap(lambda x, *factor: function(x, Generated(*factor)), axes))

    assert_close(mapped(apply_generated)(*arguments), mapped(apply_factor)(*arguments), 1e-5)


@pytest.mark.accelerator
def test_more_vectors_of_one_sample_are_its_positions():
    """A model that maps its layer over a batch of its own, as Equinox models do."""
    x, hidden, kernel, bias = problem(3, 4, 5, 4, 6)

    def model(x, hidden):
        return jax.vmap(lambda x: apply_generated(x, Generated(hidden, kernel, bias)))(x)

    assert "pallas_call" in str(jax.make_jaxpr(jax.vmap(model))(x, hidden))
    want = jax.jit(plain)(x, hidden, kernel, bias)
    assert_close(jax.jit(jax.vmap(model))(x, hidden), want, 1e-5)


def test_reverse_mode_inside_of_vmap_is_an_error():
    x, hidden, kernel, bias = problem(3, 1, 5, 4, 6)
    loss = lambda x, hidden: jnp.sum(apply_generated(x, Generated(hidden, kernel, bias)))  # noqa: E731
    with pytest.raises(ValueError, match="does not support reverse-mode"):
        jax.vmap(jax.grad(loss))(x, hidden)


class Executor(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


def test_a_straw_with_and_without_the_kernel():
    images = random_array(0, (3, 6, 6, 1))
    encoder = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4)])
    with_kernel, without = (
        make_straw(Executor(), images, rank=2, hidden=4, base="trained", encoder=encoder, fused=on)
        for on in (True, False)
    )
    params = random_params(without.init)

    def run(straw):
        def loss(params):
            logits = straw.apply(params, images)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    assert "pallas_call" in str(jax.make_jaxpr(with_kernel.apply)(params, images))
    assert "pallas_call" not in str(jax.make_jaxpr(without.apply)(params, images))
    assert_close(run(with_kernel), run(without), 1e-5)


def test_no_per_sample_factor_outside_of_tiles():
    batch, positions, m, h, n = 64, 2, 24, 8, 40
    x, hidden, kernel, bias = problem(batch, positions, m, h, n)
    A = Generated(hidden, random_array(5, (n, 3, h)), random_array(6, (n, 3)))
    params = {"W": jax.ShapeDtypeStruct((m, 3), jnp.float32)}

    def loss(fused, x, hidden, kernel, bias):
        call = modulate(lambda params, x: x @ params["W"], fused=fused)
        return jnp.sum(call(params, {"W": Factors(Generated(hidden, kernel, bias), A)}, x) ** 2)

    def largest(fused):
        gradient = jax.grad(functools.partial(loss, fused), ALL)
        return max(map(math.prod, intermediates(gradient, x, hidden, kernel, bias)))

    assert largest(False) >= batch * m * n
    assert largest(True) < batch * m * n


def compile_target(platform):
    """The context for lowering for a device that is not here: from JAX 0.11, the name is enough."""
    if platform == "tpu" or jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((), (), (), abstract_device=device)
    )


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")  # JAX 0.12
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("platform", "target"), [("cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu_custom_call")]
)
@pytest.mark.parametrize(
    "size", [(128, 1, 9216, 128, 16), (128, 1, 16, 128, 8192), (5, 576, 288, 100, 47)]
)
def test_it_lowers_for_devices_that_are_not_here(size, platform, target, dtype):
    batch, positions, m, h, n = size
    shapes = [(batch, positions, m), (batch, h), (m, n, h), (m, n)]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(generate_and_apply(*a) ** 2), ALL))
    with compile_target(platform):
        lowered = gradient.trace(*arguments).lower(lowering_platforms=(platform,))
    assert len(re.findall(re.escape(f"@{target}("), lowered.as_text())) == 3


def test_it_is_not_imported_unless_used():
    code = "import sys, straw_jax.straw; assert 'straw_jax.fused' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_to_apply():
    x, hidden, kernel, bias = problem(0, 2, 5, 4, 6)
    assert per_sample(x, hidden, kernel, bias).shape == (0, 2, 6)


def test_errors():
    x, hidden, kernel, bias = problem(3, 2, 5, 4, 6)
    with pytest.raises(ValueError, match=r"expected x with 3 axes, got shape \(3, 5\)"):
        generate_and_apply(x[:, 0], hidden, kernel, bias)
    with pytest.raises(ValueError, match=r"expected x of shape \(3, 2, 5\), got \(3, 2, 4\)"):
        generate_and_apply(x[..., :4], hidden, kernel, bias)
    with pytest.raises(ValueError, match=r"expected hidden of shape \(3, 4\), got \(2, 4\)"):
        generate_and_apply(x, hidden[:2], kernel, bias)
    with pytest.raises(ValueError, match="expected bias of x's dtype float32, got bfloat16"):
        generate_and_apply(x, hidden, kernel, bias.astype(jnp.bfloat16))
