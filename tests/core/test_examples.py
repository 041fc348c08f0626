"""Every example runs, is short, and learns."""

import importlib.util
import re
from pathlib import Path

import pytest
from each import run_each

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def missing(path):
    """Name what an example imports beside jax and flax, and is not installed."""
    used = re.findall(r"^import (optax|equinox)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return [package for package in used if importlib.util.find_spec(package) is None]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each example did that can be run here."""
    files = [path for path in EXAMPLES if not missing(path)]
    return run_each(files, tmp_path_factory.mktemp("examples"), {"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_learns(path, ran):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    if missing(path):
        pytest.skip(f"{', '.join(missing(path))} is not installed")
    printed, failure = ran[path]
    assert not failure, failure
    losses = [float(number) for number in re.findall(r"loss (\S+)", printed)]
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]
