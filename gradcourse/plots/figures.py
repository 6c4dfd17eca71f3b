"""The figures: each function draws one, from numbers that are measured or predicted.

>>> measured = Profile.from_log10([-2.0, -1.0, 0.0], layers=("0 dense", "1 dense", "2 dense"), quantity="norm")
>>> profiles({"sigmoid": measured})
<Figure: 1 panel>
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradcourse.measure.jacobians import GainSplit
from gradcourse.nn.activations import resolve
from gradcourse.plots.style import INK, LOOK, MUTED, OTHERS, Figure, Pen, drawing, finish, pens
from gradcourse.profile import Profile

__all__ = ["costs", "curves", "gain_split", "heat_map", "images", "layers_over_steps", "profiles", "slopes"]

# where float32's normal numbers end, and where even its subnormal numbers do
FLOAT32_NORMAL, FLOAT32_LAST = np.log10(2.0**-126), np.log10(2.0**-149)
DASHES = (0, (4, 3))
THIN: dict[str, Any] = {"color": MUTED, "linewidth": 1}
SMALL: dict[str, Any] = {"color": MUTED, "fontsize": 8}


def profiles(
    measured: Profile | Mapping[str, Profile],
    predicted: Profile | Mapping[str, Profile] | None = None,
    *,
    title: str = "",
    ylabel: str = r"$\log_{10}$ norm",
    float32: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Returns the log10 norm against the layer: points measured, lines predicted, layer 0 on the left.

    A profile with a sample axis (seeds) is drawn as its mean with a band from the smallest to the largest sample.
    Both arguments may be one profile or several by label; equal labels share a colour. `float32` marks where that
    format's numbers end, on the right; `levels` draws horizontal lines at other heights, labelled on the left.
    """
    ends = {"float32 loses digits below": FLOAT32_NORMAL, "float32 is 0 below": FLOAT32_LAST} if float32 else {}
    with drawing() as (figure, (axes,)):
        _draw(axes, _by_layer(measured), _by_layer(predicted))
        for side, place, lines in (("right", 1, ends), ("left", 0.01, levels or {})):
            for words, level in lines.items():
                axes.axhline(level, **THIN, linestyle=DASHES)
                axes.text(place, level, words, **SMALL, ha=side, va="bottom", transform=axes.get_yaxis_transform())
        axes.set(xlabel="layer (0 is next to the input)", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, title, key=bool(predicted), beside=bool(levels))
    return figure


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
    x, measured, predicted = np.asarray(x), measured or {}, predicted or {}
    line_x = x if x_predicted is None else np.asarray(x_predicted)
    points = {label: (x, np.asarray(values)) for label, values in measured.items()}
    with drawing() as (figure, (axes,)):
        _draw(axes, points, {label: (line_x, np.asarray(values)) for label, values in predicted.items()})
        for words, place in (mark or {}).items():
            axes.axvline(place, **THIN, linestyle=DASHES)
            axes.text(place, 1.0, f" {words}", **SMALL, va="top", transform=axes.get_xaxis_transform())
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if np.issubdtype(x.dtype, np.integer):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(**{f"{axis}scale": "log" for axis in log})
        finish(axes, title, key=bool(measured and predicted), beside=beside)
    return figure


