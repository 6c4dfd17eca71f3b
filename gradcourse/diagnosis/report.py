"""The report of a diagnosis: a row per layer, the findings, and how both are shown: as text, HTML, a figure, JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from math import isnan, nan
from textwrap import fill
from typing import Any

import numpy as np

from gradcourse._checks import known_name
from gradcourse.profile import Profile
from gradcourse.tables import Table, json_value

__all__ = ["Finding", "LayerReport", "Report"]

ROWS = 60  # as many are printed; of a deeper network, the first and the last half of that


@dataclass(frozen=True)
class LayerReport:
    r"""What was measured of one layer on the batch. NaN stands for what a layer does not have.

    - `name`: its path in the parameter pytree; `parameters`: the paths of its parameters;
    - `shape`, `dtype`: of its activation $h$, batch included; `count`: of its parameters;
    - `mean`, `spread`: mean and standard deviation of the activation, over all its entries;
    - `saturated`: share of entries in the tails of the activation function; `silent`, `dead`: share of units that pass
      nothing back on this batch, or further out either, as `gradcourse.measure.units.activation_statistics` says;
    - `log10_activation_gradient`: $\log_{10} \|\partial C/\partial h\|$, of the loss $C$ as it was given, over the
      whole batch; `log10_parameter_gradient`: the same for its parameters. Minus infinity where it is exactly 0;
    - `update_to_weight`: norm of the optimiser's update over that of the parameters;
    - `gain`: mean square factor by which the layer's Jacobian stretches a random cotangent on the way back,
      $\|J\|_F^2 / n$ with $n$ entries of $h$; `gain_error`: its standard error;
    - `lost`: share of the gradient's norm that underflows in the model's own dtype, activation or parameters;
    - `units`: how many it has; `finite`, `finite_parameters`: whether its activation and its parameters are finite;
      `in_chain`: whether it counts for the profile's slope; `waiting`: whether weights of it are 0, and about to move.
    """

    name: str
    parameters: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    count: int
    mean: float
    spread: float
    saturated: float
    dead: float
    silent: float
    log10_activation_gradient: float
    log10_parameter_gradient: float
    update_to_weight: float = nan
    gain: float = nan
    gain_error: float = nan
    lost: float = 0.0
    units: int = 0
    finite: bool = True
    finite_parameters: bool = True
    in_chain: bool = True
    waiting: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, where, how it shows, by which rule, what helps, and where to read on.

    `threshold` is that of `gradcourse.diagnosis.findings`; `read_on` may be empty.
    """

    kind: str
    layers: tuple[str, ...]
    evidence: str
    rule: str
    threshold: float
    advice: str
    read_on: str = ""

    def __str__(self) -> str:
        return f"{self.kind.upper()}: {self.evidence}" + "".join(f"\n  {heading}: {it}" for heading, it in self._more())

    def _repr_html_(self) -> str:
        further = [f"<br><em>{heading}:</em> {escape(text)}" for heading, text in self._more()]
        return f"<strong>{escape(self.kind)}</strong>: {escape(self.evidence)}" + "".join(further)

    def _more(self) -> list[tuple[str, str]]:
        told = (("Rule", self.rule), ("What usually helps", self.advice), ("Read on", self.read_on))
        return [(heading, text) for heading, text in told if text]


