"""All claims of the page, and one rule for verdicts."""

import json
from typing import Any

import numpy as np
import pytest

from gradcourse.course.claims import (
    CLAIMS,
    RECORD_MIME,
    overall_verdict,
    record,
    what_we_measured,
)
from gradcourse.tables import Table

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


def next_to(value: float) -> list[float]:
    """The number with its neighbours below and above."""
    return [np.nextafter(value, -INF), value, np.nextafter(value, INF)]


@pytest.mark.parametrize("border", [0.25, 0.1, 1.0])
@pytest.mark.parametrize("below", [None, 2.0])
def test_a_rounding_turns_no_verdict(border: float, below: float | None) -> None:
    for supported_by in ((0.0, border), (border, INF)):
        records = [record("C10", "x", one, supported_by=supported_by, below=below) for one in next_to(border)]
        assert len({repr(one) for one in records}) == 1
        assert records[0].verdict == "supported"
    several = [
        record("C10", "x", np.array([one, border, border]), supported_by=(0.0, border)) for one in next_to(border)
    ]
    assert len({repr(one) for one in several}) == 1


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
        (lambda: overall_verdict([]), "verdicts is empty"),
        (lambda: overall_verdict(["true"]), "verdict='true' is not known"),
        (lambda: Table(("a", "b"), [("1",)]), "has 1 entries; accepted are 2"),
    ],
)
def test_bad_input_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
