"""Pages are true: examples run, commands and flags exist, the reference is complete."""

import importlib
import pkgutil
import re
import shlex
import tomllib

import pytest
from documents import DOCS, PAGES, ROOT, blocks, commands, run

import straw_jax

ENVIRONMENT = {"python3 -m venv .venv", ". .venv/bin/activate"}
THESE_TESTS = {"python -m pytest -n 2"}
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
STUDIES = [c for c in COMMANDS if c.startswith(("python experiments/", "straw-jax "))]
REPRODUCTIONS = [c for c in STUDIES if "reproduce" in c]
OTHERS = [c for c in COMMANDS if c not in {*STUDIES, *ENVIRONMENT, *THESE_TESTS}]
# What we no longer say, and what the field says for it: encoder, model, reported, flags.
HOUSE_WORDS = r"eyes?|contenders?|told|manners"


def identifier(page):
    return str(page.relative_to(ROOT))


def words_of(command):
    """Return what Python is to be given for a command of the experiments."""
    first, *words = shlex.split(command)
    if first == "straw-jax":
        return [
            "-c",
            "import sys; from straw_experiments.cli import main; sys.exit(main())",
            *words,
        ]
    return words


@pytest.mark.parametrize("page", WITH_PYTHON, ids=identifier)
def test_examples_run_one_after_the_other(page, tmp_path):
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    result = run(["-W", "error", str(program)], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", [c for c in STUDIES if c not in REPRODUCTIONS])
def test_flags_are_known(command):
    if command.endswith("--help"):
        assert run(words_of(command), ROOT).returncode == 0
        return
    # One bad value at the end, which is named once everything before it was understood.
    flag = "--images" if "analyse" in command else "--seed"
    result = run([*words_of(command), flag, "-1"], ROOT)
    assert result.returncode == 2
    assert flag in result.stderr


@pytest.mark.parametrize("command", REPRODUCTIONS)
def test_reproductions_are_known(command, tmp_path):
    dry = ["--dry-run", "--out", str(tmp_path / "out")]
    result = run([*words_of(command), *dry], ROOT)
    assert result.returncode == 0, result.stderr
    studies = re.findall(r"\.py .*--out", result.stdout)
    wanted = command.partition("--only ")[2].split()
    assert len(studies) == len(wanted) if wanted else len(studies) > 20


def test_other_commands_install_or_measure():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in OTHERS:
        if install := re.fullmatch(r'pip install -e ("\.\[(\w+)\]"|\.)', command):
            assert install[2] in {None, *project["optional-dependencies"]}, command
        else:
            script = re.match(r"(?:GLIBC_TUNABLES=\S+ )?python (benchmarks/\w+\.py)", command)
            assert script, command
            assert (ROOT / script[1]).exists(), command


def test_named_files_exist():
    for page in PAGES:
        for path in re.findall(
            r"`((?:straw_jax|benchmarks|examples|notebooks|experiments)/[\w./]*)`",
            page.read_text(encoding="utf-8"),
        ):
            assert (ROOT / path).exists(), (page, path)


def test_reference_has_every_public_name_and_module():
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    names = re.findall(r"auto(?:function|class):: (\w+)", text)
    modules = re.findall(r"automodule:: straw_jax\.(\w+)", text)
    assert sorted(names) == sorted(straw_jax.__all__)
    assert sorted(modules) == sorted(
        module.name for module in pkgutil.iter_modules(straw_jax.__path__)
    )


def test_no_house_words_in_pages():
    for page in [*PAGES, *DOCS.glob("api/*.md"), *DOCS.glob("results/*.md")]:
        prose = re.sub(r"```bash\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(rf"(?i)\b(?:{HOUSE_WORDS})\b", prose)
        assert not found, (page, found)


def test_no_house_words_in_public_names():
    names = {*straw_jax.__all__}
    for module in pkgutil.iter_modules(straw_jax.__path__):
        names |= vars(importlib.import_module(f"straw_jax.{module.name}")).keys()
    found = [n for n in names if not n.startswith("_") and re.search("(?i)eye|contender|told", n)]
    assert not found
