"""The same functions on several devices: samples and ranks are divided over a mesh.

Models do not change: JAX partitions a jitted function according to the shardings of its arguments.
The mesh has two axes. Along "data" each device has a share of the samples. Along "model" each has a
share of every rank: with `B` divided by columns and `A` by rows, each device generates and applies
a low-rank update, and the whole update is their sum. So the generator's kernels, almost all of its
parameters, are divided evenly, and devices exchange the outputs of layers.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from straw_jax import expect

_RANK_AXIS = {"B": 1, "A": 0}  # of a generator's kernel [m, n, h] and bias [m, n]


def make_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """Arrange devices in a mesh with the axes "data" and "model".

    Args:
        data: number of devices over which samples are divided; by default all devices divided by
            `model`.
        model: number of devices over which ranks are divided; these are neighbours, since they
            exchange the most.

    Returns:
        The mesh, of the devices of all processes, for `shardings` and `place`.

    Raises:
        ValueError: if there are fewer devices, or, with several processes, more devices.

    Example:
        >>> from straw_jax.sharding import make_mesh
        >>> dict(make_mesh(data=1, model=1).shape)
        {'data': 1, 'model': 1}
    """
    expect.positive("make_mesh", model=model, **({} if data is None else {"data": data}))
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
    """Return how parameters are placed on a mesh: factor heads divided by rank, all else whole.

    A factor head whose rank is not a multiple of the axis "model" stays whole too.

    Args:
        tree: parameters from `Straw.init`, or any tree that contains such, like an optimizer's
            state; arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.

    Returns:
        A `NamedSharding` for each leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from straw_jax.sharding import make_mesh, shardings
        >>> head = {"kernel": jax.ShapeDtypeStruct((9, 4, 8), jnp.float32)}
        >>> placed = shardings({"generator": {"W.B": head}}, make_mesh(1, 1))
        >>> tuple(placed["generator"]["W.B"]["kernel"].spec)
        (None, 'model')
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec: list[str | None] = []
        axis = _rank_axis(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
        if axis is not None and leaf.ndim > 1 and leaf.shape[axis] % mesh.shape["model"] == 0:
            spec = [None] * axis + ["model"]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return how a batch is placed on a mesh: divided along "data".

    Args:
        mesh: from `make_mesh`.

    Returns:
        A sharding for arrays `[n, ...]`, `n` a multiple of the axis "data".

    Example:
        >>> from straw_jax.sharding import batch_sharding, make_mesh
        >>> tuple(batch_sharding(make_mesh(1, 1)).spec)
        ('data',)
    """
    return NamedSharding(mesh, PartitionSpec("data"))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Return the sharding that gives every device of a mesh the whole array.

    Args:
        mesh: from `make_mesh`.

    Returns:
        The sharding.

    Example:
        >>> from straw_jax.sharding import everywhere, make_mesh
        >>> everywhere(make_mesh(1, 1)).is_fully_replicated
        True
    """
    return NamedSharding(mesh, PartitionSpec())


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh on which a tree's arrays were placed.

    Args:
        tree: any tree.

    Returns:
        The mesh of the first array that was placed on one, or None.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.sharding import everywhere, make_mesh, mesh_of, place
        >>> mesh = make_mesh(1, 1)
        >>> mesh_of(place([jnp.ones(3)], everywhere(mesh))) == mesh
        True
    """
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def place(tree: Any, shardings: Any) -> Any:
    """Place arrays on a mesh.

    Args:
        tree: of NumPy or JAX arrays, the same whole arrays in every process.
        shardings: a tree with one for each leaf, or one for all.

    Returns:
        The same values, as JAX arrays; each device receives only its share.

    Example:
        >>> import numpy as np
        >>> from straw_jax.sharding import batch_sharding, make_mesh, place
        >>> mesh = make_mesh(1, 1)
        >>> placed = place({"x": np.ones((4, 2))}, batch_sharding(mesh))
        >>> tuple(placed["x"].sharding.spec)
        ('data',)
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(leaf: Any, sharding: NamedSharding) -> Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Return arrays on any devices as whole NumPy arrays, in every process.

    With several processes, all of them must call it.

    Args:
        tree: of arrays.

    Returns:
        The tree with NumPy arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from straw_jax.sharding import everywhere, make_mesh, place, to_host
        >>> to_host(place({"x": jnp.arange(3)}, everywhere(make_mesh(1, 1))))
        {'x': array([0, 1, 2], dtype=int32)}
    """

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def _rank_axis(path: list[str]) -> int | None:
    """Return which axis of a leaf is the rank, from its path in the parameters of a `Straw`."""
    *_, owner, head, _ = ["", "", *path]
    return _RANK_AXIS.get(head.rpartition(".")[2]) if owner == "generator" else None
