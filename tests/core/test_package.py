import ast
import graphlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import straw_jax

HEAVY = ["optax", "orbax", "tensorflow_datasets", "matplotlib", "tensorflow", "torch", "PIL"]


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_is_light():
    """Even with everything used that the package offers."""
    out = run(
        "import sys; from straw_jax import *; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert out.strip() == "[]"


def test_hyperlora_is_a_function():
    out = run(
        "from straw_jax import hyperlora; import jax.numpy as jnp; "
        "print(hyperlora(jnp.ones((2, 3)), jnp.ones((2, 3, 1)), jnp.ones((2, 1, 4))).tolist())"
    )
    assert out.strip() == str([[3.0] * 4] * 2)


def test_every_public_name_exists_and_is_documented():
    for name in straw_jax.__all__:
        assert getattr(straw_jax, name).__doc__, name
    assert sorted(straw_jax.__all__) == straw_jax.__all__
    assert set(straw_jax.__all__) <= set(dir(straw_jax))


def test_version_is_the_distributions():
    assert importlib.metadata.version("straw_jax") == straw_jax.__version__


def test_modules_do_not_import_each_other_in_a_circle():
    """Imports inside functions count too."""
    imports = {}
    package = Path(straw_jax.__file__).parent
    for path in (*package.glob("[!_]*.py"), *package.glob("*/*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        imports[name.removesuffix(".__init__")] = {
            *(node.module for node in nodes if isinstance(node, ast.ImportFrom)),
            *(name.name for node in nodes if isinstance(node, ast.Import) for name in node.names),
        }
    assert "straw_jax.operations" in imports["straw_jax.interpreter"]
    assert "straw_jax.kinds.gain" in imports["straw_jax.kinds"]
    graphlib.TopologicalSorter(imports).prepare()


FILES = {
    "foreign.py": """
import warnings

class ForeignWarning(UserWarning):
    pass

def pytest_configure(config):
    warnings.warn(ForeignWarning("at the start"))
    config.issue_config_time_warning(ForeignWarning("by pytest"), stacklevel=2)
""",
    "tests/core/test_some.py": """
import warnings
import pytest

pytestmark = pytest.mark.accelerator

def test_that_passes():
    pass

def test_that_warns():
    warnings.warn("our own")
""",
    "tests/core/test_other.py": "def test_for_no_accelerator(): pass",
    "tests/core/test_import.py": "import warnings; warnings.warn('at import')",
    "tests/experiments/test_study.py": "import a_package_that_is_not_installed",
}


@pytest.mark.slow
def test_plugins_may_warn_and_our_code_may_not(tmp_path):
    """Of an accelerator's tests, for which those of experiments are not even imported."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    repository = Path(__file__).parents[2]
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(repository / name, tmp_path / name)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "foreign", "-m", "accelerator"),
            "--continue-on-collection-errors",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert "FAILED tests/core/test_some.py::test_that_warns - UserWarning: our own" in lines
    assert "ERROR tests/core/test_import.py - UserWarning: at import" in lines
    assert "1 failed, 1 passed, 1 deselected" in lines[-1]
    assert "1 error" in lines[-1]