def layers_over_steps(
    step: ArrayLike,
    values: ArrayLike,
    *,
    layers: Sequence[Any] | None = None,
    ylabel: str,
    xlabel: str = "updates",
    title: str = "",
    log: str = "",
) -> Figure:
    """Returns a quantity of every layer against the step, one line per layer, as a `History` has it.

    `values` are `(snapshot, layer)`, or `(seed, snapshot, layer)` for a band from the smallest to the largest seed.
    Colours run from the input (dark) to the output (light); `layers` names them, by default by number. `log` as in
    `curves`.

    >>> layers_over_steps(np.arange(3), np.ones((5, 3, 2)), ylabel="norm")
    <Figure: 1 panel>
    """
    values = np.asarray(values)
    count = values.shape[-1]
    colours = mpl.colormaps["plasma"](np.linspace(0, 0.62, count))  # beyond, a line is too pale on white
    with drawing() as (figure, (axes,)):
        names = range(count) if layers is None else layers
        for index, (name, colour, marker) in enumerate(zip(names, colours, cycle("osD^vPX<>p"), strict=False)):
            one = values[..., index]
            if one.ndim > 1:
                axes.fill_between(step, one.min(axis=0), one.max(axis=0), color=colour, alpha=0.18, linewidth=0)
                one = one.mean(axis=0)
            axes.plot(step, one, color=colour, marker=marker, markevery=max(1, len(one) // 8), label=str(name))
        axes.set(xlabel=xlabel, ylabel=ylabel, **{f"{axis}scale": "log" for axis in log})
        axes.set_title(title)
        axes.legend(title="layer", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def gain_split(
    measured: GainSplit | Mapping[str, GainSplit],
    predicted: Mapping[str, tuple[float, float]] | None = None,
    *,
    title: str = "",
) -> Figure:
    """Returns each layer's log10 gain on the way back, its weight part and its activation part, one panel per network.

    `predicted` gives, by the same labels, the two parts that theory expects (weights, activation), drawn as lines.
    """
    splits = {"": measured} if isinstance(measured, GainSplit) else measured
    with drawing(len(splits), sharey=True) as (figure, panels):
        for axes, (label, split) in zip(panels, splits.items(), strict=True):
            layers = np.arange(split.total.depth)
            for name, part, look in (
                ("weights", split.weights, OTHERS[0]),
                ("activation", split.activation, OTHERS[1]),
            ):
                Pen(*look).points(axes, layers, part.log10_norm, name)
            for level, (colour, _) in zip((predicted or {}).get(label, ()), OTHERS, strict=False):
                axes.axhline(level, color=colour, linewidth=1.6)
            Pen(INK, "x").points(axes, layers, split.total.log10_norm, "both together")
            axes.axhline(0, **THIN)
            axes.set(xlabel="layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            finish(axes, label or title, legend=axes is panels[0])
        panels[0].set_ylabel(r"$\log_{10}$ gain on the way back")
    return figure


def slopes(names: Sequence[str], *, reach: float = 8.0, title: str = "") -> Figure:
    """Returns two panels: the named activations, and their derivatives with the derivatives' bounds dashed."""
    s = np.linspace(-reach, reach, 801, dtype=np.float32)
    with drawing(2) as (figure, panels):
        for name in names:
            activation, (colour, _) = resolve(name), LOOK[name]
            panels[0].plot(s, np.asarray(activation(s)), color=colour, label=name)
            panels[1].plot(s, np.asarray(activation.slope(s)), color=colour, label=name)
            panels[1].axhline(activation.derivative_bound, color=colour, linewidth=1, linestyle=DASHES)
        for axes, words in zip(panels, ("$f(s)$", "$f'(s)$"), strict=True):
            axes.set(xlabel="pre-activation $s$", ylabel=words)
        finish(panels[0], title, legend=len(names) > 1)
    return figure


def costs(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Returns seconds to run and seconds to compile against depth, for every way of measuring all layers.

    `points` are those of `gradcourse.course.bench.record.depth_scan`; a way that compiles nothing is not on the right.
    """
    with drawing(2, sharey=True) as (figure, panels):
        for axes, kind in zip(panels, ("run", "compile"), strict=True):
            for way, pen in pens([point["way"] for point in points]).items():
                own = [point for point in points if point["way"] == way and point[kind] > 0]
                depths, seconds = ([point[name] for point in own] for name in ("depth", kind))
                axes.plot(depths, seconds, pen.marker + "-", color=pen.colour, label=way)
            axes.set(xlabel="layers", xscale="log", yscale="log")
            finish(axes, f"{title}to {kind}", legend=False)
        panels[0].set_ylabel("seconds")
        panels[1].legend(*panels[0].get_legend_handles_labels(), loc="lower right")
    return figure


def heat_map(
    values: ArrayLike,
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    xlabel: str,
    ylabel: str,
    quantity: str,
    title: str = "",
    form: str = ".1f",
    missing: str = "none",
    frontier: Sequence[float] | None = None,
) -> Figure:
    """Returns a table of shaded cells with the number in each, so that nobody has to read it off the shade.

    `values` are `(y, x)`, the first row at the bottom; `x` and `y` name columns and rows. A value that is not finite
    is written as `missing`; `form` is the format of the others. `frontier` is a value of `y`, one per column, at which
    a line is drawn, between the rows that are next to it; it needs rows named by numbers that increase.

    >>> losses = np.array([[1.0, 2.0], [3.0, np.inf]])
    >>> heat_map(losses, [0.1, 1], [2, 4], xlabel="rate", ylabel="layers", quantity="loss")
    <Figure: 2 panels>
    """
    values = np.asarray(values, float)
    with drawing() as (figure, (axes,)):
        shades = axes.imshow(np.ma.masked_invalid(values), origin="lower", aspect="auto", cmap="cividis")
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = shades.to_rgba(value) if np.isfinite(value) else (1, 1, 1, 1)
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            words = f"{value:{form}}" if np.isfinite(value) else missing
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color="white" if dark else INK)
        for column, level in enumerate(frontier or ()):
            row = np.interp(level, np.asarray(y, float), range(len(y)), left=-0.46, right=len(y) - 0.54)
            axes.plot([column - 0.5, column + 0.5], [row, row], color="#d55e00", linewidth=3, solid_capstyle="butt")
        axes.set_xticks(range(values.shape[1]), map(str, x))
        axes.set_yticks(range(values.shape[0]), map(str, y))
        axes.grid(False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(shades, ax=axes, label=quantity)
        axes.set_title(title)
    return figure


def images(pictures: ArrayLike, labels: Sequence[Any], *, title: str = "") -> Figure:
    """Returns a row of grey images `(image, height, width, 1)` with a label above each, ink dark."""
    with drawing(len(labels), height=7.2 / len(labels) + 0.4) as (figure, panels):
        for axes, picture, label in zip(panels, np.asarray(pictures), labels, strict=True):
            axes.imshow(picture[..., 0], cmap="gray_r")
            axes.set_title(str(label), loc="center", fontsize=10, fontweight="normal", pad=4)
            axes.axis("off")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _by_layer(value: Profile | Mapping[str, Profile] | None) -> dict[str, tuple[Any, Any]]:
    named = {"measured": value} if isinstance(value, Profile) else value or {}
    return {label: (np.arange(one.depth), one.log10_norm) for label, one in named.items()}


def _draw(axes: Axes, measured: Mapping[str, tuple[Any, Any]], predicted: Mapping[str, tuple[Any, Any]]) -> None:
    """Draws points and lines, each `(x, values)`; equal labels share a pen and a place in the legend."""
    for label, pen in pens([*measured, *predicted]).items():
        if label in measured:
            pen.points(axes, *measured[label], label)
        if label in predicted:
            pen.line(axes, *predicted[label], None if label in measured else label)
