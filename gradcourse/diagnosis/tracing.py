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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from gradcourse._checks import is_from
from gradcourse.diagnosis._jaxprs import (
    CHECKPOINTS,
    ELEMENTWISE,
    OPAQUE,
    PRODUCTS,
    RANDOM,
    RESHAPES,
    called,
    consts_and_carry,
    flattened,
    is_elementwise,
    is_square,
    path_between,
    reshaped,
    results_of,
    variables,
)
from gradcourse.probes import Probe, probe

__all__ = ["FoundLayer", "Look", "Program", "parameter_paths", "traced_program"]


@dataclass(frozen=True)
class _Given:
    """What the leaf of a parameter pytree is called, and how many scans have taken slices of it."""

    path: str
    sliced: int = 0


# What a value depends on: nothing (None), parameters alone, or data (True).
Role = None | frozenset[_Given] | bool


@dataclass(frozen=True)
class FoundLayer:
    """A layer of the program, or a place that the model's own probe looks at.

    - `name`: the path of its module in the parameter pytree, or of its first parameter, or of the probe;
    - `parameters`: the paths of its parameters, none for a probe; `weights`: those that multiply, and are not added;
    - `sliced`: those of which every turn of the scans takes its own slice;
    - `shape`, `dtype`: of its activation, in one turn;
    - `turns`: how often the scans round it turn, outermost first;
    - `units`: the axes of the activation along which its units lie;
    - `is_product`: whether it is a product with a parameter, not a scale, a shift or a table.
    """

    name: str
    parameters: tuple[str, ...]
    weights: frozenset[str]
    sliced: frozenset[str]
    shape: tuple[int, ...]
    dtype: np.dtype
    turns: tuple[int, ...]
    units: tuple[int, ...]
    is_product: bool


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


@dataclass
class _Site:
    """A layer while it is being found; variables and indices of equations are those of its own jaxpr."""

    given: dict[str, _Given]
    kind: str  # "product", "elementwise" or "probe"
    at: Any  # the variable that holds the pre-activation
    met: int  # the equation where parameters and data have met last
    weights: set[str] = field(default_factory=set)
    input: Any = None
    out: Any = None
    activation: list[int] = field(default_factory=list)  # equations from `at` to `out`
    layer: list[int] = field(default_factory=list)  # equations from `input` to `out`
    units: tuple[int, ...] = ()
    name: str = ""
    index: int = -1


@dataclass
class _Plan:
    """The layers in one jaxpr, and the plans of the scans and checkpoints in it."""

    closed: Any
    sites: list[_Site] = field(default_factory=list)
    inner: dict[int, "_Plan"] = field(default_factory=dict)
    turns: tuple[int, ...] = ()  # of the scan whose body this is
    reverse: tuple[bool, ...] = ()  # whether it runs from the last

    def all(self, turns: tuple[int, ...] = ()) -> Iterable[tuple[_Site, tuple[int, ...]]]:
        """Yields every site in the order of the program, with the turns of the scans round it."""
        turns = (*turns, *self.turns)
        for one in self.parts():
            yield from [(one, turns)] if isinstance(one, _Site) else one.all(turns)

    def parts(self) -> "list[_Site | _Plan]":
        """Returns the sites and the plans in the order of the program."""
        found: list[Any] = [*((site.met, site) for site in self.sites), *self.inner.items()]
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]


# ---- Finding


def _is_params(role: Role) -> bool:
    return isinstance(role, frozenset)


def _joined(roles: Iterable[Role]) -> Role:
    known = [role for role in roles if role is not None]
    if any(role is True for role in known):
        return True
    return frozenset[_Given]().union(*known) if known else None  # type: ignore[arg-type]


