"""Every figure of the course is one call here; each returns a matplotlib `Figure` that a notebook shows.

One look for the whole book: measured values are points with a band over seeds, predictions are lines, and every
activation has a colour and a marker of its own everywhere.
"""

from gradcourse.plots.figures import costs, curves, gain_split, heat_map, images, layers_over_steps, profiles, slopes
from gradcourse.plots.style import LOOK, STYLE, Figure

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
    "profiles",
    "slopes",
]
