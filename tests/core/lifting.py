"""Modulated models beside the same models with every sample's weights formed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from reference import assert_close, largest_intermediate, random_array, to_float32

from straw_jax import Factors, factor_spec, modulate
from straw_jax.factors import named_leaves


def random_factors(params, ranks, batch, dtype="float32", seed=1, axes=None):
    spec = factor_spec(params, ranks, axes=axes)
    vector = random_array(seed, (*batch, spec.size), dtype)
    return spec.unpack(vector * np.asarray(0.3, vector.dtype))


def modulated(apply, params, factors, x, **options):
    return jax.jit(lambda factors, x: modulate(apply, **options)(params, factors, x))(factors, x)


def by_sample(apply, params, factors, x, scale=1.0):
    """The dense reference: ordinary weights for every sample, one sample at a time."""

    def one(i):
        weights = {}
        for path, leaf in named_leaves(params).items():
            factor = jax.tree.map(lambda part: part[i], factors.get(path))
            if isinstance(factor, Factors):
                factor = scale * dense_update(factor, leaf.shape)
            weights[path] = leaf if factor is None else leaf + factor
        tree = jax.tree.unflatten(jax.tree.structure(params), list(weights.values()))
        return apply(tree, x[i : i + 1])[0]

    return jax.jit(lambda: jnp.stack([one(i) for i in range(len(x))]))()


def dense_update(factors, shape):
    """One sample's `B @ A`, or of stacked layers the blocks on its diagonal."""
    layers = factors.B.shape[0] * factors.A.shape[1] // math.prod(shape)
    B = factors.B.reshape(layers, -1, factors.B.shape[1])
    A = factors.A.reshape(factors.A.shape[0], layers, -1)
    return jnp.einsum("lir,rlo->lio", B, A, precision="highest").reshape(shape)


def assert_modulation_equals_reference(apply, params, factors, x, scale=1.0, tolerance=1e-5):
    """Compare values, and gradients with respect to parameters, factors and input."""
    shape = jax.eval_shape(lambda: by_sample(apply, params, factors, x)).shape
    weights = random_array(9, shape)

    def ours(params, factors, x):
        y = modulate(apply, scale=scale)(params, factors, x)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    def reference(params, factors, x):
        y = by_sample(apply, params, factors, x, scale)
        return jnp.sum(y * weights), y

    got, y = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(params, factors, x)
    exact = to_float32((params, factors, x))
    want, expected = jax.jit(jax.grad(reference, (0, 1, 2), has_aux=True))(*exact)
    assert_close(y, expected, tolerance)
    assert_close(got, want, tolerance)


def assert_no_full_kernel(apply, params, factors, x, kernel, layers=1):
    """No intermediate of the gradient is as large as one (layer's) kernel for each sample."""

    def loss(params, factors):
        return jnp.sum(modulate(apply)(params, factors, x) ** 2)

    size = len(jax.tree.leaves(x)[0]) * named_leaves(params)[kernel].size // layers
    assert largest_intermediate(jax.grad(loss, (0, 1)), params, factors) < size