def _find(closed: Any, roles_in: Sequence[Role], constants: Role) -> tuple[list[Role], _Plan]:
    """The plan of a jaxpr, given what its inputs depend on, and what its results depend on."""
    plan = _Plan(flattened(closed))
    jaxpr = plan.closed.jaxpr
    roles: dict[Any, Role] = dict.fromkeys(jaxpr.constvars, constants)
    roles.update(zip(jaxpr.invars, roles_in, strict=True))
    ends: dict[Any, _Site] = {}  # variables that are a layer's pre-activation so far, reshaped or not
    below: dict[Any, frozenset[int]] = {}  # the sites that a variable depends on

    def role(atom: Any) -> Role:
        return None if isinstance(atom, core.Literal) else roles.get(atom)

    for index, eqn in enumerate(jaxpr.eqns):
        given, name = [role(atom) for atom in eqn.invars], eqn.primitive.name
        results = [True if name.startswith(RANDOM) else _joined(given)] * len(eqn.outvars)
        if name in CHECKPOINTS or name == "scan":
            results, inner = _find_inner(eqn, given)
            if any(True for _ in inner.all()):
                plan.inner[index] = inner
        roles |= dict(zip(eqn.outvars, results, strict=True))
        below |= dict.fromkeys(eqn.outvars, frozenset().union(*(below.get(a, ()) for a in variables(eqn.invars))))
        data = [atom for atom, one in zip(eqn.invars, given, strict=True) if one is True]
        params = _joined(one for one in given if _is_params(one))
        if name == "custom_vjp_call" and (path := _probed(given)) is not None:
            for atom, out in zip(eqn.invars, eqn.outvars, strict=False):
                roles[out] = role(atom)
            if role(eqn.invars[0]) is True:
                plan.sites.append(_Site({}, "probe", eqn.outvars[0], index, name=f"probe {path}"))
        elif len(eqn.outvars) == 1 and data and isinstance(params, frozenset) and index not in plan.inner:
            _meet(plan, ends, below, index, data, params)
        elif name in RESHAPES and len(data) == 1 and data[0] in ends:
            ends[eqn.outvars[0]] = ends[data[0]]
    for site in plan.sites:
        _complete(plan, site, role)
    return [role(atom) for atom in jaxpr.outvars], plan


def _meet(
    plan: _Plan,
    ends: dict[Any, _Site],
    below: dict[Any, frozenset[int]],
    index: int,
    data: list[Any],
    params: frozenset[_Given],
) -> None:
    """In this equation parameters meet data: a layer begins, or goes on."""
    eqn = plan.closed.jaxpr.eqns[index]
    name, out = eqn.primitive.name, eqn.outvars[0]
    is_table = name == "gather" and jnp.issubdtype(data[0].aval.dtype, jnp.integer)
    if not (name in PRODUCTS or name in ELEMENTWISE or name in OPAQUE or is_table):
        return
    if not jnp.issubdtype(out.aval.dtype, jnp.floating) or not out.aval.shape:
        return  # a penalty on the parameters, added to the loss, is no layer
    paths = {one.path: one for one in sorted(params, key=lambda one: one.path)}
    owner = None
    if name in ELEMENTWISE:
        if name in ("add", "sub"):  # a bias
            owner = next((ends[atom] for atom in data if atom in ends), None)
        if owner is None and (module := _module(paths)):
            reached = sorted(frozenset().union(*(below.get(atom, ()) for atom in data)), reverse=True)
            owner = next((plan.sites[i] for i in reached if _module(plan.sites[i].given) == module), None)
    if owner is None:
        is_product = name not in ELEMENTWISE and not is_table
        floating = [atom for atom in data if jnp.issubdtype(atom.aval.dtype, jnp.floating)]
        owner = _Site(paths, "product" if is_product else "elementwise", out, index)
        owner.input = floating[0] if is_product and floating else None
        plan.sites.append(owner)
    else:
        owner.given = owner.given | paths
        owner.at, owner.met = out, index
    if name not in ("add", "sub"):
        owner.weights |= set(paths)
    for atom in [key for key, site in ends.items() if site is owner]:
        del ends[atom]
    ends[out] = owner
    below[out] = below[out] | {next(i for i, site in enumerate(plan.sites) if site is owner)}


