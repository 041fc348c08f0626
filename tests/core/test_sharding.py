"""One device against 8 virtual ones, in one process and in two, each with its own devices."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, PartitionSpec
from reference import assert_close
from scripts import environment

from straw_jax import make_straw
from straw_jax.sharding import make_mesh, mesh_of, place, shardings, to_host

PROGRAM = Path(__file__).with_name("mesh_program.py")


def start(out, *words, devices):
    env = environment(XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    command = [sys.executable, PROGRAM, out, *map(str, words)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def ended(process):
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def found(out):
    return dict(np.load(out / "found.npz"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one device finds."""
    out = tmp_path_factory.mktemp("one")
    code, stderr = ended(start(out, "finish", devices=1))
    assert code == 0, stderr
    return found(out)


def assert_same(got, want):
    for name in want:
        if name != "share":
            assert_close(got[name], want[name], 1e-5)


def assert_kernels_are_dealt_out(out, devices):
    """Each device has its ranks of the big kernel, and never receives the others'."""
    assert tuple(found(out)["share"]) == (108, 4 // devices, 8)
    text = (out / "compiled.txt").read_text()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text)
    sizes = [np.prod([int(side) for side in shape.split(",")]) for shape in gathered]
    assert max(sizes, default=0) < 108 * 4 * 8
    assert "all-reduce" in text


def test_eight_devices_find_what_one_finds(one, tmp_path):
    code, stderr = ended(start(tmp_path, "finish", 4, 2, devices=8))
    assert code == 0, stderr
    assert_same(found(tmp_path), one)
    assert_kernels_are_dealt_out(tmp_path, 2)


def test_a_run_goes_on_with_another_number_of_devices(one, tmp_path):
    assert ended(start(tmp_path, "interrupt", 4, 1, devices=4))[0] == 7
    code, stderr = ended(start(tmp_path, "finish", 2, 4, devices=8))
    assert code == 0, stderr
    assert "continuing after epoch 1" in stderr
    assert_same(found(tmp_path), one)
    assert_kernels_are_dealt_out(tmp_path, 4)


def test_two_processes_find_what_one_finds(one, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folders = tmp_path / "first", tmp_path / "other"  # which need not be shared
    processes = [
        start(out, "finish", 4, 2, address, 2, index, devices=4)
        for index, out in enumerate(folders)
    ]
    for process in processes:
        code, stderr = ended(process)
        assert code == 0, stderr
    assert_same(found(folders[0]), one)
    assert_kernels_are_dealt_out(folders[0], 2)
    assert not folders[1].exists()
    assert "epoch" not in stderr


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
