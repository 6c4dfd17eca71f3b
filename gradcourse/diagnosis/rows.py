"""The rows of a report on a network of this package: gradients in the log domain, whatever the depth."""

from collections.abc import Callable
from functools import partial
from math import log, log10, nan, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from gradcourse._logdomain import log2_norms, share_lost
from gradcourse.diagnosis.models import next_update
from gradcourse.diagnosis.report import LayerReport
from gradcourse.diagnosis.tracing import parameter_paths
from gradcourse.measure.gradients import (
    CROSS_ENTROPY,
    activation_gradient_norms,
    layer_squares,
    parameter_gradient_norms,
    update_to_weight_ratios,
)
from gradcourse.measure.jacobians import layer_jacobian_norms
from gradcourse.measure.units import activation_statistics
from gradcourse.nn.layers import Layer
from gradcourse.nn.network import Network, Params
from gradcourse.probes import squares

__all__ = ["own_rows"]

LOG10_OF_2 = log10(2)


def own_rows(
    network: Network,
    params: Params,
    batch: Any,
    loss: Callable[..., Any] | None,
    optimizer: Any,
    optimizer_state: Any,
    directions: int,
    key: PRNGKeyArray,
) -> tuple[list[LayerReport], float]:
    """Returns a row per layer, and the mean loss of the batch `(x, y)`; `loss(output, label)` is of one example."""
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TypeError(f"batch={batch!r} is not accepted for a network; give (inputs, labels).")
    x, y = batch
    loss = CROSS_ENTROPY if loss is None else loss
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
    activation = [*of_batch[1:], log2_norms(squares(at_output)) * LOG10_OF_2]
    names = network.layer_names
    true = dict(zip(by_parameters.layers, by_parameters.log10_norm, strict=True))
    plain = log2_norms(layer_squares(gradient))
    lost = dict(zip(true, share_lost(plain, by_parameters.log10_norm / LOG10_OF_2), strict=True))
    ratio = dict.fromkeys(names, nan)
    if optimizer is not None:
        ratios = update_to_weight_ratios(network, params, next_update(optimizer, optimizer_state, gradient, params))
        ratio |= dict(zip(ratios.layers, 10.0**ratios.log10_norm, strict=True))
    units = dict(zip(names, _statistics(network, params, x), strict=True))
    per_layer = [(p, stage) for p, stage in zip(params, network.stages, strict=True) for _ in range(stage.repeats)]
    rows = []
    for index, (name, (p, stage)) in enumerate(zip(names, per_layer, strict=True)):
        shape = stage.layer.output_shape(stage.shape)
        found = units[name]
        gain = 10.0 ** (2 * gains.log10_norm[index]) / prod(shape)
        rows.append(
            LayerReport(
                name=name,
                parameters=tuple(f"{name} {path}" for path in parameter_paths(p)),
                shape=(len(x), *shape),
                dtype=str(jnp.result_type(*jax.tree.leaves(params), x)),
                count=sum(prod(leaf.shape[1:]) for leaf in jax.tree.leaves(p)),
                mean=float(found["mean"]),
                deviation=float(found["deviation"]),
                saturated=float(found["saturated"]),
                dead=float(found["dead"]),
                silent=float(found["silent"]),
                log10_activation_gradient=float(activation[index]),
                log10_parameter_gradient=float(true.get(name, nan)),
                update_to_weight=float(ratio[name]),
                gain=float(gain),
                gain_error=float(gain * 2 * log(10) * np.asarray(gains.standard_error)[index]),
                lost=float(lost.get(name, 0.0)),
                units=int(shape[-1]) if stage.layer.activation is not None else 0,
                in_chain=bool(p),
            )
        )
    return rows, float(value)


@partial(jax.jit, static_argnums=0)
def _stacked_statistics(network: Network, params: Params, x: Array) -> list[dict[str, Array]]:
    def step(layer: Layer, p: Any, h: Array) -> tuple[Array, dict[str, Array]]:
        s = layer.preactivation(p, h)
        function = layer.activation if layer.activation is not None else lambda s: s
        value = layer.apply(p, h)
        return value, activation_statistics(s, function, value, (s.ndim - 1,))

    return network.scan(step, params, x)[1]


def _statistics(network: Network, params: Params, x: Array) -> list[dict[str, Any]]:
    """Per layer, how its units stand on the batch."""
    stages = jax.device_get(_stacked_statistics(network, params, x))
    return [
        {name: values[index] for name, values in found.items()}
        for found, stage in zip(stages, network.stages, strict=True)
        for index in range(stage.repeats)
    ]
