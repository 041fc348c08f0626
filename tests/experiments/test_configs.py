"""A published study's header says what its stored results say."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import scripts

from straw_experiments import configs
from straw_experiments.configs import STUDIES
from straw_experiments.necessity import report as necessity
from straw_experiments.runner.tables import duration, mean_std

RESULTS = scripts.EXPERIMENTS / "results"
_RECONSTRUCTED = "EMNIST (unofficial archive, sha256 8ef1351a4efc)"


def _header(file):
    module = importlib.import_module(f"straw_experiments.configs.{file}")
    return ast.get_docstring(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))


def _part(header, name, names):
    """The lines of one study; a file of several begins each with its name."""
    if len(names) == 1:
        return header
    lines = header.splitlines()
    start = lines.index(name)
    ends = [lines.index(other) for other in names if lines.index(other) > start]
    return "\n".join(lines[start : min(ends, default=len(lines))])


def _figures(summary):
    results, study = summary["results"], summary.get("study", "")
    if study == "necessity":  # too many to list all
        for task, best in summary["best"].items():
            yield f"{task}: {best['all']} {necessity.score(summary, task, best['all'])}"
        return
    for name, each in results.items():
        if study.startswith("character"):
            yield f"{name} {mean_std(each['bits']['test'], 1, 4)}"
        elif study == "prediction of weights":
            yield f"{name} {mean_std(each['explained'], 100, 2)}"
        elif study == "classifiers of tables":
            yield f"{name} {mean_std(summary['ranks'][name]['all'], 1, 2)}"
        elif study.startswith("weights written"):
            own = each["test"]["own"][summary["tests"][0]]
            yield f"{name} {mean_std(own['nats'], 1, 4)}"
        elif study == "fields":
            yield f"{name} {' / '.join(mean_std(x, 1, 2) for x in each['psnr'].values())}"
        elif study:
            yield f"{name} {mean_std(each['loss'], 1, 5)}"
        else:
            accuracies = (mean_std(each[v]["accuracy"], 100, 2) for v in ("standard", "rotated"))
            yield f"{name} {' / '.join(accuracies)}"


@pytest.mark.parametrize("file", configs._FILES)
def test_header_says_command_device_time_and_result(file):
    header = _header(file)
    studies = importlib.import_module(f"straw_experiments.configs.{file}").STUDIES
    assert set(studies) <= set(STUDIES)
    command = " ".join(header.split("Command", 1)[1].split("\n\n")[0].split("Device")[0].split())
    assert command.startswith(f"straw-jax reproduce --only {' '.join(studies)}")
    for name in studies:
        part, path = _part(header, name, list(studies)), RESULTS / name / "summary.json"
        if not path.exists():
            assert "Result   not run yet" in part
            continue
        summary = json.loads(path.read_text())
        assert f"Device   {summary['device']}\n" in part
        seconds = summary.get("seconds") or {
            model: each["seconds"] for model, each in summary["results"].items()
        }
        assert f"Time     {duration(sum(seconds.values()))} of training, all runs, " in part
        data = summary.get("dataset") or summary.get("text")
        if data:
            data = {_RECONSTRUCTED: "EMNIST (reconstructed balanced split)"}.get(data, data)
            assert f"Data     {data}\n" in part
        assert f"{len(summary['seeds'])} seed" in part
        lines = [line.strip() for line in part.splitlines()]
        assert set(_figures(summary)) <= set(lines)


def test_every_file_is_listed():
    folder = scripts.EXPERIMENTS / "straw_experiments" / "configs"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "published"}
    assert files == set(configs._FILES)
