"""The book's own Sphinx extension: pages that ask no other host for anything, and the table of claims.

`{claims-table}` shows `gradcourse.course.ledger`: every claim beside what the chapters have measured of it, each record
stored in a notebook being one measurement.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gradcourse.course.claims import Record
from gradcourse.course.ledger import Entry, in_notebook, ledger

HEADINGS = ("Claim", "Who", "What was said", "Measured", "Verdict", "Where")
WIDTHS = (7, 12, 30, 31, 10, 10)
Sections = Mapping[str, tuple[str, Mapping[int, str]]]  # per chapter its page, and the anchor of each cell's section


# ---- nothing from other hosts


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Put MathJax, its fonts and the extensions it loads on demand next to the pages (2 MB)."""
    if exception or app.builder.format != "html":
        return
    package = find_spec("sphinx-mathjax-offline")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tex-chtml.js", target)
    for folder in ("output/chtml/fonts/woff-v2", "input/tex/extensions"):
        shutil.copytree(source / folder, target / folder, dirs_exist_ok=True)


def drop_thebe_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out Thebe, which Jupyter Book brings along to run cells on a public server."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script}{getattr(script, 'attributes', {}).get('body', '')}".lower()
    ]


def drop_thebe_settings(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Leave out Thebe's settings, which name somebody else's repository."""
    for node in list(doctree.findall(nodes.raw)):
        if "x-thebe-config" in node.astext():
            node.parent.remove(node)


# ---- the table of claims


class claims_table(nodes.General, nodes.Element):
    """Stands where the table will be until all pages are read; in lower case, as docutils names its nodes."""


class ClaimsTable(SphinxDirective):
    """`{claims-table}`: every claim with what was measured and the verdict so far."""

    def run(self) -> list[nodes.Node]:
        """A placeholder; this page is read again when a notebook changes, and gives its table the full width."""
        self.env.metadata[self.env.docname]["html_theme.sidebar_secondary.remove"] = "true"
        for page in notebooks(self.env):
            self.env.note_dependency(self.env.doc2path(page))
        return [claims_table()]


def notebooks(env: Any) -> list[str]:
    """The names of the pages that are notebooks, in the order of their names."""
    return sorted(page for page in env.found_docs if env.doc2path(page).endswith(".ipynb"))


def cell_anchors(doctree: nodes.document) -> dict[int, str]:
    """For each code cell's position in the notebook, the anchor of the section it stands in."""
    anchors = {}
    for container in doctree.findall(nodes.container):
        if container.get("nb_element") == "cell_code":
            node: Any = container
            # Exercises and solutions hold sections of their own, which have no heading.
            while node is not None and not (isinstance(node, nodes.section) and isinstance(node[0], nodes.title)):
                node = node.parent
            if node is not None:
                anchors[container["cell_index"]] = node["ids"][0]
    return anchors


def fill_claims_tables(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Put the table in the place of each placeholder."""
    for placeholder in list(doctree.findall(claims_table)):
        chapters = notebooks(app.env)
        entries = ledger(one for chapter in chapters for one in in_notebook(app.env.doc2path(chapter)))
        sections = {Path(chapter).name: (chapter, cell_anchors(app.env.get_doctree(chapter))) for chapter in chapters}
        placeholder.replace_self(table([claim_row(app, page, entry, sections) for entry in entries]))


def claim_row(app: Sphinx, page: str, entry: Entry, sections: Sections) -> nodes.row:
    """One claim's row."""
    claim, verdict, found = entry.claim, entry.verdict, entry.measurements
    places = dict.fromkeys((sections[one.chapter][0], sections[one.chapter][1].get(one.cell, "")) for one in found)
    cells: list[nodes.Node] = [
        text(claim.id),
        text(claim.who),
        text(claim.text),
        nodes.bullet_list("", *(measured_item(one.record) for one in found)) if found else text("—"),
        nodes.paragraph("", "", nodes.inline("", verdict, classes=["verdict", f"verdict-{verdict.replace(' ', '-')}"])),
        nodes.paragraph("", "", *links(app, page, places)) if found else text("—"),
    ]
    row = nodes.row("", *(nodes.entry("", cell) for cell in cells))
    row["ids"].append(f"claim-{claim.id.lower()}")
    return row


def measured_item(record: Record) -> nodes.list_item:
    """What was measured, and the number."""
    number = nodes.strong("", record.measured)
    return nodes.list_item("", nodes.paragraph("", "", nodes.Text(f"{record.quantity}: "), number))


def links(app: Sphinx, page: str, places: Iterable[tuple[str, str]]) -> Iterator[nodes.Node]:
    """A link to each of the sections, given as page and anchor."""
    for number, (target, anchor) in enumerate(places):
        if number:
            yield nodes.Text(", ")
        title = f"{app.env.titles[target].astext()}: {section_title(app.env, target, anchor)}"
        address = app.builder.get_relative_uri(page, target) + (f"#{anchor}" if anchor else "")
        yield nodes.reference("", title, internal=True, refuri=address)


def section_title(env: Any, page: str, anchor: str) -> str:
    """The words of a heading."""
    for section in env.get_doctree(page).findall(nodes.section):
        if anchor in section["ids"]:
            return section.next_node(nodes.title).astext()
    return env.titles[page].astext()


def text(words: str) -> nodes.paragraph:
    """A paragraph of plain text."""
    return nodes.paragraph("", words)


def table(rows: list[nodes.row]) -> nodes.table:
    """A table of the rows under the headings; on narrow screens the style sheet turns rows into cards."""
    group = nodes.tgroup("", cols=len(HEADINGS))
    group.extend(nodes.colspec("", colwidth=width) for width in WIDTHS)
    head = nodes.thead("", nodes.row("", *(nodes.entry("", text(heading)) for heading in HEADINGS)))
    group.extend([head, nodes.tbody("", *rows)])
    return nodes.table("", group, classes=["claims-table"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_node(claims_table)
    app.add_directive("claims-table", ClaimsTable)
    app.connect("doctree-resolved", fill_claims_tables)
    app.connect("doctree-resolved", drop_thebe_settings, priority=900)
    # After every extension and the theme have had their say.
    app.connect("html-page-context", drop_thebe_scripts, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
