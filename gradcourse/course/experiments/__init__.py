"""The recorded experiments of all chapters, by name: `python -m gradcourse experiment NAME` runs one."""

from gradcourse.course.experiments import (
    answer,
    batch_growth,
    convolution,
    glorot,
    learning_rates,
    normalisation,
    precision,
    pretraining,
    profile_elsewhere,
    record_nets,
    rectifiers,
    shortcuts,
    speed,
    step_seconds,
)
from gradcourse.course.recording import Experiment

__all__ = ["EXPERIMENTS"]

# In the order of the chapters.
MODULES = (
    rectifiers,
    glorot,
    *(speed, step_seconds, profile_elsewhere, record_nets),
    learning_rates,
    pretraining,
    convolution,
    *(normalisation, shortcuts, batch_growth),
    precision,
    answer,
)
EXPERIMENTS: dict[str, Experiment] = {one.name: one for module in MODULES for one in module.EXPERIMENTS}
