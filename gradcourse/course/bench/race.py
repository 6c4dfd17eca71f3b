"""One comparison of the benchmarks: two programs timed in turn, and the bar that their ratio is held to.

The two run in turn, round after round, so that whatever else the machine does meets both; the ratio is the median over
rounds of the rounds' ratios, and its spread half their interquartile range.

>>> row = race("doctest", "nothing", "itself", lambda: 0, lambda: 0, at_most=1e9, rounds=3)
>>> row.holds
True
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcourse.course.provenance import seconds
from gradcourse.tables import Table

__all__ = ["Row", "race", "table"]


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of ours and theirs, and their ratio with the bar it is held to.

    With `at_most` the ratio is ours over theirs; with `at_least` it is theirs over ours: how many times faster.
    """

    case: str
    setting: str
    against: str
    ours: float
    theirs: float
    ratio: float
    spread: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its bar."""
        return self.ratio <= self.at_most if self.at_most is not None else self.ratio >= (self.at_least or 0)

    @property
    def bar(self) -> str:
        """The bar in words."""
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


def race(
    case: str,
    setting: str,
    against: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    rounds: int = 9,
    warm: bool = True,
) -> Row:
    """Returns the row of two programs, timed in turn; with `warm` each runs once before, to compile."""
    if warm:
        seconds(ours), seconds(theirs)
    pairs = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)])
    ratios = pairs[:, 0] / pairs[:, 1] if at_most is not None else pairs[:, 1] / pairs[:, 0]
    low, ratio, high = np.percentile(ratios, [25, 50, 75])
    mine, other = map(float, np.median(pairs, axis=0))
    return Row(case, setting, against, mine, other, float(ratio), float(high - low) / 2, at_most, at_least)


def table(rows: Sequence[Row]) -> Table:
    """Returns the rows as a table, with times in milliseconds."""
    return Table(
        ("what", "against", "ours, ms", "theirs, ms", "ratio", "bar", ""),
        [
            (
                row.setting,
                row.against,
                f"{1e3 * row.ours:.4g}",
                f"{1e3 * row.theirs:.4g}",
                f"{row.ratio:.3g} +- {row.spread:.2g}",
                row.bar,
                "holds" if row.holds else "MISSED",
            )
            for row in rows
        ],
    )
