"""All studies in one command: what it would run, what it refuses, how it stops and goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import scripts

from straw_experiments.configs import CARD, STUDIES
from straw_experiments.image_classification.config import parse
from straw_experiments.reproduce import PARSERS
from straw_experiments.runner import records

SCRIPT = scripts.EXPERIMENTS / "reproduce.py"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder: results of the user's own runs may lie in this one."""
    monkeypatch.chdir(tmp_path)


def reproduce(*words, first=(), script=SCRIPT):
    return subprocess.run(
        [sys.executable, script, *words],
        env=scripts.environment(*first),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    """A folder whose `jax` cannot be imported: what answers in spite of it answers at once."""
    folder = tmp_path_factory.mktemp("no_jax")
    (folder / "jax.py").write_text("raise SystemExit('jax was imported')\n")
    return folder


# --- what would be run ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, study in STUDIES.items() if study.command == "run"]
)
def test_every_study_is_a_command_of_run(name):
    settings = parse(STUDIES[name].flags.split())
    trained = any(part in name for part in ("trained", "preset", "kinds", "geometry", "vit"))
    assert trained == (settings.base == "trained")
    article = {"set1": "full_rank16", "set2": "10pct_rank16", "set3": "20pct_rank32"}
    if name[:4] in article:
        assert settings.experiment == article[name[:4]]
    if name.startswith("rank"):
        assert settings.rank == int(name.split("_")[0][4:])
        assert (settings.fraction, settings.epochs, settings.models) == (0.1, 5, ["straw"])


def test_study_of_its_own_data_keeps_them(no_jax):
    words = ["--only", "static_mnist", "characters", "--dataset", "glyphs", "--data-dir", "there"]
    ran = reproduce("--dry-run", *words, first=[no_jax])
    first, second = ran.stdout.splitlines()
    assert "--dataset mnist" in first
    assert "glyphs" not in first + second
    assert first.count("--data-dir there") == second.count("--data-dir there") == 1


def test_no_two_studies_are_the_same():
    outs = {PARSERS[study.command](study.flags.split()).out for study in STUDIES.values()}
    assert len(outs) == len(STUDIES)


def test_weights_are_predicted_by_their_own_script(tmp_path, no_jax):
    words = ["--only", "rank1", "outputs", "--dataset", "glyphs", "--out", "here"]
    ran = reproduce("--dry-run", *words, "--", "--limit", "9", first=[no_jax])
    first, second = ran.stdout.splitlines()
    assert first.endswith("--dataset glyphs --limit 9 --out here/rank1")
    assert second.endswith("weight_prediction.py --predict outputs --seeds 1 --out here/outputs")
    ran = reproduce("--only", "outputs", "--seeds", "0", first=[no_jax])
    assert ran.returncode == 2
    assert "outputs: argument --seeds: expected a whole number" in ran.stderr


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path, no_jax):
    ran = reproduce("--dry-run", "--only", "preset3", "rank1", "--out", "here", first=[no_jax])
    assert (ran.returncode, ran.stderr) == (0, "")
    commands = [shlex.split(line) for line in ran.stdout.splitlines()]
    settings = [parse(words[2:]) for words in commands]
    assert all(words[0] == "python" for words in commands)
    assert [os.path.samefile(words[1], SCRIPT.with_name("run.py")) for words in commands] == [1, 1]
    assert [each.out for each in settings] == ["here/preset3", "here/rank1"]
    assert [each.seeds for each in settings] == [3, 1]
    assert list(tmp_path.iterdir()) == []


def test_studies_for_a_card_say_how_long_they_take(tmp_path, no_jax):
    ran = reproduce("--dry-run", "--only", "set1", "card", "--out", "here", first=[no_jax])
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 * len(CARD)  # set1 is named twice, and runs once
    for name, estimate, command in zip(CARD, lines[::2], lines[1::2], strict=True):
        assert re.fullmatch(
            rf"# {name}, by estimate: \d+ min on one H100; .* 2 CPU cores", estimate
        )
        assert command.endswith(f" --out here/{name}")


def test_flags_go_to_every_study(tmp_path, no_jax):
    scripts.write_archive(tmp_path / "tiny.zip")
    words = "--dry-run --only preset3 rank1 --seeds 2 --dataset emnist --data-dir data"
    words += " --archive tiny.zip -- --jobs 1 --limit 9"
    ran = reproduce(*words.split(), first=[no_jax])
    for line in ran.stdout.splitlines():
        settings = parse(shlex.split(line)[2:])
        assert (settings.seeds, settings.dataset, settings.data_dir) == (2, "emnist", "data")
        assert (settings.archive, settings.jobs, settings.limit) == ("tiny.zip", 1, 9)


def test_finished_studies_are_left_out_and_begun_ones_go_on(tmp_path, no_jax):
    for name, file in (("preset3", "summary.json"), ("rank1", "config.json")):
        (tmp_path / "here" / name).mkdir(parents=True)
        settings = vars(parse([*STUDIES[name].flags.split(), "--out", "other"]))
        (tmp_path / "here" / name / file).write_text(json.dumps(settings))
    ran = reproduce(
        "--dry-run", "--only", "preset3", "rank1", "rank2", "--out", "here", first=[no_jax]
    )
    first, second = ran.stdout.splitlines()
    assert "here/rank1 --resume" in first
    assert second.endswith("here/rank2")


