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
INTERNAL = {f"straw_jax.{name}" for name in ("changes", "program", "expect", "layers", "rules")}
EXAMPLES = [
    example
    for module in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_prints_what_it_shows(example):
    if any("save_exported(" in line.source for line in example.examples):
        pytest.importorskip("flatbuffers")
    report = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


def public_names(module):
    """Functions and classes that a module defines."""
    return [
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and value.__module__ == module.__name__
    ]


def test_every_public_name_has_an_example():
    names = {name for module in MODULES for name in public_names(module)}
    exported = {f"{getattr(straw_jax, name).__module__}.{name}" for name in straw_jax.__all__}
    assert exported <= names
    documented = {name for name in names if name.rpartition(".")[0] not in INTERNAL}
    assert documented - {example.name for example in EXAMPLES} == set()
