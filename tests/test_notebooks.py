"""The notebook guard over every chapter, and the guard itself on small examples."""

from pathlib import Path

import guard
import numbers_in_prose
import pytest

CHAPTERS = guard.chapters()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rules(path: Path) -> None:
    complaints = guard.complaints(path)
    assert not complaints, "\n" + "\n".join(complaints)


def test_table_of_contents_names_every_page_and_no_other() -> None:
    book = guard.ROOT / "book"
    written = {str(p.relative_to(guard.ROOT).with_suffix("")) for p in [*book.glob("*.ipynb"), *book.glob("*.md")]}
    assert set(guard.pages()) == written


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
