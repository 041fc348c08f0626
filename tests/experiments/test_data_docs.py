"""The examples of the data sets' docstrings and guide work."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own_data.md"


@pytest.mark.parametrize("module", ["", ".dataset", ".variants"])
def test_the_examples_of_docstrings_work(module):
    failed, attempted = doctest.testmod(importlib.import_module(f"straw_experiments.data{module}"))
    assert not failed
    assert attempted


@pytest.mark.parametrize("public", ["Dataset", "load", "check", "normalise", "strided", "variants"])
def test_public_names_have_an_example(public):
    assert ">>> " in getattr(importlib.import_module("straw_experiments.data"), public).__doc__


def test_the_guide_works(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from straw_experiments import data
    from straw_experiments.image_classification import config

    monkeypatch.chdir(tmp_path)
    for kind in ("daisy", "rose"):
        for index in range(6):
            file = Path("photos", kind, f"{index}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50 + index, 40), (40 * index, 0, 0)).save(file)
    text = GUIDE.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {"__name__": "guide"})
    assert capsys.readouterr().out.split() == [
        *("standard", "(20,", "2)", "rotated", "(20,", "2)", "blurred", "(20,", "2)")
    ]
    commands = re.findall(r"^python experiments/run\.py (.*)$", text, re.MULTILINE)
    names = [config.parse(command.split()).dataset for command in commands]
    assert [data.load(name).name.partition(",")[0] for name in names[:2]] == [
        *("flowers (folder", "noise (npz file")
    ]
    assert len(names) == 3
