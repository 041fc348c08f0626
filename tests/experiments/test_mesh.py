"""Training on one device against 8 virtual ones, in one process and in two."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import assert_close
from scripts import environment

PROGRAM = Path(__file__).with_name("mesh_program.py")


def start(folder, *words, devices):
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    command = [sys.executable, PROGRAM, *words]
    # Nothing is compiled twice here.
    kept = environment(XLA_FLAGS=flags, JAX_ENABLE_COMPILATION_CACHE="false")
    return subprocess.Popen(command, cwd=folder, env=kept, stderr=subprocess.PIPE, text=True)


def ended(process):
    _, stderr = process.communicate(timeout=300)
    return process.returncode, stderr


def found(out):
    return dict(np.load(out / "found.npz"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of what is trained on one device and on eight, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("trained")
    assert ended(start(folder, "cut,interrupt,4,1", devices=4))[0] == 7
    words = "one,finish", "eight,finish,4,2", "cut,finish,2,4", "loop,loop,4,2"
    code, stderr = ended(start(folder, *words, devices=8))
    assert code == 0, stderr
    return folder, stderr


@pytest.fixture(scope="module")
def one(trained):
    """What one device finds."""
    return found(trained[0] / "one")


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


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(one, trained):
    out = trained[0] / "eight"
    assert_same(found(out), one)
    assert_kernels_are_dealt_out(out, 2)


@pytest.mark.slow
def test_devices_that_pick_their_batches_find_the_same(one, trained):
    assert_same(found(trained[0] / "loop"), one)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(one, trained):
    folder, stderr = trained
    assert "continuing after epoch 1" in stderr
    assert_same(found(folder / "cut"), one)
    assert_kernels_are_dealt_out(folder / "cut", 4)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(one, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folders = tmp_path / "first", tmp_path / "other"  # which need not be shared
    processes = [
        start(tmp_path, f"--join={address},2,{index}", f"{out},finish,4,2", devices=4)
        for index, out in enumerate(folders)
    ]
    for process in processes:
        code, stderr = ended(process)
        assert code == 0, stderr
    assert_same(found(folders[0]), one)
    assert_kernels_are_dealt_out(folders[0], 2)
    assert not folders[1].exists()
    assert "epoch" not in stderr
