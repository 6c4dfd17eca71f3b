"""Lint, format and types, so that one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Code in the book is as wide as the page, so that nobody has to scroll; elsewhere lines may be longer.
PAGE_WIDTH = "76"
NOTEBOOKS = ["ruff", "format", "--line-length", PAGE_WIDTH, *map(str, sorted((ROOT / "book").glob("*.ipynb")))]


@pytest.mark.parametrize(
    "arguments",
    [["ruff", "check"], ["ruff", "format", "--check"], [*NOTEBOOKS, "--check"], ["mypy"]],
    ids=["lint", "format", "format-of-notebooks", "types"],
)
def test_style(arguments: list[str]) -> None:
    tool = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert tool.returncode == 0, f"{tool.stdout}{tool.stderr}\n(`make format` puts most of it in order)"
