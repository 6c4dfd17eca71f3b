"""What must hold of a chapter beyond what nbval compares: each check yields its complaints.

nbval passes a cell that was never run, looks at no picture and reads no prose. So: every cell was run, in
order and without a word on stderr; every figure has a caption and words for those who cannot see it; the
parts of a chapter are there; and every number in the prose is one that a cell of the same chapter printed
(what counts as a number is said in `numbers_in_prose.py`).
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numbers_in_prose
import yaml

from gradcourse.course.claims import RECORD_MIME

ROOT = Path(__file__).resolve().parents[2]

# Pictures on other pages that are figures of the book: the cover, and that of the answer on one page.
COPIES = {"book/_static/cover.png": "fig-relu", "book/_static/answer.png": "fig-answer"}

MAX_BYTES = 1_500_000
MAX_LINES = 30
MAX_WIDTH = 76  # what fits the page
MIN_ALT = 40
MIN_EXERCISES = 3

# Which claims of the page each chapter has to settle, wholly or in part.
CLAIMS = {
    "02_the_sigmoid_derivative": {"C09", "C10", "C21"},
    "03_rectifiers": {"C08", "C11", "C13", "C14"},
    "04_glorot_initialisation": {"C06", "C12"},
    "05_speed": {"C02", "C03", "C04", "C05", "C06"},
    "06_the_learning_rate": {"C07", "C15", "C16", "C17", "C18", "C19", "C20", "C22"},
    "07_pretraining": {"C01"},
    "08_convolutional_networks": {"C12"},
    "09_normalisation_and_shortcuts": {"C08"},
    "10_precision": {"C03"},
    "11_the_answer": {"C06", "C08", "C12"},
}

# Where numbers are quoted from papers: a tag of cells, a comment (`% ...`) in the paragraphs of other pages.
ELSEWHERE = "numbers-from-elsewhere"
RERUN = "run `make notebooks`"

# What Jupyter hands out when nobody chooses: eight hex digits, or a UUID.
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){0,4}([0-9a-f-]*)")

Cell = Any  # nbformat's NotebookNode
Notebook = Any


def pages(root: Path = ROOT) -> list[str]:
    """Every page named in `_toc.yml`, without suffix, in reading order."""

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, dict):
            yield from (entry[key] for key in ("root", "file") if key in entry)
            for value in entry.values():
                yield from files(value)
        elif isinstance(entry, list):
            for item in entry:
                yield from files(item)

    return list(files(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def chapters(root: Path = ROOT) -> list[Path]:
    """Every notebook of the book, in reading order."""
    return [path for page in pages(root) if (path := root / f"{page}.ipynb").exists()]


def plain_pages(root: Path = ROOT) -> list[Path]:
    """Every page that is not a notebook."""
    return [path for page in pages(root) if (path := root / f"{page}.md").exists()]


def read(path: Path) -> Notebook:
    """The notebook as it lies on disk: nbformat's reader would quietly invent missing cell ids."""
    return nbformat.v4.reads_json(path.read_text(encoding="utf-8"))


def code_cells(notebook: Notebook) -> list[Cell]:
    """The code cells that nbval sees, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Cell) -> list[str]:
    """The cell's tags."""
    return cell.metadata.get("tags", [])


def label(cell: Cell) -> str:
    """How complaints name a cell."""
    return f"cell {cell.get('id', '(without id)')}"


def pictures(outputs: list[Any]) -> list[Any]:
    """Those of a cell's outputs that are pictures."""
    return [output for output in outputs if any(m.startswith("image/") for m in output.get("data", {}))]


def figure(name: str, root: Path = ROOT) -> bytes:
    """The stored picture of the figure of that name, in whichever chapter has it."""
    for path in chapters(root):
        for cell in code_cells(read(path)):
            if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name:
                return base64.b64decode(pictures(cell.outputs)[0].data["image/png"])
    raise LookupError(f"no chapter has a figure named {name!r}")


# ---- the stored state


