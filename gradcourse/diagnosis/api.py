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

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse.diagnosis.findings import READ_ON, findings_of, gradient_slope
from gradcourse.diagnosis.models import as_loss
from gradcourse.diagnosis.report import LayerReport, Report
from gradcourse.diagnosis.rows import network_rows, program_rows
from gradcourse.diagnosis.tracing import parameter_paths, traced
from gradcourse.measure.gradients import CROSS_ENTROPY
from gradcourse.nn.network import Network
from gradcourse.probes import is_floating

__all__ = ["diagnose"]


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
    read_on: Mapping[str, str] = READ_ON,
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
      modules that take one. By default `jax.random.key(0)`;
    - `read_on`: for each kind of finding, where it is explained; by default a chapter of the course.

    Cost: two forward and backward passes, and `directions` backward passes more; everything is compiled once. The
    second pass is of a scaled loss, so that what underflows, down to about 1e-75 in float32, is told from what is 0.

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
    update = partial(_next_update, optimizer, optimizer_state)
    if isinstance(model_or_loss, Network):
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TypeError(f"batch={batch!r} is not accepted for a network; give (inputs, labels).")
        per_example = CROSS_ENTROPY if loss is None else loss
        try:
            rows, value = network_rows(model_or_loss, params, *batch, per_example, update, directions, key)
            return _report(rows, value, True, (), read_on)
        except FloatingPointError:  # activations overflow: where, a plain run tells
            loss = lambda outputs, labels: jax.vmap(per_example)(outputs, labels).mean()  # noqa: E731
            model_or_loss = model_or_loss.apply
    function, trainable, given = as_loss(model_or_loss, params, batch, loss, probes, key)
    program = traced(function, trainable, given, probed=probes is not None)
    paths, placed = parameter_paths(trainable), {path for layer in program.all() for path in layer.given}
    if not placed:
        raise ValueError(
            f"no layer was found in {getattr(model_or_loss, '__name__', 'the model')}: its parameters, {paths[:5]}, "
            "meet the batch in no product. Give the data as batch=, the parameters as params=, not the other way round."
        )
    rows, value = program_rows(program, trainable, given, update, directions, key)
    sound = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(given) if is_floating(leaf))
    return _report(rows, value, sound, tuple(path for path in paths if path not in placed), read_on)


def _report(
    rows: list[LayerReport], loss: float, sound: bool, elsewhere: tuple[str, ...], read_on: Mapping[str, str]
) -> Report:
    slope, low, high = gradient_slope(rows)
    return Report(tuple(rows), findings_of(rows, loss, sound, read_on), loss, slope, (low, high), elsewhere)


def _next_update(optimizer: Any, state: Any, gradient: Any, params: Any) -> Any:
    """What the optimiser would add to the parameters, if there is one: from `state`, or as its first update."""
    if optimizer is None:
        return None
    try:
        return optimizer.update(gradient, optimizer.init(params) if state is None else state, params)[0]
    except Exception as error:
        error.add_note(
            "diagnose gave optimizer.update the gradient, optimizer_state and the parameters. Is that the state that "
            "optimizer.init has made for these very parameters? Flax's nnx.Optimizer keeps it in another form; without "
            "optimizer_state, the first update is told."
        )
        raise
