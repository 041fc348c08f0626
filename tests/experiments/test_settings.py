"""Settings are declared once: flags, help, defaults, records and checks come from the dataclass."""

import dataclasses
import importlib
import json

import pytest

from straw_experiments.char_lm.config import Config as CharConfig
from straw_experiments.image_classification.config import Config as ImageConfig
from straw_experiments.runner import precision, settings
from straw_experiments.runner.readers import positive, whole
from straw_experiments.runner.settings import Parser, RunConfig, setting
from straw_experiments.weight_prediction.config import Config as WeightConfig

CONFIGS = [ImageConfig, CharConfig, WeightConfig]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    width: int = setting(3, "of a layer", group="what", read=whole(1, 99), metavar="N")
    rates: list[float] = setting(
        [0.1, 1e-3], "100 % of them", group="what", read=positive, nargs="+"
    )
    kind: str = setting("a", "of two", group="what", choices=("a", "b"), incidental=True)


def _parser():
    return Parser("prog", "does", "ends")


def test_only_given_flags_are_read():
    assert settings.read(_parser(), Config, []) == {}
    words = ["--rates", "1", "2", "--kind", "b", "--resume"]
    assert settings.read(_parser(), Config, words) == {
        "rates": [1.0, 2.0],
        "kind": "b",
        "resume": True,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width", "0"], "argument --width: expected a whole number of at least 1, got '0'"),
        (["--width", "x"], "argument --width: expected a whole number of at least 1, got 'x'"),
        (["--width", "100"], "argument --width: expected a whole number of at most 99, got '100'"),
        (
            ["--width", "9" * 9999],
            f"argument --width: expected a whole number of at most 99, got '{'9' * 40}...'",
        ),
        (["--rates", "1e31"], "argument --rates: expected a number of at most 1e+30, got '1e31'"),
        (["--rates", "1", "nan"], "argument --rates: expected a number above 0, got 'nan'"),
        (["--kind", "c"], "argument --kind: invalid choice: 'c'"),
    ],
)
def test_bad_values_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        settings.read(_parser(), Config, words)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"prog: {message}")
    assert printed.count("\n") == 1


def test_help_has_every_flag_and_default(capsys):
    with pytest.raises(SystemExit):
        settings.read(_parser(), Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--width N of a layer (default: 3)",
        "100 % of them (default: 0.1 0.001)",
        "--kind {a,b} of two (default: a)",
        "--out DIR folder for the results (default: results/ and a name made of the settings)",
    ):
        assert part in text


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_has_a_default_a_help_and_a_flag(config, capsys):
    with pytest.raises(SystemExit):
        settings.read(_parser(), config, ["--help"])
    printed = capsys.readouterr().out
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')}" in printed
        assert field.metadata["help"] or field.metadata["flag"]["choices"]
    assert json.loads(json.dumps(settings.stored(config()))) is not None


def test_a_run_goes_on_with_the_same_settings_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    config = Config(width=5, out=str(out))
    # An earlier version had no rates: its default is what it did.
    earlier = {k: v for k, v in settings.stored(config).items() if k != "rates"}
    (out / "config.json").write_text(json.dumps(earlier))
    with pytest.raises(ValueError, match=r"argument --out: .* holds an earlier run; continue it"):
        settings.check_out(config)
    again = dataclasses.replace(config, resume=True)
    settings.check_out(again)
    settings.check_out(dataclasses.replace(again, kind="b", jobs=4))  # incidental
    for change, message in (
        ({"width": 6}, "argument --width: --resume needs the earlier run's 5, got 6; give that"),
        ({"rates": [1.0]}, r"argument --rates: --resume needs the earlier run's \[0.1, 0.001\]"),
        ({"seed": 1}, "argument --seed: --resume needs the earlier run's 0, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.check_out(dataclasses.replace(again, **change))


def test_a_run_goes_on_with_the_same_data_alone(tmp_path):
    config = Config(out=str(tmp_path))
    settings.check_same_data(config, {"name": "any"})  # nothing is there yet
    (tmp_path / "config.json").write_text(json.dumps({"data": {"name": "first"}}))
    settings.check_same_data(config, {"name": "first"})
    with pytest.raises(ValueError, match=r"are from \{'name': 'first'\}, but the data are now"):
        settings.check_same_data(config, {"name": "other"})


def test_names_leave_out_what_is_usual():
    usual = {"width": 3, "rates": [0.1, 1e-3]}
    assert settings.readable_name("study", usual, usual) == "study"
    chosen = usual | {"width": 4, "rates": [1.0, 0.5]}
    assert settings.readable_name("study", chosen, usual) == "study_width-4_rates-1+0.5"
    path = settings.readable_name("study", {"dataset": "my data/c.npz"}, {"dataset": "auto"})
    assert path == "study_dataset-my-data-c.npz"


@pytest.mark.parametrize("study", ["image_classification", "char_lm", "weight_prediction"])
def test_precision_is_one_setting_of_all_studies(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no earlier run is
    parse = importlib.import_module(f"straw_experiments.{study}.config").parse
    usual, half = parse([]), parse(["--precision", "bfloat16"])
    assert (usual.precision, half.precision) == ("float32", "bfloat16")
    assert half.out in {f"{usual.out}_bfloat16", f"{usual.out}_precision-bfloat16"}
    with pytest.raises(SystemExit, match="2"):
        parse(["--precision", "float16"])
    assert "argument --precision: invalid choice: 'float16'" in capsys.readouterr().err


def test_precision_of_earlier_runs_is_float32():
    assert precision.recorded({"config": {}}) == "float32"
    assert precision.named({"config": {}}) == precision.named({"config": {"precision": "float32"}})
    assert precision.named({"config": {"precision": "bfloat16"}}) == ["bfloat16"]
