import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from straw_jax import Network, NormEncoder, ViT, make_straw
from straw_jax.kernels import uses_of_leaves

X, W = jnp.ones((2, 3, 4)), jnp.ones((4, 4))


def broadcast(w, x):
    return jnp.broadcast_to(w[None], (2, 4, 4))


ADDED = {
    "added": lambda w, x: x + w[:3][None],
    "scaled, then added": lambda w, x: x - 2.0 * w[:3][None],
    "multiplied element by element": lambda w, x: x * jnp.exp(w)[1:][None],
    "joined": lambda w, x: jnp.concatenate([broadcast(w, x), x], axis=1),
    "added in a call": lambda w, x: jax.jit(lambda a, b: a + b)(x, w[:3][None]),
    "added in a scan": lambda w, x: jax.lax.scan(lambda x, w: (x + w[None, None], None), x, w)[0],
    "added in a branch": lambda w, x: jax.lax.cond(
        x.sum() > 0, lambda w: x + w[:3][None], lambda w: x, w
    ),
    "added in a while loop": lambda w, x: jax.lax.fori_loop(0, 3, lambda _, x: x + w[:3][None], x),
}
USED = {
    "a product": lambda w, x: x @ w,
    "a product of its transpose": lambda w, x: x @ w.T,
    "normalised": lambda w, x: x @ (w / jnp.sum(w**2)),
    "two products": lambda w, x: x @ (w @ w),
    "a look-up": lambda w, x: w[x[..., 0].astype(int)],
    "a row by its number": lambda w, x: jax.lax.dynamic_slice_in_dim(w, x[0, 0, 0].astype(int), 1),
    "added and multiplied": lambda w, x: (x + w[:3][None]) @ w,
    "a product in a call": lambda w, x: jax.jit(jnp.matmul)(x, w),
    "a product in a loop": lambda w, x: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x),
    "a product in a branch": lambda w, x: jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x),
    "an operation unknown here": lambda w, x: jax.lax.dynamic_update_slice(w, x[0], (0, 0)),
    "unused": lambda w, x: x,
}


@pytest.mark.parametrize("model", ADDED.values(), ids=ADDED)
def test_what_meets_data_element_by_element_is_added(model):
    assert [use.added for use in uses_of_leaves(model, W, X)] == [True]


@pytest.mark.parametrize("model", USED.values(), ids=USED)
def test_all_else_counts_as_a_kernel(model):
    assert [use.added for use in uses_of_leaves(model, W, X)] == [False]


def test_a_convolution_and_a_stack_of_layers_are_kernels():
    def model(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["layers"])
        return x + params["bias"][None, None]

    params = {
        "bias": jnp.ones((3, 4)),
        "conv": jnp.ones((3, 3, 1, 4)),
        "layers": jnp.ones((2, 4, 4)),
    }
    added = [use.added for use in uses_of_leaves(model, params, jnp.ones((2, 3, 3, 1)))]
    assert dict(zip(sorted(params), added, strict=True)) == {
        "bias": True, "conv": False, "layers": False,
    }  # fmt: skip


IMAGES = jnp.zeros((2, 8, 8, 1))


def test_one_rank_on_a_transformer_writes_positions_whole():
    executor = ViT(classes=4, width=8, depth=1, heads=2)
    straw = make_straw(executor, IMAGES, rank=2, encoder=NormEncoder(4, (8,)), hidden=4)
    ranks = {leaf.path: leaf.rank for leaf in straw.spec}
    assert ranks["positions"] == "whole"
    kernels = {path for path in ranks if path.endswith("kernel")}
    assert {path for path, rank in ranks.items() if rank == 2} == kernels
    params = jax.eval_shape(straw.init, jax.random.key(0))
    assert jax.eval_shape(straw.apply, params, IMAGES).shape == (2, 4)


def test_kernels_of_a_model_that_needs_more_than_an_input_are_told_by_name_and_axes():
    shapes = {"W": (5, 5), "positions": (1, 5)}
    executor = Network(
        init=lambda key, x: {name: jnp.zeros(shape) for name, shape in shapes.items()},
        apply=lambda params, x, *, train: (x + params["positions"]) @ params["W"],
    )
    straw = make_straw(executor, jnp.zeros((2, 5)), rank=2, encoder=nn.Dense(3))
    assert {leaf.path: leaf.rank for leaf in straw.spec} == {"W": 2, "positions": 2}
