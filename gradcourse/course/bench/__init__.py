"""Benchmarks: what the measurements cost, as ratios to alternatives that are timed in the same run.

`python -m gradcourse bench` prints the table and, with `--json FILE`, records it with the machine, the versions and
the command.
"""

from gradcourse.course.bench.record import Record

__all__ = ["Record"]
