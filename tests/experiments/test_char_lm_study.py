import hashlib
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import scripts

from straw_experiments.char_lm import analysis, figures, report, train
from straw_experiments.char_lm.config import Config, parse
from straw_experiments.char_lm.models import Sizes
from straw_experiments.char_lm.networks import make_model
from straw_experiments.char_lm.study import Study, load_text
from straw_experiments.char_lm.train import Recipe, Trainer, train_and_test
from straw_experiments.data.text import Text
from straw_experiments.pages import tables
from straw_experiments.runner import records, runs
from straw_experiments.runner.runs import NonFiniteError, Run
from straw_experiments.runner.state import training_key
from straw_experiments.runner.study import conduct
from straw_experiments.runner.tables import statistic

# Orbax reads in threads, and leaves them behind when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SCRIPT = scripts.EXPERIMENTS / "char_lm.py"
NUMBERS = np.tile(np.arange(4, dtype=np.uint8), 120)
TEXT = Text("counting", "abc\n", NUMBERS, NUMBERS[:60], NUMBERS[:70])


def _config(**changes):
    usual = {
        "text": None,
        "data_dir": None,
        "models": ["lowrank"],
        "parameters": 700,
        "hyper_features": 3,
        "embedding": 2,
        "rank": 1,
        "epochs": 1,
        "batch_size": 4,
        "length": 10,
        "learning_rate": 0.01,
        "dropout": 0.0,
        "sample_length": 5,
        "seed": 0,
        "seeds": 1,
        "jobs": 1,
        "out": "unused",
        "resume": False,
    }
    return Config(**usual | changes)


def _trainer(recipe):
    sizes = Sizes(4, hyper_features=3, embedding=2, rank=1)
    model, trained = (
        make_model("hyper", 6, sizes, dropout=0.1, train=train) for train in (False, True)
    )
    return Trainer("hyper", model, trained, TEXT, recipe)


@pytest.fixture(scope="module")
def trainer():
    return _trainer(Recipe(epochs=4, batch_size=4, length=10, learning_rate=0.1))


def _untimed(run):
    return [{k: v for k, v in line.items() if "second" not in k} for line in run.history()]


# --- runs ---------------------------------------------------------------------------------------


