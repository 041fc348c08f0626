"""The README is short, and its main command works; its other blocks are in `test_docs.py`."""

import json
import re
import shlex

import pytest
from pages_of_docs import README, ROOT, commands, run

MAIN = "python experiments/run.py --rank 16 --fraction 0.1"


def test_fits_on_a_screen_or_two():
    assert len(README.read_bytes()) <= 8192


def test_fresh_machines_need_one_line_each():
    environment = ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert commands(README)[-8:] == [
        *environment, 'pip install -e ".[experiments]"', MAIN,
        *environment, 'pip install -e ".[test]"', "python -m pytest -n 2",
    ]  # fmt: skip


@pytest.mark.slow
def test_main_command_trains_and_reports(tmp_path):
    """The main command, made short: a few glyphs, one epoch."""
    short = "--dataset glyphs --limit 16 --batch-size 16 --epochs 1"
    short += f" --data-dir {tmp_path} --out {tmp_path / 'out'}"
    result = run(shlex.split(f"{MAIN} {short}")[1:], ROOT)
    assert result.returncode == 0, result.stderr
    assert "glyphs" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["parameters"] == {"standalone": 1_204_655, "straw": 20_606_863}
    for name in ("report.md", "curves.png", "variants.png", "samples.png", "styles.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
