"""The command line, from bad input to a killed and resumed experiment, in processes of its own."""

import contextlib
import dataclasses
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scripts

from straw_experiments.image_classification.config import EXPERIMENTS, PRESETS, Config, parse
from straw_experiments.image_classification.published import PUBLISHED
from straw_experiments.image_classification.train import Recipe
from straw_experiments.runner.command import use_large_pages

SCRIPT = scripts.EXPERIMENTS / "run.py"
MODELS = "standalone", "straw"


# --- arguments --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder: results of the user's own runs may lie in this one."""
    monkeypatch.chdir(tmp_path)


def _parse(line=""):
    return parse(shlex.split(line))


def test_arguments_are_the_settings():
    assert set(Recipe._fields) <= set(vars(_parse()))


def test_experiments_are_those_of_the_report():
    assert list(EXPERIMENTS) == list(PUBLISHED)


def test_epochs_follow_the_fraction():
    assert (_parse().fraction, _parse().rank, _parse().epochs) == (0.1, 16, 5)
    assert _parse("--fraction 1").epochs == 10
    assert _parse("--fraction 1 --epochs 3").epochs == 3


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_experiment_and_its_settings_are_the_same(name):
    settings = EXPERIMENTS[name]
    spelt = " ".join(f"--{flag} {value}" for flag, value in settings.items())
    assert vars(_parse(f"--experiment {name}")) == vars(_parse(spelt))
    assert _parse(spelt).experiment == name
    assert _parse(f"{spelt} --epochs 7").experiment is None
    assert _parse(f"--experiment {name} --limit 100").experiment is None
    assert _parse(f"--experiment {name} --validation 0.1").experiment is None


