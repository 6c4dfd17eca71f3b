"""The recorded experiments of all chapters, by name: `python -m gradcourse experiment NAME` runs one."""

from gradcourse.course.experiments import (
    answer,
    convolution,
    devices,
    glorot,
    learning_rates,
    normalisation,
    precision,
    pretraining,
    record_nets,
    rectifiers,
    shortcuts,
    speed,
)
from gradcourse.course.recording import Experiment

__all__ = ["EXPERIMENTS"]

# In the order of the chapters.
FIRST = rectifiers, glorot, speed, devices, record_nets, learning_rates
LATER = pretraining, convolution, normalisation, shortcuts, precision, answer
EXPERIMENTS: dict[str, Experiment] = {one.name: one for module in FIRST + LATER for one in module.EXPERIMENTS}
