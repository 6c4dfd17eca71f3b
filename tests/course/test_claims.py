"""The ledger: all claims, one rule for verdicts, intervals that hold what they promise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradcourse.course.claims import (
    CLAIMS,
    RECORD_MIME,
    Table,
    interval,
    ledger,
    overall_verdict,
    record,
    stored_records,
    what_we_measured,
)

INF = float("inf")


def test_all_claims_are_in_the_ledger() -> None:
    assert [claim.id for claim in CLAIMS] == [f"C{number:02d}" for number in range(1, 23)]
    assert all(claim.who and claim.text.endswith((".", "?")) for claim in CLAIMS)


@pytest.mark.parametrize(
    ("samples", "supported_by", "verdict"),
    [
        (0.25, (0.0, 0.25), "supported"),  # ends count
        (0.26, (0.0, 0.25), "refuted"),
        ([1.0, 1.1, 0.9], (0.5, INF), "supported"),
        ([1.0, 1.1, 0.9], (1.0, INF), "qualified"),
        ([1.0, 1.1, 0.9], (2.0, INF), "refuted"),
        ([1.0, 1.1, 0.9], (-INF, 0.5), "refuted"),
    ],
)
def test_the_verdict_follows_from_the_interval(samples: Any, supported_by: tuple[float, float], verdict: str) -> None:
    assert record("C05", "a quantity", np.asarray(samples), supported_by=supported_by).verdict == verdict


def test_the_interval_is_students() -> None:
    samples = np.array([0.3, 1.2, 0.7, 2.0])
    expected = stats.t.interval(0.95, 3, samples.mean(), stats.sem(samples))
    np.testing.assert_allclose(interval(samples), (samples.mean(), *expected))


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    held = [low <= 3.0 <= high for _, low, high in map(interval, draws)]
    assert abs(np.mean(held) - 0.95) < 4 * (0.95 * 0.05 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        (["supported"], "supported"),
        (["refuted", "refuted"], "refuted"),
        (["supported", "refuted"], "qualified"),
        (["supported", "qualified"], "qualified"),
    ],
)
def test_several_measurements_must_agree(verdicts: list[str], overall: str) -> None:
    assert overall_verdict(verdicts) == overall


def test_a_record_carries_what_the_table_of_claims_needs() -> None:
    bundle = record("C10", "largest slope", 0.25, supported_by=(0.0, 0.25), digits=2)._repr_mimebundle_()
    assert json.loads(json.dumps(bundle[RECORD_MIME])) == {
        "claim": "C10",
        "quantity": "largest slope",
        "measured": "0.25",
        "rule": "supported if at most 0.25",
        "verdict": "supported",
    }
    assert "**supported**" in bundle["text/markdown"]


def notebook(path: Path, *shown: Any) -> Path:
    """A notebook with one cell of text, and a cell for each record that it shows."""
    outputs = [[{"output_type": "stream", "text": "x"}, {"data": one._repr_mimebundle_()}] for one in shown]
    cells = [{"cell_type": "markdown"}, *({"cell_type": "code", "outputs": output} for output in outputs)]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_what_a_notebook_shows_is_read_back(tmp_path: Path) -> None:
    shown = [record("C10", "slope", 0.25, supported_by=(0.0, 0.25)), record("C01", "x", 1.0, supported_by=(2.0, INF))]
    assert stored_records(notebook(tmp_path / "a.ipynb", *shown)) == [(1, shown[0]), (2, shown[1])]
    path = tmp_path / "b.ipynb"
    path.write_text(notebook(path, *shown).read_text().replace('"C01"', '"C99"'))
    with pytest.raises(ValueError, match="claim='C99' is not known"):
        stored_records(path)


def test_the_ledger_has_every_claim_and_the_first_number_of_each_verdict() -> None:
    for_it = [record("C05", f"way {way}", float(way), supported_by=(0.0, 9.0), digits=0) for way in (1, 2)]
    against = record("C05", "way 3", 99.0, supported_by=(0.0, 9.0), digits=0)
    rows = {row[0]: row[2:] for row in ledger({"4": for_it, "5": [against, for_it[0]]}).rows}
    assert list(rows) == [claim.id for claim in CLAIMS]
    assert rows["C05"] == ("qualified", "way 1: 1 (supported); way 3: 99 (refuted)", "4, 5")
    assert rows["C06"] == ("not yet measured", "-", "-")
    assert {row[0]: row[2:] for row in ledger({"4": for_it}).rows}["C05"] == ("supported", "way 1: 1", "4")


def test_rounding_residuals_are_shown_as_a_bound_and_checked() -> None:
    shown = record("C09", "difference", np.array([1e-7, 3e-8]), supported_by=(0.0, 1e-5), below=1e-6)
    assert shown.measured == "below 1e-06"
    with pytest.raises(ValueError, match="below=1e-08 is accepted above every sample; the largest is 1e-07"):
        record("C09", "difference", np.array([1e-7]), supported_by=(0.0, 1e-5), below=1e-8)


def test_tables_align_and_escape() -> None:
    table = what_we_measured(("|J|", "1", "2"), ("longer", "10", "20"))
    assert repr(table).splitlines() == [
        "Quantity  Predicted  Measured",
        "|J|       1          2",
        "longer    10         20",
    ]
    assert table._repr_markdown_().splitlines()[2] == "| \\|J\\| | 1 | 2 |"


@pytest.mark.usefixtures("no_runtime_typecheck")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: record("C23", "x", 1.0, supported_by=(0.0, 1.0)), "claim='C23' is not known"),
        (lambda: record("C01", "x", 1.0, supported_by=(2.0, 1.0)), r"supported_by=\(2.0, 1.0\) is an empty range"),
        (lambda: interval([]), "at least one value, all finite"),
        (lambda: interval([1.0, float("nan")]), "at least one value, all finite"),
        (lambda: overall_verdict([]), "verdicts is empty"),
        (lambda: overall_verdict(["true"]), "verdict='true' is not known"),
        (lambda: Table(("a", "b"), [("1",)]), "has 1 entries; accepted are 2"),
    ],
)
def test_bad_input_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
