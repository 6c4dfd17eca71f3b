"""Stored notebooks change only where something has changed."""

import base64
import io
from pathlib import Path
from typing import Any

import execute
import guard
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image, PngImagePlugin


def png(colour: str, comment: str) -> str:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", comment)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, format="png", pnginfo=info)
    return base64.b64encode(buffer.getvalue()).decode()


def test_ids_are_given_where_needed_and_kept_where_possible() -> None:
    cells: list[Any] = [new_markdown_cell("text") for _ in range(6)]
    ids = ["the-bound", "3f9a01bc", None, "the-bound", "ch02-02", "ch02-06"]
    for cell, identity in zip(cells, ids, strict=True):
        cell["id"] = identity
    notebook = nbformat.from_dict({"cells": cells})
    execute.give_ids(notebook, prefix="ch02")
    assert [cell.id for cell in notebook.cells] == ["the-bound", "ch02-03", "ch02-04", "ch02-05", "ch02-02", "ch02-06"]


@pytest.mark.parametrize(("colour", "is_kept"), [("red", True), ("blue", False)])
def test_a_picture_of_the_same_pixels_keeps_its_bytes(colour: str, is_kept: bool) -> None:
    old, new = {"image/png": png("red", "old encoder")}, {"image/png": png(colour, "new encoder")}
    assert new != old
    execute.keep_picture(new, old)
    assert (new == old) is is_kept


def test_a_second_run_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "01_small.ipynb"
    cells = [new_code_cell("x = 1"), new_code_cell("print(x + 1)", metadata={"tags": ["measured"]})]
    nbformat.write(new_notebook(cells=cells), path)
    execute.execute(path)
    first = path.read_bytes()
    execute.execute(path)
    assert path.read_bytes() == first
    notebook = guard.read(path)
    assert not [*guard.executed(notebook), *guard.stable(notebook)]
    assert notebook.cells[1].metadata.tags == ["measured"]


@pytest.mark.parametrize("source", ["1 / 0", "import sys; print('careful', file=sys.stderr)"])
def test_a_failing_or_complaining_notebook_is_left_alone(source: str, tmp_path: Path) -> None:
    path = tmp_path / "01_small.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"01_small\.ipynb: .*(failed|careful)"):
        execute.execute(path)
    assert path.read_bytes() == before
