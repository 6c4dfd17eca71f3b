r"""A gradient-flow report for anybody's model: what reaches which layer, and what is wrong.

`diagnose` finds the layers of a model in the program that JAX makes of it (`gradcourse.tracing`), measures them on one
batch, and judges them by rules with thresholds (`gradcourse.findings`). The model is not changed.

>>> import jax, jax.numpy as jnp
>>> import gradcourse as gc
>>> def model(params, x):
...     for weight in params["hidden"]:
...         x = jax.nn.sigmoid(x @ weight)
...     return x @ params["readout"]
>>> draw = jax.nn.initializers.normal(0.1)
>>> keys = jax.random.split(jax.random.key(0), 8)
>>> params = {"hidden": [draw(key, (64, 64)) for key in keys[1:]], "readout": draw(keys[0], (64, 10))}
>>> data = gc.digits()
>>> report = diagnose(model, params, (data.x_train[:64], data.y_train[:64]))
>>> [finding.kind for finding in report.findings]
['vanishing']
>>> print(f"{report.slope:.2f} decades per layer")
0.70 decades per layer
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf, isfinite, nan, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gradcourse.checks import positive_integer
from gradcourse.findings import findings_of, gradient_slope
from gradcourse.forms import Form, as_loss
from gradcourse.gradients import CROSS_ENTROPY
from gradcourse.logdomain import Scaled, to_unit
from gradcourse.networks import Network
from gradcourse.own_network import own_rows
from gradcourse.probes import Probe, profile
from gradcourse.report import LayerReport, Report
from gradcourse.tracing import FoundLayer, Look, Program, parameter_paths, traced_program
from gradcourse.units import activation_statistics

__all__ = ["diagnose"]

MARGIN = 10  # binary digits that the scaled gradient stays below overflow


def diagnose(
    model_or_loss: Any,
    params: Any = None,
    batch: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    optimizer_state: Any = None,
    probes: Any = None,
    directions: int = 8,
    key: PRNGKeyArray | None = None,
) -> Report:
    """Returns a report on the gradient flow of a model: a row per layer, and what is wrong.

    What may be given, and how it is called (a `batch` that is no tuple is one argument):

    - a loss: `diagnose(loss, params, (x, y))` calls `loss(params, x, y)`, which returns a scalar, or a tuple that
      begins with one. Jitted functions and any number of arguments will do; so will no batch at all;
    - a model: `diagnose(model, params, (x, y))`, where `model(params, x)` returns logits for integer labels `y`, or
      what is to be near to `y`; for anything else there is `loss(outputs, y)`;
    - a Flax NNX or Equinox module: `diagnose(model, batch=(x, y))`, or `diagnose(loss, model, (x, y))` with
      `loss(model, x, y)`. Equinox modules are called once per example; those with state need the second form;
    - a network of this package: `diagnose(network, params, (x, y))`. Then gradients are measured in the log domain,
      and 1e-400 is a number like any other; `loss(output, label)` is of one example, as in `gradcourse.gradients`.

    Nothing that is passed is changed; what the model does to its own state is forgotten.

    - `optimizer`, with its `optimizer_state` if there is one: of whose next update the size is told;
    - `probes`: the dummies of a function that calls `gradcourse.probes.probe` itself, as `function(params, probes,
      *batch)`. Its places get rows of their own;
    - `directions`: how many random cotangents measure every layer's gain; `key` draws them, and is passed on to Equinox
      modules that take one. By default `jax.random.key(0)`.

    Cost: two forward and backward passes, and `directions` backward passes more; everything is compiled once. The
    gradient is taken twice, once of a scaled loss, so that what underflows is told from what is 0; it is right down to
    about 1e-75 in float32.

    Raises `TypeError` or `ValueError` for what cannot be called or differentiated; where the model itself raises, a
    note is added that says what it was called with.
    """
    directions = positive_integer("directions", directions)
    key = jax.random.key(0) if key is None else key
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer={optimizer!r} is a {type(optimizer).__name__}; accepted is an optax optimiser.")
    if isinstance(model_or_loss, Network):
        try:
            rows, value = own_rows(model_or_loss, params, batch, loss, optimizer, optimizer_state, directions, key)
            return _report(rows, value, True, ())
        except FloatingPointError:  # activations overflow: where, a plain run tells
            per_example = CROSS_ENTROPY if loss is None else loss
            loss = lambda outputs, labels: jax.vmap(per_example)(outputs, labels).mean()  # noqa: E731
            model_or_loss = model_or_loss.apply
    form = as_loss(model_or_loss, params, batch, loss, probes, key)
    program = traced_program(form.loss, form.trainable, form.batch, probes)
    if not any(layer.parameters for layer in program.layers):
        raise ValueError(
            f"no layer was found in {getattr(model_or_loss, '__name__', 'the model')}: its parameters, "
            f"{parameter_paths(form.trainable)[:5]}, meet the batch in no product. Give the data as batch=, and the "
            "parameters as params=, not the other way round."
        )
    measured = _measured(program, form, probes, optimizer, optimizer_state, directions, key)
    rows = [_row(program.layers[index], turn, measured[index]) for index, turn in program.order()]
    placed = {path for layer in program.layers for path in layer.parameters}
    elsewhere = tuple(path for path in parameter_paths(form.trainable) if path not in placed)
    sound = all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(form.batch) if _is_float(leaf))
    return _report(rows, float(measured["loss"]), sound, elsewhere)


def _report(rows: list[LayerReport], loss: float, sound: bool, elsewhere: tuple[str, ...]) -> Report:
    slope, low, high = gradient_slope(rows)
    return Report(tuple(rows), findings_of(rows, loss, sound), loss, slope, (low, high), elsewhere)


def _measured(
    program: Program, form: Form, probes: Any, optimizer: Any, state: Any, directions: int, key: Any
) -> dict[Any, Any]:
    """Per layer, by its index, everything that was measured of it, as arrays with the axes of its turns; the loss."""
    extra = () if probes is None else (probes,)
    paths = parameter_paths(form.trainable)
    keys = [
        jax.random.split(one, layer.turns) if layer.turns else one
        for one, layer in zip(jax.random.split(key, len(program.layers)), program.layers, strict=True)
    ]

    def observe(index: int, look: Look, key: Any) -> dict[str, Any]:
        layer = program.layers[index]
        found = activation_statistics(look.preactivation, look.activation, look.value, layer.units)
        if layer.is_product and look.layer is not None:
            found |= _gains(look.layer, look, directions, key)
        return found

    norms_of = jax.jit(partial(_parameter_norms, program, paths))

    # It runs twice, so it is compiled fast, and not to be fast.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def gradients(trainable: Any, scale: Any, rest: Any) -> dict[str, Any]:
        def scaled(trainable: Any, dummies: Any) -> Any:
            given = list(zip(dummies, keys, strict=True))
            value, seen = program.run((trainable, *rest), given, observe)
            return value * scale.astype(value.dtype), (value, seen)

        (_, (value, seen)), (gradient, found) = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(
            trainable, program.probes()
        )
        return {"loss": value, "seen": seen, "gradient": gradient, "found": found, "parameters": norms_of(gradient)}

    rest = (*extra, *form.batch)
    plain = gradients(form.trainable, jnp.float32(1), rest)
    norms = _log2_norms(program, plain)
    power, scaled = _scale(program, form, norms, plain["loss"].dtype), norms
    while power > 0:
        scaled = _log2_norms(program, gradients(form.trainable, jnp.float32(2.0**power), rest))
        if all(np.all(values < inf) for pair in scaled for values in pair):
            break
        power //= 2
    else:
        scaled = norms
    weights = norms_of(form.trainable)
    updates = None
    if optimizer is not None:
        state = optimizer.init(form.trainable) if state is None else state
        moved, _ = optimizer.update(plain["gradient"], state, form.trainable)
        updates = norms_of(moved)
    leaves = dict(zip(paths, zip(*map(jax.tree.leaves, (form.trainable, plain["gradient"])), strict=True), strict=True))
    result: dict[Any, Any] = {"loss": plain["loss"]}
    for index, layer in enumerate(program.layers):
        true = [one - power for one in scaled[index]]
        weight = _log2(weights[index], layer.turns)
        result[index] = {
            **{name: np.asarray(values, np.float64) for name, values in plain["seen"][index].items()},
            "activation": true[0],
            "parameter": true[1],
            "lost": np.maximum(*(_lost(*pair) for pair in zip(norms[index], true, strict=True))),
            "ratio": np.full(layer.turns, nan),
            "sound_weights": weight < inf,
            "waiting": any(not np.any(leaves[path][0]) and np.any(leaves[path][1]) for path in layer.weights),
            "count": sum(
                prod(leaves[path][0].shape) // (prod(layer.turns) if path in layer.sliced else 1)
                for path in layer.parameters
            ),
        }
        if updates is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                result[index]["ratio"] = np.exp2(_log2(updates[index], layer.turns) - weight)
    return result


def _gains(layer: Callable[[Any], Any], look: Look, directions: int, key: Any) -> dict[str, Any]:
    """The mean squared gain of the layer's Jacobian on the way back, and its standard error."""
    _, pull = jax.vjp(layer, look.input)

    def one(key: Any) -> Any:
        cotangent = jax.random.normal(key, look.value.shape, look.value.dtype)
        (pulled,) = pull(cotangent)
        before, after = (jnp.sum(jnp.square(part.astype(jnp.float32))) for part in (cotangent, pulled))
        return after / before

    gains = jax.lax.map(one, jax.random.split(key, directions))
    error = gains.std(ddof=1) / directions**0.5 if directions > 1 else jnp.full_like(gains[0], nan)
    return {"gain": gains.mean(), "gain_error": error}


