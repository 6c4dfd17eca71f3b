"""Figures of any quantity against any other: curves, activations and their slopes, costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.ticker import MaxNLocator

from gradcourse.nn.activations import resolve
from gradcourse.plots.style import LOOK, MUTED, STYLE, Figure, blank, finish, pens

__all__ = ["costs", "curves", "slopes"]


def curves(
    x: ArrayLike,
    measured: Mapping[str, ArrayLike] | None = None,
    predicted: Mapping[str, ArrayLike] | None = None,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: str = "",
    x_predicted: ArrayLike | None = None,
    mark: Mapping[str, float] | None = None,
    beside: bool = False,
) -> Figure:
    """Returns any quantity against any other: measured points with a band over seeds, predicted lines.

    Values are `(point,)`, or `(seed, point)` for a band. `log` names the logarithmic axes: `""`, `"x"`, `"y"` or
    `"xy"`. `x_predicted` gives the lines an axis of their own; `mark` draws a labelled vertical line at each value.
    Whole numbers `x`, such as layers, are marked at whole numbers. The legend may stand `beside` the plot, for which
    there is no room where curves fill all of it.
    """
    x = np.asarray(x)
    measured, predicted = dict(measured or {}), dict(predicted or {})
    figure, (axes,) = blank(1)
    with mpl.rc_context(STYLE):
        for label, pen in pens([*measured, *predicted]).items():
            if label in measured:
                pen.points(axes, x, np.asarray(measured[label]), label)
            if label in predicted:
                line_x = x if x_predicted is None else np.asarray(x_predicted)
                pen.line(axes, line_x, np.asarray(predicted[label]), None if label in measured else label)
        for words, position in (mark or {}).items():
            axes.axvline(position, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.text(
                position, 1.0, f" {words}", color=MUTED, fontsize=8, va="top", transform=axes.get_xaxis_transform()
            )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if np.issubdtype(x.dtype, np.integer):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in log:
            getattr(axes, f"set_{axis}scale")("log")
        finish(axes, title, key=bool(measured and predicted), beside=beside)
    return figure


def slopes(names: Sequence[str], *, reach: float = 8.0, title: str = "") -> Figure:
    """Returns two panels: the named activations, and their derivatives with the derivatives' bounds dashed."""
    figure, panels = blank(2)
    s = np.linspace(-reach, reach, 801, dtype=np.float32)
    with mpl.rc_context(STYLE):
        for name in names:
            activation, (colour, _) = resolve(name), LOOK[name]
            panels[0].plot(s, np.asarray(activation(s)), color=colour, label=name)
            panels[1].plot(s, np.asarray(activation.slope(s)), color=colour, label=name)
            panels[1].axhline(activation.derivative_bound, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        for axes, words in zip(panels, ("$f(s)$", "$f'(s)$"), strict=True):
            axes.set(xlabel="pre-activation $s$", ylabel=words)
        finish(panels[0], title, legend=len(names) > 1)
    return figure


def costs(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Returns seconds to run and seconds to compile against depth, for every way of measuring all layers.

    `points` are those of `gradcourse.course.bench.scan.depth_scan`; a way that compiles nothing is not on the right.
    """
    figure, panels = blank(2, sharey=True)
    ways = list(dict.fromkeys(point["way"] for point in points))
    with mpl.rc_context(STYLE):
        for axes, kind, words in zip(panels, ("run", "compile"), ("to run", "to compile"), strict=True):
            for way, pen in pens(ways).items():
                own = [point for point in points if point["way"] == way and point[kind] > 0]
                axes.plot(
                    [point["depth"] for point in own],
                    [point[kind] for point in own],
                    pen.marker + "-",
                    color=pen.colour,
                    label=way,
                )
            axes.set(xlabel="layers", xscale="log", yscale="log")
            finish(axes, f"{title}{words}", legend=False)
        panels[0].set_ylabel("seconds")
        panels[1].legend(*panels[0].get_legend_handles_labels(), loc="lower right")
    return figure
