"""The rows of a report: of any program whose layers are known, and of a network of this package.

A program is run forward and backward twice, with a probe at every layer: the gradients' norms are those of autodiff. Of
a network they are measured in the log domain, whatever its depth.
"""

from collections.abc import Callable
from functools import partial
from math import inf, isfinite, log, nan, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from gradcourse._logdomain import Scaled, log2_norms, share_lost, sum_of_squares
from gradcourse.diagnosis.plan import FoundLayer, Plan
from gradcourse.diagnosis.report import LayerReport
from gradcourse.diagnosis.tracing import Known, parameter_paths, run
from gradcourse.measure.gradients import (
    activation_gradient_norms,
    layer_squares,
    parameter_gradient_norms,
    update_to_weight_ratios,
)
from gradcourse.measure.jacobians import layer_jacobian_norms
from gradcourse.measure.units import activation_statistics, statistics_of
from gradcourse.nn.network import Network, Params
from gradcourse.probes import Probe, profile, squares
from gradcourse.profile import LOG10_OF_2

__all__ = ["network_rows", "program_rows"]

Update = Callable[[Any, Any], Any]  # the optimiser's, of a gradient and the parameters; without one it returns None
MARGIN = 10  # binary digits that the scaled gradient stays below overflow


def program_rows(
    program: Plan, trainable: Any, given: tuple[Any, ...], update: Update, directions: int, key: PRNGKeyArray
) -> tuple[list[LayerReport], float]:
    """Returns a row per layer and turn, in the order of the program, and the loss of `trainable` on what is given."""
    layers = program.all()
    loss, gradient, slopes, seen, norms, true = _measured(program, trainable, given, directions, key)
    squares_of, updates = jax.jit(partial(_squares, layers)), update(gradient, trainable)
    weights = jax.device_get(squares_of(trainable))
    moved = None if updates is None else jax.device_get(squares_of(updates))
    sizes = dict(zip(parameter_paths(trainable), map(jnp.size, jax.tree.leaves(trainable)), strict=True))
    found: list[dict[str, Any]] = []  # per layer; arrays have the axes of its turns
    for index, layer in enumerate(layers):
        count = sum(sizes[path] // (prod(layer.turns) if path in layer.sliced else 1) for path in layer.given)
        weight, (activation, parameter) = _combined_log2(weights[index], layer.turns), true[index]
        waiting = any(
            path in layer.weights and not np.any(own.square) and np.any(slope.square)
            for path, own, slope in zip(layer.given, weights[index], slopes[index], strict=True)
        )
        found.append(
            seen[index]
            | {
                "parameters": tuple(layer.given),
                "shape": layer.out.aval.shape,
                "dtype": str(layer.out.aval.dtype),
                "count": count,
                "units": prod(layer.out.aval.shape[axis] for axis in layer.units) if count else 0,
                "in_chain": layer.is_product,
                "waiting": waiting,
                "log10_activation_gradient": activation * LOG10_OF_2,
                "log10_parameter_gradient": parameter * LOG10_OF_2 if count else nan,
                "lost": share_lost(norms[index], true[index]).max(axis=0),
                "finite": seen[index]["finite"] == 1,
                "finite_parameters": weight < inf,
            }
        )
        if moved is not None and count:
            with np.errstate(invalid="ignore", over="ignore"):
                found[-1]["update_to_weight"] = np.exp2(_combined_log2(moved[index], layer.turns) - weight)
    rows = [
        LayerReport(
            name=layer.name + "".join(f"[{one}]" for one in turn),
            **{name: _plain(entry, turn) for name, entry in found[layer.index].items()},
        )
        for layer, turn in program.order()
    ]
    return rows, float(loss)


def network_rows(
    network: Network,
    params: Params,
    x: Any,
    y: Any,
    loss: Callable[..., Any],
    update: Update,
    directions: int,
    key: Any,
) -> tuple[list[LayerReport], float]:
    """Returns a row per layer, and the mean loss of the batch; `loss(output, label)` is of one example."""
    at_inputs = activation_gradient_norms(network, params, x, y, loss=loss)
    by_parameters = parameter_gradient_norms(network, params, x, y, loss=loss)
    gains = layer_jacobian_norms(network, params, x, probes=max(directions, 2), key=key)
    x, y = jnp.asarray(x), jax.tree.map(jnp.asarray, y)

    def mean_loss(params: Params) -> tuple[Array, Array]:
        output = network.apply(params, x)
        return jax.vmap(loss)(output, y).mean(), output

    (value, output), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    at_output = jax.grad(lambda output: jax.vmap(loss)(output, y).mean())(output)
    # The engine's norms are per example; a report's are of the gradient of the mean, over the whole batch.
    of_batch = at_inputs.log10_norm - np.log10(len(x)) / 2
    names = network.layer_names
    shapes = [stage.layer.output_shape(stage.shape) for stage in network.stages for _ in range(stage.repeats)]
    layers = [(name, *one, shape) for name, one, shape in zip(names, network.layers(params), shapes, strict=True)]

    def at_every_layer(values: Any, missing: float) -> list[float]:
        there = dict(zip(by_parameters.layers, np.asarray(values, np.float64), strict=True))
        return [there.get(name, missing) for name in names]

    ratios = np.full(len(by_parameters.layers), nan)
    if (updates := update(gradient, params)) is not None:
        ratios = 10.0 ** update_to_weight_ratios(network, params, updates).log10_norm
    lost = share_lost(log2_norms(layer_squares(gradient)), by_parameters.log10_norm / LOG10_OF_2)
    gain = 10.0 ** (2 * gains.log10_norm) / [prod(shape) for shape in shapes]
    statistics = jax.device_get(statistics_of(network, params, x))
    columns = {
        "name": names,
        "parameters": [tuple(f"{name} {path}" for path in parameter_paths(p)) for name, _, p, _ in layers],
        "shape": [(len(x), *shape) for shape in shapes],
        "dtype": [str(jnp.result_type(*jax.tree.leaves(params), x))] * len(names),
        "count": [sum(leaf.size for leaf in jax.tree.leaves(p)) for _, _, p, _ in layers],
        "units": [shape[-1] if layer.activation is not None else 0 for _, layer, _, shape in layers],
        "in_chain": [bool(p) for _, _, p, _ in layers],
        **{name: getattr(statistics, name) for name in ("mean", "spread", "saturated", "silent", "dead")},
        "log10_activation_gradient": [*of_batch[1:], log2_norms(sum_of_squares([at_output])) * LOG10_OF_2],
        "log10_parameter_gradient": at_every_layer(by_parameters.log10_norm, nan),
        "update_to_weight": at_every_layer(ratios, nan),
        "gain": gain,
        "gain_error": gain * 2 * log(10) * np.asarray(gains.standard_error),
        "lost": at_every_layer(lost, 0.0),
    }
    rows = zip(*columns.values(), strict=True)
    return [LayerReport(**dict(zip(columns, map(_plain, row), strict=True))) for row in rows], float(value)


def _plain(entry: Any, turn: tuple[int, ...] = ()) -> Any:
    """An entry of a row: of an array the number that belongs to the turn."""
    return np.asarray(entry)[turn].item() if isinstance(entry, np.generic | np.ndarray) else entry


def _measured(program: Plan, trainable: Any, given: tuple[Any, ...], directions: int, key: PRNGKeyArray) -> Any:
    """What a forward and a backward pass have found; arrays of a layer have the axes of its turns.

    In this order: the loss; its gradient; per layer and parameter the gradient's squared norm; per layer the statistics
    of its units and its gain, by the names of a report's columns; per layer log2 of the norm of the gradient, of its
    activation and of its parameters, `(2, *turns)`; the same from a scaled loss, where less underflows.
    """
    layers = program.all()
    each = zip(jax.random.split(key, len(layers)), layers, strict=True)
    keys = [jax.random.split(one, layer.turns) if layer.turns else one for one, layer in each]

    def observe(layer: FoundLayer, key: Any, value: Any, activation: Known, product: Known | None) -> dict[str, Any]:
        function, preactivation = activation

        def slope(at: Any) -> Any:
            return jax.vjp(function, at)[1](jnp.ones_like(value))[0].astype(jnp.float32)

        # The activation may hold parameters of the shape of what it is given: it is a piece of the program.
        found = activation_statistics(preactivation, value, slope, layer.units, whole=True)
        return found if product is None else found | _gains(product, value, directions, key)

    # It runs twice: compiled to be compiled fast, rather than to be fast.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def differentiated(trainable: Any, scale: Any, given: Any) -> Any:
        def scaled(trainable: Any, probes: Any) -> Any:
            mine = dict(enumerate(zip(probes, keys, strict=True)))
            (value,), seen = run(program, jax.tree.leaves((trainable, *given)), mine, observe)
            return value * scale.astype(value.dtype), (value, seen)

        probes = [Probe.zeros(*layer.turns) for layer in layers]
        (_, results), gradients = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(trainable, probes)
        gradient, found = gradients
        return *results, gradient, _squares(layers, gradient), [profile([one]) for one in found]

    def passed(power: int) -> tuple[Any, ...]:
        loss, seen, gradient, *found = differentiated(trainable, jnp.float32(2.0**power), given)
        slopes, profiles = jax.device_get(found)
        norms = []
        for one, of_parameters, layer in zip(profiles, slopes, layers, strict=True):
            activation = np.add(one.exponent, one.fraction, dtype=np.float64)[..., 0]
            norms.append(np.stack([activation, _combined_log2(of_parameters, layer.turns)]) - power)
        return loss, gradient, slopes, jax.device_get(seen), norms

    loss, *_, norms = plain = passed(0)
    largest = max(float(np.max(one, initial=-inf)) for one in norms)
    if isfinite(largest):  # the loss is multiplied by as much as does not overflow
        formats = {layer.out.aval.dtype for layer in layers} | {leaf.dtype for leaf in jax.tree.leaves(trainable)}
        room = min(jnp.finfo(one).maxexp for one in formats if jnp.issubdtype(one, jnp.floating)) - largest
        power = min(int(room) - MARGIN, jnp.finfo(loss.dtype).maxexp - 2, 125)
        while power > 0:
            *_, scaled = passed(power)
            if all(np.all(one < inf) for one in scaled):
                return *plain, scaled
            power //= 2
    return *plain, norms


def _squares(layers: list[FoundLayer], tree: Any) -> list[list[Scaled]]:
    """Per layer and parameter, the squared norm: of every turn's slice, or of what all turns share."""
    leaves = dict(zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True))
    return [
        [squares(leaves[path], *(layer.turns if path in layer.sliced else ())) for path in layer.given]
        for layer in layers
    ]


def _combined_log2(parts: list[Scaled], turns: tuple[int, ...]) -> Any:
    """The binary logarithm of the norm of all parts together, per turn."""
    with np.errstate(invalid="ignore"):
        each = np.broadcast_arrays(np.full(turns, -inf), *(2 * log2_norms(part) for part in parts))
        return np.logaddexp2.reduce(each) / 2


def _gains(product: Known, value: Any, directions: int, key: PRNGKeyArray) -> dict[str, Any]:
    """The mean squared gain of the layer's Jacobian on the way back, and its standard error."""
    _, pull = jax.vjp(*product)

    def one(key: PRNGKeyArray) -> Any:
        cotangent = jax.random.normal(key, value.shape, value.dtype)
        (pulled,) = pull(cotangent)
        before, after = (jnp.sum(jnp.square(part.astype(jnp.float32))) for part in (cotangent, pulled))
        return after / before

    gains = jax.vmap(one)(jax.random.split(key, directions))
    error = gains.std(ddof=1) / directions**0.5 if directions > 1 else jnp.full_like(gains[0], jnp.nan)
    return {"gain": gains.mean(), "gain_error": error}
