"""Pages are true: examples run, commands and flags exist, the reference is complete."""

import importlib
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from each import run_each
from pages_of_docs import DOCS, PAGES, PYTHONPATH, ROOT, blocks, commands, run

import straw_jax
from straw_experiments import cli
from straw_experiments.char_lm import config as char_lm_config
from straw_experiments.configs import CARD
from straw_experiments.documents import config as documents_config
from straw_experiments.faults import __main__ as faults
from straw_experiments.image_classification import config
from straw_experiments.necessity import config as necessity_config
from straw_experiments.smollm import weights
from straw_experiments.table_classification import config as tables_config
from straw_experiments.weight_prediction import config as weight_prediction_config
from straw_jax import kinds

PARSERS = {
    "run": config.parse,
    "analyse": config.parse_analysis,
    "char_lm": char_lm_config.parse,
    "weight_prediction": weight_prediction_config.parse,
    "documents": documents_config.parse,
    "tables": tables_config.parse,
    "necessity": necessity_config.parse,
}
WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
STUDIES = [c for c in COMMANDS if c.startswith(("python experiments/", "straw-jax "))]
REPRODUCTIONS = [c for c in STUDIES if "reproduce" in c]
CAMPAIGNS = [c for c in COMMANDS if c.startswith("python -m straw_experiments.faults ")]
BENCHMARKS = [c for c in COMMANDS if "python benchmarks/" in c]
SHELL = [
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "python -m pytest -n 2",
    "python -m pytest -m accelerator -n 4",
]
OTHERS = [c for c in COMMANDS if c not in [*STUDIES, *CAMPAIGNS, *BENCHMARKS, *SHELL]]
# What we no longer say, and what the field says for it: encoder, model, reported, flags.
HOUSE_WORDS = r"eyes?|contenders?|told|manners"


def identifier(page):
    return str(page.relative_to(ROOT))


def script_and_flags(command):
    _, name, *flags = shlex.split(command)
    return Path(name).stem.replace("-", "_"), flags


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the examples of each page did."""
    return run_each(WITH_PYTHON, tmp_path_factory.mktemp("pages"), PYTHONPATH)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=identifier)
def test_examples_run_one_after_the_other(page, ran):
    assert not ran[page].failure, ran[page].failure


@pytest.mark.parametrize("command", [c for c in STUDIES if c not in REPRODUCTIONS])
def test_flags_are_known(command, tmp_path, monkeypatch, capsys):
    script, flags = script_and_flags(command)
    monkeypatch.chdir(tmp_path)
    if script == "analyse":  # understands its flags, and then misses the results
        with pytest.raises(SystemExit, match="2"):
            PARSERS[script](flags)
        assert "config.json" in capsys.readouterr().err
    elif "--help" in flags:
        with pytest.raises(SystemExit, match="0"):
            PARSERS[script](flags)
    else:
        PARSERS[script](flags)


@pytest.mark.parametrize("command", REPRODUCTIONS)
def test_reproductions_are_known(command, tmp_path):
    _, flags = script_and_flags(command)
    script = str(ROOT / "experiments" / "reproduce.py")
    result = run([script, *flags, "--dry-run", "--out", "out"], tmp_path)
    assert result.returncode == 0, result.stderr
    studies = result.stdout.count(" --out ")
    named = [word for word in flags if not word.startswith("--")]
    expected = sum(len(CARD) if word == "card" else 1 for word in named)
    assert studies == expected if named else studies > 20


@pytest.mark.slow
@pytest.mark.parametrize("command", BENCHMARKS)
def test_flags_of_benchmarks_are_known(command):
    words = shlex.split(command.partition("python ")[2])
    result = run([*words, "--no-such-flag"], ROOT)
    assert result.returncode == 2
    assert "unrecognized arguments: --no-such-flag\n" in result.stderr.replace(" (--help", "\n")


@pytest.mark.parametrize("command", CAMPAIGNS)
def test_flags_of_campaigns_are_known(command):
    words = shlex.split(command.partition("#")[0])
    assert faults.parser().parse_args(words[3:])


def test_console_command_has_the_subcommands():
    for command in STUDIES:
        if command.startswith("straw-jax "):
            assert command.split()[1] in cli.SUBCOMMANDS


def test_other_commands_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in OTHERS:
        if command == weights.INSTALL:
            continue
        install = re.fullmatch(r'pip install -e ("\.\[(\w+)\]"|\.)', command)
        assert install, command
        assert install[2] in {None, *project["optional-dependencies"]}, command


def test_named_files_exist():
    for page in PAGES:
        for path in re.findall(
            r"`((?:straw_jax|benchmarks|examples|notebooks|experiments)/[\w./]*)`",
            page.read_text(encoding="utf-8"),
        ):
            assert (ROOT / path).exists(), (page, path)


def test_reference_has_every_public_name_and_module():
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    names = re.findall(r"auto(?:function|class):: (\w+)\n", text)
    of_kinds = re.findall(r"autoclass:: straw_jax\.kinds\.(\w+)", text)
    modules = re.findall(r"automodule:: straw_jax\.([\w.]+)", text)
    assert sorted(names) == sorted(straw_jax.__all__)
    assert sorted([*of_kinds, "UPDATES"]) == sorted({*kinds.__all__} - {*names})
    found = pkgutil.walk_packages(straw_jax.__path__, "straw_jax.")
    assert sorted(modules) == sorted(module.name.removeprefix("straw_jax.") for module in found)


def test_no_house_words_in_pages():
    for page in [*PAGES, *DOCS.glob("api/*.md"), *DOCS.glob("results/*.md")]:
        prose = re.sub(r"```bash\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(rf"(?i)\b(?:{HOUSE_WORDS})\b", prose)
        assert not found, (page, found)


def test_no_house_words_in_public_names():
    names = {*straw_jax.__all__}
    for module in pkgutil.walk_packages(straw_jax.__path__, "straw_jax."):
        names |= vars(importlib.import_module(module.name)).keys()
    found = [n for n in names if not n.startswith("_") and re.search("(?i)eye|contender|told", n)]
    assert not found
