"""Where the layers are in a program: found from what each of its values depends on.

A *plan* holds the layers of one jaxpr, in which scans and checkpointed functions have plans of their own. What a layer
is, is said in `gradcourse.diagnosis.tracing`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import itemgetter
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradcourse.diagnosis._jaxprs import CALLS, called, consts_and_carry, flattened, variables

__all__ = ["PROBES", "FoundLayer", "Given", "Plan", "Role", "find", "name_layers"]

PROBES = "probes of the model."  # before the paths of the dummies that the model's own probes are given
PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot_general"}
RESHAPES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "convert_element_type", "copy", "name"}
ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan", "atan2", "cbrt", "clamp", "convert_element_type", "copy", "cos", "cosh",
    "div", "eq", "erf", "erfc", "exp", "exp2", "expm1", "ge", "gt", "integer_pow", "le", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "name", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
}  # fmt: skip
CHECKPOINTS = {"checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}
OPAQUE = {*CUSTOM, "cond", "while"}
RANDOM = ("random_", "threefry", "rng_")  # how primitives are called whose results are data, not constants
SQUARES = {("square", None), ("integer_pow", 2)}  # what primitives that square are called, and their exponent


@dataclass(frozen=True)
class Given:
    """What the leaf of a parameter pytree is called, and how many scans have taken slices of it."""

    path: str
    sliced: int = 0


# What a value depends on: nothing (None), parameters alone, or data (True).
Role = None | frozenset[Given] | bool


@dataclass(eq=False)
class FoundLayer:
    """A layer of the program, or a place that the model's own probe looks at.

    - `given`: its parameters by their paths, none for a probe; `weights`: the paths of those that multiply, and are not
      added; `sliced`: of those of which every turn of the scans takes its own slice;
    - `is_product`: whether it is a product with a parameter, not a scale, a shift, a table or a probe;
    - `name`: the path of its module in the parameter pytree, or of its first parameter, or of the probe;
    - `turns`: how often the scans round it turn, outermost first; `index`: which of the program's layers it is;
    - `units`: the axes of the activation along which its units lie.

    The rest are variables and equations of the jaxpr that it is in.
    """

    given: dict[str, Given]
    is_product: bool
    at: Any  # the variable that holds the pre-activation
    met: int  # index of the equation where parameters and data have met last
    name: str = ""
    weights: set[str] = field(default_factory=set)
    sliced: set[str] = field(default_factory=set)
    input: Any = None  # None where it is no product
    out: Any = None
    activation: Sequence[Any] = ()  # equations from `at` to `out`
    layer: Sequence[Any] = ()  # equations from `input` to `out`
    turns: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    index: int = -1


@dataclass
class Plan:
    """The layers in one jaxpr, and the plans of the scans and checkpoints in it."""

    closed: Any
    roles: dict[Any, Role]  # of the variables
    below: dict[Any, frozenset[FoundLayer]] = field(default_factory=dict)  # the layers that a variable depends on
    ends: dict[Any, FoundLayer] = field(default_factory=dict)  # by what is its pre-activation so far, reshaped or not
    layers: list[FoundLayer] = field(default_factory=list)
    inner: dict[int, "Plan"] = field(default_factory=dict)
    turns: tuple[int, ...] = ()  # of the scan whose body this is
    reverse: bool = False  # whether that begins with the last turn

    def role(self, atom: Any) -> Role:
        """Returns what an atom depends on."""
        return None if isinstance(atom, core.Literal) else self.roles.get(atom)

    def parts(self) -> "list[FoundLayer | Plan]":
        """Returns the layers and the plans in the order of the program."""
        found: list[Any] = [*((layer.met, layer) for layer in self.layers), *self.inner.items()]
        return [one for _, one in sorted(found, key=itemgetter(0))]

    def all(self) -> list[FoundLayer]:
        """Returns every layer, those of the inner plans too, in the order of the program."""
        return [layer for one in self.parts() for layer in (one.all() if isinstance(one, Plan) else [one])]

    def order(self) -> Iterator[tuple[FoundLayer, tuple[int, ...]]]:
        """Yields every layer and turn, in the order in which the program comes to them."""
        for one in self.parts():
            if isinstance(one, FoundLayer):
                yield one, ()
                continue
            turns = list(np.ndindex(one.turns))
            for turn in reversed(turns) if one.reverse else turns:
                yield from ((layer, (*turn, *inner)) for layer, inner in one.order())


def _joined(roles: Iterable[Role]) -> Role:
    known = [role for role in roles if role is not None]
    if any(role is True for role in known):
        return True
    return frozenset[Given]().union(*known) if known else None  # type: ignore[arg-type]


def find(closed: Any, roles_in: Sequence[Role], constants: Role) -> tuple[list[Role], Plan]:
    """Returns what a jaxpr's results depend on, and its plan, given what its inputs and its constants depend on."""
    closed = flattened(closed)
    jaxpr = closed.jaxpr
    plan = Plan(closed, dict.fromkeys(jaxpr.constvars, constants) | dict(zip(jaxpr.invars, roles_in, strict=True)))
    for index, eqn in enumerate(jaxpr.eqns):
        given, name = [plan.role(atom) for atom in eqn.invars], eqn.primitive.name
        results = [True if name.startswith(RANDOM) else _joined(given)] * len(eqn.outvars)
        if name in CHECKPOINTS or name == "scan":
            results, inner = _find_inner(eqn, given)
            if inner.all():
                plan.inner[index] = inner
        plan.roles |= zip(eqn.outvars, results, strict=True)
        below = frozenset[FoundLayer]().union(*(plan.below.get(atom, ()) for atom in variables(eqn.invars)))
        plan.below |= dict.fromkeys(eqn.outvars, below)
        data = [atom for atom, one in zip(eqn.invars, given, strict=True) if one is True]
        params = _joined(one for one in given if isinstance(one, frozenset))
        if name == "custom_vjp_call" and (path := _probed(given)) is not None:
            plan.roles |= zip(eqn.outvars, given, strict=False)
            if given[0] is True:
                plan.layers.append(FoundLayer({}, False, eqn.outvars[0], index, name=f"probe {path}"))
        elif len(eqn.outvars) == 1 and data and isinstance(params, frozenset) and index not in plan.inner:
            _meet(plan, index, data, params)
        elif name in RESHAPES and len(data) == 1 and data[0] in plan.ends:
            plan.ends[eqn.outvars[0]] = plan.ends[data[0]]
    for layer in plan.layers:
        _complete(plan, layer)
    return [plan.role(atom) for atom in jaxpr.outvars], plan


