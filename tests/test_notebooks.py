"""The notebooks run from top to bottom, are stored without outputs, and hold no logic: they import the workbench."""

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALLOWED = {"workbench", "numpy", "xarray", "pathlib", "tempfile", "IPython"}
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def imported(source: str) -> set[str]:
    """The top-level packages that Python code imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level or str(node.module).partition(".")[0])
    return names


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    client.execute(env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert [output for cell in ran for output in cell.outputs if output.output_type == "error"] == []


@every_notebook
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@every_notebook
def test_a_notebook_imports_the_workbench_and_arrays_only(path: Path) -> None:
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    found = imported(source)
    assert "workbench" in found
    assert found <= ALLOWED


def test_imports_are_found_wherever_they_stand() -> None:
    assert imported("import a.b as c\ndef f():\n    from d.e import g\nfrom . import h\n") == {"a", "d", "."}
