"""Tools for jaxprs, the programs that JAX makes of functions: kinds of operations, and how to run some of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.extend import core

__all__ = [
    "CHECKPOINTS",
    "ELEMENTWISE",
    "OPAQUE",
    "PRODUCTS",
    "RANDOM",
    "RESHAPES",
    "called",
    "consts_and_carry",
    "evaluated",
    "flattened",
    "is_elementwise",
    "path_between",
    "reshaped",
    "results_of",
    "values_of",
    "variables",
]

PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot_general"}
RESHAPES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "convert_element_type", "copy", "name"}
ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan", "atan2", "cbrt", "clamp", "convert_element_type", "copy", "cos", "cosh",
    "div", "eq", "erf", "erfc", "exp", "exp2", "expm1", "ge", "gt", "integer_pow", "le", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "name", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
}  # fmt: skip
CALLS = {"jit", "pjit", "closed_call", "core_call"}
CHECKPOINTS = {"checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}
OPAQUE = {*CUSTOM, "cond", "while"}
RANDOM = ("random_", "threefry", "rng_")  # how primitives are called whose results are data, not constants


def variables(atoms: Iterable[Any]) -> list[Any]:
    """What an equation is given or gives, without the literal numbers."""
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def called(eqn: Any) -> Any:
    """The closed jaxpr of the function that an equation calls."""
    inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())


def values_of(atoms: Iterable[Any], env: Mapping[Any, Any]) -> list[Any]:
    """What the atoms stand for, where `env` has the variables' values."""
    return [atom.val if isinstance(atom, core.Literal) else env[atom] for atom in atoms]


def evaluated(closed: Any, values: Sequence[Any], step: Callable[[int, Any, dict[Any, Any]], Sequence[Any]]) -> Any:
    """The results of a closed jaxpr at `values`; `step(index, eqn, env)` returns those of an equation."""
    jaxpr = closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *values], strict=True))
    for index, eqn in enumerate(jaxpr.eqns):
        env |= zip(eqn.outvars, step(index, eqn, env), strict=True)
    return values_of(jaxpr.outvars, env)


def results_of(eqn: Any, env: Mapping[Any, Any]) -> list[Any]:
    """The results of one equation: those of a program that consists of it."""
    needed = list(dict.fromkeys(variables(eqn.invars)))
    alone = _nothing().replace(invars=needed, outvars=eqn.outvars, eqns=[eqn])
    return jax.core.eval_jaxpr(alone, (), *values_of(needed, env))


@cache
def _nothing() -> Any:
    """An empty program, to be filled: JAX wants every jaxpr to say what function it comes from."""
    return jax.make_jaxpr(lambda: ())().jaxpr


def flattened(closed: Any) -> Any:
    """The closed jaxpr with all calls of jitted functions written out, and without what its results do not need."""

    def step(_: int, eqn: Any, env: dict[Any, Any]) -> Sequence[Any]:
        if eqn.primitive.name in CALLS:
            return evaluated(called(eqn), values_of(eqn.invars, env), step)
        return results_of(eqn, env)

    flat = jax.make_jaxpr(lambda *values: evaluated(closed, values, step))(*closed.in_avals)
    wanted, kept = set(variables(flat.jaxpr.outvars)), []
    for eqn in reversed(flat.jaxpr.eqns):  # what the results do not need, such as a gradient handed out beside a loss
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            wanted |= set(variables(eqn.invars))
            kept.append(eqn)
    return core.ClosedJaxpr(flat.jaxpr.replace(eqns=kept[::-1]), flat.consts)


def consts_and_carry(eqn: Any) -> tuple[int, int]:
    """How many constants a scan has, and how many carried values; what it slices comes after them.

    Told by the shapes, for the names of the parameters that say so differ between versions of JAX.
    """
    body = called(eqn)

    def sliced(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(len(one.aval.shape) > len(aval.shape) for one, aval in zip(outside, inside, strict=True))

    carry = len(eqn.outvars) - sliced(eqn.outvars, body.out_avals)
    return len(eqn.invars) - sliced(eqn.invars, body.in_avals) - carry, carry


def path_between(eqns: Sequence[Any], source: Any, target: Any) -> list[Any]:
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


def is_elementwise(eqn: Any) -> bool:
    """Whether every entry of an equation's result depends on the same entry of its arguments alone."""
    name = eqn.primitive.name
    if name in CUSTOM or name in CALLS:
        return all(is_elementwise(one) for one in called(eqn).jaxpr.eqns)
    return name in ELEMENTWISE or (name in RESHAPES and eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape)


def reshaped(eqn: Any, array: np.ndarray) -> np.ndarray:
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
