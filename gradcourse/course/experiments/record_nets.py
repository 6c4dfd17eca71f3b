"""Chapter 5: the gradients at the layers of the networks of Ciresan et al. (2010), measured and predicted."""

from dataclasses import replace
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradcourse.course.experiments._common import experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.nn.activations import Activation
from gradcourse.nn.initializers import Initializer
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import Network, sequential
from gradcourse.theory import meanfield
from gradcourse.training.data import digits

__all__ = ["EXPERIMENTS", "RECORD_NETS", "SCALED_TANH", "predicted_record_net", "record_net", "record_network"]

RECORD_NETS: dict[int, tuple[int, ...]] = {
    1: (1000, 500),
    2: (1500, 1000, 500),
    3: (2000, 1500, 1000, 500),
    4: (2500, 2000, 1500, 1000, 500),
    5: (1000,) * 9,
}
PIXELS = 29 * 29
SCALED_TANH = Activation(
    "scaled_tanh",
    lambda s: 1.7159 * jnp.tanh(0.6666 * s),
    lambda s: 1.7159 * 0.6666 * (1 - jnp.square(jnp.tanh(0.6666 * s))),
    1.7159 * 0.6666,
    source="LeCun et al. 1998",
    linear_at_zero=True,
    kinked_at_zero=False,
)


def record_network(net: int, *, activation: Any = SCALED_TANH, bound: float | None = 0.05) -> Network:
    """Returns network 1 to 5 of Ciresan et al. (2010), with weights between -`bound` and `bound`, biases zero.

    Without a bound the weights are those of the standard initialisation.

    >>> record_network(4).depth
    6
    """
    sizes = [PIXELS, *RECORD_NETS[net], 10]
    inits = [Initializer("standard", 1.0 if bound is None else bound * sqrt(fan_in)) for fan_in in sizes[:-1]]
    *hidden, last = (Dense(units, activation, initializer=init) for units, init in zip(sizes[1:], inits, strict=True))
    return sequential(PIXELS, [*hidden, replace(last, activation="identity")])


def record_net(net: int, scheme: str, seed: int) -> dict[str, Any]:
    """Returns the log10 `"norm"` of the loss's gradient at each hidden layer's pre-activations, before any training.

    The `scheme` is `"their own"` or `"sigmoid, standard"`. A hundred images, digits enlarged to 29 by 29 pixels.
    """
    network, x, y = _record_setting(net, scheme, images=100)
    params = network.init(key=jax.random.key(seed))
    profile = activation_gradient_norms(network, params, x, y, at="preactivation")
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"norm": profile.log10_norm[:-1], "parameters": count}


def predicted_record_net(net: int, scheme: str) -> Float[np.ndarray, " layer"]:
    """Returns what mean-field theory predicts for that `"norm"`, relative to that at the last hidden layer."""
    network, x, _ = _record_setting(net, scheme, images=20)
    at_input = meanfield.backward_jacobian_norms(network, x).log10_norm
    variances: list[Any] = []  # of weights, times the fan-in: what lies between a layer's pre-activation and its input
    for stage in network.stages:
        layer: Any = stage.layer
        variance = layer.initializer.second_moment(layer.weight_shape(stage.shape)) * stage.shape[0]
        variances += [variance] * stage.repeats
    hidden = (at_input - np.log10(variances) / 2)[:-1]
    return hidden - hidden[-1]


def _record_setting(net: int, scheme: str, images: int) -> tuple[Network, Array, Array]:
    own = scheme == "their own"
    network = record_network(net) if own else record_network(net, activation="sigmoid", bound=None)
    x, y = (part[:images] for part in digits()[:2])
    x = jax.image.resize(jnp.asarray(x).reshape(-1, 8, 8), (images, 29, 29), "linear").reshape(images, -1)
    return network, x, y


SEEDS = range(5)
EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        record_net,
        "gradients at the layers of Ciresan et al.'s networks before training",
        (
            *grid(net=RECORD_NETS, scheme=["their own"], seed=SEEDS),
            *grid(net=[4, 5], scheme=["sigmoid, standard"], seed=SEEDS),
        ),
        name="record_nets",
    ),
)
