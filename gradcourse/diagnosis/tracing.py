"""The layers of anybody's model, found in the program that JAX makes of it.

A model is whatever computes a loss from a pytree of parameters. JAX turns it into a *jaxpr*, a list of primitive
operations, and there a layer is easy to tell: it is where parameters meet the data. A product or a convolution with a
parameter opens a layer; a bias added to its result belongs to it, and so does whatever other parameter of the same
module follows; the elementwise operations on that alone are its activation. So nothing has to be known of the library
that the model was written with, and nothing in the model is changed: its program is run once more, with a probe
(`gradcourse.probes`) at every layer's activation.

Functions under `jit` and `checkpoint` are looked into, and so are scans, of which every turn is a layer of its own.
Branches (`cond`), `while` loops and functions with derivatives of their own (`custom_vjp`) are not: one of these that
is given parameters and data is a layer as a whole. A call of `probe` in the model is a place that is looked at, too.

>>> import jax, jax.numpy as jnp
>>> def loss(params, x):
...     h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
...     return jnp.sum(h @ params["readout"])
>>> params = {"first": {"bias": jnp.ones((1, 3)), "kernel": jnp.ones((2, 3))}, "readout": jnp.ones((3, 1))}
>>> [layer.name for layer in traced(loss, params, (jnp.ones((5, 2)),)).all()]
['first', 'readout']
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gradcourse._checks import is_from
from gradcourse.diagnosis._jaxprs import consts_and_carry, evaluated, results_of, values_of, variables
from gradcourse.diagnosis.plan import PROBES, FoundLayer, Given, Plan, Role, find, name_layers
from gradcourse.probes import Probe, probe

__all__ = ["Known", "parameter_paths", "run", "traced"]


Known = tuple[Callable[[Any], Any], Any]  # a function that leads to a layer's activation, and where it begins
Observe = Callable[[FoundLayer, Any, Any, Known, Known | None], Any]


def parameter_paths(params: Any) -> list[str]:
    """Returns the path of every leaf of a parameter pytree: its keys, joined by dots.

    >>> parameter_paths({"dense": [jnp.ones(1), jnp.ones(2)]})
    ['dense.0', 'dense.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if is_from("flax", params):  # each array is the `value` of a variable
        paths = [path[:-1] for path in paths]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def traced(function: Callable[..., Any], params: Any, given: tuple[Any, ...] = (), *, probed: bool = False) -> Plan:
    """Returns the program of `function(params, *given)`, a scalar, with its layers found.

    `given` is the batch; with `probed`, its first entry are the dummies of a model that calls
    `gradcourse.probes.probe` itself. Without a batch, whatever the function closes over is taken for data.
    """
    closed = jax.make_jaxpr(function)(params, *given)
    dummies, batch = (given[:1], given[1:]) if probed else ((), given)
    paths, count = parameter_paths(params), len(jax.tree.leaves(batch))
    roles: list[Role] = [frozenset([Given(path)]) for path in paths]
    roles += [frozenset([Given(PROBES + path)]) for one in dummies for path in parameter_paths(one)]
    _, plan = find(closed, [*roles, *[True] * count], None if count else True)
    name_layers(plan, dict(zip(paths, map(jnp.shape, jax.tree.leaves(params)), strict=True)))
    return plan


def run(
    plan: Plan, values: Sequence[Any], given: Mapping[int, tuple[Probe, Any]], observe: Observe
) -> tuple[list[Any], dict[int, Any]]:
    """Returns the program's results at the leaves `values` of what it was traced with, and what was observed.

    `given` holds, by the layers' indices, a probe and anything extra, both with the axes `turns` in front; so do the
    observations have them. `observe(layer, extra, value, activation, product)` is shown the value of the layer's
    activation, the function that leads there from the pre-activation, with that, and the same from the input of a
    product, else `None`. Nothing of it reaches the loss.
    """
    ends: dict[Any, list[FoundLayer]] = {}
    for layer in plan.layers:
        ends.setdefault(layer.out, []).append(layer)
    seen: dict[int, Any] = {}

    def step(index: int, eqn: Any, env: dict[Any, Any]) -> list[Any]:
        if index in plan.inner:
            results, more = _run_inner(eqn, values_of(eqn.invars, env), plan.inner[index], given, observe)
            seen.update(more)
        else:
            results = results_of(eqn, env)
        return [probed(variable, value, env) for variable, value in zip(eqn.outvars, results, strict=True)]

    def probed(variable: Any, value: Any, env: dict[Any, Any]) -> Any:
        for layer in ends.get(variable, ()):
            mine, extra = given[layer.index]
            seen[layer.index] = observe(layer, extra, *_known(layer, env | {variable: value}))
            value = probe(value, mine)
        return value

    return evaluated(plan.closed, values, step), seen


def _known(layer: FoundLayer, env: Mapping[Any, Any]) -> tuple[Any, Known, Known | None]:
    used = {atom for eqn in (*layer.activation, *layer.layer) for atom in variables(eqn.invars)}
    known = {atom: lax.stop_gradient(env[atom]) for atom in (*used, layer.at, layer.out)}

    def replayed(source: Any, eqns: Sequence[Any]) -> Known:
        def function(start: Any) -> Any:
            local = known | {source: start}
            for eqn in eqns:
                local |= zip(eqn.outvars, results_of(eqn, local), strict=True)
            return local[layer.out]

        return function, known[source]

    product = replayed(layer.input, layer.layer) if layer.layer else None
    return known[layer.out], replayed(layer.at, layer.activation), product


def _run_inner(eqn: Any, values: Any, plan: Plan, given: Mapping[int, Any], observe: Observe) -> Any:
    mine = {layer.index: given[layer.index] for layer in plan.all()}
    params = eqn.params
    if eqn.primitive.name != "scan":
        body = lambda values, mine: run(plan, values, mine, observe)  # noqa: E731
        return jax.checkpoint(body, prevent_cse=params["prevent_cse"], policy=params["policy"])(values, mine)
    consts, carry = consts_and_carry(eqn)

    def turn(state: Any, slices: Any) -> Any:
        xs, mine = slices
        results, seen = run(plan, [*values[:consts], *state, *xs], mine, observe)
        return results[:carry], (results[carry:], seen)

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    state, slices = values[consts : consts + carry], (values[consts + carry :], mine)
    state, (ys, seen) = lax.scan(turn, state, slices, **options)
    return [*state, *ys], seen
