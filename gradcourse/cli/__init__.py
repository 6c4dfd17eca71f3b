"""The command line: `gradcourse COMMAND`, which is `python -m gradcourse COMMAND`."""

from gradcourse.cli.main import main

__all__ = ["main"]