def _meet(plan: Plan, index: int, data: list[Any], params: frozenset[Given]) -> None:
    """In this equation parameters meet data: a layer begins, or goes on."""
    eqn = plan.closed.jaxpr.eqns[index]
    name, out = eqn.primitive.name, eqn.outvars[0]
    is_elementwise = name in ELEMENTWISE
    is_product = name in PRODUCTS or name in OPAQUE
    is_table = name == "gather" and jnp.issubdtype(data[0].aval.dtype, jnp.integer)
    if not (is_elementwise or is_product or is_table):
        return
    if not jnp.issubdtype(out.aval.dtype, jnp.floating) or not out.aval.shape:
        return  # a penalty on the parameters, added to the loss, is no layer
    paths = {one.path: one for one in sorted(params, key=lambda one: one.path)}
    owner = None
    if name in ("add", "sub"):  # a bias
        owner = next((plan.ends[atom] for atom in data if atom in plan.ends), None)
    if owner is None and is_elementwise and (module := _module(paths)):
        same = (one for one in reversed(plan.layers) if one in plan.below[out] and _module(one.given) == module)
        owner = next(same, None)
    if owner is None:
        owner = FoundLayer(paths, is_product, out, index)
        if is_product:
            owner.input = next((atom for atom in data if jnp.issubdtype(atom.aval.dtype, jnp.floating)), None)
        plan.layers.append(owner)
    owner.given |= paths
    owner.at, owner.met = out, index
    if name not in ("add", "sub"):
        owner.weights |= set(paths)
    plan.ends = {atom: layer for atom, layer in plan.ends.items() if layer is not owner} | {out: owner}
    plan.below[out] |= {owner}