def test_models_learn_and_say_how_far_they_are(tmp_path, trainer, monkeypatch, capsys):
    monkeypatch.setattr(train, "_QUIET", 0.0)
    run = Run(trainer, 0, tmp_path)
    result = train_and_test(run, 12)
    history = run.history()
    assert [line["characters"] for line in history] == [440, 880, 1320, 1760]
    assert result["bits"]["validation"] == history[-1]["validation"]["bits"]
    assert (
        result["bits"]["test"] < history[0]["validation"]["bits"] < 2
    )  # as much as four characters have
    assert len(result["sample"]) == 12
    printed = capsys.readouterr().err
    assert "epoch 1/4   9%  bits a character: train" in printed  # within an epoch
    assert "characters/s" in printed


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3])
def test_stopped_run_ends_with_the_same_bits(tmp_path, monkeypatch, trainer, stop):
    whole, run, calls = Run(trainer, 3, tmp_path / "whole"), Run(trainer, 3, tmp_path / "cut"), []
    result = train_and_test(whole, 5)

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return save(*args, **kwargs)

    save = runs.checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(runs.checkpoints, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            train_and_test(run, 5)
    again = train_and_test(run, 5)
    jax.tree.map(np.testing.assert_array_equal, run.variables(), whole.variables())
    assert _untimed(run) == _untimed(whole)
    assert (again["bits"], again["sample"]) == (result["bits"], result["sample"])


def test_divergence_names_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_PARTS", 2)  # of 11 steps: 6, and then 5
    wild = _trainer(Recipe(epochs=4, batch_size=4, length=10, learning_rate=1e30))
    state, carry, finite, steps = wild.init_state(0), wild.initial_carry(), 1, 0
    while finite and steps < 11:  # one by one
        state, carry, _, finite = wild.train_steps(state, carry, training_key(0), 1)
        steps += 1
    assert steps not in (1, 6, 11)
    with pytest.raises(
        NonFiniteError, match=f"hyper seed 0: the loss is not finite at step {steps};"
    ):
        train_and_test(Run(wild, 0, tmp_path), 0)


def test_run_that_an_earlier_version_analysed_is_analysed_again(tmp_path):
    made = Study(_config(out=str(tmp_path)), TEXT)
    examined = made.execute("lowrank", 0)["examined"]
    assert made.is_finished("lowrank", 0)
    path = tmp_path / "runs" / "lowrank-seed0" / "examined.json"
    controls = {k: v for k, v in examined["controls"].items() if k != "mean weights"}
    records.write_json(path, {**examined, "controls": controls})
    assert not made.is_finished("lowrank", 0)
    assert made.execute("lowrank", 0)["examined"] == examined


@pytest.mark.slow
def test_study_in_bfloat16_says_so_and_goes_on_in_it(tmp_path, capsys):
    path, out = tmp_path / "some.txt", tmp_path / "out"
    path.write_text("one text, read again. " * 50)
    words = ["--text", str(path), "--models", "lowrank", "--parameters", "900"]
    words += ["--batch-size", "4", "--length", "10", "--epochs", "1", "--sample-length", "5"]
    words += ["--hyper-features", "3", "--jobs", "1", "--out", str(out), "--precision"]
    config = parse([*words, "bfloat16"])
    conduct(Study(config, load_text(config)), "a command")
    assert "bfloat16; one seed" in capsys.readouterr().out
    assert "| precision | bfloat16 |" in (out / "report.md").read_text()
    assert records.read_json(out / "config.json")["precision"] == "bfloat16"
    made = Study(config, load_text(config))
    for name in config.models:
        variables = made.run(name, 0).variables()
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    with pytest.raises(SystemExit, match="2"):
        parse([*words, "float32", "--resume"])
    line = "--precision: --resume needs the earlier run's bfloat16, got float32"
    assert line in capsys.readouterr().err
    assert parse([*words, "bfloat16", "--resume"]).precision == "bfloat16"


def test_study_goes_on_with_its_own_text_alone(tmp_path):
    path, out = tmp_path / "some.txt", tmp_path / "out"
    path.write_text("one text, read again. " * 50)
    config = _config(text=str(path), out=str(out), models=["lstm"])
    load_text(config)
    conduct(Study(config, load_text(config)), "a command")
    stored = records.read_json(out / "config.json")
    assert stored["data"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    load_text(config)
    path.write_text("one text, read agaim. " * 50)  # as long, with as many characters
    with pytest.raises(ValueError, match=r"--resume: the results in .*out are from .*some.txt'"):
        load_text(config)
    records.write_json(out / "config.json", {k: v for k, v in stored.items() if k != "data"})
    load_text(config)  # a folder from before texts were kept in mind


# --- command line -------------------------------------------------------------------------------


def _start(folder, *words):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        cwd=folder,
        env=scripts.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(folder, *words):
    process = _start(folder, *words)
    stdout, stderr = process.communicate(timeout=500)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("words", "rates"), [("0.1", (0.1, 0.1)), ("0.1 0.2", (0.1, 0.2))])
def test_models_have_one_learning_rate_or_each_its_own(words, rates):
    read = parse(["--models", "lstm", "hyper", "--learning-rate", *words.split()])
    planned = Study(_config(models=read.models, learning_rate=read.learning_rate), TEXT)
    recipes = [planned.trainer(name).recipe for name in read.models]
    assert [recipe.learning_rate for recipe in recipes] == list(rates)


TINY = ["--text", "some.txt", "--parameters", "1500", "--epochs", "3", "--batch-size", "4"]
TINY += ["--length", "20", "--sample-length", "30", "--jobs", "1"]
TWO = ["--models", "lstm", "hyper", "--learning-rate", "0.004", "0.008"]
ONE = ["--models", "lstm", "--learning-rate", "0.004"]


@pytest.mark.slow
def test_study_is_stopped_and_gone_on_with(tmp_path):
    text = "what is read is read again, and $ | `.\n" * 50
    (tmp_path / "some.txt").write_text(text)
    code, stdout, stderr = _run(tmp_path, *TINY, *TWO, "--out", "whole")
    assert code == 0, stderr
    assert "1,756 characters of training" in stdout
    out = tmp_path / "whole"
    summary = json.loads((out / "summary.json").read_text())
    assert all(each["parameters"]["all"] <= 1500 for each in summary["results"].values())
    for name in ("curves.png", "movement.png"):
        assert (out / name).stat().st_size > 5_000
    printed = (out / "report.md").read_text()
    assert "| HyperLSTM |" in printed
    assert "Adam, rates 0.004 (LSTM), 0.008 (HyperLSTM), cosine" in printed
    assert "the paper's" not in printed  # it is another text

    process = _start(tmp_path, *TINY, *ONE, "--out", "cut")
    while not (tmp_path / "cut/runs/lstm-seed0/epochs/2/commit_success.txt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].endswith("--out cut --resume")
    (tmp_path / "some.txt").write_text("what is read is read again, and $ | _.\n" * 50)
    code, stdout, stderr = _run(tmp_path, *TINY, *ONE, "--out", "cut", "--resume")
    (line,) = stderr.splitlines()
    assert (code, stdout) == (2, "")
    assert "char_lm.py: --resume: the results in cut are from {'name': 'some.txt'," in line
    (tmp_path / "some.txt").write_text(text)
    code, stdout, stderr = _run(tmp_path, *TINY, *ONE, "--out", "cut", "--resume")
    assert code == 0, stderr
    assert "continuing after epoch" in stderr
    again = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert again["results"]["lstm"]["bits"] == summary["results"]["lstm"]["bits"]
    code, stdout, stderr = _run(tmp_path, *TINY, *ONE, "--out", "cut", "--resume")
    assert code == 0
    assert "Already finished" in stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text", "nothing.txt"], "argument --text: expected a text file, cannot read"),
        (["--text", "short.txt"], "short.txt: a step reads 16 pieces of 50 characters each"),
        (["--models", "gru"], "argument --models: expected any of lstm, ln_lstm, hyper"),
        (["--models", "lstm", "lstm"], "got lstm lstm; name each once"),
        (["--learning-rate", "1", "2"], "expected one rate, or one for each of 5 models, got 2"),
        (["--dropout", "1"], "argument --dropout: expected a number of at least 0, below 1"),
        (["--text", "long.txt", "--parameters", "9"], "argument --parameters: lstm has at least"),
    ],
)
def test_mistakes_are_told_on_one_line(tmp_path, words, says):
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "long.txt").write_text("long" * 2000)
    code, stdout, stderr = _run(tmp_path, *words)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("char_lm.py: ")
    assert says in line
    assert {path.name for path in tmp_path.iterdir()} <= {"short.txt", "long.txt"}


