"""Tests of the tests: each of these small sabotages must turn a check red that is green without it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import guard
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "book" / "02_the_sigmoid_derivative.ipynb"

Sabotage = Callable[[guard.Notebook], None]


def beginning(notebook: guard.Notebook) -> guard.Notebook:
    """The chapter up to the first cell that prints a number: enough for a sabotage, and run in seconds."""
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and numbers_printed(cell):
            notebook.cells = notebook.cells[: position + 1]
            return notebook
    raise AssertionError(f"{CHAPTER.name} prints no number")


def numbers_printed(cell: guard.Cell) -> bool:
    return any(out.output_type == "stream" and any(c.isdigit() for c in out.text) for out in cell.outputs)


def compares(notebook: guard.Notebook, folder: Path, package: Path = ROOT) -> bool:
    """Whether nbval, exactly as `make test` sets it up, is content with a notebook and a package."""
    path = folder / CHAPTER.name
    nbformat.write(notebook, path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            path,
        ],
        env={**environment, "PYTHONPATH": str(package)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr  # anything else is no verdict on the notebook
    return run.returncode == 0


def nothing(notebook: guard.Notebook) -> None:
    pass


def flip_a_number(notebook: guard.Notebook) -> None:
    output = next(out for out in guard.code_cells(notebook)[-1].outputs if out.output_type == "stream")
    position = next(i for i, c in reversed(list(enumerate(output.text))) if c.isdigit())
    flipped = str((int(output.text[position]) + 1) % 10)
    output.text = output.text[:position] + flipped + output.text[position + 1 :]


def remove_an_execution_count(notebook: guard.Notebook) -> None:
    guard.code_cells(notebook)[-1].execution_count = None


def strip_a_cell(notebook: guard.Notebook) -> None:
    remove_an_execution_count(notebook)
    guard.code_cells(notebook)[-1].outputs = []


@pytest.mark.parametrize(
    ("sabotage", "nbval_is_content", "guard_is_content"),
    [
        (nothing, True, True),
        (flip_a_number, False, True),
        (remove_an_execution_count, False, False),
        (strip_a_cell, True, False),  # which is why there is a guard: nbval alone passes a cell that was never run
    ],
)
def test_a_sabotaged_notebook_is_found_out(
    sabotage: Sabotage, nbval_is_content: bool, guard_is_content: bool, tmp_path: Path
) -> None:
    notebook = beginning(guard.read(CHAPTER))
    sabotage(notebook)
    assert compares(notebook, tmp_path) is nbval_is_content
    assert (not list(guard.executed(notebook))) is guard_is_content


def test_a_wrong_slope_of_the_sigmoid_is_found_out(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gradcourse", tmp_path / "gradcourse", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "gradcourse" / "activations.py"
    right, wrong = "return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)", "return 0.9 * jax.nn.sigmoid(s)"
    source = module.read_text(encoding="utf-8")
    assert right in source
    module.write_text(source.replace(right, wrong), encoding="utf-8")
    assert not compares(guard.read(CHAPTER), tmp_path, package=tmp_path)
