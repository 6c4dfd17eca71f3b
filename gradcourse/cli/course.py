"""The commands of the course: `gradcourse claims`, `gradcourse bench` and `gradcourse experiment`."""

from pathlib import Path
from textwrap import fill
from typing import Any

from gradcourse._checks import known_name
from gradcourse.cli.shared import print_json
from gradcourse.course.ledger import Entry, as_json, in_book, ledger, packaged

__all__ = ["bench", "claims", "experiment"]


def claims(options: Any) -> int:
    """Prints every claim with its verdict and its records: those of the package, or of the notebooks in a folder."""
    entries = ledger(packaged() if options.book is None else in_book(options.book))
    if options.json:
        print_json(
            [
                vars(entry.claim) | {"verdict": entry.verdict, "records": [as_json(one) for one in entry.measurements]}
                for entry in entries
            ]
        )
    else:
        print("\n".join(map(_in_words, entries)))
    return 0


def _in_words(entry: Entry) -> str:
    claim = f"{entry.claim.id} {entry.verdict}: {entry.claim.text} ({entry.claim.who})"
    lines = [fill(claim, 118, subsequent_indent=" " * 4)]
    for one in entry.measurements:
        verdict = f"{one.record.verdict}: " if one.record.verdict != entry.verdict else ""
        line = f"    {verdict}{one.record.quantity} {one.record.measured} ({one.record.rule}; {one.chapter})"
        lines.append(fill(line, 118, subsequent_indent=" " * 6))
    return "\n".join(lines)


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
