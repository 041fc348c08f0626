"""Every example runs, is short, and learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_learns(path):
    for package in ("optax", "equinox"):
        if f"import {package}" in path.read_text(encoding="utf-8"):
            pytest.importorskip(package)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    result = subprocess.run(
        [sys.executable, "-W", "error", path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    losses = [float(number) for number in re.findall(r"loss (\S+)", result.stdout)]
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]
