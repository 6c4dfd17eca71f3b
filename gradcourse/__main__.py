"""The command line: `python -m gradcourse bench` times the measurements, `... experiment NAME` records a long run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gradcourse import bench
from gradcourse.checks import known_name
from gradcourse.experiments import EXPERIMENTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` (by default the process's own) name."""
    parser = argparse.ArgumentParser(prog="python -m gradcourse", description="The instrument of the course.")
    commands = parser.add_subparsers(dest="command", required=True)
    benchmark = commands.add_parser("bench", help="time the measurements against their alternatives, in one run")
    benchmark.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(bench.CASES)}; default: all")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="record the results, with their provenance")
    experiment = commands.add_parser("experiment", help="record a run too long for a notebook; it may be interrupted")
    experiment.add_argument("names", nargs="*", metavar="NAME", help="of the experiment; without one, all are listed")
    experiment.add_argument(
        "--to", type=Path, default=Path("book/data"), metavar="FOLDER", help="where NAME.json goes (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "bench":
            bench.chosen(options.cases)
        else:
            chosen = [EXPERIMENTS[known_name("experiment", name, EXPERIMENTS)] for name in options.names]
            if not options.to.is_dir():
                raise ValueError(f"--to {options.to} is no folder; make it, or run this where the course lies.")
    except ValueError as error:
        parser.error(str(error))
    if options.command == "bench":
        bench.run(options.cases, options.json)
    elif not chosen:
        for each in EXPERIMENTS.values():
            print(f"{each.name}: {each.about} ({len(each.points)} runs)")
    for each in chosen if options.command == "experiment" else ():
        print(each.record(options.to / f"{each.name}.json"))


if __name__ == "__main__":
    main()
