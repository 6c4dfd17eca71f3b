"""The command line: `gradcourse COMMAND`, which is `python -m gradcourse COMMAND`.

- `gradcourse diagnose path.py:function` prints a gradient-flow report of anybody's model (`gradcourse.diagnose`);
- `gradcourse profile --depth 50 --activation sigmoid --init glorot` measures a random network, next to its prediction;
- `gradcourse claims` prints the course's claims and what was measured of them;
- `gradcourse bench` times the measurements, and `gradcourse experiment NAME` records a long run.

With `--json`, standard output is JSON and nothing else. Exit codes: 0 all well (for `diagnose`: no problem found); 1
`diagnose` has findings; 2 wrong usage or input, in one line that says what to do; 3 the function that was given to
`diagnose` raised an error itself, which is shown whole.

>>> main(["profile", "--depth", "3", "--width", "20", "--activation", "relu", "--init", "he", "--seeds", "2", "--json"])
{...}
0
"""

import argparse
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

import numpy as np

from gradcourse._checks import known_name, positive_integer

__all__ = ["main"]

HEALTHY, FINDINGS, USAGE, THEIRS = 0, 1, 2, 3
EPILOG = """exit codes:
  0  all well; for diagnose: no problem was found
  1  diagnose has findings
  2  wrong usage or input; one line on standard error says what to do
  3  the function given to diagnose raised an error itself; its traceback is shown whole"""
SHORT_NAMES = {"glorot": "glorot_uniform", "he": "he_normal", "lecun": "lecun_normal"}
QUANTITIES = {
    "backward": "Jacobian of the output with respect to each layer's input",
    "forward": "Jacobian of each layer's output with respect to the input",
    "layer": "Jacobian of each layer's output with respect to its own input",
    "gradient": "gradient of one example's loss with respect to each layer's input",
}
EXAMPLES, CLASSES = 50, 10
ROWS, COLUMNS = 21, 41  # of the picture in a terminal


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message.rstrip('.')}. See {self.prog} --help.\n")


class _Theirs(Exception):
    """What the user's own code has raised, as its cause."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` (by default the process's own) name; returns the exit code.

    Wrong usage and unusable input raise `SystemExit` with code 2, after one line on standard error.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has seen enough, such as head
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return HEALTHY
    except _Theirs as error:
        traceback.print_exception(error.__cause__)
        return THEIRS
    except (ValueError, TypeError, FloatingPointError) as error:
        if not _ours(error):
            raise
        told: _Parser = options.parser
        told.error(" ".join(str(error).split()))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="gradcourse",
        description="Gradient flow: measured, diagnosed, explained.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], about: str, more: str = "") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=about, description=f"{about}.", epilog=more or EPILOG, formatter_class=raw)
        one.set_defaults(run=run, parser=one)
        return one

    one = command("diagnose", _diagnose, "report on the gradient flow of a model of yours", _EXAMPLE + EPILOG)
    one.add_argument("target", metavar="path.py:function", help="or module.name:function; called without arguments")
    one.add_argument("--json", action="store_true", help="print the report as JSON")
    one.add_argument("--picture", type=Path, metavar="FILE", help="write a figure too: .png, .svg, .pdf, ...")

    one = command("profile", _profile, "measure a random dense network on images of digits, layer by layer")
    one.add_argument("--depth", type=int, required=True, help="layers, the readout included")
    one.add_argument("--activation", default="tanh", help="such as sigmoid, tanh or relu (%(default)s)")
    one.add_argument("--init", default="glorot", help="such as standard, glorot, he or lecun (%(default)s)")
    one.add_argument("--width", type=int, default=100, help="units per layer (%(default)s)")
    one.add_argument("--seeds", type=int, default=5, help="random draws of the parameters (%(default)s)")
    one.add_argument("--quantity", default="backward", help=f"{', '.join(QUANTITIES)} (%(default)s)")
    one.add_argument("--json", action="store_true", help="print all layers as JSON")
    one.add_argument("--picture", type=Path, metavar="FILE", help="write a figure too: .png, .svg, .pdf, ...")

    one = command("claims", _claims, "print the course's claims, and what was measured of them")
    one.add_argument("--book", type=Path, metavar="FOLDER", help="the course's notebooks (./book where it is there)")
    one.add_argument("--json", action="store_true", help="print them as JSON")

    one = command("bench", _bench, "time the measurements against their alternatives, in one run")
    one.add_argument("cases", nargs="*", metavar="CASE", help="all where none is named; a wrong name lists them")
    one.add_argument("--json", type=Path, metavar="FILE", help="record the results, with their provenance")

    one = command("experiment", _experiment, "record a run too long for a notebook; it may be interrupted")
    one.add_argument("names", nargs="*", metavar="NAME", help="of the experiment; without one, all are listed")
    one.add_argument(
        "--to", type=Path, default=Path("book/data"), metavar="FOLDER", help="where NAME.json goes (%(default)s)"
    )
    return parser


def _ours(error: BaseException) -> bool:
    """Whether the error was raised by this package, which says what to do, and not further down."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).resolve().is_relative_to(Path(__file__).resolve().parent)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _checked_picture(path: Path | None) -> None:
    """Raises, before anything is computed, where no figure could be written."""
    if path is None:
        return
    from gradcourse.plots import Figure

    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in kinds:
        raise ValueError(f"--picture {path} is accepted with one of the endings {', '.join(kinds)}.")
    if not path.parent.is_dir():
        raise ValueError(f"--picture {path} is in no folder that exists; make {path.parent} first.")


