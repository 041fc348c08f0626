"""Every example in a docstring prints what it shows, and every public name has one."""

import doctest
import importlib
import pkgutil

import pytest

import straw_jax

MODULES = [
    importlib.import_module(f"straw_jax.{module.name}")
    for module in pkgutil.iter_modules(straw_jax.__path__)
]
INTERNAL = {
    f"straw_jax.{module}"
    for module in (
        "changes",
        "expect",
        "interpreter",
        "layers",
        "operations",
        "operators",
        "parts",
        "products",
        "program",
        "starts",
    )
}
# Extras, by a function that needs them.
NEEDED = {"save_exported": "flatbuffers", "save_peft": "safetensors"}
EXAMPLES = [
    example
    for module in pkgutil.walk_packages(straw_jax.__path__, "straw_jax.")
    for example in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(module.name)
    )
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_prints_what_it_shows(example):
    for name, package in NEEDED.items():
        if any(f"{name}(" in line.source for line in example.examples):
            pytest.importorskip(package)
    report = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


def public_names(module):
    """Functions and classes that a module defines, or that a package exports from its modules."""
    values = {name: getattr(module, name) for name in getattr(module, "__all__", vars(module))}
    return [
        f"{value.__module__}.{name}"
        for name, value in values.items()
        if callable(value)
        and not name.startswith("_")
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]


def test_every_public_name_has_an_example():
    names = {name for module in MODULES for name in public_names(module)}
    exported = {f"{getattr(straw_jax, name).__module__}.{name}" for name in straw_jax.__all__}
    assert exported <= names
    documented = {name for name in names if name.rpartition(".")[0] not in INTERNAL}
    assert documented - {example.name for example in EXAMPLES} == set()
