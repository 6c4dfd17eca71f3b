"""What the commands share: JSON on standard output, figures in files, and whose an error is."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from gradcourse.tables import json_value

__all__ = ["Theirs", "check_picture", "is_complaint", "print_json", "write_picture"]


class Theirs(Exception):
    """What the user's own code has raised, as its cause."""


def is_complaint(error: BaseException) -> bool:
    """Whether a function of this package has raised the error itself, to say what is wrong with what it was given.

    What a library raises further down is none: either a model of the user's has called it, or a check of ours is
    missing, and in both cases the whole traceback is what helps.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals.get("__name__", "").startswith("gradcourse.")
    return ours and isinstance(error, ValueError | TypeError | FloatingPointError)


def print_json(value: Any) -> None:
    """Prints the value as JSON."""
    print(json.dumps(json_value(value), indent=1, allow_nan=False))


def check_picture(path: Path | None) -> None:
    """Raises `ValueError`, before anything is computed, where no figure could be written."""
    if path is None:
        return
    from gradcourse.plots.style import Figure

    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"--picture {path} is accepted with one of the endings {', '.join(kinds)}.")
    if not path.parent.is_dir():
        raise ValueError(f"--picture {path} is in no folder that exists; make {path.parent} first.")


def write_picture(figure: Any, path: Path) -> None:
    """Writes the figure, and says so on standard error."""
    from gradcourse.plots.style import DOTS_PER_INCH

    figure.savefig(path, dpi=DOTS_PER_INCH)
    print(f"wrote {path}", file=sys.stderr)
