"""The command line: `gradcourse COMMAND`, which is `python -m gradcourse COMMAND`.

- `gradcourse diagnose path.py:function` prints a gradient-flow report of anybody's model (`gradcourse.diagnose`);
- `gradcourse profile --depth 50 --activation sigmoid --init glorot` measures a random network, next to its prediction;
- `gradcourse claims` prints the course's claims and what was measured of them;
- `gradcourse bench` times the measurements, and `gradcourse experiment NAME` records a long run.

With `--json`, standard output is JSON and nothing else. `gradcourse --help` lists the exit codes.

>>> main(["profile", "--depth", "3", "--width", "20", "--activation", "relu", "--init", "he", "--seeds", "2", "--json"])
{...}
0
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]

HEALTHY, USAGE, THEIRS = 0, 2, 3
EPILOG = """exit codes:
  0  all well; for diagnose: no problem was found
  1  diagnose has findings
  2  wrong usage or input; one line on standard error says what to do
  3  the function given to diagnose raised an error itself; its traceback is shown whole"""
EXAMPLE = """the function is called without arguments and returns
  (model_or_loss, params, batch), or a dictionary of gradcourse.diagnose's arguments:

    def check():
        return model, params, (x, y)

"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message.rstrip('.')}. See {self.prog} --help.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` (by default the process's own) name; returns the exit code.

    Wrong usage and unusable input raise `SystemExit` with code 2, after one line on standard error.
    """
    options = _parser().parse_args(arguments)
    command = import_module(f"gradcourse.cli.{options.module}")  # now, so that help is there at once
    try:
        code = getattr(command, options.command)(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough, such as head
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return HEALTHY
    except Exception as error:
        from gradcourse.cli.shared import Theirs, is_complaint

        if isinstance(error, Theirs):
            traceback.print_exception(error.__cause__)
            return THEIRS
        if not is_complaint(error):
            raise
        told: _Parser = options.parser
        told.error(" ".join(str(error).split()))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    about = "Gradient flow: measured, diagnosed, explained."
    parser = _Parser(prog="gradcourse", description=about, epilog=EPILOG, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, module: str, about: str, more: str = "") -> argparse.ArgumentParser:
        text = more + EPILOG
        one = commands.add_parser(name, help=about, description=f"{about}.", epilog=text, formatter_class=raw)
        one.set_defaults(module=module, parser=one)
        return one

    one = command("diagnose", "diagnose", "report on the gradient flow of a model of yours", EXAMPLE)
    one.add_argument("target", metavar="path.py:function", help="or module.name:function; called without arguments")
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.add_argument("--picture", type=Path, metavar="FILE", help="write a figure too: .png, .svg, .pdf, ...")

    one = command("profile", "profile", "measure a random dense network on images of digits, layer by layer")
    one.add_argument("--depth", type=int, required=True, help="layers, the readout included")
    one.add_argument("--activation", default="tanh", help="such as sigmoid, tanh or relu (%(default)s)")
    one.add_argument("--init", default="glorot", help="such as standard, glorot, he or lecun (%(default)s)")
    one.add_argument("--width", type=int, default=100, help="units per layer (%(default)s)")
    one.add_argument("--seeds", type=int, default=5, help="random draws of the parameters (%(default)s)")
    one.add_argument("--quantity", default="backward", help="backward, forward, layer or gradient (%(default)s)")
    one.add_argument("--json", action="store_true", help="print all layers as JSON")
    one.add_argument("--picture", type=Path, metavar="FILE", help="write a figure too: .png, .svg, .pdf, ...")

    one = command("claims", "course", "print the course's claims, and what was measured of them")
    one.add_argument("--book", type=Path, metavar="FOLDER", help="read the notebooks there, not what is packaged")
    one.add_argument("--json", action="store_true", help="print them as JSON")

    one = command("bench", "course", "time the measurements against their alternatives, in one run")
    one.add_argument("cases", nargs="*", metavar="CASE", help="all where none is named; a wrong name lists them")
    one.add_argument("--json", type=Path, metavar="FILE", help="record the results, with their provenance")

    one = command("experiment", "course", "record a run too long for a notebook; it may be interrupted")
    one.add_argument("names", nargs="*", metavar="NAME", help="of the experiment; without one, all are listed")
    one.add_argument("--to", type=Path, metavar="FOLDER", help="where NAME.json goes (book/data, where it is there)")
    return parser
