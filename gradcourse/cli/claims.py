"""`gradcourse claims`: the ledger of the course in a terminal."""

from textwrap import fill
from typing import Any

from gradcourse.cli.output import print_json
from gradcourse.course.ledger import Entry, as_json, in_book, ledger, packaged

__all__ = ["claims"]


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
    lines = [
        fill(
            f"{entry.claim.id} {entry.verdict}: {entry.claim.text} ({entry.claim.who})", 118, subsequent_indent=" " * 4
        )
    ]
    for one in entry.measurements:
        verdict = f"{one.record.verdict}: " if one.record.verdict != entry.verdict else ""
        line = f"    {verdict}{one.record.quantity} {one.record.measured} ({one.record.rule}; {one.chapter})"
        lines.append(fill(line, 118, subsequent_indent=" " * 6))
    return "\n".join(lines)
