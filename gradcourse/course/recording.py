"""Recorded experiments: runs too long for a notebook, made by a command, stored with their provenance.

An experiment is a function and the points at which it is called. Each point's result is written as soon as it is
there, so that an interrupted recording goes on where it stopped. A chapter reads the file; a test repeats a slice.

>>> import tempfile
>>> points = grid(n=[2, 3])
>>> squares = Experiment("squares", "squares of numbers", lambda n: {"square": n * n}, points, check=points[0])
>>> with tempfile.TemporaryDirectory() as folder:
...     results = squares.record(f"{folder}/squares.json")
>>> results.of("square")
array([4., 9.])
>>> results.of("square", n=3)
array([9.])
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from textwrap import fill
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from gradcourse.course.provenance import in_words, provenance
from gradcourse.tables import json_value, numbers

__all__ = ["Experiment", "Results", "grid"]

DIGITS = 6  # significant ones that are kept
MADE_BY = ("platform", "device", "versions")  # what all points of one file have in common


@dataclass(frozen=True)
class Results:
    """A recorded experiment: where its numbers come from, and per point what was given and what was found."""

    experiment: str
    about: str
    provenance: Mapping[str, Any]
    points: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, path: str | Path) -> "Results":
        """Returns the results in the JSON file at `path`."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {"points": tuple(fields["points"])})

    def of(self, quantity: str, **given: Any) -> Float[np.ndarray, "point ..."]:
        """Returns what was found as `quantity` at every point where the given values are these, in order.

        Raises `ValueError` where there is no such point or it has no such quantity.
        """
        matching = self._matching(given)
        if any(quantity not in point["found"] for point in matching):
            raise ValueError(f"quantity={quantity!r} is not recorded; accepted here: {sorted(matching[0]['found'])}.")
        return numbers([point["found"][quantity] for point in matching])

    def table(self, quantity: str, *factors: str, **given: Any) -> Float[np.ndarray, "..."]:
        """Returns what was found as `quantity` in a full factorial experiment, with one axis per factor in front.

        The factors are, in their order, those named, else all that a point has; those that are `given` have no axis.
        Levels are in the order in which they are recorded. Raises `ValueError` as `of`, and where a combination of
        levels is missing or there twice.
        """
        chosen = [point["given"] for point in self._matching(given)]
        factors = tuple(name for name in factors or chosen[0] if name not in given)
        levels = {name: list(dict.fromkeys(point[name] for point in chosen)) for name in factors}
        places = [tuple(levels[name].index(point[name]) for name in factors) for point in chosen]
        sizes = tuple(map(len, levels.values()))
        if sorted(places) != list(np.ndindex(*sizes)):
            raise ValueError(
                f"{self.experiment} has {len(chosen)} points with {given} and {prod(sizes)} combinations of "
                f"{list(factors)}; accepted are factors of which each combination is recorded once."
            )
        found = self.of(quantity, **given)
        order = sorted(range(len(places)), key=places.__getitem__)
        return found[order].reshape(*sizes, *found.shape[1:])

    def write(self, path: str | Path) -> None:
        """Writes the results as JSON, one point a line; the file is put in place at the end, whole."""
        head = json.dumps(vars(self) | {"points": []}, indent=1).removesuffix("[]\n}")
        points = ",\n".join(map(json.dumps, self.points))
        unfinished = Path(f"{path}.part")
        unfinished.write_text(f"{head}[\n{points}\n]\n}}\n", encoding="utf-8")
        os.replace(unfinished, path)

    def __str__(self) -> str:
        seconds = sum(point["seconds"] for point in self.points)
        time = f"{seconds / 60:.0f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"
        what = fill(f"{self.about}: {len(self.points)} runs, {time}", 76)
        return f"{what}\n{in_words(self.provenance)}"

    def _matching(self, given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The points where the given values are these, at least one."""
        matching = [point for point in self.points if given.items() <= point["given"].items()]
        if not matching:
            known = {name: sorted({str(point["given"].get(name)) for point in self.points}) for name in given}
            raise ValueError(f"{self.experiment} has no point with {given}; recorded are {known}.")
        return matching


@dataclass(frozen=True)
class Experiment:
    """A function to be called at many points: `measure(**point)` returns numbers, or lists of numbers, by name.

    Of these, `check` is repeated by a test, with the arguments that are `cheaper`, such as fewer steps: what is found
    then must be the beginning of what is recorded there.
    """

    name: str
    about: str
    measure: Callable[..., Mapping[str, Any]]
    points: tuple[Mapping[str, Any], ...]
    check: Mapping[str, Any]
    cheaper: Mapping[str, Any] = field(default_factory=dict)

    def record(self, path: str | Path) -> Results:
        """Returns the results of all points, after measuring those that the file at `path` has not got yet.

        Raises `ValueError` where that file is of another experiment, or was begun on another device or with other
        versions: numbers from two machines are not mixed.
        """
        source = provenance(f"python -m gradcourse experiment {self.name}")
        begun = {json.dumps(point["given"]): point for point in self._begun(path, source)}
        done = {place: begun[place] for place in map(json.dumps, self.points) if place in begun}
        for number, given in enumerate(self.points, start=1):
            if (place := json.dumps(given)) in done:
                continue
            start = time.perf_counter()
            found = json_value(jax.device_get(dict(self.measure(**given))), digits=DIGITS, nan="nan")
            seconds = round(time.perf_counter() - start, 2)
            done[place] = {"given": dict(given), "found": found, "seconds": seconds}
            Results(self.name, self.about, source, tuple(done.values())).write(path)
            print(f"{self.name}: {number} of {len(self.points)}, {seconds:.0f} s: {given}", file=sys.stderr, flush=True)
        results = Results(self.name, self.about, source, tuple(done[place] for place in map(json.dumps, self.points)))
        results.write(path)
        return results

    def differences(self, results: Results) -> dict[str, float]:
        """Returns, per quantity, how far the cheap repetition is from what is recorded, relative to its largest."""
        again = jax.device_get(dict(self.measure(**{**self.check, **self.cheaper})))
        apart = {}
        for name, value in again.items():
            value = np.asarray(value, np.float64)
            (recorded,) = results.of(name, **self.check)
            beginning = recorded[tuple(slice(size) for size in value.shape)]
            apart[name] = float(np.max(np.abs(value - beginning)) / max(np.max(np.abs(beginning)), 1e-30))
        return apart

    def _begun(self, path: str | Path, source: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        """The points that the file has already."""
        if not Path(path).exists():
            return ()
        results = Results.read(path)
        if results.experiment != self.name:
            raise ValueError(f"path={str(path)!r} holds the experiment {results.experiment!r}, not {self.name!r}.")
        for name in MADE_BY:
            if results.provenance[name] != source[name]:
                raise ValueError(
                    f"path={str(path)!r} was begun with {name} {results.provenance[name]}; here it is {source[name]}. "
                    "Go on there, or record into another file."
                )
        return results.points


def grid(**values: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """Returns a point for every combination of the values, the last name's running fastest.

    >>> grid(init=["standard"], seed=range(2))
    ({'init': 'standard', 'seed': 0}, {'init': 'standard', 'seed': 1})
    """
    return tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))
