"""How parameters are placed on a mesh of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec

from straw_jax import make_straw
from straw_jax.sharding import make_mesh, mesh_of, place, shardings, to_host


class _Executor(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="dense")(nn.relu(nn.Dense(5, name="odd")(x)))


def test_ranks_are_dealt_out_where_the_mesh_divides_them():
    x = jnp.zeros((1, 7))
    straw = make_straw(
        _Executor(), x, rank={"dense/kernel": 4, "odd/kernel": 3, "*/bias": "whole"},
        base="trained", encoder=nn.Dense(2),
    )  # fmt: skip
    params = jax.eval_shape(straw.init, jax.random.key(0))
    mesh = AbstractMesh((4, 2), ("data", "model"))
    state = {"params": params, "momentum": [params]}  # as an optimizer's state holds them
    cut = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree.leaves_with_path(shardings(state, mesh))
        if sharding.spec != PartitionSpec()
    }
    heads = {
        "dense.kernel.B/kernel": PartitionSpec(None, "model"),
        "dense.kernel.B/bias": PartitionSpec(None, "model"),
        "dense.kernel.A/kernel": PartitionSpec("model"),
        "dense.kernel.A/bias": PartitionSpec("model"),
    }
    assert cut == {
        f"{owner}/generator/{head}": spec
        for owner in ("params", "momentum/0")
        for head, spec in heads.items()
    }


def test_arrays_go_to_a_mesh_and_back():
    mesh = make_mesh(1, 1)
    tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": jnp.ones((4,), jnp.bfloat16)}
    placed = place(tree, shardings(tree, mesh))
    assert mesh_of(placed) == mesh
    assert mesh_of(tree) is None
    back = to_host(placed)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    count = len(jax.devices())
    with pytest.raises(
        ValueError, match=rf"data \* model to be {count}, .* got data=3, model={count}"
    ):
        make_mesh(3, count)
