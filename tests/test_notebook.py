"""docs/example.ipynb and the code of docs/python.md run, on a tiny model and data in place of the demo's."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from rich.console import Console

import ablate
from ablate.core import config as config_io

ROOT = Path(__file__).parents[1]
PHOTO = "data/demo/eval/demo_gqa/images/0000001.jpg"
NOTEBOOK = ROOT / "docs" / "example.ipynb"


@pytest.fixture
def place(configure, benchmark_root, tmp_path, monkeypatch) -> Path:
    """A folder to work in: settings.yaml, a picture, and runs of two connectors."""
    asked = {"evaluation": {"benchmarks": ["gqa"], "answering": "generate", "max_new_tokens": 3}}
    config = configure("train.max_steps=2", "group=demo", "root=runs", f"evaluation.root={benchmark_root}")
    (tmp_path / "settings.yaml").write_text(config_io.to_yaml(config))
    config = ["settings.yaml", asked]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    photo = tmp_path / PHOTO
    photo.parent.mkdir(parents=True)
    Image.fromarray(np.full((40, 30, 3), 120, np.uint8)).save(photo)
    for connector in ("mlp", "msc_csm"):
        for seed in (0, 1):
            settings = f"connector.name={connector}", f"seed={seed}", "connector.shared.headdim=8"
            run = ablate.train(config, *settings, console=Console(quiet=True))
    (tmp_path / "settings.yaml").write_bytes((run / "config.yaml").read_bytes())
    return tmp_path


def tiny(source: str) -> str:
    return source.replace('"demo"', '"settings.yaml"').replace("demo_vqa", "gqa").replace("demo_pope", "gqa")


def test_the_notebook_runs(place):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    sources = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = tiny(cell.source)
    assert sum(cell.source != sources.get(cell.id, cell.source) for cell in notebook.cells) == 2
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(place)}}).execute()
    html = [
        output.data.get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert any("Difference from mlp" in each for each in html)
    assert (place / "runs" / "notebook").is_dir()


def test_the_notebook_is_shown_as_it_ran():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]


def test_the_code_of_the_page_runs(place, capsys):
    source = (ROOT / "tests" / "fixtures" / "python_api.py").read_text()
    exec(tiny(source), {})
    assert "linear" in capsys.readouterr().out