def executed(notebook: Notebook) -> Iterator[str]:
    """Every cell was run, in order, in one go, and neither failed nor wrote to stderr."""
    for expected, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != expected:
            yield f"{label(cell)}: its execution count is {cell.execution_count}, not {expected}; {RERUN}"
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"{label(cell)}: has written to stderr: {output.text.strip()[:100]!r}"
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                yield f"{label(cell)}: has failed with {output.ename}, and is not tagged `raises-exception`"
        if "nbval-skip" in tags(cell) or "NBVAL_" in cell.source:
            yield f"{label(cell)}: hides from the comparison of its outputs"


def stable(notebook: Notebook) -> Iterator[str]:
    """Nothing in the file changes from run to run or from machine to machine."""
    seen: set[str] = set()
    for position, cell in enumerate(notebook.cells):
        identity = cell.get("id")
        if not identity or RANDOM_ID.fullmatch(identity):
            yield f"cell {position}: its id is {identity!r}, which does not last; {RERUN}"
        elif identity in seen:
            yield f"cell {position}: the id {identity!r} is taken"
        seen.add(identity)
        for volatile in {"execution", "ExecuteTime", "collapsed"} & set(cell.metadata):
            yield f"{label(cell)}: its metadata hold {volatile!r}; {RERUN}"
    if set(notebook.metadata.get("language_info", {})) != {"name"}:
        yield f"its metadata tell of one machine's Python; {RERUN}"


def plain(notebook: Notebook) -> Iterator[str]:
    """Code cells are short, and figures are one call of `gradcourse.plots`."""
    for cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES:
            yield f"{label(cell)}: {lines} lines of code, more than {MAX_LINES}; let the package do more"
        if (width := max(map(len, cell.source.splitlines()), default=0)) > MAX_WIDTH:
            yield f"{label(cell)}: a line of {width} characters, more than {MAX_WIDTH}; break it"
        if re.search(r"^\s*(import|from)\s+matplotlib|\bplt\.", cell.source, flags=re.MULTILINE):
            yield f"{label(cell)}: draws by hand; figures are functions of `gradcourse.plots`"


def illustrated(notebook: Notebook) -> Iterator[str]:
    """Every figure has alt text, a caption and a name to refer to."""
    for cell in code_cells(notebook):
        if not (shown := pictures(cell.outputs)):
            continue
        if len(shown) > 1:
            yield f"{label(cell)}: shows {len(shown)} pictures; one cell, one figure"
        mystnb = cell.metadata.get("mystnb", {})
        if len(mystnb.get("image", {}).get("alt", "")) < MIN_ALT:
            yield f"{label(cell)}: its figure needs `mystnb.image.alt` of at least {MIN_ALT} characters"
        figure = mystnb.get("figure", {})
        if not figure.get("caption"):
            yield f"{label(cell)}: its figure needs a `mystnb.figure.caption`"
        if not figure.get("name", "").startswith("fig-"):
            yield f"{label(cell)}: its figure needs a `mystnb.figure.name` that begins with `fig-`"


# ---- the parts


