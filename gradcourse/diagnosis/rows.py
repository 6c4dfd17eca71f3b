"""The rows of a report: of any program whose layers are known, and of a network of this package.

Of a program the gradients' norms are those of autodiff. Of a network they are measured in the log domain, whatever its
depth.
"""

from collections.abc import Callable
from functools import partial
from math import inf, log, nan, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from gradcourse._logdomain import log2_norms, share_lost, sum_of_squares
from gradcourse.diagnosis.measuring import Measured, combined_log2, squares_by_layer
from gradcourse.diagnosis.models import next_update
from gradcourse.diagnosis.report import LayerReport
from gradcourse.diagnosis.tracing import Program, parameter_paths
from gradcourse.measure.gradients import (
    activation_gradient_norms,
    layer_squares,
    parameter_gradient_norms,
    update_to_weight_ratios,
)
from gradcourse.measure.jacobians import layer_jacobian_norms
from gradcourse.measure.units import statistics_of
from gradcourse.nn.network import Network, Params
from gradcourse.profile import LOG10_OF_2

__all__ = ["network_rows", "program_rows"]

STATISTICS = ("mean", "spread", "saturated", "silent", "dead")


def program_rows(program: Program, trainable: Any, measured: Measured, updates: Any) -> list[LayerReport]:
    """Returns a row per layer and turn, in the order of the program; `updates` are an optimiser's, or `None`."""
    squares_of = jax.jit(partial(squares_by_layer, program))
    weights = jax.device_get(squares_of(trainable))
    moved = None if updates is None else jax.device_get(squares_of(updates))
    sizes = dict(zip(parameter_paths(trainable), map(jnp.size, jax.tree.leaves(trainable)), strict=True))
    found: list[dict[str, Any]] = []  # per layer; arrays have the axes of its turns
    for index, layer in enumerate(program.layers):
        count = sum(sizes[path] // (prod(layer.turns) if path in layer.sliced else 1) for path in layer.given)
        weight, (activation, parameter) = combined_log2(weights[index], layer.turns), measured.true[index]
        waiting = any(
            path in layer.weights and not np.any(own.square) and np.any(gradient.square)
            for path, own, gradient in zip(layer.given, weights[index], measured.squares[index], strict=True)
        )
        found.append(
            measured.seen[index]
            | {
                "parameters": tuple(layer.given),
                "shape": layer.shape,
                "dtype": str(layer.dtype),
                "count": count,
                "units": prod(layer.shape[axis] for axis in layer.units) if count else 0,
                "in_chain": layer.is_product,
                "waiting": waiting,
                "log10_activation_gradient": activation * LOG10_OF_2,
                "log10_parameter_gradient": parameter * LOG10_OF_2 if count else nan,
                "lost": np.maximum(*map(share_lost, measured.norms[index], measured.true[index])),
                "finite": measured.seen[index]["finite"] == 1,
                "finite_parameters": weight < inf,
            }
        )
        if moved is not None and count:
            with np.errstate(invalid="ignore", over="ignore"):
                found[-1]["update_to_weight"] = np.exp2(combined_log2(moved[index], layer.turns) - weight)
    return [
        LayerReport(
            name=layer.name + "".join(f"[{one}]" for one in turn),
            **{name: _plain(entry, turn) for name, entry in found[layer.index].items()},
        )
        for layer, turn in program.plan.order()
    ]


def network_rows(
    network: Network,
    params: Params,
    x: Any,
    y: Any,
    loss: Callable[..., Any],
    optimizer: Any,
    optimizer_state: Any,
    directions: int,
    key: PRNGKeyArray,
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
        """Values of the layers with parameters, and what is told of the others."""
        there = dict(zip(by_parameters.layers, np.asarray(values, np.float64), strict=True))
        return [there.get(name, missing) for name in names]

    ratios = np.full(len(by_parameters.layers), nan)
    if optimizer is not None:
        updates = next_update(optimizer, optimizer_state, gradient, params)
        ratios = 10.0 ** update_to_weight_ratios(network, params, updates).log10_norm
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
        **{name: getattr(statistics, name) for name in STATISTICS},
        "log10_activation_gradient": [*of_batch[1:], log2_norms(sum_of_squares([at_output])) * LOG10_OF_2],
        "log10_parameter_gradient": at_every_layer(by_parameters.log10_norm, nan),
        "update_to_weight": at_every_layer(ratios, nan),
        "gain": gain,
        "gain_error": gain * 2 * log(10) * np.asarray(gains.standard_error),
        "lost": at_every_layer(
            share_lost(log2_norms(layer_squares(gradient)), by_parameters.log10_norm / LOG10_OF_2), 0.0
        ),
    }
    rows = zip(*columns.values(), strict=True)
    return [LayerReport(**dict(zip(columns, map(_plain, row), strict=True))) for row in rows], float(value)


def _plain(entry: Any, turn: tuple[int, ...] = ()) -> Any:
    """An entry of a row: of an array the number that belongs to the turn."""
    return np.asarray(entry)[turn].item() if isinstance(entry, np.generic | np.ndarray) else entry