@dataclass(frozen=True)
class Report:
    """What `gradcourse.diagnose` has found.

    - `layers`: a row per layer, in the order in which the program comes to them, input first;
    - `findings`: what is wrong, worst first; empty for a healthy network;
    - `loss`: its value on the batch;
    - `slope`: decades that the gradient's norm grows per layer towards the loss, that is, loses per layer on the way
      back: the median slope between any two layers (Theil and Sen), and `slope_range`, the ends of its 95 % interval;
    - `elsewhere`: paths of parameters that no layer was found for.
    """

    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    loss: float
    slope: float
    slope_range: tuple[float, float]
    elsewhere: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __getitem__(self, name: str) -> LayerReport:
        """Returns the row of the layer with that name; raises `KeyError` that lists the names."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} is no layer; there are {', '.join(row.name for row in self.layers)}.")

    def of(self, quantity: str) -> np.ndarray:
        """Returns one quantity of every layer, by the name of a field of `LayerReport`."""
        return np.array([getattr(row, quantity) for row in self.layers])

    def table(self, columns: Sequence[str] | None = None, *, digits: int = 2) -> Table:
        """Returns the rows as a table, of the named `columns` or of all that some layer has.

        They are `"layer"`, `"activation"`, `"parameters"`, `"mean"`, `"spread"`, `"saturated"`, `"silent"`, `"dead"`,
        `"log10 gradient"`, `"of parameters"`, `"update/weight"`, `"gain"`. Logarithms have one of the `digits` less.
        """
        rows, decades = self.layers, f".{digits - 1}f"
        everything = {
            "layer": [row.name for row in rows],
            "activation": ["x".join(map(str, row.shape)) for row in rows],
            "parameters": [f"{row.count:,}" if row.count else "-" for row in rows],
            "mean": [_number(row.mean, digits) for row in rows],
            "spread": [_number(row.spread, digits) for row in rows],
            "saturated": [_share(row.saturated) for row in rows],
            "silent": [_share(row.silent) for row in rows],
            "dead": [_share(row.dead) for row in rows],
            "log10 gradient": [format(row.log10_activation_gradient, decades) for row in rows],
            "of parameters": [format(row.log10_parameter_gradient, decades) if row.count else "-" for row in rows],
            "update/weight": ["-" if isnan(row.update_to_weight) else f"{row.update_to_weight:.1g}" for row in rows],
            "gain": ["-" if isnan(row.gain) else _number(row.gain, digits, row.gain_error) for row in rows],
        }
        if columns is None:
            columns = [name for name, column in everything.items() if set(column) != {"-"}]
        return Table.from_columns({known_name("columns", name, everything): everything[name] for name in columns})

    def __repr__(self) -> str:
        lines = repr(self.table()).splitlines()
        if len(self.layers) > ROWS:
            left_out = f"... {len(self.layers) - ROWS} more; all are in report.layers"
            lines = [*lines[: 1 + ROWS // 2], left_out, *lines[-ROWS // 2 :]]
        lines += ["", *self._summary(), ""]
        for number, finding in enumerate(self.findings, start=1):
            for line in f"{number}. {finding}".splitlines():
                lines.append(fill(line, 100, subsequent_indent=" " * (len(line) - len(line.lstrip()) + 3)))
        return "\n".join(lines if self.findings else [*lines, "No problem was found."])

    def _summary(self) -> list[str]:
        low, high = self.slope_range
        lines = [f"loss {self.loss:.4g}"]
        if not isnan(self.slope):
            lines[0] += f"; gradient {self.slope:+.3f} [{low:+.3f}, {high:+.3f}] decades per layer towards the loss"
        if self.elsewhere:
            lines.append(f"parameters outside of the layers found: {', '.join(self.elsewhere)}")
        return lines

    def _repr_html_(self) -> str:
        table, sick = self.table(), {escape(name) for finding in self.findings for name in finding.layers}

        def line(tag: str, entries: Sequence[str]) -> str:
            first, *rest = map(escape, entries)
            first = f"<strong>{first}</strong>" if first in sick else first
            return "<tr>" + "".join(f"<{tag}>{entry}</{tag}>" for entry in (first, *rest)) + "</tr>"

        findings = "".join(f"<li>{one._repr_html_()}</li>" for one in self.findings)
        body = "".join(line("td", row) for row in table.rows)
        verdict = f"<ol>{findings}</ol>" if findings else "<p>No problem was found.</p>"
        return (
            # Themes know how to show a pandas table in the dark, too, so it goes by that name.
            '<div class="gradcourse-report"><div style="overflow: auto; max-height: 40em">'
            '<table class="dataframe" style="font-size: 0.8em; white-space: nowrap">'
            f"<thead>{line('th', table.headings)}</thead><tbody>{body}</tbody></table></div>"
            f"<p>{'<br>'.join(map(escape, self._summary()))}</p>{verdict}</div>"
        )

    def plot(self, *, title: str = "") -> Any:
        """Returns a figure: log10 norm of the gradient at every layer, of activations and of parameters."""
        from gradcourse.plots import profiles  # with it comes matplotlib

        names = tuple(row.name for row in self.layers)
        measured = {
            f"{of}s": Profile.from_log10(self.of(f"log10_{of}_gradient"), layers=names, quantity="norm of the gradient")
            for of in ("activation", "parameter")
        }
        kinds = ", ".join(finding.kind for finding in self.findings)
        title = title or f"Gradient of the loss at every layer ({kinds or 'no problem found'})"
        return profiles(measured, title=title, ylabel=r"$\log_{10}$ norm of the gradient")

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as what JSON can hold: infinities as words, `None` for what a layer does not have."""
        return json_value({"healthy": self.healthy, **asdict(self)})


def _number(value: float, digits: int, error: float = nan) -> str:
    text = f"{value:.0f}" if 10**digits <= abs(value) < 1e5 else f"{value:.{digits}g}"
    return text if isnan(error) else f"{text} ± {error:.1g}"


def _share(value: float) -> str:
    return "-" if isnan(value) else f"{value:.0%}"
