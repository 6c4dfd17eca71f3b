r"""A gradient-flow report for anybody's model: what reaches which layer, and what is wrong.

`diagnose` finds the layers of a model in the program that JAX makes of it (`diagnosis.tracing`), measures them on one
batch, and judges them by rules with thresholds (`gradcourse.diagnosis.findings`). The model is not changed.

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
0.72 decades per layer
"""

from collections.abc import Callable
from functools import partial
from math import inf, isfinite, log10, nan, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse._logdomain import Scaled, log2_norms, share_lost, to_unit
from gradcourse.diagnosis.findings import findings_of, gradient_slope
from gradcourse.diagnosis.models import Form, as_loss, next_update
from gradcourse.diagnosis.report import LayerReport, Report
from gradcourse.diagnosis.rows import own_rows
from gradcourse.diagnosis.tracing import FoundLayer, Look, Program, parameter_paths, traced_program
from gradcourse.measure.gradients import CROSS_ENTROPY
from gradcourse.measure.units import activation_statistics
from gradcourse.nn.network import Network
from gradcourse.probes import Probe, profile

__all__ = ["diagnose"]

LOG10_OF_2 = log10(2)
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
      and 1e-400 is a number like any other; `loss(output, label)` is of one example, as in `measure.gradients`.

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
        raise TypeError(
            f"optimizer={optimizer!r} is a {type(optimizer).__name__}; accepted is an optax optimiser "
            "(of Flax's nnx.Optimizer, its tx)."
        )
    if isinstance(model_or_loss, Network):
        try:
            rows, value = own_rows(model_or_loss, params, batch, loss, optimizer, optimizer_state, directions, key)
            return _report(rows, value, True, ())
        except FloatingPointError:  # activations overflow: where, a plain run tells
            per_example = CROSS_ENTROPY if loss is None else loss
            loss = lambda outputs, labels: jax.vmap(per_example)(outputs, labels).mean()  # noqa: E731
            model_or_loss = model_or_loss.apply
    form = as_loss(model_or_loss, params, batch, loss, probes, key)
    program = traced_program(form.loss, form.trainable, form.given, probed=probes is not None)
    paths = parameter_paths(form.trainable)
    if not any(layer.parameters for layer in program.layers):
        raise ValueError(
            f"no layer was found in {getattr(model_or_loss, '__name__', 'the model')}: its parameters, {paths[:5]}, "
            "meet the batch in no product. Give the data as batch=, and the parameters as params=, not the other way "
            "round."
        )
    measured = _measure(program, form, directions, key)
    updates = None
    if optimizer is not None:
        updates = next_update(optimizer, optimizer_state, measured.gradient, form.trainable)
    rows = _rows(program, form.trainable, measured, updates)
    placed = {path for layer in program.layers for path in layer.parameters}
    sound = all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(form.given) if _is_floating(leaf))
    return _report(rows, float(measured.loss), bool(sound), tuple(path for path in paths if path not in placed))


def _report(rows: list[LayerReport], loss: float, sound: bool, elsewhere: tuple[str, ...]) -> Report:
    slope, low, high = gradient_slope(rows)
    return Report(tuple(rows), findings_of(rows, loss, sound), loss, slope, (low, high), elsewhere)


# ---- Measuring


class _Measured(NamedTuple):
    """What one forward and backward pass has found; per layer, arrays have the axes of its turns.

    - `squares`: per layer and parameter, the squared norm of its gradient;
    - `seen`: per layer, what was seen of its activation on the way forward;
    - `norms`: per layer, log2 of the norm of the gradient, of its activation and of its parameters, as autodiff has
      them; `true`: the same by way of a scaled loss, where less underflows.
    """

    loss: Any
    gradient: Any
    squares: Any
    seen: Any
    norms: list[tuple[Any, Any]]
    true: list[tuple[Any, Any]]


def _measure(program: Program, form: Form, directions: int, key: Any) -> _Measured:
    keys = [
        jax.random.split(one, layer.turns) if layer.turns else one
        for one, layer in zip(jax.random.split(key, len(program.layers)), program.layers, strict=True)
    ]

    def observe(index: int, look: Look, key: Any) -> dict[str, Any]:
        found = activation_statistics(look.preactivation, look.activation, look.value, program.layers[index].units)
        return found if look.layer is None else found | _gains(look.layer, look, directions, key)

    # It runs twice: compiled to be compiled fast, rather than to be fast.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def differentiated(trainable: Any, scale: Any, given: Any) -> Any:
        def scaled(trainable: Any, dummies: Any) -> Any:
            value, seen = program.run((trainable, *given), list(zip(dummies, keys, strict=True)), observe)
            return value * scale.astype(value.dtype), (value, seen)

        (_, results), gradients = jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)(trainable, program.probes())
        gradient, found = gradients
        return *results, gradient, [_log2_parts(one) for one in found], _squares_of(program, gradient)

    def passed(power: int) -> _Measured:
        scale = jnp.float32(2.0**power)
        loss, seen, gradient, *found = differentiated(form.trainable, scale, form.given)
        at_activations, squares = jax.device_get(found)
        norms = [
            (np.add(*parts, dtype=np.float64) - power, _log2(of_parameters, layer.turns) - power)
            for parts, of_parameters, layer in zip(at_activations, squares, program.layers, strict=True)
        ]
        return _Measured(loss, gradient, squares, jax.device_get(seen), norms, norms)

    plain = passed(0)
    power = _room(program, form, plain)
    while power > 0:
        scaled = passed(power).norms
        if all(np.all(values < inf) for pair in scaled for values in pair):
            return plain._replace(true=scaled)
        power //= 2
    return plain


