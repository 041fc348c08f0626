"""Static adapters: one for all texts, with which written ones are compared."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from straw_experiments.documents.gradients import gradients
from straw_experiments.documents.networks import (
    Context,
    Model,
    Params,
    Sizes,
    adapted_llama,
    associations,
    trained,
    unchanged,
)
from straw_jax import Factors
from straw_jax.factors import FactorTree


def static(sizes: Sizes, rank: int | None = None) -> Model:
    """Build one adapter for all texts, LoRA: `B` is drawn, `A` begins with 0."""
    rank = sizes.rank if rank is None else rank
    layers = sizes.llama.layers

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(sizes.kernels))
        return {
            name: {
                "B": jax.random.normal(own, (layers * sizes.inputs(name), rank))
                / sizes.inputs(name) ** 0.5,
                "A": jnp.zeros((rank, layers * sizes.outputs(name))),
            }
            for own, name in zip(keys, sizes.kernels, strict=True)
        }

    def write(params: Params, context: Context) -> FactorTree:
        del context
        cast = partial(jnp.asarray, dtype=sizes.dtype)
        return {
            f"layers/{name}": Factors(cast(each["B"])[None], cast(each["A"])[None], "src")
            for name, each in params.items()
        }

    return Model(init, write, adapted_llama(sizes.llama), unchanged)


def static_large(sizes: Sizes) -> Model:
    """Build a static adapter of at least as many trained parameters as each writer of ours."""
    inits = [build(sizes).init for build in (associations, gradients)]
    most = max(trained(jax.eval_shape(init, jax.random.key(0))) for init in inits)
    each = sizes.llama.layers * sum(sizes.inputs(k) + sizes.outputs(k) for k in sizes.kernels)
    return static(sizes, -(-most // each))
