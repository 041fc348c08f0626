"""The console command: its subcommands are the scripts, from any folder, and extras are named."""

import os
import subprocess
import sys

import pytest
import scripts

from straw_experiments import cli


def straw_jax(*words, cwd, code="import sys; from straw_experiments.cli import main; "):
    path = os.pathsep.join([str(scripts.ROOT), str(scripts.EXPERIMENTS)])
    program = f"{code}sys.argv = ['straw-jax', *{list(words)!r}]; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_script_is_a_subcommand():
    files = {path.stem.replace("_", "-") for path in scripts.EXPERIMENTS.glob("*.py")}
    assert files == set(cli.SUBCOMMANDS)


def test_without_a_subcommand_they_are_listed(tmp_path):
    ran = straw_jax(cwd=tmp_path)
    assert ran.returncode == 2
    assert all(name in ran.stdout for name in cli.SUBCOMMANDS)
    assert straw_jax("--help", cwd=tmp_path).returncode == 0


def test_unknown_subcommand_is_one_line(tmp_path):
    ran = straw_jax("walk", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("straw-jax: expected a subcommand of run, ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        *("run", "char-lm", "weight-prediction", "fields", "tables", "documents"),
        *("necessity", "analyse", "reproduce"),
    ],
)
def test_subcommands_answer_a_mistake_by_their_own_name(tmp_path, name):
    ran = straw_jax(name, "--nonsense", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"straw-jax {name}: ")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_reproduce_starts_its_studies_as_it_was_started(tmp_path):
    ran = straw_jax("reproduce", "--dry-run", "--only", "rank1", "outputs", cwd=tmp_path)
    first, second = ran.stdout.splitlines()
    assert first.startswith("python -m straw_experiments run --fraction 0.1 ")
    assert second.startswith("python -m straw_experiments weight-prediction --predict outputs ")


_NO_OPTAX = (
    "import sys, importlib.util as u; found = u.find_spec;"
    " u.find_spec = lambda name, *more: None if name == 'optax' else found(name, *more);"
)


def test_without_the_extra_one_line_says_so(tmp_path):
    code = f"{_NO_OPTAX} from straw_experiments.cli import main; "
    ran = straw_jax("run", "--rank", "16", cwd=tmp_path, code=code)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        'straw-jax: the experiments need the extra "experiments", of which optax cannot be'
        ' imported: pip install "straw_jax[experiments]"\n'
    )


@pytest.mark.parametrize(
    "module",
    [
        "runner.tables",
        "data",
        "image_classification",
        "char_lm",
        "weight_prediction.train",
        "pages",
    ],
)
def test_importing_without_the_extra_says_so(tmp_path, module):
    code = f"{_NO_OPTAX} import straw_experiments.{module}; main = int; "
    ran = straw_jax(cwd=tmp_path, code=code)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(
        'ImportError: the experiments need the extra "experiments", of which optax cannot'
    )
