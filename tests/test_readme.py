"""Every command and every example of the README works."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line]
RUNS = [line for line in COMMANDS if line.startswith("python experiments/run.py")]
OTHERS = ("python experiments/weight_prediction.py", "python experiments/char_lm.py")
STUDIES = [line for line in COMMANDS if line.startswith(OTHERS)]
REPRODUCTIONS = [line for line in COMMANDS if line.startswith("python experiments/reproduce.py")]


def run(command, folder, **environment):
    words = [sys.executable, *shlex.split(command)[1:]]
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("example", blocks("python"))
def test_example_runs(example, tmp_path):
    result = run(f"python -W error -c {shlex.quote(example)}", tmp_path)
    assert result.returncode == 0, result.stderr


def test_every_command_is_of_a_kind_that_is_tested_here():
    other = set(COMMANDS) - set(RUNS) - set(STUDIES) - set(REPRODUCTIONS)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command in other - {"python -m pytest -n 2"}:  # that one is running
        if install := re.fullmatch(r'pip install -e "\.\[(\w+)\]"', command):
            assert install[1] in extras["optional-dependencies"]
        else:
            script = re.fullmatch(r"python (benchmarks/\w+\.py)", command)
            assert script, command
            assert (ROOT / script[1]).exists()


def test_main_command_trains_and_reports(tmp_path):
    """The first command, made short: a few glyphs, one epoch."""
    short = f"--dataset glyphs --limit 64 --epochs 1 --data-dir {tmp_path} --out {tmp_path / 'out'}"
    result = run(f"{RUNS[0]} {short}", ROOT)
    assert result.returncode == 0, result.stderr
    assert "glyphs" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["parameters"] == {"standalone": 1_204_655, "straw": 20_606_863}
    for name in ("report.md", "curves.png", "variants.png", "samples.png", "styles.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


@pytest.mark.parametrize("command", RUNS + STUDIES)
def test_flags_are_known(command, tmp_path):
    """Stopped by one bad flag at the end: everything before it was understood."""
    result = run(f"{command} --seed -1", ROOT)
    if command.endswith("--help"):
        assert result.returncode == 0
    else:
        assert result.returncode == 2
        assert "argument --seed" in result.stderr


@pytest.mark.parametrize("command", REPRODUCTIONS)
def test_reproductions_are_known(command, tmp_path):
    result = run(f"{command} --dry-run --out {tmp_path / 'out'}", ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("run.py --") == len(command.split("--only")[1].split())


def test_files_that_are_named_exist():
    for path in re.findall(
        r"`((?:straw_jax|benchmarks|examples|notebooks|experiments)/[\w./]*)`", README
    ):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
