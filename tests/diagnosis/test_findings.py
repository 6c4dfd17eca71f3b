"""The rules of a report: over networks made to have one illness each, and healthy ones, none missed, none invented."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ailments import Case, cases

from gradcourse.diagnosis.api import diagnose
from gradcourse.diagnosis.findings import READ_ON, THRESHOLDS, findings_of, gradient_slope
from gradcourse.diagnosis.report import LayerReport

TABLE = cases()


def test_the_table_is_wide_enough() -> None:
    families = {case.name.split()[0] for case in TABLE}
    assert families == {"dense", "conv", "residual", "attention", "recurrent"}
    assert len(TABLE) >= 40
    assert {kind for case in TABLE for kind in case.expected} == set(READ_ON)
    assert sum(not case.expected for case in TABLE) >= 15
    for family in families - {"recurrent"}:
        assert any(case.expected for case in TABLE if case.name.startswith(family))


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_each_illness_is_found_and_no_other(case: Case) -> None:
    before = jax.tree.map(np.array, case.params)
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        report = diagnose(case.model, case.params, (case.x, case.y), directions=2, **case.arguments)
    assert {finding.kind for finding in report.findings} == case.expected, report
    assert report.healthy is (not case.expected)
    jax.tree.map(np.testing.assert_array_equal, before, case.params)  # NaN counts as equal


def row(index: int, gradient: float, **more: object) -> LayerReport:
    """A healthy layer whose gradient has that log10 norm."""
    return LayerReport(
        name=f"layer {index}",
        parameters=("w",),
        shape=(32, 100),
        dtype="float32",
        count=100,
        mean=0.0,
        spread=1.0,
        saturated=0.0,
        dead=0.0,
        silent=0.0,
        log10_activation_gradient=gradient,
        log10_parameter_gradient=gradient,
        **{"units": 100, "update_to_weight": 1e-3} | more,  # type: ignore[arg-type]
    )


def kinds(rows: list[LayerReport]) -> set[str]:
    return {finding.kind for finding in findings_of(rows, 1.0)}


def test_every_threshold_is_where_it_says() -> None:
    flat = [row(index, -1.0) for index in range(5)]
    assert kinds(flat) == set()
    for field, kind, above in (
        ("dead", "dead", 1e-6),
        ("saturated", "saturated", 1e-6),
        ("lost", "underflow", 1e-6),
        ("update_to_weight", "frozen", -1e-9),
    ):
        for change, found in ((above, {kind}), (-above, set())):
            assert kinds([*flat, replace(flat[0], **{field: THRESHOLDS[kind] + change})]) == found
    for kind, sign in (("vanishing", 1), ("exploding", -1)):
        for decades, found in ((THRESHOLDS[kind] + 0.01, {kind}), (THRESHOLDS[kind] - 0.01, set())):
            assert kinds([row(index, sign * decades * index / 4) for index in range(5)]) == found


def test_half_of_a_narrow_layer_may_be_off_but_not_all_of_any() -> None:
    flat = [row(index, -1.0) for index in range(4)]
    assert kinds([*flat, replace(flat[0], silent=0.99)]) == set()
    assert kinds([*flat, replace(flat[0], silent=1.0)]) == {"dead"}
    assert kinds([*flat, replace(flat[0], dead=0.75, units=16)]) == set()
    assert kinds([*flat, replace(flat[0], dead=0.9, units=16)]) == {"dead"}


def test_a_few_odd_layers_do_not_bend_the_slope() -> None:
    depth = np.arange(20)
    rows = [row(index, 0.3 * index) for index in depth]
    odd = [replace(one, log10_activation_gradient=-9.0) if index % 7 == 3 else one for index, one in enumerate(rows)]
    assert gradient_slope(rows)[0] == pytest.approx(0.3)
    assert gradient_slope(odd)[0] == pytest.approx(0.3, abs=0.02)
    beside = [replace(one, in_chain=False, log10_activation_gradient=50.0) for one in rows]
    assert gradient_slope([*rows, *beside]) == gradient_slope(rows)
    assert np.isnan(gradient_slope(rows[:2])).all()


def test_a_finding_names_layers_evidence_rule_and_chapter() -> None:
    rows = [row(index, 0.5 * index, gain=0.1) for index in range(6)]
    (finding,) = findings_of(rows, 1.0)
    assert finding.kind == "vanishing"
    assert finding.layers == tuple(one.name for one in rows)
    assert "0.5 decades per layer" in finding.evidence
    assert "mean squared gain is 0.1" in finding.evidence
    assert finding.threshold == THRESHOLDS["vanishing"]
    assert "2 decades" in finding.rule
    assert finding.read_on == "chapter 2 of the course, the sigmoid derivative"
    assert "He's" in finding.advice


def test_where_to_read_on_is_data_and_by_default_a_chapter_of_the_book() -> None:
    book = Path(__file__).parents[2] / "book"
    for text in READ_ON.values():
        number, title = text.removeprefix("chapter ").split(" of the course, ")
        assert (book / f"{int(number):02}_{title.replace(' ', '_')}.ipynb").is_file()
    rows = [row(index, 0.5 * index) for index in range(6)]
    (elsewhere,), (nowhere,) = (findings_of(rows, 1.0, read_on=given) for given in ({"vanishing": "page 7"}, {}))
    assert str(elsewhere).endswith("\n  Read on: page 7")
    assert "Read on" not in str(nowhere) + nowhere._repr_html_()


def test_zeros_before_a_branch_that_is_about_to_open_are_not_frozen() -> None:
    rows = [row(index, -1.0) for index in range(3)]
    still = replace(rows[0], name="inside", log10_parameter_gradient=-np.inf, update_to_weight=0.0)
    assert kinds([*rows, still]) == {"frozen"}
    assert kinds([*rows, still, replace(rows[0], waiting=True)]) == set()


def test_where_it_stops_being_finite() -> None:
    rows = [row(index, -1.0) for index in range(4)]

    def evidence(change: dict, index: int, loss: float = 1.0, sound: bool = True) -> str:
        changed = [replace(one, **change) if place >= index else one for place, one in enumerate(rows)]
        (finding,) = findings_of(changed, loss, sound)
        assert finding.kind == "not finite"
        return finding.evidence

    assert "from layer 'layer 2' on, whose parameters are finite (2 of 4" in evidence({"finite": False}, 2)
    assert "'layer 1' on, whose parameters hold it" in evidence({"finite_parameters": False}, 1)
    assert "the loss is not" in evidence({}, 9, loss=np.inf)
    assert "the batch itself" in evidence({}, 9, sound=False)
    backward = [replace(one, log10_activation_gradient=np.nan) if place < 2 else one for place, one in enumerate(rows)]
    shared = [replace(one, log10_parameter_gradient=np.inf) for one in backward]
    for changed in (backward, shared):
        (finding,) = findings_of(changed, 1.0)
        assert "not from layer 'layer 1' down to the input (2 of 4 layers)" in finding.evidence
