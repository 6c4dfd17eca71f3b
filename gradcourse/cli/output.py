"""How commands put their results out: JSON on standard output, figures in files."""

import json
import sys
from pathlib import Path
from typing import Any

from gradcourse.tables import json_value

__all__ = ["check_picture", "print_json", "write_picture"]


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
