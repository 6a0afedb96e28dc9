"""The notebook runs from its first cell to its last on what `weakmcn demo` leaves, and is kept without outputs."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from .pages import ROOT

FILE = ROOT / "docs/notebook.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def codes(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_cell_runs_and_the_pictures_are_drawn(notebook: Any, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "demo")
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=200, resources=folder).execute()
    cells = codes(notebook)
    printed = ["".join(each.get("text", "") for each in cell.outputs) for cell in cells]
    pictures = [any("image/png" in each.get("data", {}) for each in cell.outputs) for cell in cells]
    assert printed[0].startswith("64 photographs, canvas 192 px, data sets: refcoco+\n")
    assert pictures == [False, False, True, False, False, True]
    assert '"epoch": 0' in printed[3]
    assert "similarity" in printed[4]
    assert "box IoU" in printed[5]


def test_it_is_kept_without_outputs(notebook: Any) -> None:
    assert [cell for cell in codes(notebook) if cell.outputs or cell.execution_count] == []
