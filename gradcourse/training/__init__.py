"""Training, watched as it goes: data, minibatch descent, its history, and many runs at once."""

from gradcourse.training import optimizers
from gradcourse.training.data import Data, Dataset, digits, idx_folder, read_idx
from gradcourse.training.history import History
from gradcourse.training.loop import accuracy, cross_entropy, train
from gradcourse.training.runs import Run
from gradcourse.training.shapeset import Shapeset
from gradcourse.training.sweeps import over_seeds, sweep

__all__ = [
    "Data",
    "Dataset",
    "History",
    "Run",
    "Shapeset",
    "accuracy",
    "cross_entropy",
    "digits",
    "idx_folder",
    "optimizers",
    "over_seeds",
    "read_idx",
    "sweep",
    "train",
]
