"""Tools for jaxprs, the programs that JAX makes of functions: how to look into them, and how to run them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
from jax.extend import core

__all__ = ["CALLS", "called", "consts_and_carry", "evaluated", "flattened", "results_of", "values_of", "variables"]

CALLS = {"jit", "pjit", "closed_call", "core_call"}


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
