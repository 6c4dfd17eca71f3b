"""How results are handed out: tables for people, and what JSON can hold, which knows neither arrays nor infinities."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan
from typing import Any

import numpy as np

__all__ = ["Table", "json_value"]


class Table:
    """Rows under headings: aligned text in a terminal, a table in a notebook and in the book."""

    def __init__(self, headings: Sequence[str], rows: Iterable[Sequence[str]]):
        self.headings, self.rows = tuple(headings), [tuple(row) for row in rows]
        for row in self.rows:
            if len(row) != len(self.headings):
                raise ValueError(
                    f"row {row!r} has {len(row)} entries; accepted are {len(self.headings)}, one per heading."
                )

    @classmethod
    def from_columns(cls, columns: Mapping[str, Iterable[str]]) -> "Table":
        """Returns the table with these columns, each under its heading.

        >>> Table.from_columns({"layer": ["0", "1"], "norm": ["0.5", "1.0"]})
        layer  norm
        0      0.5
        1      1.0
        """
        return cls(tuple(columns), zip(*columns.values(), strict=True))

    def __repr__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(
            "  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def _repr_markdown_(self) -> str:
        rows = [
            "| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |" for row in (self.headings, *self.rows)
        ]
        return "\n".join([rows[0], "|---" * len(self.headings) + "|", *rows[1:]])


def json_value(value: Any) -> Any:
    """Returns the same with arrays and tuples as lists, infinities as words, and `None` for NaN.

    >>> json_value({"norm": np.array([1.0, -np.inf]), "gain": float("nan")})
    {'norm': [1.0, '-inf'], 'gain': None}
    """
    if isinstance(value, Mapping):
        return {key: json_value(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_value(one) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return None if isnan(value) else str(value)
    return value
