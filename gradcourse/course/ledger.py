"""The ledger: every claim, the records that the chapters hold of it, and the verdict that they add up to.

Records lie in the notebooks, in the outputs of the cells that have shown them (`in_notebook`, `in_book`). A copy of
them is part of the package (`packaged`), so that the verdicts are at hand where the notebooks are not.

>>> print(str(table(ledger(packaged())))[:60])
Claim  Who                        Verdict    Measured
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from gradcourse.course.claims import CLAIMS, RECORD_MIME, Claim, Record, claim_of, overall_verdict
from gradcourse.tables import Table

__all__ = ["NOT_YET", "Entry", "Measurement", "as_json", "in_book", "in_notebook", "ledger", "packaged", "table"]

NOT_YET = "not yet measured"


@dataclass(frozen=True)
class Measurement:
    """A record, with the notebook whose cell shows it (its name without suffix) and the cell's position there."""

    chapter: str
    cell: int
    record: Record


@dataclass(frozen=True)
class Entry:
    """A claim with all that was measured of it, in reading order."""

    claim: Claim
    measurements: tuple[Measurement, ...]

    @property
    def verdict(self) -> str:
        """The verdict of all records together, or `NOT_YET`."""
        return overall_verdict([one.record.verdict for one in self.measurements]) if self.measurements else NOT_YET


def ledger(measurements: Iterable[Measurement]) -> list[Entry]:
    """Returns an entry for each claim, measured or not, in the order of their ids."""
    found = list(measurements)
    return [Entry(claim, tuple(one for one in found if one.record.claim == claim)) for claim in CLAIMS]


# ---- Where measurements come from


def in_notebook(path: str | Path) -> list[Measurement]:
    """Returns the records that a notebook's cells have shown; raises `ValueError` for one of an unknown claim."""
    path = Path(path)
    return [
        Measurement(path.stem, position, _record(output["data"][RECORD_MIME]))
        for position, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"])
        for output in cell.get("outputs", [])
        if RECORD_MIME in output.get("data", {})
    ]


def in_book(folder: str | Path) -> list[Measurement]:
    """Returns the records in the chapters of the folder; raises `ValueError` where there are none."""
    chapters = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not chapters:
        raise ValueError(f"{folder} holds no notebooks of the course; accepted is the folder book of its sources.")
    return [one for path in chapters for one in in_notebook(path)]


def packaged() -> list[Measurement]:
    """Returns the records of the course's own chapters, which are part of the package."""
    rows = json.loads((files("gradcourse.course") / "data" / "records.json").read_text(encoding="utf-8"))
    return [Measurement(row.pop("chapter"), row.pop("cell"), _record(row)) for row in rows]


def _record(fields: dict[str, str]) -> Record:
    return Record(**fields | {"claim": claim_of(fields["claim"])})  # type: ignore[arg-type]


# ---- How it is shown


def as_json(measurement: Measurement) -> dict[str, Any]:
    """Returns the measurement in the form in which it is packaged."""
    return {"chapter": measurement.chapter, "cell": measurement.cell} | measurement.record.to_dict()


def table(entries: Iterable[Entry]) -> Table:
    """Returns every claim with its verdict, what was measured first for each verdict on it, and the chapters.

    >>> from gradcourse.course.claims import record
    >>> told = record("C10", "largest slope", 0.25, supported_by=(0.0, 0.25), digits=2)
    >>> table(ledger([Measurement("02_sigmoids", 7, told)])).rows[9]
    ('C10', 'Lucas', 'supported', 'largest slope: 0.25', '2')
    """
    rows = []
    for entry in entries:
        first: dict[str, Record] = {}
        for one in entry.measurements:
            first.setdefault(one.record.verdict, one.record)
        numbers = [f"{one.quantity}: {one.measured}" + f" ({one.verdict})" * (len(first) > 1) for one in first.values()]
        chapters = dict.fromkeys(str(int(one.chapter[:2])) for one in entry.measurements)
        shown = ("; ".join(numbers) or "-", ", ".join(chapters) or "-")
        rows.append((entry.claim.id, entry.claim.who, entry.verdict, *shown))
    return Table(("Claim", "Who", "Verdict", "Measured", "Chapters"), rows)