# --- report -------------------------------------------------------------------------------------


def _of(bits, **more):
    return {
        "features": 400,
        "parameters": {
            "main cell": 5, "hyper cell": 0, "projections": 0, "output": 2, "all": 7,
        },
        "multiply_adds": 1000,
        "characters": 10_000,
        "characters_per_second": 1234.5,
        "seconds": 60.0,
        "bits": {"test": statistic(bits), "validation": statistic(bits)},
        "samples": ["a line\nand one more", ""],
        **more,
    }  # fmt: skip


def _summary(text="Penn Treebank"):
    examined = {
        "controls": {name: statistic([1.5, 1.7]) for name in analysis.CONTROLS},
        "movement": {
            "gates": {"input": statistic([0.1, 0.3])},
            "characters": {
                character: statistic([value, value])
                for character, value in {" ": 0.5, "|": 0.1, "e": 0.3}.items()
            },
        },
        "stretch": {"text": "a $", "gates": {"input": [0.1, 0.2, 0.3]}},
    }
    return {
        "study": "character-level language modelling",
        "text": text,
        "characters": {"different": 50, "train": 100, "validation": 10, "test": 10},
        "device": "cpu (test)",
        "command": "python experiments/char_lm.py",
        "commit": None,
        "jobs": 1,
        "versions": {"jax": "1"},
        "config": {
            "epochs": 2, "batch_size": 32, "length": 100, "learning_rate": 0.004, "dropout": 0.1,
        },
        "seeds": [0, 1],
        "results": {
            "lstm": _of([1.50, 1.52]),
            "ln_lstm": _of([1.48, 1.44]),
            "hyper": _of([1.40, 1.44], examined=examined),
            "ln_hyper": _of([1.50, 1.50]),
        },
    }  # fmt: skip


