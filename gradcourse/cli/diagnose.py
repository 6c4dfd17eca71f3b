"""`gradcourse diagnose path.py:function`: finds the user's function, calls it, and reports on what it returns."""

import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any

from gradcourse._checks import known_name
from gradcourse.cli.shared import Theirs, check_picture, is_complaint, print_json, write_picture
from gradcourse.diagnosis import api

__all__ = ["diagnose"]

HEALTHY, FINDINGS = 0, 1


def diagnose(options: Any) -> int:
    """Prints the report on what the user's function returns; the exit code tells whether it has findings."""
    check_picture(options.picture)
    # What the function prints must not get into the JSON.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        given = _arguments(_function(options.target), options.target, list(signature(api.diagnose).parameters))
        try:
            report = api.diagnose(**given)
        except Exception as error:
            if is_complaint(error):
                raise
            raise Theirs from error
    print_json(report.to_dict()) if options.json else print(report)
    if options.picture is not None:
        write_picture(report.plot(), options.picture)
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
        raise Theirs from error
    except Exception as error:
        raise Theirs from error
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
        raise Theirs from error
    if isinstance(given, dict) and all(isinstance(name, str) for name in given):
        return {known_name("key", name, accepted): value for name, value in given.items()}
    if isinstance(given, tuple) and len(given) == 3:
        return dict(zip(accepted[:3], given, strict=True))
    what = f"{len(given)} values" if isinstance(given, tuple) else f"a {type(given).__name__}"
    raise TypeError(
        f"{target} returned {what}; accepted is (model_or_loss, params, batch), or a dictionary of the arguments of "
        "gradcourse.diagnose."
    )
