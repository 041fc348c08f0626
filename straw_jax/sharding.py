"""The same functions on several devices: samples and ranks are dealt out over a mesh.

Nothing in the models changes: JAX partitions a jitted function by how its arguments lie on the
mesh. Two axes are meant. Along "data" each device has its share of the samples. Along "model" each
has its share of every rank: with `B` cut by columns and `A` by rows, a device generates and applies
a low-rank update of its own, and the update is their sum. So the generator's kernels, which are
nearly all of its parameters, are cut evenly, and what devices exchange is a layer's output.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_RANK_AXIS = {"B": 1, "A": 0}  # of a generator's kernel [m, n, h] and bias [m, n]


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Lay out devices as a mesh with the axes "data" and "model".

    Args:
        data: devices along which samples are dealt out; by default all that there are.
        model: devices along which ranks are dealt out; neighbours, which exchange the most.

    Returns:
        The mesh, of all processes' devices, for `shardings` and `place`.

    Raises:
        ValueError: if there are fewer devices, or several processes and more devices.
    """
    devices = jax.devices()
    data = len(devices) // model if data is None else data
    wanted = data * model
    if not 0 < wanted <= len(devices) or (jax.process_count() > 1 and wanted < len(devices)):
        raise ValueError(
            f"make_mesh: expected data * model to be {len(devices)}, the devices of "
            f"{jax.process_count()} process(es), or fewer where there is one, got data={data}, "
            f"model={model}."
        )
    return jax.make_mesh(
        (data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices[:wanted]
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Say how parameters lie on a mesh: a generator's factor heads cut by rank, all else whole.

    A head whose rank the axis "model" does not divide stays whole, too.

    Args:
        tree: parameters as of `Straw.init`, or any tree that holds such, like an optimizer's state;
            arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.

    Returns:
        A `NamedSharding` for each leaf.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec: list[str | None] = []
        axis = _rank_axis(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
        if axis is not None and leaf.ndim > 1 and leaf.shape[axis] % mesh.shape["model"] == 0:
            spec = [None] * axis + ["model"]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Say how a batch `[n, ...]` lies on a mesh: dealt out along "data", which must divide `n`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Say that every device of a mesh has all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh that a tree's arrays were placed on, or None where they were not."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays that every process holds whole onto a mesh.

    Args:
        tree: of arrays, of NumPy or JAX, the same in every process.
        shardings: for each leaf, or one for all.

    Returns:
        The same values, as JAX arrays; each device receives only what it is to hold.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf: Any, sharding: NamedSharding) -> Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Return arrays, wherever they lie, as whole NumPy arrays in every process.

    All processes have to call it, where there are several.
    """

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def _rank_axis(path: list[str]) -> int | None:
    """Return the axis of a leaf that is the rank, by its path in `Straw`'s parameters."""
    *_, owner, head, _ = ["", "", *path]
    return _RANK_AXIS.get(head.rpartition(".")[2]) if owner == "generator" else None
