"""Tests of the tests: each of these small sabotages must turn a check red that is green without it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import guard
import nbformat

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


def rejected(folder: Path, *options: str, package: Path = ROOT) -> set[str]:
    """The notebooks of a folder, by stem, that nbval, exactly as `make test` sets it up, does not let pass."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            folder,
            *options,
            *folder.glob("*.ipynb"),
        ],
        env={**environment, "PYTHONPATH": str(package)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr  # anything else is no verdict on the notebooks
    return set(re.findall(r"^FAILED .*?(\w+)\.ipynb::", run.stdout, flags=re.MULTILINE))


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


SABOTAGES: list[tuple[Sabotage, bool, bool]] = [  # and whether nbval and the guard let it pass
    (nothing, True, True),
    (flip_a_number, False, True),
    (remove_an_execution_count, False, False),
    (strip_a_cell, True, False),  # which is why there is a guard: nbval alone passes a cell that was never run
]


def test_sabotaged_notebooks_are_found_out(tmp_path: Path) -> None:
    passed_by_guard = {}
    for sabotage, _, _ in SABOTAGES:
        notebook = beginning(guard.read(CHAPTER))
        sabotage(notebook)
        nbformat.write(notebook, tmp_path / f"{sabotage.__name__}.ipynb")
        passed_by_guard[sabotage.__name__] = not list(guard.executed(notebook))
    rejected_by_nbval = rejected(tmp_path)
    for sabotage, nbval_passes, guard_passes in SABOTAGES:
        assert (sabotage.__name__ not in rejected_by_nbval) is nbval_passes, sabotage.__name__
        assert passed_by_guard[sabotage.__name__] is guard_passes, sabotage.__name__


def test_a_wrong_slope_of_the_sigmoid_is_found_out(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gradcourse", tmp_path / "gradcourse", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "gradcourse" / "nn" / "activations.py"
    right, wrong = "return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)", "return 0.9 * jax.nn.sigmoid(s)"
    source = module.read_text(encoding="utf-8")
    assert right in source
    module.write_text(source.replace(right, wrong), encoding="utf-8")
    shutil.copy(CHAPTER, tmp_path)
    assert rejected(tmp_path, "-x", package=tmp_path) == {CHAPTER.stem}