def _parameter_norms(program: Program, paths: list[str], tree: Any) -> list[list[Scaled]]:
    """Per layer and parameter, the squared norm: of every turn's slice, or of what all turns share."""
    leaves = dict(zip(paths, jax.tree.leaves(tree), strict=True))

    def of(leaf: Any, turns: int) -> Scaled:
        size, axes = jnp.abs(leaf), tuple(range(turns, leaf.ndim))
        small, exponent = to_unit(size.astype(jnp.promote_types(size.dtype, jnp.float32)), axes)
        return Scaled(exponent, jnp.square(small).sum(axes))

    return [
        [of(leaves[path], len(layer.turns) if path in layer.sliced else 0) for path in layer.parameters]
        for layer in program.layers
    ]


def _log2_norms(program: Program, measured: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Per layer, the binary logarithm of the gradient's norm, of the activation and of the parameters."""
    found = [
        profile([one] if not one.shape else one, axis=0).log10_norm / np.log10(2)
        for one in _flattened(measured["found"])
    ]
    return [
        (values.reshape(layer.turns), _log2(parts, layer.turns))
        for values, layer, parts in zip(found, program.layers, measured["parameters"], strict=True)
    ]


def _flattened(found: list[Probe]) -> list[Probe]:
    return [jax.tree.map(lambda leaf: leaf.reshape(-1), one) if one.shape else one for one in found]


def _log2(parts: list[Scaled], turns: tuple[int, ...]) -> np.ndarray:
    """The binary logarithm of the norm of all parts together, per turn."""
    whole = np.full(turns, -inf)
    for exponent, square in jax.device_get(parts):
        with np.errstate(divide="ignore", invalid="ignore"):
            one = np.asarray(exponent, np.float64) + np.log2(np.asarray(square, np.float64)) / 2
            whole = np.logaddexp2(2 * whole, 2 * one) / 2
    return np.asarray(whole)


def _scale(program: Program, form: Form, norms: list[tuple[Any, Any]], dtype: Any) -> int:
    """The power of two that the loss can be multiplied by before anything overflows; 0 where something has already."""
    largest = max(float(np.max(values, initial=-inf)) for pair in norms for values in pair)
    if not isfinite(largest):
        return 0
    formats = {layer.dtype for layer in program.layers} | {
        jnp.result_type(one) for one in jax.tree.leaves(form.trainable)
    }
    room = min(jnp.finfo(one).maxexp for one in formats if jnp.issubdtype(one, jnp.floating))
    return max(0, min(int(room - largest) - MARGIN, jnp.finfo(dtype).maxexp - 2, 125))


def _lost(plain: Any, true: Any) -> Any:
    """The share of the norm that underflow has cost."""
    with np.errstate(invalid="ignore"):
        share = 1 - np.exp2(np.minimum(plain - true, 0))
    return np.where(np.isfinite(true), share, 0.0)


def _row(layer: FoundLayer, turn: tuple[int, ...], measured: Mapping[str, Any]) -> LayerReport:
    """The report of one layer in one turn of the scans round it."""

    def of(name: str) -> float:
        values = np.asarray(measured.get(name, nan))
        return float(values[turn] if values.shape[: len(turn)] == layer.turns and turn else values)

    has = bool(layer.parameters)
    to_decades = np.log10(2)
    return LayerReport(
        name=layer.name + "".join(f"[{index}]" for index in turn),
        parameters=layer.parameters,
        shape=layer.shape,
        dtype=str(layer.dtype),
        count=measured["count"],
        mean=of("mean"),
        deviation=of("deviation"),
        saturated=of("saturated"),
        dead=of("dead"),
        silent=of("silent"),
        log10_activation_gradient=of("activation") * to_decades,
        log10_parameter_gradient=of("parameter") * to_decades if has else nan,
        update_to_weight=of("ratio") if has else nan,
        gain=of("gain"),
        gain_error=of("gain_error"),
        lost=of("lost"),
        units=prod(layer.shape[axis] for axis in layer.units) if has else 0,
        finite=bool(of("finite")),
        finite_parameters=bool(of("sound_weights")),
        in_chain=layer.is_product,
        waiting=bool(measured["waiting"]),
    )


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