def _gains(layer: Callable[[Any], Any], look: Look, directions: int, key: Any) -> dict[str, Any]:
    """The mean squared gain of the layer's Jacobian on the way back, and its standard error."""
    _, pull = jax.vjp(layer, look.input)

    def one(key: Any) -> Any:
        cotangent = jax.random.normal(key, look.value.shape, look.value.dtype)
        (pulled,) = pull(cotangent)
        before, after = (jnp.sum(jnp.square(part.astype(jnp.float32))) for part in (cotangent, pulled))
        return after / before

    gains = jax.vmap(one)(jax.random.split(key, directions))
    error = gains.std(ddof=1) / directions**0.5 if directions > 1 else jnp.full_like(gains[0], nan)
    return {"gain": gains.mean(), "gain_error": error}


def _squares_of(program: Program, tree: Any) -> list[list[Scaled]]:
    """Per layer and parameter, the squared norm: of every turn's slice, or of what all turns share."""
    leaves = dict(zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True))

    def of(leaf: Any, turns: int) -> Scaled:
        size, axes = jnp.abs(leaf), tuple(range(turns, leaf.ndim))
        small, exponent = to_unit(size.astype(jnp.promote_types(size.dtype, jnp.float32)), axes)
        return Scaled(exponent, jnp.square(small).sum(axes))

    return [
        [of(leaves[path], len(layer.turns) if path in layer.sliced else 0) for path in layer.parameters]
        for layer in program.layers
    ]


def _log2(parts: list[Scaled], turns: tuple[int, ...]) -> Any:
    """The binary logarithm of the norm of all parts together, per turn."""
    whole = np.full(turns, -inf)
    for part in parts:
        with np.errstate(invalid="ignore"):
            whole = np.logaddexp2(2 * whole, 2 * log2_norms(part)) / 2
    return whole


def _log2_parts(found: Probe) -> tuple[Any, Any]:
    """The binary logarithm of the norm that a layer's probe has found, per turn: its whole part, and the rest."""
    flat = profile(jax.tree.map(lambda leaf: leaf.reshape(-1), found))
    exponent, fraction = (jnp.asarray(part).reshape(found.shape) for part in (flat.exponent, flat.fraction))
    return exponent, fraction


def _room(program: Program, form: Form, plain: _Measured) -> int:
    """The power of two that the loss can be multiplied by before anything overflows; 0 where something has already."""
    largest = max(float(np.max(values, initial=-inf)) for pair in plain.norms for values in pair)
    if not isfinite(largest):
        return 0
    formats = {layer.dtype for layer in program.layers} | {leaf.dtype for leaf in jax.tree.leaves(form.trainable)}
    room = min(jnp.finfo(one).maxexp for one in formats if jnp.issubdtype(one, jnp.floating))
    return max(0, min(int(room - largest) - MARGIN, jnp.finfo(plain.loss.dtype).maxexp - 2, 125))


# ---- Rows


def _rows(program: Program, trainable: Any, measured: _Measured, updates: Any) -> list[LayerReport]:
    """A row per layer and turn, in the order of the program."""
    squares_of = jax.jit(partial(_squares_of, program))
    weights = jax.device_get(squares_of(trainable))
    moved = None if updates is None else jax.device_get(squares_of(updates))
    sizes = dict(zip(parameter_paths(trainable), map(jnp.size, jax.tree.leaves(trainable)), strict=True))
    found: list[tuple[dict[str, Any], int, bool]] = []
    for index, layer in enumerate(program.layers):
        weight, (activation, parameter) = _log2(weights[index], layer.turns), measured.true[index]
        ratio = np.full(layer.turns, nan)
        if moved is not None and layer.parameters:
            with np.errstate(invalid="ignore", over="ignore"):
                ratio = np.exp2(_log2(moved[index], layer.turns) - weight)
        arrays = {name: np.asarray(values, np.float64) for name, values in measured.seen[index].items()} | {
            "activation": activation,
            "parameter": parameter,
            "lost": np.maximum(*map(share_lost, measured.norms[index], measured.true[index])),
            "ratio": ratio,
            "finite_parameters": weight < inf,
        }
        count = sum(sizes[path] // (prod(layer.turns) if path in layer.sliced else 1) for path in layer.parameters)
        waiting = any(
            path in layer.weights and not np.any(own.square) and np.any(gradient.square)
            for path, own, gradient in zip(layer.parameters, weights[index], measured.squares[index], strict=True)
        )
        found.append((arrays, count, waiting))
    rows = []
    for index, turn in program.order():
        arrays, count, waiting = found[index]
        numbers = {name: float(values[turn]) for name, values in arrays.items()}
        rows.append(_row(program.layers[index], turn, numbers, count, waiting))
    return rows


def _row(layer: FoundLayer, turn: tuple[int, ...], found: dict[str, float], count: int, waiting: bool) -> LayerReport:
    return LayerReport(
        name=layer.name + "".join(f"[{index}]" for index in turn),
        parameters=layer.parameters,
        shape=layer.shape,
        dtype=str(layer.dtype),
        count=count,
        mean=found["mean"],
        deviation=found["deviation"],
        saturated=found["saturated"],
        dead=found["dead"],
        silent=found["silent"],
        log10_activation_gradient=found["activation"] * LOG10_OF_2,
        log10_parameter_gradient=found["parameter"] * LOG10_OF_2 if count else nan,
        update_to_weight=found["ratio"],
        gain=found.get("gain", nan),
        gain_error=found.get("gain_error", nan),
        lost=found["lost"],
        units=prod(layer.shape[axis] for axis in layer.units) if count else 0,
        finite=bool(found["finite"]),
        finite_parameters=bool(found["finite_parameters"]),
        in_chain=layer.is_product,
        waiting=waiting,
    )


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
