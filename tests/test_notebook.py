"""The notebook: it runs with small settings, and is committed as one real run left it."""

import json
import re
import sys
from pathlib import Path

import ipykernel.kernelspec
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "straw_emnist.ipynb"

SMALL = """
DATASET, ARCHIVE, FRACTION, TEST_EVERY = "glyphs", None, 0.001, 100
EPOCHS, RANK, BATCH_SIZE, LEARNING_RATE, SEED = 1, 2, 64, 1e-3, 0
"""
FIGURES = """
import json
import sys

print(json.dumps({
    "interpreter": sys.executable, "dataset": dataset.name, "images": len(test_labels),
    "difference": difference, "accuracies": accuracies, "controls": controls, "y": y.shape,
    "rotated": rotated_accuracies,
}))
"""


@pytest.fixture
def python3_is_this_interpreter(tmp_path, monkeypatch):
    """Let "python3" be a kernel of the interpreter that runs the tests, whatever is installed."""
    ipykernel.kernelspec.install(kernel_name="python3", prefix=str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))


@pytest.fixture
def offline_home(tmp_path, monkeypatch):
    """Keep data and configuration in a folder of the test's own."""
    for name in ("TFDS_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("STRAW_EMNIST_ARCHIVE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def _read():
    return nbformat.read(NOTEBOOK, as_version=4)


def _code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.usefixtures("python3_is_this_interpreter", "offline_home")
def test_runs_with_small_settings(tmp_path):
    notebook = _read()
    (settings,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    settings.source = SMALL
    notebook.cells.append(nbformat.v4.new_code_cell(FIGURES))
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,  # seconds a cell
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises where a cell does

    figures = json.loads(notebook.cells[-1].outputs[0].text)
    assert Path(figures["interpreter"]) == Path(sys.executable)
    assert figures["dataset"] == "glyphs"
    assert figures["images"] == 94
    assert figures["difference"] < 1e-5
    assert figures["y"] == [8, 10]
    shares = [*figures["accuracies"].values(), *figures["controls"].values()]
    for by_variant in figures["rotated"].values():
        assert list(by_variant) == ["standard", "rotated", "blurred"]
        shares += by_variant.values()
    assert len(shares) == 12
    assert all(0 <= share <= 1 for share in shares)
    # Two ways to the same weights: through the encoder, and from its style vectors.
    assert figures["controls"]["the image itself"] == figures["accuracies"]["STRAW"]
    pictures = [
        output
        for cell in _code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4


def test_committed_with_the_outputs_of_one_run():
    cells = _code_cells(_read())
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    silent = {cell.id for cell in cells if not cell.outputs}
    assert silent == {"install", "settings", "training"}
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)


def test_shows_nothing_of_the_machine_it_ran_on():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|tmp|work|root|Users|mnt|var)/", text)
    assert len(text) < 600_000