def test_table_tells_differences_from_the_lstm_with_the_same_seed():
    lines = {line.split("  ")[0]: line for line in report.table(_summary()).splitlines()}
    assert "1.5100 ± 0.0141" in lines["LSTM"]
    assert "1.4200 ± 0.0283  -0.0900 ± 0.0141" in lines["HyperLSTM"]
    assert "+0.0400 ± 0.0283" in lines["layer-norm HyperLSTM"]  # from the layer-norm LSTM
    assert "1.265" in lines["HyperLSTM"]
    assert "1.265" not in report.table(_summary("another"))


def test_report_has_the_analysis():
    text = report.markdown(_summary(), {"a picture": "x.png"})
    assert "| model | own | mean | mean weights | shuffled | zero |" in text
    assert "| HyperLSTM | 1.6000 ± 0.1414 | 1.6000 ± 0.1414 |" in text
    farthest = "`space` 50.0 ± 0.0, `e` 30.0 ± 0.0, `bar` 10.0 ± 0.0"
    assert f"| HyperLSTM | {farthest} | `bar` 10.0 ± 0.0, `e` 30.0 ± 0.0," in text
    assert "![a picture](x.png)" in text
    assert "### LSTM\n\n    a line\n    and one more" in text


def test_tables_of_the_page():
    summary = _summary()
    bits = tables.bits_table(summary)
    assert "| HyperLSTM | 1.4200 ± 0.0283 | -0.0900 ± 0.0141 | 1.4200 ± 0.0283 | 1.265 |" in bits
    assert "| layer-norm LSTM | 1.4600 ± 0.0283 | - |" in bits
    assert tables.bits_difference(summary, "ln_hyper") == "+0.0400 ± 0.0283"
    assert "| LSTM | 5 | 0 | 0 | 2 | 7 | 1,000 |" in tables.parts_table(summary)
    gates = tables.hyper_table(summary, "movement", "gates", scale=100, digits=1)
    assert gates.splitlines()[2:] == ["| HyperLSTM | 20.0 ± 14.1 |"]
    farthest = "`space` 50.0 ± 0.0, `e` 30.0 ± 0.0, `bar` 10.0 ± 0.0"
    least = "`bar` 10.0 ± 0.0, `e` 30.0 ± 0.0, `space` 50.0 ± 0.0"
    assert f"| HyperLSTM | {farthest} | {least} |" in tables.extremes_table(summary)


def test_one_epoch_is_no_curve(tmp_path):
    summary = _summary()
    summary["config"]["epochs"] = 1
    assert list(figures.draw(summary, [], tmp_path).values()) == ["movement.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["movement.png"]
    assert "1 epoch, 32 pieces" in report.markdown(summary, {})


def test_movement_is_drawn_with_characters_that_are_no_formulas(tmp_path):
    stretch = {"text": "$a$ \n\t\U0001f600", "gates": {"input": [0.1] * 7, "output": [0.2] * 7}}
    figures.plot_movement({"hyper": stretch}, tmp_path / "x.png", title="")
    assert (tmp_path / "x.png").stat().st_size > 3_000
