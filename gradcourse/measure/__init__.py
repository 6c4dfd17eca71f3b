"""Measurements, layer by layer: the sweep through a network, and what is kept of it."""

from gradcourse.measure.curvature import sharpness
from gradcourse.measure.extremes import LayerExtremes, layer_extremes
from gradcourse.measure.gradients import activation_gradient_norms, parameter_gradient_norms, update_to_weight_ratios
from gradcourse.measure.jacobians import (
    GainSplit,
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
)
from gradcourse.measure.singular_values import backward_singular_values, layer_singular_values
from gradcourse.measure.units import UnitStatistics, silent_units, unit_statistics

__all__ = [
    "GainSplit",
    "LayerExtremes",
    "UnitStatistics",
    "activation_gradient_norms",
    "backward_jacobian_norms",
    "backward_singular_values",
    "forward_jacobian_norms",
    "layer_extremes",
    "layer_jacobian_norms",
    "layer_singular_values",
    "log_gain_split",
    "parameter_gradient_norms",
    "sharpness",
    "silent_units",
    "unit_statistics",
    "update_to_weight_ratios",
]
