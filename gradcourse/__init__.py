"""How do convolutional networks avoid the vanishing gradient? The instrument that the course measures with.

>>> import jax, gradcourse as gc
>>> data = gc.digits()
>>> network = gc.mlp(64, [100] * 50, 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> profile = gc.backward_jacobian_norms(network, params, data.x_train[:100])
>>> print(f"{profile.log10_norm[0]:.1f}")  # the gradient that reaches the input, in decades
-42.2
>>> print(profile.as_float32()[0] > 0)
True
"""

from gradcourse import claims, experiments, meanfield, optimizers, plots, probes, singular_values
from gradcourse.activations import ACTIVATIONS, Activation
from gradcourse.curvature import sharpness
from gradcourse.datasets import Dataset, digits
from gradcourse.diagnosis import diagnose
from gradcourse.golub_kahan import LayerExtremes, layer_extremes
from gradcourse.gradients import (
    activation_gradient_norms,
    parameter_gradient_norms,
    sgd_update_to_weight_ratios,
    update_to_weight_ratios,
)
from gradcourse.history import History
from gradcourse.idx import idx_folder, read_idx
from gradcourse.initializers import INITIALIZERS, Initializer, gaussian
from gradcourse.jacobians import (
    GainSplit,
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
)
from gradcourse.layers import AvgPool, Conv, Dense, Flatten, Layer, MaxPool, Pointwise
from gradcourse.monitor_history import MonitorHistory
from gradcourse.monitoring import Monitor, monitor
from gradcourse.networks import Network, cnn, mlp, sequential
from gradcourse.normalisation import (
    BatchNorm,
    ChannelScale,
    GroupNorm,
    LayerNorm,
    WeightStandardised,
    at_inference,
)
from gradcourse.profile import Profile
from gradcourse.report import Finding, LayerReport, Report
from gradcourse.runs import Run
from gradcourse.shapeset import Shapeset
from gradcourse.shortcuts import Block, Residual
from gradcourse.singular_values import (
    backward_singular_values,
    forward_singular_values,
    layer_singular_values,
)
from gradcourse.statistics import UnitStatistics, silent_units, unit_statistics
from gradcourse.sweeps import over_seeds, sweep
from gradcourse.training import Data, accuracy, cross_entropy, train

__all__ = [
    "ACTIVATIONS",
    "INITIALIZERS",
    "Activation",
    "AvgPool",
    "BatchNorm",
    "Block",
    "ChannelScale",
    "Conv",
    "Data",
    "Dataset",
    "Dense",
    "Finding",
    "Flatten",
    "GainSplit",
    "GroupNorm",
    "History",
    "Initializer",
    "Layer",
    "LayerExtremes",
    "LayerNorm",
    "LayerReport",
    "MaxPool",
    "Monitor",
    "MonitorHistory",
    "Network",
    "Pointwise",
    "Profile",
    "Report",
    "Residual",
    "Run",
    "Shapeset",
    "UnitStatistics",
    "WeightStandardised",
    "accuracy",
    "activation_gradient_norms",
    "at_inference",
    "backward_jacobian_norms",
    "backward_singular_values",
    "claims",
    "cnn",
    "cross_entropy",
    "diagnose",
    "digits",
    "experiments",
    "forward_jacobian_norms",
    "forward_singular_values",
    "gaussian",
    "idx_folder",
    "layer_extremes",
    "layer_jacobian_norms",
    "layer_singular_values",
    "log_gain_split",
    "meanfield",
    "mlp",
    "monitor",
    "optimizers",
    "over_seeds",
    "parameter_gradient_norms",
    "plots",
    "probes",
    "read_idx",
    "sequential",
    "sgd_update_to_weight_ratios",
    "sharpness",
    "silent_units",
    "singular_values",
    "sweep",
    "train",
    "unit_statistics",
    "update_to_weight_ratios",
]