PRESET_MODELS = {
    "compact": "compact_static compact_wide compact",
    "geometric": "compact_static compact_augmented compact_fan compact_context geometric_stn"
    " geometric_refined geometric geometric_affine",
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_preset_is_its_settings(name):
    settings = vars(_parse(f"--preset {name}"))
    assert PRESETS[name].items() <= settings.items()
    assert settings["models"] == PRESET_MODELS[name].split()
    assert _parse(f"--preset {name} --models compact").models == ["compact"]
    assert _parse(f"--preset {name} --fraction 1").epochs == 10


def test_models_take_commas_and_blanks_in_one_order():
    for words in ("straw,standalone", "straw standalone", "standalone, straw straw"):
        assert _parse(f"--models {words}").models == ["standalone", "straw"]


def test_other_settings_get_another_folder():
    flags = ["", "--fraction 0.2", "--rank 8", "--base trained", "--epochs 6", "--models straw"]
    flags += ["--dataset glyphs", "--batch-size 64", "--learning-rate 1e-3", "--seed 1"]
    flags += ["--seeds 3", "--limit 100", "--schedule cosine", "--validation 0.5"]
    flags += ["--executor vit", "--encoder trm", "--executor vit --encoder trm"]
    flags += ["--precision bfloat16"]
    assert len({_parse(line).out for line in flags}) == len(flags)
    assert all(Path(_parse(line).out).parent == Path("results") for line in flags)


def test_results_of_your_own_data_are_named_after_the_last_part_of_the_path():
    for path in ("./flowers", "~/some/flowers.npz", "/some/flowers/"):
        assert Path(_parse(f"--dataset {path}").out).name.startswith("flowers_0.1_rank16_")
    assert Path(_parse("--dataset emnist/digits").out).name.startswith("emnist-digits_0.1_")


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    """A folder whose `jax` cannot be imported: what answers in spite of it answers at once."""
    folder = tmp_path_factory.mktemp("no_jax")
    (folder / "jax.py").write_text("raise SystemExit('jax was imported')\n")
    return folder


def _folder_with_traps(folder):
    (folder / "file").write_text("")
    scripts.write_archive(folder / "whole.zip")
    (folder / "cut.zip").write_bytes((folder / "whole.zip").read_bytes()[:-100])
    (folder / "old").mkdir()
    settings = {**vars(_parse("--rank 4 --out old")), "models": ["standalone", "straw"]}
    (folder / "old" / "config.json").write_text(json.dumps(settings))
    (folder / "torn").mkdir()
    (folder / "torn" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--rank 0", "--rank: expected a whole number of at least 1, got '0'"),
        ("--rank 1.5", "--rank: expected a whole number"),
        ("--fraction 1.5", "--fraction: expected a number above 0, at most 1, got '1.5'"),
        ("--fraction 0", "--fraction: expected"),
        ("--fraction nan", "--fraction: expected"),
        ("--epochs 0", "--epochs: expected"),
        ("--batch-size -3", "--batch-size: expected"),
        ("--learning-rate -0.1", "--learning-rate: expected a number above 0, got '-0.1'"),
        ("--learning-rate inf", "--learning-rate: expected"),
        ("--learning-rate fast", "--learning-rate: expected"),
        ("--seed -1", "--seed: expected"),
        ("--seeds 0", "--seeds: expected"),
        ("--limit 1", "--limit: expected"),
        ("--jobs 0", "--jobs: expected"),
        ("--executor vit --base none", "--base: --executor vit generates its attention and MLPs"),
        ("--executor vit --models wide_dense", "--models: with --executor vit expected any of sta"),
        ("--preset compact --executor vit", "--executor: --preset compact sets it to cnn, got vit"),
        ("--encoder trm --models geometric", "--encoder: only straw and compact have one"),
        ("--encoder rnn", "--encoder: invalid choice: 'rnn'"),
        ("--preset compact --encoder trm", "--encoder: --preset compact sets it to conv, got trm"),
        ("--mesh 8", "--mesh: expected devices by axis, such as data=4,model=2, got '8'"),
        ("--mesh data=0", "--mesh: expected devices by axis"),
        ("--mesh data=3", "--mesh: expected data to divide the batch of 128, got 3"),
        ("--mesh data=2 --jobs 2", "--jobs: with --mesh runs train one by one"),
        ("--distributed", "--distributed: needs --mesh"),
        ("--distributed host:1,2,2 --mesh data=2", "--distributed: expected HOST:PORT,COUNT,INDEX"),
        ("--validation 1", "--validation: expected a number between 0 and 1, got '1'"),
        ("--schedule linear", "--schedule: invalid choice: 'linear'"),
        ("--precision float16", "--precision: invalid choice: 'float16'"),
        ("--models vgg", "--models: expected any of standalone, wide_dense, "),
        ("--models ,", "--models: expected any of"),
        ("--base W0", "--base: invalid choice: 'W0'"),
        ("--experiment 30pct", "--experiment: invalid choice: '30pct'"),
        ("--experiment 10pct_rank16 --rank 8", "--rank: --experiment 10pct_rank16 sets it to 16"),
        ("--preset large", "--preset: invalid choice: 'large'"),
        ("--preset compact --batch-size 64", "--batch-size: --preset compact sets it to 32, got"),
        ("--preset compact --experiment 10pct_rank16", "--rank: --preset compact sets it to 4"),
        ("--experimental", "unrecognized arguments: --experimental"),
        ("--archive none.zip", "--archive: expected EMNIST's gzip.zip, found no file none.zip"),
        ("--archive cut.zip", "--archive: cut.zip is no whole zip file"),
        ("--archive file", "--archive: file is no whole zip file"),
        ("--out file/here", "--out: cannot write to file/here"),
        ("--out file", "--out: cannot write to file"),
        ("--out old --rank 4", "--out: old holds an earlier run; continue it with --resume"),
        ("--out old --rank 5 --resume", "--rank: --resume needs the earlier run's 4, got 5"),
        (
            "--out old --rank 4 --schedule cosine --resume",
            "--schedule: --resume needs the earlier run's",
        ),
        ("--out torn --resume", "--resume: cannot read torn"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(tmp_path, no_jax, line, message):
    _folder_with_traps(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = subprocess.run(
        [sys.executable, SCRIPT, *shlex.split(line)],
        cwd=tmp_path,
        env=scripts.environment(no_jax),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert after == before


def test_help_names_every_flag(no_jax):
    found = subprocess.run(
        [sys.executable, SCRIPT, "--help"],
        env=scripts.environment(no_jax),
        capture_output=True,
        text=True,
        check=True,
    )
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in found.stdout


# --- whole experiments ------------------------------------------------------------------------


CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
BOTH = "2" if CORES else "1"  # runs at a time, where cores can be dealt out


@contextlib.contextmanager
def _on_cores(cores):
    """Start processes on these cores, or wherever if there are none."""
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, CORES)


class _Place:
    """A folder with a tiny archive, in which experiments run as a user runs them."""

    def __init__(self, folder: Path):
        self.folder = folder
        scripts.write_archive(folder / "tiny.zip", train=32)

    def command(self, out, *more):
        settings = "--archive tiny.zip --data-dir data --fraction 1 --rank 1 --epochs 4 --jobs 1"
        words = [*shlex.split(settings), "--batch-size", "16", "--out", out, *more]
        return [sys.executable, str(SCRIPT), *words]

    def start(self, *words, cores=()):
        """Start with a core for each run at a time: the number of threads decides rounding."""
        command = self.command(*words)
        jobs = int(command[len(command) - command[::-1].index("--jobs")])
        with _on_cores(cores or CORES[:jobs]):
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=scripts.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def run(self, *words):
        process = self.start(*words)
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    def stop(self, sign, ready, *words):
        """Start, and send a signal as soon as the path `ready` exists."""
        process = self.start(*words)
        while not (self.folder / ready).exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(sign)
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return _Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def finished(place):
    """A whole experiment of both models, and what it printed."""
    code, stdout, stderr = place.run("whole")
    assert code == 0, stderr
    return place.folder / "whole", stdout, stderr


@pytest.mark.slow
def test_all_files_are_written(finished):
    out, stdout, stderr = finished
    summary = json.loads((out / "summary.json").read_text())
    name = summary["dataset"]
    assert name.startswith("EMNIST (unofficial archive, sha256 ")
    assert summary["config"]["rank"] == 1
    assert summary["experiment"] is None
    assert summary["seeds"] == [0]
    assert tuple(summary["parameters"]) == MODELS
    assert summary["parameters"]["standalone"] == 1_204_655
    assert summary["multiply_adds"]["standalone"] == 11_997_184
    assert list(summary["controls"]) == ["straw"]
    assert list(summary["controls"]["straw"]) == [
        "own", "same class", "shuffled", "mean", "zero",
    ]  # fmt: skip
    own = summary["controls"]["straw"]["own"]
    for variant, measures in summary["results"]["straw"].items():  # all test images are few
        assert own[variant]["accuracy"] == measures["accuracy"]
    for model in MODELS:
        assert list(summary["results"][model]) == ["standard", "rotated", "blurred"]
        for measures in summary["results"][model].values():
            assert 0 <= measures["accuracy"]["mean"] <= 1
            assert measures["accuracy"]["std"] is None
            assert measures["loss"]["seeds"] == [measures["loss"]["mean"]]
    config = json.loads((out / "config.json").read_text())
    assert config["data"] == {"name": name, "train": 32, "test": 20, "classes": 47}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["model"], line["epoch"], line["step"]) for line in lines] == [
        (model, epoch, 2 * epoch) for model in MODELS for epoch in (1, 2, 3, 4)
    ]
    assert name in (out / "report.md").read_text()
    for figure in ("curves", "variants", "samples", "styles"):
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert name in stdout
    assert "fc1/kernel" in stdout
    assert "ResNet-34 (--models resnet34" in stdout
    assert stderr.count("--- WARNING ---") == 1
    assert stderr.count("images/s") == 8  # A line an epoch, as stderr is no terminal.


@pytest.mark.slow
def test_finished_experiment_is_shown_again_and_not_touched(place, finished):
    out, stdout, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, again, stderr = place.run("whole", "--resume")
    assert (code, stderr) == (0, "")
    table = again.split("\n\nAlready finished")[0]
    assert table in stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.slow
def test_interrupted_and_killed_experiment_ends_with_the_same_bits(place, finished):
    """As does one whose runs train in processes of their own."""
    standalone, straw = (place.folder / "cut/runs" / f"{name}-seed0" for name in MODELS)
    saved = "epochs/{}/commit_success.txt"
    code, _, stderr = place.stop(signal.SIGINT, standalone / saved.format(1), "cut")
    assert code == 130
    assert stderr.splitlines()[-1].endswith("--out cut --resume")
    assert not (standalone / "result.json").exists()

    both = "cut", "--resume", "--jobs", BOTH
    code, _, stderr = place.stop(signal.SIGINT, straw / saved.format(1), *both)
    assert code == 130
    assert stderr.splitlines()[-1].endswith(f"--out cut --resume --jobs {BOTH}")
    assert "Traceback" not in stderr
    assert "standalone seed 0: continuing after epoch" in stderr
    code, _, _ = place.stop(signal.SIGKILL, straw / saved.format(2), *both)
    assert code == -signal.SIGKILL

    code, _, _ = place.stop(signal.SIGKILL, straw / saved.format(3), "cut", "--resume")
    assert code == -signal.SIGKILL
    assert (standalone / "result.json").exists()
    assert not (straw / "result.json").exists()

    code, stdout, stderr = place.run(*both)
    assert code == 0, stderr
    assert ("2 runs at a time" in stdout) == bool(CORES)
    assert json.loads((place.folder / "cut" / "summary.json").read_text())["jobs"] == int(BOTH)
    assert "straw seed 0: continuing after epoch" in stderr
    assert "standalone seed 0" not in stderr
    _assert_same_end(place, "cut", "whole", [(name, 0) for name in MODELS])


@pytest.mark.slow
def test_two_processes_write_the_summary_of_one(place, finished):
    words = "both_hosts", "--models", "straw", "--mesh", "data=2,model=1", "--distributed"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    first, other = (
        place.start(*words, f"{address},2,{index}", cores=CORES[index : index + 1])
        for index in range(2)
    )
    stdout, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    assert "2 x cpu: data=2, model=1" in stdout
    assert "accuracy" not in other.communicate(timeout=300)[0]
    assert other.returncode == 0
    summary, of_one = (
        json.loads((place.folder / out / "summary.json").read_text())
        for out in ("both_hosts", "whole")
    )
    for variant, measures in of_one["results"]["straw"].items():
        want = pytest.approx(measures["loss"]["mean"], rel=1e-3)
        assert summary["results"]["straw"][variant]["loss"]["mean"] == want


def test_a_mesh_of_more_devices_than_there_are_is_refused_in_one_line(place):
    code, _, stderr = place.run("none", "--mesh", "data=16,model=4")
    assert code == 2
    assert stderr.splitlines()[-1].startswith("run.py: make_mesh: expected data * model to be 1,")
    assert not (place.folder / "none").exists()


def _assert_same_end(place, cut, whole, runs):
    for model, seed in runs:
        folders = [place.folder / out / "runs" / f"{model}-seed{seed}" for out in (cut, whole)]
        checksums = [_leaf_checksums(folder / "final" / "4") for folder in folders]
        assert checksums[0] == checksums[1]
        scores = [json.loads((run / "result.json").read_text())["variants"] for run in folders]
        assert scores[0] == scores[1]
        assert not (folders[0] / "epochs").exists()
        if model == "straw":
            controls = [(folder / "controls.json").read_text() for folder in folders]
            assert controls[0] == controls[1]
    lines = map(json.loads, (place.folder / cut / "metrics.jsonl").read_text().splitlines())
    epochs = [(line["model"], line["seed"], line["epoch"]) for line in lines]
    assert epochs == [(*run, epoch) for run in runs for epoch in (1, 2, 3, 4)]


def _leaf_checksums(step_folder):
    """Shape, dtype and checksum of every leaf, which reading the checkpoint has verified."""
    return json.loads((step_folder / "leaves" / "metadata").read_text())


@pytest.mark.slow
def test_divergence_is_one_line_and_validation_never_shows_the_test_images(place, finished):
    settings = ["--models", "standalone", "--validation", "0.25", "--learning-rate", "1e30"]
    code, stdout, stderr = place.run("wild", *settings)
    assert code == 1
    last = stderr.splitlines()[-1]
    assert last.startswith("run.py: standalone seed 0: ")
    assert "step" in last
    assert "last good checkpoint: none" in last
    assert "Traceback" not in stderr
    name = "validation images held out of its training set\n"
    assert f"{name}         24 training images, 8 test images" in stdout
    described = json.loads((place.folder / "wild" / "config.json").read_text())["data"]
    assert described["name"].endswith(name.strip())


@pytest.mark.slow
def test_other_data_are_refused_on_resume(place, finished, tmp_path):
    scripts.write_archive(tmp_path / "other.zip", train=40)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_bytes((finished[0] / "config.json").read_bytes())
    code, _, stderr = place.run(str(out), "--resume", "--archive", str(tmp_path / "other.zip"))
    assert code == 2
    assert "'train': 32" in stderr.splitlines()[-1]
    assert "'train': 40" in stderr.splitlines()[-1]
    assert [path.name for path in out.iterdir()] == ["config.json"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_it_starts_anew_with_large_pages_once(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(os, "environ", {"PATH": "unchanged"})
    use_large_pages()
    assert calls == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    use_large_pages()
    del os.environ["GLIBC_TUNABLES"]  # as glibc does in a process with privileges
    use_large_pages()
    assert len(calls) == 1
    monkeypatch.setattr(os, "environ", {"GLIBC_TUNABLES": "glibc.malloc.check=0"})
    use_large_pages()
    assert len(calls) == 1
