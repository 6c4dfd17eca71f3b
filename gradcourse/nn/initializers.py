"""The initialisation schemes by name, resting on `jax.nn.initializers`.

What matters for gradient flow is the *weight variance* `sigma_w**2 = fan_in * Var(w)`: how much the mean square of a
layer's pre-activation exceeds the mean square of its input.

| name | weights | `sigma_w**2` | source |
|---|---|---|---|
| `standard` | U(-1/sqrt(fan_in), 1/sqrt(fan_in)) | 1/3 | the heuristic that Glorot & Bengio 2010 compare with |
| `lecun_normal`, `lecun_uniform` | variance 1/fan_in | 1 | LeCun et al. 1998 |
| `glorot_normal`, `glorot_uniform` | variance 2/(fan_in + fan_out) | 1 if square | Glorot & Bengio 2010 |
| `he_normal`, `he_uniform` | variance 2/fan_in | 2 | He et al. 2015 |
| `gaussian` | N(0, scale**2/fan_in) | scale**2 | Poole et al. 2016 (`scale` is their `sigma_w`) |
| `orthogonal` | orthonormal rows or columns | 1 if square | Saxe et al. 2014 |
| `delta_orthogonal` | kernel zero but for an orthogonal centre tap | 1 if square | Xiao et al. 2018 |

The normal schemes are plain normal, as in the papers, where jax's own defaults are truncated at two sigma.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers as jax_initializers
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import known_name, positive_number

__all__ = ["INITIALIZERS", "Initializer", "gaussian", "resolve"]

# name: (variance times fan, which fan, distribution), the arguments of jax's variance_scaling
_SCALING: dict[str, tuple[float, Any, Any]] = {
    "standard": (1 / 3, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
    "glorot_normal": (1.0, "fan_avg", "normal"),
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "he_normal": (2.0, "fan_in", "normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "gaussian": (1.0, "fan_in", "normal"),
}
INITIALIZERS: tuple[str, ...] = (*_SCALING, "orthogonal", "delta_orthogonal")


@dataclass(frozen=True)
class Initializer:
    """A scheme by name, with every weight multiplied by `scale` and biases drawn from N(0, sigma_b**2).

    >>> import jax
    >>> he = Initializer("he_normal")
    >>> he.weights((400, 300), key=jax.random.key(0)).shape
    (400, 300)
    >>> he.second_moment((400, 300)) * 400  # sigma_w**2
    2.0
    """

    name: str
    scale: float = 1.0
    sigma_b: float = 0.0

    def __post_init__(self) -> None:
        known_name("init", self.name, INITIALIZERS)
        positive_number("scale", self.scale, zero=True)
        positive_number("sigma_b", self.sigma_b, zero=True)

    @partial(jax.jit, static_argnums=(0, 1))
    def weights(self, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Returns weights of `shape`, `(in, out)` for dense and `(height, width, in, out)` for convolutions.

        A `delta_orthogonal` dense layer is `orthogonal`. Raises `ValueError` for a delta-orthogonal kernel with
        fewer channels out than in: its centre tap cannot keep all directions.
        """
        if self.name in _SCALING:
            weights = jax_initializers.variance_scaling(*_SCALING[self.name])(key, shape)
        elif self.name == "orthogonal" or len(shape) == 2:
            weights = jax_initializers.orthogonal()(key, shape)
        else:
            if shape[-2] > shape[-1]:
                raise ValueError(
                    f"init='delta_orthogonal' got a kernel of {shape[-2]} channels in and {shape[-1]} out; accepted "
                    "is out >= in. Widen the layer or take init='orthogonal'."
                )
            weights = jax_initializers.delta_orthogonal()(key, shape)
        return self.scale * weights

    def biases(self, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """Returns biases of `shape`, drawn from N(0, sigma_b**2)."""
        return self.sigma_b * jax.random.normal(key, shape) if self.sigma_b else jnp.zeros(shape)

    def second_moment(self, shape: tuple[int, ...]) -> float | np.ndarray:
        """Returns the mean square of a weight: one number, or one per tap `(height, width)` for a kernel."""
        *taps, fan_in, fan_out = shape
        field = prod(taps)
        if self.name in _SCALING:
            factor, fan, _ = _SCALING[self.name]
            size = field * (fan_in if fan == "fan_in" else (fan_in + fan_out) / 2)
            moment = np.full(taps, factor / size)
        elif self.name == "orthogonal" or not taps:
            moment = np.full(taps, 1 / max(field * fan_in, fan_out))
        else:
            moment = np.zeros(taps)  # delta-orthogonal: all of it sits in the centre
            moment[tuple((size - 1) // 2 for size in taps)] = 1 / fan_out
        moment = self.scale**2 * moment
        return moment if taps else float(moment)


def gaussian(sigma_w: float, sigma_b: float = 0.0) -> Initializer:
    """Returns the mean-field literature's scheme: weights N(0, sigma_w**2/fan_in), biases N(0, sigma_b**2).

    >>> gaussian(1.3, 0.3)
    Initializer(name='gaussian', scale=1.3, sigma_b=0.3)
    """
    return Initializer("gaussian", positive_number("sigma_w", sigma_w, zero=True), sigma_b)


def resolve(init: str | Initializer) -> Initializer:
    """Returns the `Initializer` for a name or an `Initializer`; an unknown name raises with the nearest match."""
    return init if isinstance(init, Initializer) else Initializer(init)