def test_analysis_belongs_to_its_study(tmp_path, no_jax):
    words = ["--dry-run", "--only", "set2", "--out", "here"]
    first, second = reproduce(*words, first=[no_jax]).stdout.splitlines()
    assert "run.py --experiment 10pct_rank16" in first
    assert second.endswith("analyse.py here/set2")
    (tmp_path / "here" / "set2").mkdir(parents=True)
    (tmp_path / "here" / "set2" / "summary.json").write_text('{"seeds": [0]}')
    assert reproduce(*words, first=[no_jax]).stdout.count("\n") == 2  # run.py has little to do
    (tmp_path / "here" / "set2" / "analysis.json").write_text('{"images": 9}')
    assert reproduce(*words, first=[no_jax]).stdout == ""


def test_damaged_results_are_made_again(tmp_path, no_jax):
    words = ["--dry-run", "--only", "set2", "--out", "here"]
    folder = tmp_path / "here" / "set2"
    settings = vars(parse([*STUDIES["set2"].flags.split(), "--seeds", "3", "--out", "other"]))
    records.write_json(folder / "summary.json", {"config": settings})
    records.write_json(folder / "analysis.json", {"images": 9})
    assert reproduce(*words, first=[no_jax]).stdout == ""
    path = folder / "analysis.json"
    path.write_text(path.read_text().replace("9", "8"))
    first, second = reproduce(*words, first=[no_jax]).stdout.splitlines()
    assert first.endswith("--out here/set2 --resume")
    assert second.endswith("analyse.py here/set2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--only set9", "argument --only: invalid choice: 'set9'"),
        ("--only", "argument --only: expected at least one argument"),
        ("--only set3 --seeds none", "set3: argument --seeds: expected a whole number"),
        ("--only set3 --archive none.zip", "set3: argument --archive: expected EMNIST's gzip.zip"),
        ("--only set3 --out file", "set3: argument --out: cannot write to file"),
        ("--only set2 set3 -- --rank 8", "set2: argument --rank: --experiment 10pct_rank16 sets"),
        ("--only set3 --rank 8", "unrecognized arguments: --rank 8"),
    ],
)
def test_bad_input_gets_one_line_before_any_work(tmp_path, no_jax, line, message):
    (tmp_path / "file").write_text("")
    ran = reproduce(*line.split(), first=[no_jax])
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"reproduce.py: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_tells_the_studies_in_their_order(no_jax):
    ran = reproduce("--help", first=[no_jax])
    assert ran.returncode == 0
    places = [ran.stdout.index(f"\n  {name} ") for name in STUDIES]
    assert places == sorted(places)
    assert list(STUDIES).index("set2") == 0
    long = ["set1", "set3_resnet34", "set1_resnet34", "preset1"]
    others = [
        *("static_mnist", "fields", "fields_kinds", "characters", "characters_large"),
        *("needles", "documents", "necessity", "necessity_long", "necessity_large"),
    ]
    assert list(STUDIES)[-14:] == long + others  # data that may be missing stop nothing else


# --- what is run ------------------------------------------------------------------------------

FAKE_RUN = """
import pathlib, sys
name = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
name.mkdir(parents=True, exist_ok=True)
if name.name == "rank2":
    sys.exit(int(sys.argv[sys.argv.index("--seed") + 1]))
(name / "summary.json").write_text('{"seeds": [0]}')
"""


@pytest.mark.parametrize(
    ("code", "said"), [(1, "reproduce.py: rank2 failed, exit code 1\n"), (2, "")]
)
def test_a_study_that_fails_ends_it_with_its_exit_code(tmp_path, code, said):
    (tmp_path / "reproduce.py").write_bytes(SCRIPT.read_bytes())
    (tmp_path / "run.py").write_text(FAKE_RUN)
    (tmp_path / "write_results.py").write_text("print('page written')")
    words = ["--only", "rank1", "rank2", "rank4", "--", "--seed", str(code)]
    first = [scripts.EXPERIMENTS]
    ran = reproduce(*words, first=first, script=tmp_path / "reproduce.py")
    assert (ran.returncode, ran.stderr) == (code, said)
    assert [line.split(":")[0] for line in ran.stdout.splitlines() if line] == [
        "3 studies, 0 of them finished; results in results/reproduction",
        "=== rank1",
        "page written",
        "=== rank2",
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of a terminal, as POSIX has it")
def test_studies_are_stopped_and_gone_on_with(tmp_path):
    scripts.write_archive(tmp_path / "tiny.zip", train=32)
    words = "--only rank1 rank2 --out here --archive tiny.zip --data-dir data --dataset emnist"
    words += " -- --models standalone --epochs 2 --batch-size 16"  # the quickest
    command = [sys.executable, str(SCRIPT), *words.split()]
    kept = {"env": scripts.environment(), "text": True, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, **kept)
    epochs = tmp_path / "here" / "rank2" / "runs" / "standalone-seed0" / "epochs"
    while not (epochs / "1" / "commit_success.txt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    again = shlex.join(["python", *command[1:]])
    assert stderr.splitlines()[-1] == f"reproduce.py: stopped; to go on: {again}"
    assert "Traceback" not in stderr
    assert "not run: set2" in stdout
    page, summary = (tmp_path / "here" / name for name in ("pages/runs.md", "rank1/summary.json"))
    assert "| `rank1` | cpu (" in page.read_text()
    assert "| `rank2` | not run |" in page.read_text()
    before = summary.read_bytes()

    ran = subprocess.run(command, check=False, timeout=300, stderr=subprocess.PIPE, **kept)
    assert ran.returncode == 0, ran.stderr
    assert "2 studies, 1 of them finished" in ran.stdout
    assert "=== rank1" not in ran.stdout
    assert "=== rank2" in ran.stdout
    assert "continuing after epoch" in ran.stderr
    assert summary.read_bytes() == before
    assert "| `rank2` | cpu (" in page.read_text()
