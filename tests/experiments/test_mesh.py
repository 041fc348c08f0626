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


def start(out, *words, devices):
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    env = environment(XLA_FLAGS=flags)
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


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(one, tmp_path):
    code, stderr = ended(start(tmp_path, "finish", 4, 2, devices=8))
    assert code == 0, stderr
    assert_same(found(tmp_path), one)
    assert_kernels_are_dealt_out(tmp_path, 2)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(one, tmp_path):
    assert ended(start(tmp_path, "interrupt", 4, 1, devices=4))[0] == 7
    code, stderr = ended(start(tmp_path, "finish", 2, 4, devices=8))
    assert code == 0, stderr
    assert "continuing after epoch 1" in stderr
    assert_same(found(tmp_path), one)
    assert_kernels_are_dealt_out(tmp_path, 4)


@pytest.mark.slow
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
