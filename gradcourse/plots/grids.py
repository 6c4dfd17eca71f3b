"""Figures of cells: a table shaded by its numbers, and a row of images."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import ArrayLike

from gradcourse.plots.style import INK, STYLE, Figure, blank

__all__ = ["heat_map", "images"]


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
    figure, (axes,) = blank(1)
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