def _complete(plan: _Plan, site: _Site, role: Callable[[Any], Role]) -> None:
    """Finds the layer's activation: the elementwise operations on the pre-activation alone, up to the last in use."""
    eqns = plan.closed.jaxpr.eqns
    starts = {other.at for other in plan.sites if other is not site}
    if site.kind == "elementwise":
        users = [eqn for eqn in eqns if site.at in variables(eqn.invars)]
        if len(users) == 1 and users[0].primitive.name == "mul":
            factors = [atom for atom in users[0].invars if atom is not site.at and role(atom) is True]
            if factors and users[0].outvars[0] not in starts:
                site.at = users[0].outvars[0]  # a normalisation whose scale has met the statistics first
    if site.kind == "probe":
        site.out = site.at
        return
    inside, own = {site.at}, []
    for index, eqn in enumerate(eqns):
        data = [atom for atom in variables(eqn.invars) if role(atom) is True]
        if not data or not inside.issuperset(data) or index in plan.inner or starts & set(eqn.outvars):
            continue
        if is_elementwise(eqn) and all(out.aval.shape == site.at.aval.shape for out in eqn.outvars):
            inside |= set(eqn.outvars)
            own.append(index)
    # A square that ends it is part of a loss or of a variance.
    further = {atom for index in own for atom in variables(eqns[index].invars)}
    own = [index for index in own if not (is_square(eqns[index]) and further.isdisjoint(eqns[index].outvars))]
    elsewhere = set(variables(plan.closed.jaxpr.outvars))
    for index in set(range(len(eqns))) - set(own):
        elsewhere |= set(variables(eqns[index].invars))
    results = [
        out
        for index in own
        for out in eqns[index].outvars
        if out in elsewhere and jnp.issubdtype(out.aval.dtype, jnp.floating)
    ]
    site.out = results[-1] if results else site.at
    site.activation = path_between(eqns, site.at, site.out)
    if site.input is not None:
        site.layer = path_between(eqns, site.input, site.out)
    site.units = _unit_axes(eqns, site, role)


def _find_inner(eqn: Any, given: Sequence[Role]) -> tuple[list[Role], _Plan]:
    """What a scan's or a checkpointed function's results depend on, and its plan."""
    if eqn.primitive.name != "scan":
        return _find(called(eqn), given, None)
    consts, carry = consts_and_carry(eqn)
    known = list(given)
    for position in range(consts + carry, len(known)):
        if isinstance(each := known[position], frozenset):
            known[position] = frozenset(_Given(one.path, one.sliced + 1) for one in each)
    while True:  # until the carry's roles no longer change
        roles, plan = _find(called(eqn), known, None)
        after = [_joined(pair) for pair in zip(known[consts : consts + carry], roles[:carry], strict=True)]
        if after == known[consts : consts + carry]:
            plan.turns, plan.reverse = (eqn.params["length"],), (eqn.params["reverse"],)
            return roles, plan
        known[consts : consts + carry] = after


def _probed(roles: Sequence[Role]) -> str | None:
    """The path of the model's own probe if these are the roles of what `probe` is given, else `None`."""
    paths = [one.path for role in roles if isinstance(role, frozenset) for one in role]
    if len(paths) == 3 and all(path.startswith(PROBES) for path in paths):
        return paths[0].removeprefix(PROBES).rpartition(".")[0] or "0"
    return None


PROBES = "probes of the model."  # before the paths of the dummies that the model's own probes are given


def _module(paths: Iterable[str]) -> str:
    """The path of the module that all the parameters are in; nothing for parameters without one, or of several."""
    modules = {path.rpartition(".")[0] for path in paths}
    return modules.pop() if len(modules) == 1 else ""


def _unit_axes(eqns: Sequence[Any], site: _Site, role: Callable[[Any], Role]) -> tuple[int, ...]:
    """The axes of the pre-activation along which the layer's units lie: those of its parameters."""
    made = {out: eqn for eqn in eqns for out in eqn.outvars}
    shape = site.at.aval.shape
    eqn, chain = made[site.at], []
    while eqn.primitive.name in RESHAPES:
        chain.append(eqn)
        eqn = made[eqn.invars[0]]
    params = [atom for atom in variables(eqn.invars) if _is_params(role(atom))]
    if eqn.primitive.name in ELEMENTWISE and params:
        root, reshapes = params[-1], []
        while root in made and made[root].primitive.name in RESHAPES:
            reshapes.append(made[root])
            root = made[root].invars[0]
        numbers = np.arange(np.prod(root.aval.shape, dtype=int)).reshape(root.aval.shape)
        for one in reversed(reshapes):
            numbers = reshaped(one, numbers)
    elif eqn.primitive.name == "dot_general" and params:
        (lhs, _), (lhs_batch, _) = eqn.params["dimension_numbers"]
        batch = len(lhs_batch)
        free = len(eqn.invars[0].aval.shape) - len(lhs) - batch
        rank = len(eqn.outvars[0].aval.shape)
        own = range(batch, batch + free) if params[0] is eqn.invars[0] else range(batch + free, rank)
        axes = [*range(batch), *own]
        numbers = _numbered(eqn.outvars[0].aval.shape, axes)
    elif eqn.primitive.name == "conv_general_dilated":
        numbers = _numbered(eqn.outvars[0].aval.shape, [eqn.params["dimension_numbers"].out_spec[1]])
    else:
        return (len(shape) - 1,)
    for one in reversed(chain):
        numbers = reshaped(one, numbers)
    numbers = np.broadcast_to(numbers, shape)
    once = numbers[tuple(slice(None) if stride else slice(1) for stride in numbers.strides)]  # no axis that repeats
    return tuple(axis for axis in range(len(shape)) if np.ptp(once, axis).any()) or (len(shape) - 1,)


