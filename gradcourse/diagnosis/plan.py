"""Where the layers are in a program: found from what each of its values depends on.

A *site* is a layer while it is being found, a *plan* holds the sites of one jaxpr, in which scans and checkpointed
functions have plans of their own. What a layer is, is said in `gradcourse.diagnosis.tracing`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

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
    variables,
)

__all__ = ["PROBES", "FoundLayer", "Given", "Plan", "Role", "Site", "find", "found_layers"]

PROBES = "probes of the model."  # before the paths of the dummies that the model's own probes are given


@dataclass(frozen=True)
class Given:
    """What the leaf of a parameter pytree is called, and how many scans have taken slices of it."""

    path: str
    sliced: int = 0


# What a value depends on: nothing (None), parameters alone, or data (True).
Role = None | frozenset[Given] | bool


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


@dataclass
class Site:
    """A layer while it is being found. Its variables and its indices of equations are those of its own jaxpr."""

    given: dict[str, Given]
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
class Plan:
    """The layers in one jaxpr, and the plans of the scans and checkpoints in it."""

    closed: Any
    sites: list[Site] = field(default_factory=list)
    inner: dict[int, "Plan"] = field(default_factory=dict)
    turns: tuple[int, ...] = ()  # of the scan whose body this is
    reverse: bool = False  # whether that begins with the last turn

    def all(self, turns: tuple[int, ...] = ()) -> Iterable[tuple[Site, tuple[int, ...]]]:
        """Yields every site in the order of the program, with the turns of the scans round it."""
        turns = (*turns, *self.turns)
        for one in self.parts():
            yield from [(one, turns)] if isinstance(one, Site) else one.all(turns)

    def parts(self) -> "list[Site | Plan]":
        """Returns the sites and the plans in the order of the program."""
        found: list[Any] = [*((site.met, site) for site in self.sites), *self.inner.items()]
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def order(self) -> Iterable[tuple[int, tuple[int, ...]]]:
        """Yields every layer's index and turn, in the order in which the program comes to them."""
        for one in self.parts():
            if isinstance(one, Site):
                yield one.index, ()
                continue
            turns = [(turn,) for turn in range(*one.turns)] if one.turns else [()]
            for turn in reversed(turns) if one.reverse else turns:
                yield from ((index, (*turn, *inner)) for index, inner in one.order())


def _is_params(role: Role) -> bool:
    return isinstance(role, frozenset)


def _joined(roles: Iterable[Role]) -> Role:
    known = [role for role in roles if role is not None]
    if any(role is True for role in known):
        return True
    return frozenset[Given]().union(*known) if known else None  # type: ignore[arg-type]


def find(closed: Any, roles_in: Sequence[Role], constants: Role) -> tuple[list[Role], Plan]:
    """Returns what a jaxpr's results depend on, and its plan, given what its inputs and its constants depend on."""
    plan = Plan(flattened(closed))
    jaxpr = plan.closed.jaxpr
    roles: dict[Any, Role] = dict.fromkeys(jaxpr.constvars, constants)
    roles.update(zip(jaxpr.invars, roles_in, strict=True))
    ends: dict[Any, Site] = {}  # variables that are a layer's pre-activation so far, reshaped or not
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
                plan.sites.append(Site({}, "probe", eqn.outvars[0], index, name=f"probe {path}"))
        elif len(eqn.outvars) == 1 and data and isinstance(params, frozenset) and index not in plan.inner:
            _meet(plan, ends, below, index, data, params)
        elif name in RESHAPES and len(data) == 1 and data[0] in ends:
            ends[eqn.outvars[0]] = ends[data[0]]
    for site in plan.sites:
        _complete(plan, site, role)
    return [role(atom) for atom in jaxpr.outvars], plan


def _meet(
    plan: Plan,
    ends: dict[Any, Site],
    below: dict[Any, frozenset[int]],
    index: int,
    data: list[Any],
    params: frozenset[Given],
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
        owner = Site(paths, "product" if is_product else "elementwise", out, index)
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


def _complete(plan: Plan, site: Site, role: Callable[[Any], Role]) -> None:
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


def _find_inner(eqn: Any, given: Sequence[Role]) -> tuple[list[Role], Plan]:
    """What the results of a scan or of a checkpointed function depend on, and its plan."""
    if eqn.primitive.name != "scan":
        return find(called(eqn), given, None)
    consts, carry = consts_and_carry(eqn)
    known = list(given)
    for position in range(consts + carry, len(known)):
        if isinstance(each := known[position], frozenset):
            known[position] = frozenset(Given(one.path, one.sliced + 1) for one in each)
    while True:  # until the carry's roles no longer change
        roles, plan = find(called(eqn), known, None)
        after = [_joined(pair) for pair in zip(known[consts : consts + carry], roles[:carry], strict=True)]
        if after == known[consts : consts + carry]:
            plan.turns, plan.reverse = (eqn.params["length"],), eqn.params["reverse"]
            return roles, plan
        known[consts : consts + carry] = after


def _probed(roles: Sequence[Role]) -> str | None:
    """The path of the model's own probe if these are the roles of what `probe` is given, else `None`."""
    paths = [one.path for role in roles if isinstance(role, frozenset) for one in role]
    if len(paths) == 3 and all(path.startswith(PROBES) for path in paths):
        return paths[0].removeprefix(PROBES).rpartition(".")[0] or "0"
    return None


def _module(paths: Iterable[str]) -> str:
    """The path of the module that all the parameters are in; nothing for parameters without one, or of several."""
    modules = {path.rpartition(".")[0] for path in paths}
    return modules.pop() if len(modules) == 1 else ""


def _unit_axes(eqns: Sequence[Any], site: Site, role: Callable[[Any], Role]) -> tuple[int, ...]:
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


def found_layers(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> tuple[FoundLayer, ...]:
    """Returns the layers in the order of the program, and gives every site its index among them.

    `shapes` are those of the parameters, by their paths.
    """
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
