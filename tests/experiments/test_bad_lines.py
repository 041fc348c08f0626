"""Every wrong command line gets one line and exit code 2, and leaves nothing behind."""

import importlib
import sys

import pytest
import scripts

from straw_experiments import cli
from straw_experiments.faults.lines import LINES, write_files
from straw_experiments.runner import limits


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """A folder with the files that lines name, and a process that a command may change."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(limits, "memory", lambda: 16 * 10**9)
    monkeypatch.setattr("warnings.showwarning", None)  # put back as it was
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("STRAW_JAX_RESTARTED", "1")  # not to be started anew
    monkeypatch.syspath_prepend(scripts.ROOT / "benchmarks")


def answered(script, words, monkeypatch):
    """Call a script in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{script.replace('-', '_').removesuffix('.py')}.py", *words])
    try:
        if script in cli.SUBCOMMANDS:
            return cli.main([script, *words])
        return importlib.import_module(script.removesuffix(".py")).main()
    except SystemExit as stop:
        return stop.code


def test_there_are_enough_and_each_is_there_once():
    every = [(line.script, line.words) for line in LINES]
    assert len(set(every)) == len(every) >= 125
    scripts_of_studies = set(cli.SUBCOMMANDS)
    assert scripts_of_studies <= {script for script, _ in every}


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join((line.script, *line.words))[:60])
def test_a_wrong_line_is_answered_in_one(line, tmp_path, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = answered(line.script, line.words, monkeypatch)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    (answer,) = printed.err.splitlines()
    name = line.script.replace("-", "_").removesuffix(".py")
    assert answer.startswith(f"{name}.py: ")
    assert line.says in answer
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
