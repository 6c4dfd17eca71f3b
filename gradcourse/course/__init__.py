"""What only the course needs: its claims and their verdicts, intervals, recorded experiments, benchmarks."""

from gradcourse.course.claims import CLAIMS, Claim, Record, record, what_we_measured
from gradcourse.course.intervals import estimate, interval
from gradcourse.course.recording import Experiment, Results
from gradcourse.tables import Table

__all__ = [
    "CLAIMS",
    "Claim",
    "Experiment",
    "Record",
    "Results",
    "Table",
    "estimate",
    "interval",
    "record",
    "what_we_measured",
]