def _write_picture(figure: Any, path: Path | None) -> None:
    if path is not None:
        from gradcourse.plots import DOTS_PER_INCH

        figure.savefig(path, dpi=DOTS_PER_INCH)
        print(f"wrote {path}", file=sys.stderr)


# ---- diagnose

_EXAMPLE = """the function is called without arguments and returns
  (model_or_loss, params, batch), or a dictionary of gradcourse.diagnose's arguments:

    def check():
        return model, params, (x, y)

"""


def _diagnose(options: Any) -> int:
    from gradcourse.diagnosis.api import diagnose

    _checked_picture(options.picture)
    # What the function prints must not get into the JSON.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        given = _arguments(_function(options.target), options.target, list(inspect.signature(diagnose).parameters))
        try:
            report = diagnose(**given)
        except Exception as error:
            if isinstance(error, ValueError | TypeError) and _ours(error):
                raise
            raise _Theirs from error
    if options.json:
        _print_json(report.to_dict())
    else:
        print(report)
    if options.picture is not None:
        _write_picture(report.plot(), options.picture)
    return HEALTHY if report.healthy else FINDINGS


def _function(target: str) -> Callable[[], Any]:
    """The function that `path.py:function` or `module.name:function` names."""
    where, _, name = target.rpartition(":")
    if not where or not name:
        raise ValueError(f"{target} names no function; accepted is path.py:function or module.name:function.")
    as_path = where.endswith(".py") or "/" in where
    if as_path and not Path(where).is_file():
        raise ValueError(f"{where} is no file; accepted is the path of a Python file, before the colon.")
    sys.path.insert(0, str(Path(where).resolve().parent if as_path else Path.cwd()))  # for what it imports itself
    try:
        module = _from_file(Path(where)) if as_path else import_module(where)
    except ModuleNotFoundError as error:
        if not as_path and error.name is not None and f"{where}.".startswith(f"{error.name}."):
            raise ValueError(f"{where} is no module that Python finds here; a file is named with its .py.") from None
        raise _Theirs from error
    except Exception as error:
        raise _Theirs from error
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    function = getattr(module, name, None)
    return function if callable(function) else getattr(module, known_name("function", name, names))