def _numbered(shape: tuple[int, ...], axes: Sequence[int]) -> np.ndarray:
    """An array of the shape whose entries count along these axes."""
    sizes = [shape[axis] for axis in axes]
    return np.broadcast_to(
        np.arange(np.prod(sizes, dtype=int)).reshape([size if axis in axes else 1 for axis, size in enumerate(shape)]),
        shape,
    )


def parameter_paths(params: Any) -> list[str]:
    """Returns the path of every leaf of a parameter pytree: its keys, joined by dots.

    >>> parameter_paths({"dense": [jnp.ones(1), jnp.ones(2)]})
    ['dense.0', 'dense.1']
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if is_from("flax", params):  # each array is the `value` of a variable
        paths = [path[:-1] for path in paths]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def _layers(plan: _Plan, shapes: Mapping[str, tuple[int, ...]]) -> tuple[FoundLayer, ...]:
    """The layers in the order of the program; every site gets its index among them."""
    found = list(plan.all())
    firsts: dict[str, set[str]] = {}
    for site, _ in found:
        firsts.setdefault(_module(site.given), set()).update([*site.given][:1])
    layers: list[FoundLayer] = []
    uses: dict[str, int] = {}
    for site, turns in found:
        module = _module(site.given)
        name = site.name or (module if module and len(firsts[module]) == 1 else next(iter(site.given))) or "params"
        uses[name] = uses.get(name, 0) + 1
        site.index = len(layers)
        out = site.out.aval
        layers.append(
            FoundLayer(
                name if uses[name] == 1 else f"{name} (use {uses[name]})",
                tuple(site.given),
                frozenset(site.weights),
                frozenset(
                    path
                    for path, one in site.given.items()
                    if turns and one.sliced == len(turns) and shapes[path][: len(turns)] == turns
                ),
                tuple(out.shape),
                np.dtype(out.dtype),
                turns,
                site.units,
                site.kind == "product",
            )
        )
    return tuple(layers)


def _order(plan: _Plan) -> Iterable[tuple[int, tuple[int, ...]]]:
    for one in plan.parts():
        if isinstance(one, _Site):
            yield one.index, ()
            continue
        turns = [(turn,) for turn in range(*one.turns)] if one.turns else [()]
        for turn in reversed(turns) if one.reverse == (True,) else turns:
            yield from ((index, (*turn, *inner)) for index, inner in _order(one))


# ---- Running


@dataclass(frozen=True)
class Program:
    """A scalar function of a parameter pytree and a batch as a program whose layers are known."""

    layers: tuple[FoundLayer, ...]
    plan: _Plan

    def order(self) -> list[tuple[int, tuple[int, ...]]]:
        """Returns every layer's index and turn, in the order in which the program comes to them."""
        return list(_order(self.plan))

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
    roles: list[Role] = [frozenset([_Given(path)]) for path in parameter_paths(params)]
    roles += [frozenset([_Given(PROBES + path)]) for one in dummies for path in parameter_paths(one)]
    count = len(jax.tree.leaves(batch))
    _, plan = _find(closed, [*roles, *[True] * count], None if count else True)
    shapes = dict(zip(parameter_paths(params), map(jnp.shape, jax.tree.leaves(params)), strict=True))
    return Program(_layers(plan, shapes), plan)


def _run(plan: _Plan, values: Any, given: Mapping[int, Any], observe: Any) -> tuple[list[Any], dict[int, Any]]:
    jaxpr = plan.closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*plan.closed.consts, *values], strict=True))
    sites: dict[Any, list[_Site]] = {}
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


def _look(jaxpr: Any, site: _Site, env: Mapping[Any, Any], value: Any) -> Look:
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


def _run_inner(eqn: Any, values: Any, plan: _Plan, given: Mapping[int, Any], observe: Any) -> Any:
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
