"""Figures with a layer of the network at each place along the axis, or a line for each layer.

>>> from gradcourse.profile import Profile
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
from matplotlib.ticker import MaxNLocator

from gradcourse.measure.jacobians import GainSplit
from gradcourse.plots.style import INK, MUTED, OTHERS, STYLE, Figure, Pen, blank, finish, pens
from gradcourse.profile import Profile

__all__ = ["gain_split", "layers_over_steps", "profiles"]


# where float32's normal numbers end, and where even its subnormal numbers do
FLOAT32_NORMAL, FLOAT32_LAST = np.log10(2.0**-126), np.log10(2.0**-149)


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
    figure, (axes,) = blank(1)
    with mpl.rc_context(STYLE):
        for label, pen in pens(labels).items():
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
        finish(axes, title, key=bool(predicted), beside=bool(levels))
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
    figure, (axes,) = blank(1)
    with mpl.rc_context(STYLE):
        for index, (name, colour, marker) in enumerate(zip(names, colours, cycle("osD^vPX<>p"), strict=False)):
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
    figure, panels = blank(len(splits), sharey=True)
    with mpl.rc_context(STYLE):
        for axes, (label, split) in zip(panels, splits.items(), strict=True):
            parts = (("weights", split.weights, OTHERS[0]), ("activation", split.activation, OTHERS[1]))
            for name, part, (colour, marker) in parts:
                Pen(colour, marker).points(axes, np.arange(part.depth), part.log10_norm, name)
            for (_, _, (colour, _)), level in zip(parts, (predicted or {}).get(label, ()), strict=False):
                axes.axhline(level, color=colour, linewidth=1.6)
            Pen(INK, "x").points(axes, np.arange(split.total.depth), split.total.log10_norm, "both together")
            axes.axhline(0, color=MUTED, linewidth=1)
            axes.set(xlabel="layer")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            finish(axes, label or title, legend=axes is panels[0])
        panels[0].set_ylabel(r"$\log_{10}$ gain on the way back")
    return figure


def _labelled(value: Profile | Mapping[str, Profile] | None) -> dict[str, Profile]:
    return {} if value is None else {"measured": value} if isinstance(value, Profile) else dict(value)