def _from_file(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not accepted; give the path of a Python file that ends in .py.")
    module = sys.modules[path.stem] = module_from_spec(spec)  # data classes look themselves up
    spec.loader.exec_module(module)
    return module


def _arguments(function: Callable[[], Any], target: str, accepted: list[str]) -> dict[str, Any]:
    """What the function says is to be diagnosed, by argument."""
    try:
        given = function()
    except Exception as error:
        raise _Theirs from error
    if isinstance(given, dict) and all(isinstance(name, str) for name in given):
        return {known_name("key", name, accepted): value for name, value in given.items()}
    if isinstance(given, tuple) and len(given) == 3:
        return dict(zip(accepted[:3], given, strict=True))
    what = f"{len(given)} values" if isinstance(given, tuple) else f"a {type(given).__name__}"
    raise TypeError(
        f"{target} returned {what}; accepted is (model_or_loss, params, batch), or a dictionary of the arguments of "
        "gradcourse.diagnose."
    )


# ---- profile


def _profile(options: Any) -> int:
    import jax

    from gradcourse.course.claims import estimate, interval
    from gradcourse.measure import gradients, jacobians
    from gradcourse.nn.activations import ACTIVATIONS
    from gradcourse.nn.initializers import INITIALIZERS
    from gradcourse.nn.network import mlp
    from gradcourse.plots import profiles
    from gradcourse.theory import meanfield
    from gradcourse.training.data import digits
    from gradcourse.training.sweeps import over_seeds

    quantity = known_name("quantity", options.quantity, QUANTITIES)
    activation = known_name("activation", options.activation, ACTIVATIONS)
    init = known_name("init", options.init, (*INITIALIZERS, *SHORT_NAMES))
    init = SHORT_NAMES.get(init, init)
    depth, width = positive_integer("depth", options.depth), positive_integer("width", options.width)
    seeds = positive_integer("seeds", options.seeds)
    if depth < 2:
        raise ValueError(f"depth={depth} is accepted from 2 up: a layer and the readout.")
    _checked_picture(options.picture)

    data = digits()
    x, y = data.x_train[:EXAMPLES], data.y_train[:EXAMPLES]
    network = mlp(x.shape[1], [width] * (depth - 1), CLASSES, activation=activation, init=init)
    if quantity == "gradient":
        measure, predicted = lambda network, params, x: gradients.activation_gradient_norms(network, params, x, y), None
    else:
        name = f"{quantity}_jacobian_norms"
        measure, predicted = getattr(jacobians, name), getattr(meanfield, name)(network, x)
    measured = over_seeds(measure, network, x, seeds=seeds, key=jax.random.key(0))

    about = f"log10 norm of the {QUANTITIES[quantity]}"
    lines = [
        f"{depth} layers of {width}, {activation}, {init}; {seeds} seed{'s' * (seeds > 1)}, {EXAMPLES} digits",
        about,
        "",
    ]
    found: dict[str, Any] = {
        "network": {"depth": depth, "width": width, "activation": activation, "init": init},
        "seeds": seeds,
        "quantity": about,
        "layers": list(network.layer_names),
        "predicted": None if predicted is None else predicted.log10_norm.tolist(),
        "measured": [_or_word(value) for value in measured.log10_norm.mean(axis=0).tolist()],
        "interval": [None] * depth,
        "slope": None,
    }
    values = measured.log10_norm
    if np.isfinite(values).all():
        found["interval"] = [list(interval(values[:, layer])[1:]) for layer in range(depth)]
        slope, low, high = interval(measured.slopes())
        found["slope"] = {"decades_per_layer": slope, "interval": [low, high]}
        if predicted is not None:
            found["slope"]["predicted"] = predicted.slope()[0]
        if not low <= 0 <= high:  # else there may be no such number
            found["layers_to_lose_a_factor_of_ten"] = 1 / slope if quantity != "forward" else -1 / slope
    if options.json:
        _print_json(found)
    else:
        words = [
            estimate(values[:, layer], "z.2f") if np.isfinite(values[:, layer]).all() else f"{values[0, layer]}"
            for layer in range(depth)
        ]
        lines += _picture(network.layer_names, None if predicted is None else predicted.log10_norm, values, words)
        lines += ["", *_slope_in_words(found, quantity)]
        print("\n".join(lines))
    label = f"{activation}, {init}"
    if options.picture is not None:
        expected = None if predicted is None else {label: predicted}
        figure = profiles({label: measured}, expected, title=f"{depth} layers of {width}", ylabel=r"$\log_{10}$ norm")
        _write_picture(figure, options.picture)
    return HEALTHY


def _or_word(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)


def _picture(names: Sequence[str], predicted: Any, values: np.ndarray, words: Sequence[str]) -> list[str]:
    """A table with a picture: a line per layer, of many layers some, `o` where it was measured, `|` predicted."""
    from gradcourse.course.claims import Table

    mean = values.mean(axis=0)
    both = np.stack([mean, mean if predicted is None else predicted])
    known = both[np.isfinite(both)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)

    def place(value: float) -> int | None:
        return round((value - low) / (high - low or 1) * (COLUMNS - 1)) if np.isfinite(value) else None

    shown = np.unique(np.linspace(0, len(names) - 1, min(len(names), ROWS)).round().astype(int)).tolist()
    drawn = []
    for layer in shown:
        line = [" "] * COLUMNS
        for sign, value in (("|", both[1, layer]), ("o", both[0, layer])):
            if (column := place(value)) is not None and (sign == "o" or predicted is not None):
                line[column] = sign
        drawn.append("".join(line))
    columns = {"layer": [names[layer] for layer in shown]}
    if predicted is not None:
        columns["predicted"] = [f"{predicted[layer]:z.2f}" for layer in shown]
    interval = " [95 %]" if len(values) > 1 else ""
    columns |= {f"measured{interval}": [words[layer] for layer in shown]}
    scale = f"{low:z.1f}".ljust(COLUMNS - len(f"{high:z.1f}")) + f"{high:z.1f}"
    columns |= {scale: drawn}
    lines = repr(Table.from_columns(columns)).splitlines()
    left_out = len(names) - len(shown)
    legend = "o measured" + ("" if predicted is None else ", | predicted by mean-field theory where it is elsewhere")
    return [*lines, f"({legend}{f'; {left_out} layers between these are not shown' if left_out else ''})"]


def _slope_in_words(found: dict[str, Any], quantity: str) -> list[str]:
    if found["slope"] is None:
        return ["no slope: the norm is exactly zero, or not finite, at some layer"]
    slope, (low, high) = found["slope"]["decades_per_layer"], found["slope"]["interval"]
    line = f"slope {slope:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low < high else "") + " decades per layer"
    if "predicted" in found["slope"]:
        line += f" (predicted {found['slope']['predicted']:+.3f})"
    lines, layers = [line], found.get("layers_to_lose_a_factor_of_ten")
    if layers is not None and quantity != "layer":
        way = "on the way forward" if quantity == "forward" else "on the way back"
        lines.append(f"a factor of ten is {'lost' if layers > 0 else 'gained'} every {abs(layers):.3g} layers {way}")
    return lines


# ---- claims


def _claims(options: Any) -> int:
    from gradcourse.course.claims import CLAIMS, overall_verdict

    chapters, why = _records(options.book)
    found: list[dict[str, Any]] = []
    for claim in CLAIMS:
        records = [(chapter, one) for chapter, all_of_it in chapters.items() for one in all_of_it if one.claim == claim]
        verdict = overall_verdict([one.verdict for _, one in records]) if records else None
        fields = ("quantity", "measured", "rule", "verdict")
        told = [{"chapter": chapter} | {name: getattr(one, name) for name in fields} for chapter, one in records]
        found.append({"id": claim.id, "who": claim.who, "text": claim.text, "verdict": verdict, "records": told})
    if options.json:
        _print_json(found)
        if why:
            print(why, file=sys.stderr)
        return HEALTHY
    for claim_found in found:
        print(_claim_in_words(claim_found))
    if why:
        print(f"\n{why}")
    return HEALTHY


def _records(book: Path | None) -> tuple[dict[str, list[Any]], str]:
    """The records that the notebooks show, by chapter, or why there are none."""
    from gradcourse.course.claims import stored_records

    folder = Path("book") if book is None else book
    notebooks = sorted(folder.glob("[0-9]*.ipynb"))
    if notebooks:
        return {path.stem: [record for _, record in stored_records(path)] for path in notebooks}, ""
    why = f"No verdicts: there are no notebooks of the course in {folder}; name their folder with --book."
    if book is not None:
        raise ValueError(f"--book {book} holds no notebooks of the course; accepted is the folder book of its sources.")
    return {}, why


def _claim_in_words(claim: dict[str, Any]) -> str:
    lines = [f"{claim['id']} {claim['verdict'] or ''}".rstrip() + f": {claim['text']} ({claim['who']})"]
    for one in claim["records"]:
        verdict = f"{one['verdict']}: " if one["verdict"] != claim["verdict"] else ""
        lines.append(f"    {verdict}{one['quantity']} {one['measured']} ({one['rule']}; {one['chapter']})")
    return "\n".join(fill(line, 118, subsequent_indent=" " * (6 if line.startswith(" ") else 4)) for line in lines)


# ---- what takes long


def _bench(options: Any) -> int:
    from gradcourse.course import bench

    bench.run(options.cases, options.json)
    return HEALTHY


def _experiment(options: Any) -> int:
    from gradcourse.course.experiments import EXPERIMENTS

    chosen = [EXPERIMENTS[known_name("experiment", name, EXPERIMENTS)] for name in options.names]
    if not options.to.is_dir():
        raise ValueError(f"--to {options.to} is no folder; make it, or run this where the course lies.")
    if not chosen:
        for each in EXPERIMENTS.values():
            print(f"{each.name}: {each.about} ({len(each.points)} runs)")
    for each in chosen:
        print(each.record(options.to / f"{each.name}.json"))
    return HEALTHY
