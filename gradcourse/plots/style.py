"""The look of the whole book: colours, markers and type, the figure, and the pens that draw measured and predicted.

The colours keep a contrast of 3 to 1 on white, and their hues when the book's dark theme inverts the figures. Nothing
here touches pyplot or matplotlib's global settings.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _MatplotlibFigure

__all__ = ["DOTS_PER_INCH", "INK", "LOOK", "MUTED", "OTHERS", "STYLE", "Figure", "Pen", "drawing", "finish", "pens"]

DOTS_PER_INCH = 200  # drawn at twice the size at which they are shown
INK = "#222222"
MUTED = "#5f5f5f"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), "#444444"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

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
OTHERS = (("#882255", "D"), ("#2b8fc9", "v"), ("#b07400", "P"), ("#332288", "X"), ("#5f5f5f", "h"))


class Figure(_MatplotlibFigure):
    """A matplotlib figure that a notebook shows by itself, sharp on dense screens, without pyplot."""

    def __repr__(self) -> str:
        return f"<Figure: {len(self.axes)} panel{'s' if len(self.axes) != 1 else ''}>"

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        width, height = (round(inches * DOTS_PER_INCH / 2) for inches in self.get_size_inches())
        return picture.getvalue(), {"width": width, "height": height}


@contextmanager
def drawing(count: int = 1, *, height: float | None = None, **shared: Any) -> Iterator[tuple[Figure, list[Axes]]]:
    """Gives a figure with so many panels in a row, to be drawn on in this style; `shared` as `sharey=True`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, height or (4.0 if count == 1 else 3.4)), layout="constrained")
        yield figure, np.ravel(figure.subplots(1, count, **shared)).tolist()


@dataclass(frozen=True)
class Pen:
    """How one label is drawn; a `second` label of the same colour gets hollow points and a dashed line."""

    colour: str
    marker: str
    second: bool = False

    def points(self, axes: Axes, x: Any, values: Any, label: str) -> None:
        """Draws points, thinned where there are many, and a band from the smallest to the largest sample."""
        if values.ndim > 1:
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=self.colour, alpha=0.22, linewidth=0)
            values = values.mean(axis=0)
        face = "white" if self.second else self.colour
        edge, width = (self.colour, 1.2) if self.second or self.marker == "x" else ("white", 0.5)
        thin: dict[str, Any] = {"markevery": max(1, len(x) // 40), "mfc": face, "mec": edge, "mew": width}
        axes.plot(x, values, self.marker, color=self.colour, label=label, **thin)

    def line(self, axes: Axes, x: Any, values: Any, label: str | None) -> None:
        """Draws a line."""
        axes.plot(x, values, color=self.colour, linestyle="--" if self.second else "-", linewidth=1.6, label=label)


def pens(labels: Sequence[str]) -> dict[str, Pen]:
    """Returns a pen per label: that of the activation it names, or a spare one; the second of two alike is told apart.

    >>> pens(["relu, He", "relu, Glorot"])["relu, Glorot"]
    Pen(colour='#009e73', marker='^', second=True)
    """
    found: dict[str, Pen] = {}
    for index, label in enumerate(dict.fromkeys(labels)):
        words = label.replace(",", " ").replace("(", " ").split()
        pen = Pen(*next((LOOK[word] for word in words if word in LOOK), OTHERS[index % len(OTHERS)]))
        found[label] = replace(pen, second=pen in found.values())
    return found


def finish(axes: Axes, title: str, *, key: bool = False, legend: bool = True, beside: bool = False) -> None:
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