def _complete(plan: Plan, layer: FoundLayer) -> None:
    """Finds the layer's activation: the elementwise operations on the pre-activation alone, up to the last in use."""
    if not layer.given:  # a probe
        layer.out = layer.at
        return
    eqns = plan.closed.jaxpr.eqns
    starts = {other.at for other in plan.layers if other is not layer}
    if not layer.is_product:
        users = [eqn for eqn in eqns if layer.at in variables(eqn.invars)]
        if len(users) == 1 and users[0].primitive.name == "mul":
            factors = [atom for atom in users[0].invars if atom is not layer.at and plan.role(atom) is True]
            if factors and users[0].outvars[0] not in starts:
                layer.at = users[0].outvars[0]  # a normalisation whose scale has met the statistics first
    inside, own = {layer.at}, []
    for index, eqn in enumerate(eqns):
        data = [atom for atom in variables(eqn.invars) if plan.role(atom) is True]
        if not data or not inside.issuperset(data) or index in plan.inner or starts & set(eqn.outvars):
            continue
        if _is_elementwise(eqn) and all(out.aval.shape == layer.at.aval.shape for out in eqn.outvars):
            inside |= set(eqn.outvars)
            own.append(index)
    further = {atom for index in own for atom in variables(eqns[index].invars)}
    squares = [index for index in own if (eqns[index].primitive.name, eqns[index].params.get("y")) in SQUARES]
    # A square that ends it is part of a loss or of a variance.
    own = [index for index in own if index not in squares or not further.isdisjoint(eqns[index].outvars)]
    elsewhere = set(variables(plan.closed.jaxpr.outvars))
    for index in set(range(len(eqns))) - set(own):
        elsewhere |= set(variables(eqns[index].invars))
    results = [out for index in own for out in eqns[index].outvars if out in elsewhere]
    layer.out = next((out for out in reversed(results) if jnp.issubdtype(out.aval.dtype, jnp.floating)), layer.at)
    layer.activation = _path_between(eqns, layer.at, layer.out)
    if layer.input is not None:
        layer.layer = _path_between(eqns, layer.input, layer.out)
    layer.units = _unit_axes(plan, layer)


def _find_inner(eqn: Any, given: Sequence[Role]) -> tuple[list[Role], Plan]:
    """What the results of a scan or of a checkpointed function depend on, and its plan."""
    if eqn.primitive.name != "scan":
        return find(called(eqn), given, None)
    consts, carry = consts_and_carry(eqn)
    known, carried = list(given), slice(consts, consts + carry)
    for position in range(carried.stop, len(known)):
        if isinstance(each := known[position], frozenset):
            known[position] = frozenset(Given(one.path, one.sliced + 1) for one in each)
    before = None
    while before != known[carried]:  # the carry's roles may change a few times
        before = known[carried]
        roles, plan = find(called(eqn), known, None)
        known[carried] = [_joined(pair) for pair in zip(before, roles[:carry], strict=True)]
    plan.turns, plan.reverse = (eqn.params["length"],), eqn.params["reverse"]
    for layer in plan.all():
        layer.turns = (*plan.turns, *layer.turns)
    return roles, plan


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


def _path_between(eqns: Sequence[Any], source: Any, target: Any) -> list[Any]:
    """The equations, in order, by which `target` comes about from `source`, all else given."""
    reached, forward = {source}, []
    for eqn in eqns:
        if not reached.isdisjoint(variables(eqn.invars)):
            reached |= set(eqn.outvars)
            forward.append(eqn)
    wanted, path = {target}, []
    for eqn in reversed(forward):
        if not wanted.isdisjoint(eqn.outvars):
            wanted |= set(variables(eqn.invars))
            path.append(eqn)
    return path[::-1]


