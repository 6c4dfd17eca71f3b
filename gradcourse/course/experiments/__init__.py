"""The recorded experiments of all chapters, by name: `python -m gradcourse experiment NAME` runs one."""

from gradcourse.course.experiments import (
    answer,
    convolution,
    glorot,
    learning_rates,
    normalisation,
    precision,
    pretraining,
    rectifiers,
    speed,
)
from gradcourse.course.recording import Experiment
from gradcourse.course.recording import Results as Results

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        *rectifiers.EXPERIMENTS,
        *glorot.EXPERIMENTS,
        *learning_rates.EXPERIMENTS,
        *speed.EXPERIMENTS,
        *pretraining.EXPERIMENTS,
        *convolution.EXPERIMENTS,
        *normalisation.EXPERIMENTS,
        *precision.EXPERIMENTS,
        *answer.EXPERIMENTS,
    )
}
