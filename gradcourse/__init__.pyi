from . import measure, nn, plots, probes, theory, training
from .diagnosis import diagnose, monitor
from .measure import (
    activation_gradient_norms,
    backward_jacobian_norms,
    forward_jacobian_norms,
    layer_jacobian_norms,
    log_gain_split,
    parameter_gradient_norms,
)
from .nn import Conv, Dense, cnn, mlp, sequential
from .profile import Profile
from .training import digits, over_seeds, sweep, train

__all__ = [
    "Conv",
    "Dense",
    "Profile",
    "activation_gradient_norms",
    "backward_jacobian_norms",
    "cnn",
    "diagnose",
    "digits",
    "forward_jacobian_norms",
    "layer_jacobian_norms",
    "log_gain_split",
    "measure",
    "mlp",
    "monitor",
    "nn",
    "over_seeds",
    "parameter_gradient_norms",
    "plots",
    "probes",
    "sequential",
    "sweep",
    "theory",
    "train",
    "training",
]
