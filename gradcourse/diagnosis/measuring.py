"""One forward and backward pass through a traced program, and what is seen of every layer on the way."""

from collections.abc import Callable
from functools import partial
from math import inf, isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse._logdomain import Scaled, log2_norms, sum_of_squares
from gradcourse.diagnosis.models import Form
from gradcourse.diagnosis.plan import FoundLayer
from gradcourse.diagnosis.tracing import Look, Program, parameter_paths
from gradcourse.measure.units import activation_statistics
from gradcourse.probes import Probe, profile

__all__ = ["Measured", "combined_log2", "measure", "squares_by_layer"]

MARGIN = 10  # binary digits that the scaled gradient stays below overflow


class Measured(NamedTuple):
    """What one forward and backward pass has found; arrays of a layer have the axes of its turns.

    - `loss`, `gradient`: of the parameters, as they are;
    - `squares`: per layer and parameter, the squared norm of its gradient;
    - `seen`: per layer, the statistics of its units and its gain, by the names of a report's columns;
    - `norms`: per layer, log2 of the norm of the gradient, of its activation and of its parameters, as autodiff has
      them; `true`: the same from a scaled loss, where less underflows.
    """

    loss: Any
    gradient: Any
    squares: Any
    seen: Any
    norms: list[tuple[Any, Any]]
    true: list[tuple[Any, Any]]


def measure(program: Program, form: Form, directions: int, key: Any) -> Measured:
    """Returns what is found at every layer; the gradient is taken of the loss and of the loss times a power of two."""
    keys = [
        jax.random.split(one, layer.turns) if layer.turns else one
        for one, layer in zip(jax.random.split(key, len(program.layers)), program.layers, strict=True)
    ]

    def observe(layer: FoundLayer, look: Look, key: Any) -> dict[str, Any]:
        def slope(at: Any) -> Any:
            return jax.vjp(look.activation, at)[1](jnp.ones_like(look.value))[0].astype(jnp.float32)

        # The activation may hold parameters of the shape of what it is given: it is a piece of the program.
        found = activation_statistics(look.preactivation, look.value, slope, layer.units, whole=True)
        return found if look.layer is None else found | _gains(look.layer, look, directions, key)

    # It runs twice: compiled to be compiled fast, rather than to be fast.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def differentiated(trainable: Any, scale: Any, given: Any) -> Any:
        def scaled(trainable: Any, dummies: Any) -> Any:
            value, seen = program.run((trainable, *given), list(zip(dummies, keys, strict=True)), observe)
            return value * scale.astype(value.dtype), (value, seen)

        probes = [Probe.zeros(*layer.turns) for layer in program.layers]
        (_, results), gradients = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(trainable, probes)
        gradient, found = gradients
        return *results, gradient, [profile([one]) for one in found], squares_by_layer(program, gradient)

    def passed(power: int) -> Measured:
        scale = jnp.float32(2.0**power)
        loss, seen, gradient, *found = differentiated(form.trainable, scale, form.given)
        at_activations, squares = jax.device_get(found)
        norms = [
            (
                np.add(one.exponent, one.fraction, dtype=np.float64)[..., 0] - power,
                combined_log2(of_parameters, layer.turns) - power,
            )
            for one, of_parameters, layer in zip(at_activations, squares, program.layers, strict=True)
        ]
        return Measured(loss, gradient, squares, jax.device_get(seen), norms, norms)

    plain = passed(0)
    power = _room(program, form, plain)
    while power > 0:
        scaled = passed(power).norms
        if all(np.all(values < inf) for pair in scaled for values in pair):
            return plain._replace(true=scaled)
        power //= 2
    return plain


def squares_by_layer(program: Program, tree: Any) -> list[list[Scaled]]:
    """Returns, per layer and parameter, the squared norm: of every turn's slice, or of what all turns share."""
    leaves = dict(zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True))

    def of(leaf: Any, turns: int) -> Scaled:
        size = jnp.abs(leaf)
        return sum_of_squares([size.astype(jnp.promote_types(size.dtype, jnp.float32))], turns)

    return [
        [of(leaves[path], len(layer.turns) if path in layer.sliced else 0) for path in layer.given]
        for layer in program.layers
    ]


def combined_log2(parts: list[Scaled], turns: tuple[int, ...]) -> Any:
    """Returns the binary logarithm of the norm of all parts together, per turn."""
    whole = np.full(turns, -inf)
    for part in parts:
        with np.errstate(invalid="ignore"):
            whole = np.logaddexp2(2 * whole, 2 * log2_norms(part)) / 2
    return whole


def _gains(layer: Callable[[Any], Any], look: Look, directions: int, key: Any) -> dict[str, Any]:
    """The mean squared gain of the layer's Jacobian on the way back, and its standard error."""
    _, pull = jax.vjp(layer, look.input)

    def one(key: Any) -> Any:
        cotangent = jax.random.normal(key, look.value.shape, look.value.dtype)
        (pulled,) = pull(cotangent)
        before, after = (jnp.sum(jnp.square(part.astype(jnp.float32))) for part in (cotangent, pulled))
        return after / before

    gains = jax.vmap(one)(jax.random.split(key, directions))
    error = gains.std(ddof=1) / directions**0.5 if directions > 1 else jnp.full_like(gains[0], jnp.nan)
    return {"gain": gains.mean(), "gain_error": error}


def _room(program: Program, form: Form, plain: Measured) -> int:
    """The power of two that the loss can be multiplied by before anything overflows; 0 where something has already."""
    largest = max(float(np.max(values, initial=-inf)) for pair in plain.norms for values in pair)
    if not isfinite(largest):
        return 0
    formats = {layer.dtype for layer in program.layers} | {leaf.dtype for leaf in jax.tree.leaves(form.trainable)}
    room = min(jnp.finfo(one).maxexp for one in formats if jnp.issubdtype(one, jnp.floating))
    return max(0, min(int(room - largest) - MARGIN, jnp.finfo(plain.loss.dtype).maxexp - 2, 125))
