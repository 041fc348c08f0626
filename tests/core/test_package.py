import ast
import graphlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

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
    for path in Path(straw_jax.__file__).parent.glob("[!_]*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imports[f"straw_jax.{path.stem}"] = {
            *(node.module for node in nodes if isinstance(node, ast.ImportFrom)),
            *(name.name for node in nodes if isinstance(node, ast.Import) for name in node.names),
        }
    assert "straw_jax.lowrank" in imports["straw_jax.fused"]
    graphlib.TopologicalSorter(imports).prepare()
