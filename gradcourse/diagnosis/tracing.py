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
>>> [layer.name for layer in traced_program(loss, params, (jnp.ones((5, 2)),)).layers]
['first', 'readout']
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from gradcourse._checks import is_from
from gradcourse.diagnosis._jaxprs import consts_and_carry, results_of
from gradcourse.diagnosis.plan import PROBES, FoundLayer, Given, Plan, Role, Site, find, found_layers
from gradcourse.probes import Probe, probe

__all__ = ["Look", "Program", "parameter_paths", "traced_program"]


@dataclass(frozen=True)
class Look:
    """What there is to see of a layer while the program runs.

    - `value`: its activation; `preactivation` and `activation`, the function that leads from there to the value;
    - `input` and `layer`, the function that leads from there to the value; both `None` where it is no product.
    """

    value: Any
    preactivation: Any
    activation: Callable[[Any], Any]
    input: Any
    layer: Callable[[Any], Any] | None


def parameter_paths(params: Any) -> list[str]:
    """Returns the path of every leaf of a parameter pytree: its keys, joined by dots.

    >>> parameter_paths({"dense": [jnp.ones(1), jnp.ones(2)]})
    ['dense.0', 'dense.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if is_from("flax", params):  # each array is the `value` of a variable
        paths = [path[:-1] for path in paths]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


@dataclass(frozen=True)
class Program:
    """A scalar function of a parameter pytree and a batch as a program whose layers are known."""

    layers: tuple[FoundLayer, ...]
    plan: Plan

    def order(self) -> list[tuple[int, tuple[int, ...]]]:
        """Returns every layer's index and turn, in the order in which the program comes to them."""
        return list(self.plan.order())

    def probes(self) -> list[Probe]:
        """Returns fresh probes, one per layer, of the shape `turns`."""
        return [Probe.zeros(*layer.turns) for layer in self.layers]

    def run(
        self, arguments: Any, given: Sequence[tuple[Probe, Any]], observe: Callable[[int, Look, Any], Any]
    ) -> tuple[Any, dict[int, Any]]:
        """Returns the function's value, and what `observe(layer, look, extra)` has returned for every layer.

        `arguments` are those that the function was traced with. `given` holds, per layer, a probe and anything extra
        for `observe`, both with the axes `turns` in front; so do the observations have them.
        """
        leaves = jax.tree.leaves(arguments)
        (value,), seen = _run(self.plan, leaves, dict(enumerate(given)), observe)
        return value, seen


def traced_program(
    function: Callable[..., Any], params: Any, given: tuple[Any, ...] = (), *, probed: bool = False
) -> Program:
    """Returns the program of `function(params, *given)`, a scalar, with its layers found.

    `given` is the batch; with `probed`, its first entry are the dummies of a model that calls
    `gradcourse.probes.probe` itself. Without a batch, whatever the function closes over is taken for data.
    """
    closed = jax.make_jaxpr(function)(params, *given)
    dummies, batch = (given[:1], given[1:]) if probed else ((), given)
    roles: list[Role] = [frozenset([Given(path)]) for path in parameter_paths(params)]
    roles += [frozenset([Given(PROBES + path)]) for one in dummies for path in parameter_paths(one)]
    count = len(jax.tree.leaves(batch))
    _, plan = find(closed, [*roles, *[True] * count], None if count else True)
    shapes = dict(zip(parameter_paths(params), map(jnp.shape, jax.tree.leaves(params)), strict=True))
    return Program(found_layers(plan, shapes), plan)


def _run(plan: Plan, values: Any, given: Mapping[int, Any], observe: Any) -> tuple[list[Any], dict[int, Any]]:
    jaxpr = plan.closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*plan.closed.consts, *values], strict=True))
    sites: dict[Any, list[Site]] = {}
    for site in plan.sites:
        sites.setdefault(site.out, []).append(site)
    seen: dict[int, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        if index in plan.inner:
            results, more = _run_inner(eqn, [read(a) for a in eqn.invars], plan.inner[index], given, observe)
            seen |= more
        else:
            results = results_of(eqn, read)
        for variable, value in zip(eqn.outvars, results, strict=True):
            for site in sites.get(variable, ()):
                mine, extra = given[site.index]
                seen[site.index] = observe(site.index, _look(jaxpr, site, env, value), extra)
                value = probe(value, mine)
            env[variable] = value
    return [read(atom) for atom in jaxpr.outvars], seen


def _look(jaxpr: Any, site: Site, env: Mapping[Any, Any], value: Any) -> Look:
    """What `observe` is shown; nothing of it reaches the loss."""

    def known(atom: Any) -> Any:
        one = value if atom is site.out else atom.val if isinstance(atom, core.Literal) else env[atom]
        return lax.stop_gradient(one) if jnp.issubdtype(jnp.result_type(one), jnp.inexact) else one

    def replayed(source: Any, indices: Sequence[int]) -> Callable[[Any], Any]:
        def function(start: Any) -> Any:
            local = {source: start}

            def read(atom: Any) -> Any:
                return local[atom] if not isinstance(atom, core.Literal) and atom in local else known(atom)

            for index in indices:
                eqn = jaxpr.eqns[index]
                local |= dict(zip(eqn.outvars, results_of(eqn, read), strict=True))
            return local[site.out]

        return function

    layer, source = (replayed(site.input, site.layer), known(site.input)) if site.layer else (None, None)
    return Look(known(site.out), known(site.at), replayed(site.at, site.activation), source, layer)


def _run_inner(eqn: Any, values: Any, plan: Plan, given: Mapping[int, Any], observe: Any) -> Any:
    mine = {site.index: given[site.index] for site, _ in plan.all()}
    params = eqn.params
    if eqn.primitive.name != "scan":
        body = lambda values, mine: _run(plan, values, mine, observe)  # noqa: E731
        return jax.checkpoint(body, prevent_cse=params["prevent_cse"], policy=params["policy"])(values, mine)
    consts, carry = consts_and_carry(eqn)

    def turn(state: Any, slices: Any) -> Any:
        xs, mine = slices
        results, seen = _run(plan, [*values[:consts], *state, *xs], mine, observe)
        return results[:carry], (results[carry:], seen)

    state, (ys, seen) = lax.scan(
        turn,
        values[consts : consts + carry],
        (values[consts + carry :], mine),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*state, *ys], seen
