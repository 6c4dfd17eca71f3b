"""The command line: `python -m gradcourse bench` times the measurements on this machine."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gradcourse import bench


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` (by default the process's own) name."""
    parser = argparse.ArgumentParser(prog="python -m gradcourse", description="The instrument of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    benchmark = commands.add_parser("bench", help="time the measurements against their alternatives, in one run")
    benchmark.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(bench.CASES)}; default: all")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="record the results, with their provenance")
    options = parser.parse_args(arguments)
    try:
        bench.chosen(options.cases)
    except ValueError as error:
        parser.error(str(error))
    bench.run(options.cases, options.json)


if __name__ == "__main__":
    main()
