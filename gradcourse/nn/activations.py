"""The catalogue of activations: each function with its derivative, the derivative's bound and its source.

The derivatives are closed forms, not autodiff. In float32 `jax.grad(jax.nn.sigmoid)` returns exactly 0 from 17 on,
because it computes `y * (1 - y)` with a `y` that has been rounded to 1; the closed form
`sigmoid(s) * sigmoid(-s)` keeps all its digits down to 1e-38. Autodiff in float64 is the tests' referee.

>>> sigmoid = resolve("sigmoid")
>>> sigmoid.derivative_bound
0.25
>>> f"{sigmoid.slope(20.0):.4e}"
'2.0612e-09'
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import pi, sqrt
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from gradcourse._checks import known_name

__all__ = ["ACTIVATIONS", "Activation", "resolve"]

LEAK = 0.01
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
SELU_STEEPEST = SELU_SCALE * SELU_ALPHA


@dataclass(frozen=True)
class Activation:
    """An elementwise function `f` and what theory needs to know of it.

    - `name`: its name in the catalogue, used for colours and labels.
    - `function`: `f(s)`, elementwise.
    - `derivative`: `f'(s)` in a form that keeps its digits in the tails; `None` means autodiff.
    - `derivative_bound`: the supremum of `|f'|`; NaN where unknown.
    - `kinks`: where `f` or `f'` is not smooth; quadrature is split there.
    - `source`: who proposed it as an activation.
    - `linear_at_zero`: whether `f(s)` is `s f'(s)` next to 0, so that the smallest pre-activations can be scaled.
    - `homogeneous`: whether it is so everywhere, as for rectifiers, so that any pre-activation can be scaled.
    - `kinked_at_zero`: whether the slope jumps at 0, so that the sign of even the smallest pre-activation matters.

    What the last three are by default is right for any function.
    """

    name: str
    function: Callable[[Any], Any]
    derivative: Callable[[Any], Any] | None = None
    derivative_bound: float = float("nan")
    kinks: tuple[float, ...] = ()
    source: str = ""
    linear_at_zero: bool = False
    homogeneous: bool = False
    kinked_at_zero: bool = True

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __call__(self, s: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns `f(s)`, elementwise, in the shape of `s`."""
        return self.function(jnp.asarray(s))

    def slope(self, s: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns `f'(s)`, elementwise, in the shape of `s`."""
        s = jnp.asarray(s)
        if self.derivative is not None:
            return self.derivative(s)
        return jax.jvp(self.function, (s,), (jnp.ones_like(s),))[1]


def _sigmoid_slope(s: Array) -> Array:
    return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)


def _softsign_slope(s: Array) -> Array:
    return 1 / jnp.square(1 + jnp.abs(s))


def _erf_slope(s: Array) -> Array:
    return 2 / sqrt(pi) * jnp.exp(-jnp.square(s))


def _elu_slope(s: Array) -> Array:
    return jnp.exp(jnp.minimum(s, 0))


def _gelu_slope(s: Array) -> Array:
    return jax.scipy.special.ndtr(s) + s * (jnp.exp(-jnp.square(s) / 2) / sqrt(2 * pi))


def _silu_slope(s: Array) -> Array:
    return jax.nn.sigmoid(s) * (1 + s * jax.nn.sigmoid(-s))


def _step(s: Array, below: float = 0.0) -> Array:
    """The derivative of a rectifier with slope `below` on the negative side; at 0 it takes that side's value.

    Of NaN, which an overflow leaves, it is NaN: a comparison alone would hide it.
    """
    return jnp.where(s > 0, 1.0, jnp.where(s <= 0, below, jnp.nan)).astype(s.dtype)


def _selu_slope(s: Array) -> Array:
    return SELU_SCALE * jnp.where(s > 0, 1.0, SELU_ALPHA * _elu_slope(s)).astype(s.dtype)


_gelu = partial(jax.nn.gelu, approximate=False)
_leaky_relu = partial(jax.nn.leaky_relu, negative_slope=LEAK)


# What all smooth ones have in common, those that are linear next to 0, and rectifiers.
SMOOTH: dict[str, Any] = {"kinked_at_zero": False}
LINEAR: dict[str, Any] = {"linear_at_zero": True, **SMOOTH}
RECTIFIER: dict[str, Any] = {"linear_at_zero": True, "homogeneous": True}
KINK = (0.0,)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("identity", lambda s: s, jnp.ones_like, 1.0, homogeneous=True, **LINEAR),
        Activation(
            "sigmoid", jax.nn.sigmoid, _sigmoid_slope, 0.25, (), "Verhulst 1838; Rumelhart et al. 1986", **SMOOTH
        ),
        Activation("tanh", jnp.tanh, lambda s: 4 * _sigmoid_slope(2 * s), 1.0, (), "LeCun et al. 1989", **LINEAR),
        Activation("softsign", jax.nn.soft_sign, _softsign_slope, 1.0, KINK, "Bergstra et al. 2009", **LINEAR),
        Activation("relu", jax.nn.relu, _step, 1.0, KINK, "Nair & Hinton 2010", **RECTIFIER),
        Activation("leaky_relu", _leaky_relu, partial(_step, below=LEAK), 1.0, KINK, "Maas et al. 2013", **RECTIFIER),
        Activation("elu", jax.nn.elu, _elu_slope, 1.0, KINK, "Clevert et al. 2016", **LINEAR),
        Activation("selu", jax.nn.selu, _selu_slope, SELU_STEEPEST, KINK, "Klambauer et al. 2017", linear_at_zero=True),
        Activation("gelu", _gelu, _gelu_slope, 1.1289043, (), "Hendrycks & Gimpel 2016", **LINEAR),  # at sqrt(2)
        Activation("silu", jax.nn.silu, _silu_slope, 1.0998395, (), "Elfwing et al. 2018", **LINEAR),  # at 2.4
        Activation("softplus", jax.nn.softplus, jax.nn.sigmoid, 1.0, (), "Dugas et al. 2001", **SMOOTH),
        Activation("erf", jax.scipy.special.erf, _erf_slope, 2 / sqrt(pi), (), "Williams 1997", **LINEAR),
        Activation(
            "hard_tanh", jax.nn.hard_tanh, lambda s: _step(1 - abs(s)), 1.0, (-1.0, 1.0), "Collobert 2004", **LINEAR
        ),
    )
}


def resolve(activation: str | Activation | Callable[[Any], Any]) -> Activation:
    """Returns the `Activation` for a name, an `Activation`, or any elementwise jax function of yours.

    A function of yours is differentiated by autodiff and has no known bound. Raises `ValueError` for an unknown
    name, with the nearest one, and `TypeError` for anything that cannot be called.

    >>> resolve("sigmiod")
    Traceback (most recent call last):
    ...
    ValueError: activation='sigmiod' is not known; did you mean 'sigmoid'? Accepted: 'identity', 'sigmoid', ...
    """
    if isinstance(activation, Activation):
        return activation
    if callable(activation):
        return Activation(getattr(activation, "__name__", "custom"), activation)
    return ACTIVATIONS[known_name("activation", activation, ACTIVATIONS)]
