"""Every figure of the course is one call here; each returns a matplotlib `Figure` that a notebook shows.

One look for the whole book: measured values are points with a band over seeds, predictions are lines, and every
activation has a colour and a marker of its own everywhere. The colours keep a contrast of 3 to 1 on white, and their
hues when the book's dark theme inverts the figures. Nothing here touches pyplot or matplotlib's global settings.

>>> from gradcourse.profile import Profile
>>> measured = Profile.from_log10([-2.0, -1.0, 0.0], layers=("0 dense", "1 dense", "2 dense"), quantity="norm")
>>> profiles({"sigmoid": measured})
<Figure: 1 panel>
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _MatplotlibFigure
from matplotlib.ticker import MaxNLocator

from gradcourse.measure.jacobians import GainSplit
from gradcourse.nn.activations import resolve
from gradcourse.profile import Profile

__all__ = [
    "LOOK",
    "STYLE",
    "Figure",
    "costs",
    "curves",
    "gain_split",
    "heat_map",
    "images",
    "layers_over_steps",
    "look",
    "profiles",
    "slopes",
]

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.color": "#222222",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
DOTS_PER_INCH = 200  # drawn at twice the size at which they are shown
INK, MUTED = "#222222", "#5f5f5f"

# Colour and marker per activation. The hues come from the palettes of Okabe & Ito and of Paul Tol, darkened where
# their contrast on white was below 3 to 1.
LOOK: dict[str, tuple[str, str]] = {
    "sigmoid": ("#d55e00", "o"),
    "tanh": ("#2a5db0", "s"),
    "relu": ("#009e73", "^"),
    "identity": ("#5f5f5f", "."),
    "softsign": ("#2b8fc9", "D"),
    "leaky_relu": ("#6f9900", "v"),
    "elu": ("#b8538f", "P"),
    "selu": ("#882255", "X"),
    "gelu": ("#b07400", "p"),
    "silu": ("#8a6d00", "h"),
    "softplus": ("#332288", "<"),
    "erf": ("#2f8f86", ">"),
    "hard_tanh": ("#117733", "d"),
}
_OTHERS = (("#882255", "D"), ("#2b8fc9", "v"), ("#b07400", "P"), ("#332288", "X"), ("#5f5f5f", "h"))

# where float32's normal numbers end, and where even its subnormal numbers do
FLOAT32_NORMAL, FLOAT32_LAST = np.log10(2.0**-126), np.log10(2.0**-149)


class Figure(_MatplotlibFigure):
    """A matplotlib figure that a notebook shows by itself, sharp on dense screens, without pyplot."""

    def __repr__(self) -> str:
        return f"<Figure: {len(self.axes)} panel{'s' if len(self.axes) != 1 else ''}>"

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        width, height = (round(inches * DOTS_PER_INCH / 2) for inches in self.get_size_inches())
        return picture.getvalue(), {"width": width, "height": height}


def look(label: str, index: int = 0) -> tuple[str, str]:
    """Returns colour and marker for a label: those of the activation it names, else the `index`-th of the spare ones.

    >>> look("relu, He") == LOOK["relu"]
    True
    """
    words = label.replace(",", " ").replace("(", " ").split()
    return next((LOOK[word] for word in words if word in LOOK), _OTHERS[index % len(_OTHERS)])


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
    measured, predicted = _labelled(measured), _labelled(predicted)
    labels = list(dict.fromkeys([*measured, *predicted]))
    figure, (axes,) = _panels(1)
    with mpl.rc_context(STYLE):
        for label, pen in _pens(labels).items():
            if label in measured:
                pen.points(axes, np.arange(measured[label].depth), measured[label].log10_norm, label)
            if label in predicted:
                line = predicted[label].log10_norm
                pen.line(axes, np.arange(len(line)), line, None if label in measured else label)
        ends = {"float32 loses digits below": FLOAT32_NORMAL, "float32 is 0 below": FLOAT32_LAST} if float32 else {}
        for side, lines in (("right", ends), ("left", levels or {})):
            for words, level in lines.items():
                axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                axes.text(
                    1 if side == "right" else 0.01,
                    level,
                    words,
                    color=MUTED,
                    fontsize=8,
                    ha=side,
                    va="bottom",
                    transform=axes.get_yaxis_transform(),
                )
        axes.set(xlabel="layer (0 is next to the input)", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes, title, key=bool(predicted), beside=bool(levels))
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
    x = np.asarray(x)
    measured, predicted = dict(measured or {}), dict(predicted or {})
    figure, (axes,) = _panels(1)
    with mpl.rc_context(STYLE):
        for label, pen in _pens([*measured, *predicted]).items():
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
        _finish(axes, title, key=bool(measured and predicted), beside=beside)
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
    names = [str(index) for index in range(count)] if layers is None else [str(name) for name in layers]
    colours = mpl.colormaps["plasma"](np.linspace(0, 0.62, count))  # beyond, a line is too pale on white
    figure, (axes,) = _panels(1)
    with mpl.rc_context(STYLE):
        for index, (name, colour, marker) in enumerate(zip(names, colours, _cycle(count), strict=True)):
            one = values[..., index]
            if one.ndim > 1:
                axes.fill_between(step, one.min(axis=0), one.max(axis=0), color=colour, alpha=0.18, linewidth=0)
                one = one.mean(axis=0)
            axes.plot(step, one, color=colour, marker=marker, markevery=max(1, len(one) // 8), label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        for axis in log:
            getattr(axes, f"set_{axis}scale")("log")
        axes.set_title(title)
        axes.legend(title="layer", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def slopes(names: Sequence[str], *, reach: float = 8.0, title: str = "") -> Figure:
    """Returns two panels: the named activations, and their derivatives with the derivatives' bounds dashed."""
    figure, panels = _panels(2)
    s = np.linspace(-reach, reach, 801, dtype=np.float32)
    with mpl.rc_context(STYLE):
        for name in names:
            activation, (colour, _) = resolve(name), LOOK[name]
            panels[0].plot(s, np.asarray(activation(s)), color=colour, label=name)
            panels[1].plot(s, np.asarray(activation.slope(s)), color=colour, label=name)
            panels[1].axhline(activation.derivative_bound, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        for axes, words in zip(panels, ("$f(s)$", "$f'(s)$"), strict=True):
            axes.set(xlabel="pre-activation $s$", ylabel=words)
        _finish(panels[0], title, legend=len(names) > 1)
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
    figure, panels = _panels(len(splits), sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (label, split) in zip(panels, splits.items(), strict=True):
            parts = (("weights", split.weights, _OTHERS[0]), ("activation", split.activation, _OTHERS[1]))
            for name, part, (colour, marker) in parts:
                _Pen(colour, marker).points(axes, np.arange(part.depth), part.log10_norm, name)
            for (_, _, (colour, _)), level in zip(parts, (predicted or {}).get(label, ()), strict=False):
                axes.axhline(level, color=colour, linewidth=1.6)
            _Pen(INK, "x").points(axes, np.arange(split.total.depth), split.total.log10_norm, "both together")
            axes.axhline(0, color=MUTED, linewidth=1)
            axes.set(xlabel="layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _finish(axes, label or title, legend=axes is panels[0])
        panels[0].set_ylabel(r"$\log_{10}$ gain on the way back")
    return figure


def costs(points: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Returns seconds to run and seconds to compile against depth, for every way of measuring all layers.

    `points` are those of `gradcourse.course.bench.depth_scan`; a way that compiles nothing is left out on the right.
    """
    figure, panels = _panels(2, sharey=True)
    ways = list(dict.fromkeys(point["way"] for point in points))
    with mpl.rc_context(STYLE):
        for axes, kind, words in zip(panels, ("run", "compile"), ("to run", "to compile"), strict=True):
            for way, pen in _pens(ways).items():
                own = [point for point in points if point["way"] == way and point[kind] > 0]
                axes.plot(
                    [point["depth"] for point in own],
                    [point[kind] for point in own],
                    pen.marker + "-",
                    color=pen.colour,
                    label=way,
                )
            axes.set(xlabel="layers", xscale="log", yscale="log")
            _finish(axes, f"{title}{words}", legend=False)
        panels[0].set_ylabel("seconds")
        panels[1].legend(*panels[0].get_legend_handles_labels(), loc="lower right")
    return figure


def images(pictures: ArrayLike, labels: Sequence[Any], *, title: str = "") -> Figure:
    """Returns a row of grey images `(image, height, width, 1)` with a label above each, ink dark."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 7.2 / len(labels) + 0.4), layout="constrained")
        for axes, picture, label in zip(figure.subplots(1, len(labels)), np.asarray(pictures), labels, strict=True):
            axes.imshow(picture[..., 0], cmap="gray_r")
            axes.set_title(str(label), loc="center", fontsize=10, fontweight="normal", pad=4)
            axes.axis("off")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
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
    figure, (axes,) = _panels(1)
    with mpl.rc_context(STYLE):
        shades = axes.imshow(np.ma.masked_invalid(values), origin="lower", aspect="auto", cmap="cividis")
        for row, column in np.ndindex(*values.shape):
            value = values[row, column]
            red, green, blue, _ = shades.to_rgba(value) if np.isfinite(value) else (1, 1, 1, 1)
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            words = f"{value:{form}}" if np.isfinite(value) else missing
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color="white" if dark else INK)
        for column, level in enumerate(frontier or ()):
            row = np.interp(level, np.asarray(y, float), range(len(y)), left=-0.46, right=len(y) - 0.54)
            axes.plot([column - 0.5, column + 0.5], [row, row], color="#d55e00", linewidth=3, solid_capstyle="butt")
        axes.set_xticks(range(values.shape[1]), [str(name) for name in x])
        axes.set_yticks(range(values.shape[0]), [str(name) for name in y])
        axes.grid(False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.colorbar(shades, ax=axes, label=quantity)
        axes.set_title(title)
    return figure


def _labelled(value: Profile | Mapping[str, Profile] | None) -> dict[str, Profile]:
    return {} if value is None else {"measured": value} if isinstance(value, Profile) else dict(value)


def _panels(count: int, **shared: Any) -> tuple[Figure, Sequence[Axes]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0 if count == 1 else 3.4), layout="constrained")
        return figure, np.ravel(figure.subplots(1, count, **shared)).tolist()


def _cycle(count: int) -> list[str]:
    """As many markers as asked for, so that lines can be told apart without their colours."""
    return [marker for marker, _ in zip(cycle("osD^vPX<>p"), range(count), strict=False)]


@dataclass(frozen=True)
class _Pen:
    """How one label is drawn; a `second` label of the same colour gets hollow points and a dashed line."""

    colour: str
    marker: str
    second: bool = False

    def points(self, axes: Axes, x: Any, values: Any, label: str) -> None:
        """Draws points, thinned where there are many, and a band from the smallest to the largest sample."""
        if values.ndim > 1:
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=self.colour, alpha=0.22, linewidth=0)
            values = values.mean(axis=0)
        axes.plot(
            x,
            values,
            self.marker,
            color=self.colour,
            label=label,
            markevery=max(1, len(x) // 40),
            markerfacecolor="white" if self.second else self.colour,
            markeredgecolor=self.colour if self.second or self.marker == "x" else "white",
            markeredgewidth=1.2 if self.second or self.marker == "x" else 0.5,
        )

    def line(self, axes: Axes, x: Any, values: Any, label: str | None) -> None:
        """Draws a line."""
        axes.plot(x, values, color=self.colour, linestyle="--" if self.second else "-", linewidth=1.6, label=label)


def _pens(labels: Sequence[str]) -> dict[str, _Pen]:
    pens: dict[str, _Pen] = {}
    for index, label in enumerate(dict.fromkeys(labels)):
        pen = _Pen(*look(label, index))
        pens[label] = replace(pen, second=pen in pens.values())
    return pens


def _finish(axes: Axes, title: str, *, key: bool = False, legend: bool = True, beside: bool = False) -> None:
    """The title, and a legend, inside or `beside` the plot; `key` adds what points and lines stand for."""
    axes.set_title(title)
    if not legend:
        return
    handles, labels = axes.get_legend_handles_labels()
    if key:
        handles += [axes.plot([], [], "o", color=MUTED)[0], axes.plot([], [], color=MUTED)[0]]
        words = "measured (points;\nband: all seeds)" if beside else "measured (points; band: all seeds)"
        labels += [words, "predicted (lines)"]
    axes.legend(handles, labels, **({"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}))
