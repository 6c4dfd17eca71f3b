"""`gradcourse bench` and `gradcourse experiment`: what takes long."""

from pathlib import Path
from typing import Any

from gradcourse._checks import known_name

__all__ = ["bench", "experiment"]


def bench(options: Any) -> int:
    """Times the cases that are named."""
    from gradcourse.course.bench import record

    record.run(options.cases, options.json)
    return 0


def experiment(options: Any) -> int:
    """Records the experiments that are named, or lists all."""
    from gradcourse.course.experiments import EXPERIMENTS

    chosen = [EXPERIMENTS[known_name("experiment", name, EXPERIMENTS)] for name in options.names]
    if not chosen:
        for each in EXPERIMENTS.values():
            print(f"{each.name}: {each.about} ({len(each.points)} runs)")
        return 0
    folder = options.to or Path("book/data")
    if not folder.is_dir():
        raise ValueError(f"--to {folder} is no folder; make it, or name another with --to.")
    for each in chosen:
        print(each.record(folder / f"{each.name}.json"))
    return 0
