"""Run the notebooks and store their outputs so that a diff shows only what changed.

    python book/_tools/execute.py        # all of them
    python book/_tools/execute.py 02     # those whose name begins with 02

Cells keep their ids and get lasting ones where they have none. Neither times nor anything of this machine is
stored. A picture whose pixels are the same keeps its old bytes. At the end the records of claims that all notebooks
show are copied into the package, which has verdicts to tell where there is no book.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import guard
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from gradcourse.course import ledger

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TIMEOUT = 600  # seconds a cell


def execute(path: Path) -> None:
    """Run one notebook from a fresh kernel and store it; it is left alone if a cell fails or complains."""
    notebook = guard.read(path)
    give_ids(notebook, prefix=f"ch{path.name[:2]}")
    stored = {cell.id: cell.outputs for cell in guard.code_cells(notebook)}
    for cell in guard.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
        for volatile in ("execution", "ExecuteTime", "collapsed"):
            cell.metadata.pop(volatile, None)

    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(f"{path.name}: a cell has failed\n{error}") from None
    if complaints := list(guard.executed(notebook)):
        raise SystemExit("\n".join(f"{path.name}: {complaint}" for complaint in complaints))

    for cell in guard.code_cells(notebook):
        for new, old in zip(guard.pictures(cell.outputs), guard.pictures(stored[cell.id]), strict=False):
            keep_picture(new["data"], old["data"])
    notebook.metadata.update(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def give_ids(notebook: Any, prefix: str) -> None:
    """Give cells without an id, or with a random or a second-hand one, an id of their own that lasts."""
    taken: set[str] = set()
    homeless = []
    for position, cell in enumerate(notebook.cells, start=1):
        identity = cell.get("id")
        if not identity or guard.RANDOM_ID.fullmatch(identity) or identity in taken:
            homeless.append((position, cell))
        else:
            taken.add(identity)
    for position, cell in homeless:
        number = position
        while (identity := f"{prefix}-{number:02d}") in taken:
            number += 1
        taken.add(identity)
        cell["id"] = identity


def keep_picture(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Put the old bytes back where they show the same pixels: encoders differ more than pictures do."""
    mime = "image/png"
    if mime in new and mime in old and new[mime] != old[mime] and pixels(new[mime]) == pixels(old[mime]):
        new[mime] = old[mime]


def pixels(encoded: str) -> tuple[tuple[int, int], bytes]:
    """Size and colours of a picture in base64."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return image.size, image.convert("RGBA").tobytes()


def main(chapter: str = "") -> None:
    """Run every chapter whose file name begins so; `2` stands for `02`."""
    settings = guard.ROOT / "_build" / "ipython"  # empty: nobody's own start-up files
    settings.mkdir(parents=True, exist_ok=True)
    os.environ.update(JAX_PLATFORMS="cpu", IPYTHONDIR=str(settings))
    beginning = chapter.zfill(2) if chapter else ""
    chosen = [path for path in guard.chapters() if path.name.startswith(beginning)]
    if not chosen:
        raise SystemExit(f"no chapter of _toc.yml begins with {beginning!r}")
    for path in chosen:
        execute(path)
        print(f"{path.relative_to(guard.ROOT)}: done", flush=True)
    for copy, name in guard.COPIES.items():
        (guard.ROOT / copy).write_bytes(guard.figure(name))
    records = [ledger.as_json(one) for one in ledger.in_book(guard.ROOT / "book")]
    text = json.dumps(records, indent=1, ensure_ascii=False)
    (guard.ROOT / "gradcourse" / "course" / "data" / "records.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
