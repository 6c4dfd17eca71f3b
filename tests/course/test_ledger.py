"""The one join of claims and records: read from notebooks, packaged, shown as a table."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradcourse.course.claims import CLAIMS, Record, record
from gradcourse.course.ledger import Measurement, as_json, in_book, in_notebook, ledger, packaged, table

BOOK, INF = Path(__file__).parents[2] / "book", float("inf")


def notebook(path: Path, *shown: Any) -> Path:
    """A notebook with one cell of text, and a cell for each record that it shows."""
    outputs = [[{"output_type": "stream", "text": "x"}, {"data": one._repr_mimebundle_()}] for one in shown]
    cells = [{"cell_type": "markdown"}, *({"cell_type": "code", "outputs": output} for output in outputs)]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_what_a_notebook_shows_is_read_back(tmp_path: Path) -> None:
    shown = [record("C10", "slope", 0.25, supported_by=(0.0, 0.25)), record("C01", "x", 1.0, supported_by=(2.0, INF))]
    notebook(tmp_path / "1_a.ipynb", *shown)
    assert in_notebook(tmp_path / "1_a.ipynb") == [Measurement("1_a", 1, shown[0]), Measurement("1_a", 2, shown[1])]
    assert in_book(tmp_path) == in_notebook(tmp_path / "1_a.ipynb")
    path = tmp_path / "b.ipynb"
    path.write_text(notebook(path, *shown).read_text().replace('"C01"', '"C99"'))
    with pytest.raises(ValueError, match="claim='C99' is not known"):
        in_notebook(path)
    with pytest.raises(ValueError, match="nowhere holds no notebooks of the course"):
        in_book("nowhere")


def test_the_ledger_has_every_claim_and_the_first_number_of_each_verdict() -> None:
    def way(number: float) -> Record:
        return record("C05", f"way {number:g}", number, supported_by=(0.0, 9.0), digits=0)

    def rows(*measurements: Measurement) -> dict[str, Any]:
        return {row[0]: row[2:] for row in table(ledger(measurements)).rows}

    for_it = [Measurement("04_four", cell, way(number)) for cell, number in ((1, 1.0), (3, 2.0))]
    against = [Measurement("05_five", 1, way(99.0)), Measurement("05_five", 2, way(1.0))]
    assert rows(*for_it, *against)["C05"] == ("qualified", "way 1: 1 (supported); way 99: 99 (refuted)", "4, 5")
    assert rows(*for_it)["C05"] == ("supported", "way 1: 1", "4")
    assert rows()["C06"] == ("not yet measured", "-", "-")
    assert list(rows()) == [claim.id for claim in CLAIMS]
    entry = ledger([*for_it, *against])[4]
    assert entry.measurements == (*for_it, *against)


def test_the_package_has_the_records_of_the_notebooks() -> None:
    """Where this fails, `python book/_tools/execute.py` brings it up to date, as `make notebooks` does."""
    assert packaged() == in_book(BOOK)
    assert json.loads(json.dumps(as_json(packaged()[0]))) == as_json(in_book(BOOK)[0])
