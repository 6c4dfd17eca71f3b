"""A run of the benchmarks: its table, and the record of it with the machine, the versions and the command."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradcourse._checks import known_name
from gradcourse.course.bench.cases import BATCH, CASES, NEEDS, OUTPUTS
from gradcourse.course.bench.race import Row, table
from gradcourse.course.bench.scan import depth_scan, matrix_product_peak, sweep_shares
from gradcourse.course.provenance import in_words, provenance

__all__ = ["Record", "chosen", "run"]


@dataclass(frozen=True)
class Record:
    """The results of a run, and what they depend on."""

    provenance: dict[str, Any]
    rows: tuple[Row, ...]
    depth_scan: list[dict[str, Any]]
    matrix_product_peak: float
    shares_of_peak: dict[str, float]

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Returns the record in the JSON file at `path`."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {"rows": tuple(Row(**row) for row in fields["rows"])})

    def write(self, path: Path | str) -> None:
        """Writes the record as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        """What machine, when and how, in a few lines."""
        return in_words(self.provenance)


def chosen(cases: Sequence[str]) -> list[str]:
    """Returns the names of the cases to run, all if none is named; raises `ValueError` for an unknown one."""
    return [known_name("case", name, tuple(CASES)) for name in cases] or list(CASES)


def run(cases: Sequence[str] = (), record: Path | None = None) -> list[Row]:
    """Runs the named cases (all by default), prints their table, and writes the record where one is asked for.

    The record also holds the depth scan and the shares of the matrix-product peak. Rows against a package that is not
    installed are left off, and a line says so. Raises as `chosen`.
    """
    rows: list[Row] = []
    for name in chosen(cases):
        if name in NEEDS and not find_spec(NEEDS[name]):
            print(f"{name}: left off, {NEEDS[name]} is not installed (pip install -e '.[bench]')", file=sys.stderr)
            continue
        for row in CASES[name]():
            rows.append(row)
            print(repr(table([row])).splitlines()[1], file=sys.stderr, flush=True)
    print(table(rows))
    if record is not None:
        command = " ".join(["python -m gradcourse bench", *cases, "--json", record.name])
        settings = {"batch": BATCH, "outputs": OUTPUTS, "dtype": "float32", "matmul precision": "highest"}
        source = provenance(command, packages=("torch", "matfree")) | {"settings": settings}
        Record(source, tuple(rows), depth_scan(), matrix_product_peak(), sweep_shares()).write(record)
        print(f"recorded in {record}")
    return rows
