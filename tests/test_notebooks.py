"""The notebook guard over every chapter, and the guard itself on small examples."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guard
import nbformat
import numbers_in_prose
import pytest

from gradcourse.course.claims import CLAIMS, RECORD_MIME

CHAPTERS = guard.chapters()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path: Path) -> None:
    complaints = guard.complaints(path)
    assert not complaints, "\n" + "\n".join(complaints)


def test_table_of_contents_names_every_page_and_no_other() -> None:
    book = guard.ROOT / "book"
    written = {str(p.relative_to(guard.ROOT).with_suffix("")) for p in [*book.glob("*.ipynb"), *book.glob("*.md")]}
    assert set(guard.pages()) == written


@pytest.mark.parametrize("path", guard.plain_pages(), ids=lambda path: path.stem)
def test_page_quotes_only_what_some_chapter_printed(path: Path) -> None:
    complaints = list(guard.unprinted(path, CHAPTERS))
    assert not complaints, "\n" + "\n".join(complaints)


GOOD_METADATA = {"mystnb": {"image": {"alt": "A line that falls from the upper left, by 0.5."}}}
GOOD_METADATA["mystnb"]["figure"] = {"name": "fig-fall", "caption": "It falls."}


def small_notebook() -> Any:
    """A chapter that keeps every rule about cells."""
    printed = nbformat.v4.new_output("stream", name="stdout", text="by 0.500\n")
    drawn = nbformat.v4.new_output("display_data", data={"image/png": "...", "text/plain": "<Figure>"})
    cells = [
        nbformat.v4.new_markdown_cell("It falls by 0.5.", id="prose"),
        nbformat.v4.new_code_cell("print(by)", id="number", execution_count=1, outputs=[printed]),
        nbformat.v4.new_code_cell(
            "plots.fall()", id="figure", execution_count=2, outputs=[drawn], metadata=GOOD_METADATA
        ),
    ]
    return nbformat.from_dict(nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}))


def spoil(path: str, value: Any) -> Callable[[Any], None]:
    """Sets what is found under a dotted path of a notebook."""

    def spoiled(notebook: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            notebook = notebook[int(key) if key.isdigit() else key]
        notebook[last] = value

    return spoiled


STDERR = [nbformat.v4.new_output("stream", name="stderr", text="WARNING: an old driver")]
ERROR = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]


def test_a_good_notebook_is_not_complained_about() -> None:
    notebook = small_notebook()
    checks = (guard.executed, guard.stable, guard.plain, guard.illustrated, guard.honest)
    assert [complaint for check in checks for complaint in check(notebook)] == []


@pytest.mark.parametrize(
    ("check", "spoiled", "words"),
    [
        (guard.executed, spoil("cells.1.execution_count", None), "execution count is None, not 1"),
        (guard.executed, spoil("cells.2.execution_count", 7), "execution count is 7, not 2"),
        (guard.executed, spoil("cells.1.outputs", STDERR), "an old driver"),
        (guard.executed, spoil("cells.1.outputs", ERROR), "failed with ValueError"),
        (guard.executed, spoil("cells.1.metadata.tags", ["nbval-skip"]), "hides"),
        (guard.stable, spoil("cells.1.id", "3f9a01bc"), "does not last"),
        (guard.stable, spoil("cells.1.id", "prose"), "taken"),
        (guard.stable, spoil("cells.1.metadata.execution", {}), "'execution'"),
        (guard.stable, spoil("metadata.language_info.version", "3.11.7"), "one machine"),
        (guard.plain, spoil("cells.1.source", "x = 1\n" * 31), "31 lines"),
        (guard.plain, spoil("cells.1.source", "import matplotlib.pyplot as plt"), "by hand"),
        (guard.illustrated, spoil("cells.2.metadata.mystnb.image.alt", "A line"), "alt"),
        (guard.illustrated, spoil("cells.2.metadata.mystnb.figure.caption", ""), "caption"),
        (guard.illustrated, spoil("cells.2.metadata.mystnb.figure.name", "fall"), "name"),
        (guard.honest, spoil("cells.0.source", "It falls by 0.6."), "'0.6'"),
        (guard.honest, spoil("cells.2.metadata.mystnb.figure.caption", "By 60 %."), "'60 %'"),
        (guard.complete, spoil("cells.0.source", "# A title"), "Learning goals"),
    ],
)
def test_each_fault_is_named(check: Callable[[Any], Iterator[str]], spoiled: Callable[[Any], None], words: str) -> None:
    notebook = small_notebook()
    spoiled(notebook)
    assert any(words in complaint for complaint in check(notebook)), list(check(notebook))


def test_a_claim_without_a_measurement_is_named() -> None:
    notebook = small_notebook()
    one = {"claim": "C06", "verdict": "supported"}
    notebook.cells[1].outputs.append(nbformat.v4.new_output("execute_result", data={RECORD_MIME: one}))
    assert list(guard.settled("04_glorot_initialisation", notebook)) == [
        "is about C12, and no cell records a measurement of it with `course.record`"
    ]
    (complaint,) = guard.settled("01_the_question", notebook)
    assert complaint.startswith("records a measurement of C06")


def test_every_claim_that_the_guard_asks_for_is_in_the_ledger() -> None:
    due = set().union(*guard.CLAIMS.values())
    assert due <= {claim.id for claim in CLAIMS}
    assert set(guard.CLAIMS) <= {path.stem for path in CHAPTERS}


def test_quoted_numbers_are_let_pass_where_tagged() -> None:
    notebook = small_notebook()
    notebook.cells[0].source = "Glorot and Bengio found 0.6."
    notebook.cells[0].metadata["tags"] = ["numbers-from-elsewhere"]
    assert list(guard.honest(notebook)) == []


@pytest.mark.parametrize(
    ("markdown", "numbers"),
    [
        ("at most 0.25, or 25 % of 64 units", ["0.25", "25 %"]),
        ("loses 1.5e-3, 3 × 10⁻⁷ or 10⁻⁶⁰⁰", ["1.5e-3", "3 × 10⁻⁷", "10⁻⁶⁰⁰"]),
        ("**0.1**–0.2, and (3.5%).", ["0.1", "0.2", "3.5%"]),
        ("$0.25$ and $$\n0.25\n$$ and `0.25` and {cite:p}`x0.25`", []),
        ("see Section 1.2, Figure 2.1 and Python 3.11, of 2010, by 1,000 layers of float32", []),
        ("[a link](https://example.org/0.5) to 0.75", ["0.75"]),
        ("```{exercise} Title 0.1\n:label: ex-0.2\n\nShow 0.3.\n```\nthen 0.4", ["0.3", "0.4"]),
        ("```python\nx = 0.1\n```\nthen 0.2", ["0.2"]),
        ("::::{note}\n:::{math}\n0.1\n:::\n0.2\n::::\n0.3", ["0.2", "0.3"]),
        ("## 1.2 The heading", []),
        ("1. first\n2. second", []),
    ],
)
def test_numbers_that_prose_claims(markdown: str, numbers: list[str]) -> None:
    assert [number.text for number in numbers_in_prose.claimed(markdown)] == numbers


@pytest.mark.parametrize(
    ("written", "printed", "is_supported"),
    [
        ("0.25", "largest slope 0.2500", True),
        ("0.25", "largest slope 0.2549", True),  # rounded
        ("0.25", "largest slope 0.2600", False),
        ("0.250", "largest slope 0.2540", False),  # more digits promise more
        ("falls by 0.6", "slope -0.598", True),
        ("34 %", "share 0.3421", True),
        ("34 %", "share 34.2%", True),
        ("34 %", "share 0.3521", False),
        ("3 × 10⁻⁷", "p = 3.04e-07", True),
        ("10⁻⁶⁰⁰", "norm 1e-600", True),
        ("10⁻⁶⁰⁰", "norm 1e-601", False),
        ("1,024.5", "1024.5", True),
    ],
)
def test_numbers_that_outputs_support(written: str, printed: str, is_supported: bool) -> None:
    (number,) = numbers_in_prose.claimed(written)
    assert numbers_in_prose.supported(number, numbers_in_prose.parse(printed)) is is_supported


@pytest.mark.parametrize("copy", guard.COPIES)
def test_pictures_on_other_pages_are_figures_of_the_book(copy: str) -> None:
    assert (guard.ROOT / copy).read_bytes() == guard.figure(guard.COPIES[copy])


def test_the_answer_on_one_page_is_that_of_the_chapter() -> None:
    book = guard.ROOT / "book"
    (answer,) = [
        line.strip()
        for cell in guard.read(book / "11_the_answer.ipynb").cells
        if "(the-answer)=" in cell.source
        for line in cell.source.splitlines()
        if line.startswith(">")
    ]
    assert answer in (book / "one_page.md").read_text(encoding="utf-8")