def complete(notebook: Notebook) -> Iterator[str]:
    """A chapter has a title, goals, exercises with folded solutions that run, a summary, and sources."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if len(re.findall(r"^# \S", prose, flags=re.MULTILINE)) != 1:
        yield "needs exactly one `# title`"
    if re.search(r"^#+\s+(chapter\s+)?\d", prose, flags=re.MULTILINE | re.IGNORECASE):
        yield "numbers a heading by hand; `_toc.yml` numbers them"
    for part in ("Learning goals", "What we measured", "Further reading"):
        if not re.search(rf"^(#+|:::+|```+)\s*({{[\w-]+}}\s*)?{part}\b", prose, flags=re.MULTILINE | re.IGNORECASE):
            yield f"needs a heading or an admonition {part!r}"
    reading = re.split(r"^#+\s*Further reading\b", prose, flags=re.MULTILINE | re.IGNORECASE)[-1]
    if "{cite" not in reading:
        yield "'Further reading' needs a citation"

    exercises = re.findall(r"^[`:]{3,}\s*{exercise(?:-start)?}", prose, flags=re.MULTILINE)
    if len(exercises) < MIN_EXERCISES:
        yield f"has {len(exercises)} exercises, fewer than {MIN_EXERCISES}"
    solved = list(solutions(notebook))
    if len(solved) != len(exercises):
        yield f"has {len(exercises)} exercises but {len(solved)} solutions"
    for start, cells in solved:
        if ":class: dropdown" not in start.source:
            yield f"{label(start)}: the solution is not folded; give it `:class: dropdown`"
        if not any(cell.cell_type == "code" and cell.source.strip() for cell in cells):
            yield f"{label(start)}: the solution runs no code"


def solutions(notebook: Notebook) -> Iterator[tuple[Cell, list[Cell]]]:
    """Each cell that opens a solution, with the cells up to the one that closes it."""
    start: Cell = None
    inside: list[Cell] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "{solution-start}" in cell.source:
            start, inside = cell, []
        elif start is not None and cell.cell_type == "markdown" and "{solution-end}" in cell.source:
            yield start, inside
            start = None
        elif start is not None:
            inside.append(cell)


# ---- the prose


def honest(notebook: Notebook) -> Iterator[str]:
    """Every number in prose, captions and alt texts was printed by some cell of this chapter."""
    printed = numbers_in_prose.parse("\n".join(output_text(notebook)))
    for cell in notebook.cells:
        if ELSEWHERE in tags(cell):
            continue
        for written in numbers_in_prose.claimed(cell_prose(cell)):
            if not numbers_in_prose.supported(written, printed):
                yield (
                    f"{label(cell)}: says {written.text!r}, which no cell of this chapter prints "
                    f"(tag the cell `{ELSEWHERE}` if the number is quoted from a source)"
                )


def settled(chapter: str, notebook: Notebook) -> Iterator[str]:
    """The chapter has a measurement, with its verdict, of each claim that it is about, and of no other."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    recorded = {output.data[RECORD_MIME]["claim"] for output in outputs if RECORD_MIME in output.get("data", {})}
    due = CLAIMS.get(chapter, set())
    for claim in sorted(due - recorded):
        yield f"is about {claim}, and no cell records a measurement of it with `course.record`"
    for claim in sorted(recorded - due):
        yield f"records a measurement of {claim}, which `CLAIMS` of the guard does not say it is about"


def unprinted(page: Path, chapters: list[Path]) -> Iterator[str]:
    """The numbers on a page without cells that no chapter printed, save where the paragraph says so in a comment."""
    printed = numbers_in_prose.parse("\n".join(text for path in chapters for text in output_text(read(path))))
    paragraphs = page.read_text(encoding="utf-8").split("\n\n")
    own = "\n\n".join(paragraph for paragraph in paragraphs if f"% {ELSEWHERE}" not in paragraph)
    for written in numbers_in_prose.claimed(own):
        if not numbers_in_prose.supported(written, printed):
            yield f"{page.name}: says {written.text!r}, which no cell of any chapter prints"


def cell_prose(cell: Cell) -> str:
    """What a cell tells the reader in words: its markdown, or its figure's caption and alt text."""
    if cell.cell_type == "markdown":
        return cell.source
    mystnb = cell.metadata.get("mystnb", {})
    return f"{mystnb.get('figure', {}).get('caption', '')}\n\n{mystnb.get('image', {}).get('alt', '')}"


def output_text(notebook: Notebook) -> Iterator[str]:
    """Every text that the code cells put out, records of claims included."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield output.text
            for mime, content in output.get("data", {}).items():
                if mime == "text/html":
                    yield re.sub(r"<[^>]*>", " ", content)
                elif mime.startswith("text/"):
                    yield content
                elif mime.endswith("+json"):
                    yield "\n".join(str(value) for value in content.values())


CHECKS = (executed, stable, plain, illustrated, complete, honest)


def complaints(path: Path) -> list[str]:
    """Everything that is wrong with one chapter."""
    notebook = read(path)
    found = [f"{path.name}: {complaint}" for check in CHECKS for complaint in check(notebook)]
    found += [f"{path.name}: {complaint}" for complaint in settled(path.stem, notebook)]
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"{path.name}: {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.1f}; make its figures smaller")
    return found
