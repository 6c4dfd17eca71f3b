"""How results are handed out: tables for people, and what JSON can hold, which knows neither arrays nor infinities."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table", "json_value", "numbers"]


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


def json_value(value: Any, *, digits: int | None = None, nan: str | None = None) -> Any:
    """Returns the same as JSON can hold it: arrays and tuples as lists, infinities as the words `"inf"` and `"-inf"`.

    NaN becomes `nan`. With `digits`, every number becomes a `float` of so many significant digits. `numbers` reads it
    back.

    >>> json_value({"norm": np.array([1.0, -np.inf]), "gain": float("nan")})
    {'norm': [1.0, '-inf'], 'gain': None}
    >>> json_value([np.pi, 2], digits=3)
    [3.14, 2.0]
    """
    one = partial(json_value, digits=digits, nan=nan)
    if isinstance(value, Mapping):
        return {key: one(entry) for key, entry in value.items()}
    if hasattr(value, "tolist"):  # arrays, and numbers of their kinds
        return one(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [one(entry) for entry in value]
    if digits is not None and isinstance(value, int | float):
        value = float(f"{float(value):.{digits}g}")
    if isinstance(value, float) and not isfinite(value):
        return nan if isnan(value) else str(value)
    return value


def numbers(value: Any) -> NDArray[np.float64]:
    """Returns the numbers that `json_value` has made JSON of, as an array; both `None` and `"nan"` are NaN.

    >>> numbers(json_value([1.0, -np.inf, np.nan]))
    array([  1., -inf,  nan])
    """
    return np.array(value, np.float64)