def _is_elementwise(eqn: Any) -> bool:
    """Whether every entry of an equation's result depends on the same entry of its arguments alone."""
    name = eqn.primitive.name
    if name in CUSTOM or name in CALLS:
        return all(_is_elementwise(one) for one in called(eqn).jaxpr.eqns)
    return name in ELEMENTWISE or (name in RESHAPES and eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape)


def _unit_axes(plan: Plan, layer: FoundLayer) -> tuple[int, ...]:
    """The axes of the pre-activation along which the layer's units lie: those of its parameters."""
    made = {out: eqn for eqn in plan.closed.jaxpr.eqns for out in eqn.outvars}

    def unshaped(atom: Any) -> tuple[Any, list[Any]]:
        """What a variable was before it was reshaped, and the equations that did it, the last first."""
        chain = []
        while atom in made and made[atom].primitive.name in RESHAPES:
            chain.append(made[atom])
            atom = made[atom].invars[0]
        return atom, chain

    start, chain = unshaped(layer.at)
    eqn, name, rank = made[start], made[start].primitive.name, len(start.aval.shape)
    params = [atom for atom in variables(eqn.invars) if isinstance(plan.role(atom), frozenset)]
    axes: Sequence[int] = ()
    if name in ELEMENTWISE and params:
        start, more = unshaped(params[-1])
        chain += more
        axes = range(len(start.aval.shape))
    elif name == "dot_general" and params:
        (lhs, _), (lhs_batch, _) = eqn.params["dimension_numbers"]
        batch, left = len(lhs_batch), len(eqn.invars[0].aval.shape) - len(lhs)
        axes = [*range(batch), *(range(batch, left) if params[0] is eqn.invars[0] else range(left, rank))]
    elif name == "conv_general_dilated":
        axes = [eqn.params["dimension_numbers"].out_spec[1]]
    sizes = [size if axis in axes else 1 for axis, size in enumerate(start.aval.shape)]
    numbers = np.broadcast_to(np.arange(prod(sizes)).reshape(sizes), start.aval.shape)  # the units, counted
    for one in reversed(chain):
        numbers = _reshaped(one, numbers)
    numbers = np.broadcast_to(numbers, layer.at.aval.shape)
    once = numbers[tuple(slice(None) if stride else slice(1) for stride in numbers.strides)]  # no axis that repeats
    return tuple(axis for axis in range(once.ndim) if np.ptp(once, axis).any()) or (once.ndim - 1,)


def _reshaped(eqn: Any, array: np.ndarray) -> np.ndarray:
    """What one of the `RESHAPES` makes of an array."""
    name, params = eqn.primitive.name, eqn.params
    if name == "transpose":
        return array.transpose(params["permutation"])
    if name == "broadcast_in_dim":
        shape = [1] * len(params["shape"])
        for axis, size in zip(params["broadcast_dimensions"], array.shape, strict=True):
            shape[axis] = size
        return np.broadcast_to(array.reshape(shape), params["shape"])
    if name in ("reshape", "squeeze"):
        return array.reshape(eqn.outvars[0].aval.shape)
    return np.flip(array, params["dimensions"]) if name == "rev" else array


def name_layers(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives the layers their names and indices; `shapes` are those of the parameters, by their paths."""
    layers, uses = plan.all(), Counter[str]()
    firsts: dict[str, set[str]] = {}
    for layer in layers:
        firsts.setdefault(_module(layer.given), set()).update([*layer.given][:1])
    for index, layer in enumerate(layers):
        module, turns, layer.index = _module(layer.given), layer.turns, index
        name = layer.name or (module if module and len(firsts[module]) == 1 else next(iter(layer.given))) or "params"
        uses[name] += 1
        layer.name = name if uses[name] == 1 else f"{name} (use {uses[name]})"
        if turns:
            own = (path for path, one in layer.given.items() if one.sliced == len(turns))
            layer.sliced = {path for path in own if shapes[path][: len(turns)] == turns}
