"""What is measured on a GPU or TPU runs here at tiny sizes, and keeps what it has."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import straw_experiments
from straw_experiments import require_extra

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
# Scripts' modules, not a package's.
import accelerator
import results

sys.path.pop(0)
straw_experiments.require_extra = require_extra  # the benchmark does without, other tests do not
SCRIPT = Path(accelerator.__file__)

# Runs a script where nothing can be imported that jax, flax, optax and orbax do not need.
REFUSING = """
import runpy, sys
from importlib.abc import MetaPathFinder

REFUSED = (
    "tensorflow_datasets", "importlib_resources", "matplotlib", "PIL", "tqdm", "jinja2",
    "hypothesis", "chex", "equinox", "pytest", "tensorboardX", "torch",
)

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class NotHereError(Exception):
    """Stands for what cannot be measured on a machine."""


def start(*words, script=()):
    return subprocess.run(
        [sys.executable, *script, SCRIPT, *words],
        # This generator of random bits is compiled in a fraction of the time.
        env={**os.environ, "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"},
        capture_output=True,
        text=True,
        check=False,
    )


def figures_of(path, name):
    """Return a section's numbers, flat."""
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][name]
    rows = cell["figures"].values()
    numbers = [figure for row in rows for figure in row.values()]
    nested = [[*each.values()] if isinstance(each, dict) else [each] for each in numbers]
    return [number for each in nested for number in each]


@pytest.mark.slow
def test_every_section_runs_with_jax_flax_optax_and_orbax_alone(tmp_path):
    path = tmp_path / "card.json"
    done = start("--tiny", "--out", path, script=("-c", REFUSING))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content["cells"]) == list(accelerator.SECTIONS)
    assert {"device", "platform", "versions"} <= set(content["starts"][0])
    for name, cell in content["cells"].items():
        if name.startswith("torch"):
            assert cell["skipped"] == "PyTorch is not installed"
        else:
            numbers = figures_of(path, name)
            assert numbers
            assert all(math.isfinite(number) and number > 0 for number in numbers), name
        assert f"\n{name} (" in done.stdout
    assert max(figures_of(path, "correctness")) < 1e-2  # of a card, with TF32; of a CPU 1e-6


@pytest.mark.slow
def test_pytorch_is_measured_where_it_is_installed(tmp_path):
    pytest.importorskip("torch")
    path, names = tmp_path / "card.json", ("torch", "torch_language")
    done = start("--tiny", "--out", path, "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert all(number > 0 for number in figures_of(path, name))


def run(tmp_path, measures, end=math.inf):
    kept = results.Results(tmp_path / "card.json", {})
    code = accelerator.run(measures, kept, end, NotHereError)
    return code, json.loads(kept.path.read_text(encoding="utf-8"))["cells"]


def fails():
    raise ValueError("two lines:\nthe second")


def absent():
    raise NotHereError("no such card")


def measured():
    return {"a row": {"time": {"median": 2e-3, "min": 1e-3, "max": 3e-3}, "images/s": 12345.6}}


def test_a_section_that_fails_is_reported_and_the_next_goes_on(tmp_path, capsys):
    code, cells = run(tmp_path, {"first": fails, "second": absent, "third": measured})
    assert code == 1
    assert cells["first"]["error"] == "the second"
    assert cells["second"]["skipped"] == "no such card"
    assert cells["third"]["figures"] == measured()
    printed = capsys.readouterr().out
    assert "error: the second" in printed
    assert "failed: first\n" in printed
    assert "time, ms  images/s\na row  2 (1 to 3)    12,346" in printed
    assert run(tmp_path, {"second": absent, "third": measured})[0] == 0


def test_what_is_finished_is_kept_when_a_run_is_stopped(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {"first": measured, "second": stopped})
    content = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert content["cells"]["first"]["figures"] == measured()


def test_no_section_begins_after_the_time_is_spent(tmp_path, capsys):
    run(tmp_path, {"first": measured})
    code, cells = run(tmp_path, {"first": fails, "second": fails}, end=-math.inf)
    assert code == 0
    assert cells["first"]["figures"] == measured()  # of the earlier run
    assert cells["second"] == {"skipped": "the time was spent"}
    assert "skipped, since the time was spent: --only first second\n" in capsys.readouterr().out


def test_help_lists_every_section(capsys):
    with pytest.raises(SystemExit):
        accelerator.parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, section in accelerator.SECTIONS.items():
        assert f"  {name:<20}  {section.help}" in lines


@pytest.mark.parametrize(
    "words", [["--only", "nothing"], ["--seconds", "0"], ["--out", "/dev/null/x"]]
)
def test_mistakes_take_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        accelerator.parse(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_programs_file_is_left_alone(tmp_path, capsys):
    path = tmp_path / "card.json"
    path.write_text("[]", encoding="utf-8")
    assert accelerator.main(["--out", str(path)], 0.0) == 2
    assert "is no results file" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "[]"
