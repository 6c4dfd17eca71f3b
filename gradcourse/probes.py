r"""Probes: the gradient norm at any place of anybody's model, from one ordinary `jax.grad`.

`probe(h, p)` is `h`. On the way back it hands the cotangent of `h` on unchanged, and returns the cotangent's squared
norm *as the gradient of the dummy `p`*. So `jax.grad(loss, argnums=(0, 1))(params, probes)` yields the gradient and
every layer's gradient norm, under `jit`, `scan`, `vmap` and `checkpoint`, at the cost of one reduction per layer:

>>> import jax.numpy as jnp
>>> def loss(weights, probes, x):
...     h = x
...     for name, weight in weights.items():
...         h = probe(jnp.tanh(h @ weight), probes[name])
...     return h.sum()
>>> weights = {"first": 0.5 * jnp.eye(2), "second": 1e-25 * jnp.eye(2)}
>>> probes = {name: Probe.zeros() for name in weights}
>>> gradient, found = jax.grad(loss, argnums=(0, 1))(weights, probes, jnp.zeros((1, 2)))
>>> profile(found).log10_norm  # squared in float32, 1e-25 would be 0
array([-24.85,   0.15])

Where gradients leave the range of float32 themselves, and the model is a plain chain, `rescale` takes the place of
`probe`: it also divides the cotangent by a power of two and hands out the exponent. `check_rescaling` tells whether
a model is such a chain.

Both are `jax.custom_vjp` functions: in forward mode (`jax.jvp`) JAX raises a `TypeError`. There, pass `None` for `p`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from gradcourse._checks import known_false
from gradcourse._logdomain import Scaled, normal, total
from gradcourse.profile import Profile

__all__ = [
    "Probe",
    "RescalingProbe",
    "check_rescaling",
    "exponents",
    "parameter_profile",
    "probe",
    "profile",
    "rescale",
    "squares",
]

H = TypeVar("H")
P = TypeVar("P", bound="_Dummy")


@dataclass(frozen=True)
class _Dummy:
    """What the two kinds of probe share: arrays of one shape, made of zeros, indexed together."""

    @classmethod
    def zeros(cls: type[P], *shape: int, dtype: DTypeLike | None = None) -> P:
        """Returns fresh probes of `shape`; `dtype` is float32, or float64 if JAX's 64-bit mode is on."""
        return cls(*(jnp.zeros(shape, jnp.result_type(float) if dtype is None else dtype) for _ in fields(cls)))

    def __getitem__(self: P, index: Any) -> P:
        return jax.tree.map(lambda leaf: leaf[index], self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that all its arrays have."""
        return jnp.shape(jax.tree.leaves(self)[0])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that all its arrays have."""
        return jnp.result_type(jax.tree.leaves(self)[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probe(_Dummy):
    """The dummy that `probe` takes; as a gradient, a sum of squares that cannot leave its floating-point range.

    Small, middle and large entries are squared apart, the small ones after multiplication by a power of two, the
    large ones after division by it (Blue 1978, ACM Trans. Math. Software 4, 15-23). Unlike logarithms, these three
    sums add up, which is what gradients do where a probe is used several times.

    Its values are never read. Its shape is that of the leading axes of `h` which are told apart: `Probe.zeros()` is
    one number for all, `Probe.zeros(batch)` one per example. For `lax.scan` put the layers in front:
    `Probe.zeros(depth)` or `Probe.zeros(depth, batch)`.
    """

    small: Any  # all three Float[Array, "*sample"]; JAX also puts placeholders here, so this is not checked
    middle: Any
    large: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RescalingProbe(_Dummy):
    """The dummy that `rescale` takes, with the shape `()`; as a gradient, what was divided by and what is left.

    - `exponent`: the cotangent was divided by `2 ** exponent`, a whole number. The dummy's own value is added to it:
      0, except in `check_rescaling`.
    - `square`: the squared norm after the division;
    - `uses`: how often the probe was passed; anything but 1 makes the other two meaningless.

    For `lax.scan` put the layers in front: `RescalingProbe.zeros(depth)`.
    """

    exponent: Any  # all three as in `Probe`
    square: Any
    uses: Any


def probe(h: H, p: Probe | None) -> H:
    r"""Returns `h`, an array or any pytree of arrays; the gradient of `p` is then $\|\partial C/\partial h\|^2$.

    $C$ is what is differentiated. Where it is a mean over a batch, so is every gradient: the derivative of one
    example's loss is `batch` times what is found. A probe that is passed several times (shared layers, a scan that
    closes over it) finds the sum of the squares. Read the gradient of `p` with `profile`. Without a probe (`None`)
    this is the identity in every mode of differentiation.

    Half-precision cotangents are squared in the dtype of `p`. Raises `TypeError` where `p` is no `Probe` or has a
    lower precision than `h`, `ValueError` where the shape of `p` is not that of the leading axes of `h`.
    """
    if p is None:
        return h
    _fitting("probe", h, p, Probe)
    return _probe(h, p)


def rescale(h: H, p: RescalingProbe | None) -> H:
    r"""Returns `h`; on the way back its cotangent is divided by the power of two next to its norm.

    So the gradient of a chain of any depth stays alive in float32. All examples share one power, because their
    parameter gradients are summed: everything that lies before this point gets a gradient divided by
    `2 ** exponent`, on top of what the probes between here and the loss have divided by. `profile` adds these up
    for cotangents, `exponents` and `parameter_profile` for parameters.

    Only valid where every path to the loss from what lies before this point passes it: not inside a branch of a
    shortcut, not with parameters that are shared between layers or regularised in the loss. There is no telling
    from one gradient alone; `check_rescaling` tells. Raises as `probe`; `p` has the shape `()`.
    """
    if p is None:
        return h
    _fitting("rescale", h, p, RescalingProbe)
    return _rescale(h, p)


def squares(tree: Any, *shape: int, dtype: DTypeLike | None = None) -> Scaled:
    """Returns the sum of squares of all floating-point entries of `tree`, right whatever their magnitude.

    Leading axes of `shape`, which all its arrays must have, are kept. With the default `dtype`, as `Probe.zeros`.

    >>> exponent, square = squares({"weight": jnp.full(4, 2.0**-100), "bias": jnp.zeros(3)})
    >>> int(exponent), float(square)  # the norm is 2 * 2 ** -100
    (-99, 1.0)
    """
    empty = Probe.zeros(*shape, dtype=dtype)
    _fitting("squares", tree, empty, Probe)
    return _scaled(_sum_squares(tree, empty))


def profile(
    found: Any,
    layers: Sequence[str] | None = None,
    *,
    axis: int = -1,
    quantity: str = "gradient norm at each probe",
) -> Profile:
    """Returns the profile of gradient norms that probes have found; other axes than the layers' are samples.

    `found` is the gradient with respect to the probes: a list of them, a dictionary by name (plain probes alone;
    `layers` picks and orders the names, for JAX returns dictionaries sorted), or stacked ones, whose axis `axis`
    runs over the layers. Rescaling probes must be listed along the chain, the last one next to the loss. Raises
    `ValueError` where a rescaling probe was not passed exactly once, and for probes of different shapes together.
    """
    stacked, names = _stack(found, layers, axis)
    if isinstance(stacked, RescalingProbe):
        exponent, square = exponents(stacked, axis=-1), stacked.square
    else:
        exponent, square = _scaled(stacked)
    return Profile(exponent, jnp.log2(square) / 2, jnp.zeros_like(square), names, quantity)


def exponents(found: Any, *, axis: int = -1) -> Int[Array, "*sample layer"]:
    """Returns `e` per rescaling probe: gradients of what lies right before it have been divided by `2 ** e[layer]`.

    So the gradient of layer `l`, whose output passes probe `l`, is `2 ** e[l]` times the one that JAX returned.
    `found` and errors as in `profile`.
    """
    stacked, names = _stack(found, None, axis)
    if not isinstance(stacked, RescalingProbe):
        raise TypeError("found holds plain probes, which rescale nothing; accepted is the gradient of RescalingProbes.")
    uses = stacked.uses
    if known_false((uses == 1).all()):
        counts = np.asarray(uses).reshape(-1, len(names))
        index = int((counts != 1).any(axis=0).argmax())
        raise ValueError(
            f"the rescaling probe {names[index]!r} was passed {counts[:, index].max():g} times on the way back; "
            "accepted is once. Give each place a probe of its own (a scan: RescalingProbe.zeros(depth) among its xs)."
        )
    return jnp.flip(jnp.cumsum(jnp.flip(stacked.exponent.astype(jnp.int32), -1), axis=-1), -1)


def parameter_profile(
    gradients: Any,
    found: Any,
    layers: Sequence[str] | None = None,
    *,
    quantity: str = "norm of the gradient with respect to each layer's parameters",
) -> Profile:
    """Returns the profile of the norms of a chain's parameter gradients, as they are without rescaling.

    `gradients` is a list with one pytree per layer, or one pytree whose arrays have the layers in front, as from a
    scan; each layer's output has passed the rescaling probe of the same index in `found`, the gradient of the probes.
    """
    powers, (_, names) = exponents(found), _stack(found, layers, -1)
    if isinstance(gradients, list | tuple):
        if len(gradients) != len(names):
            raise ValueError(
                f"gradients has {len(gradients)} entries for {len(names)} probes; accepted is one per probe."
            )
        parts = [squares(one) for one in gradients]
        exponent, square = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    else:
        exponent, square = squares(gradients, len(names))
    return Profile(powers + exponent, jnp.log2(square) / 2, jnp.zeros_like(square), names, quantity)


def check_rescaling(loss: Callable[..., Any], params: Any, probes: Any, *args: Any) -> None:
    """Returns nothing where every `rescale` in `loss(params, probes, *args)` is valid, else raises `ValueError`.

    `probes` is a list of rescaling probes along the chain or a stacked `RescalingProbe`, as in `profile`. The
    gradient is compared with two others, for which each probe divides by a random power of two more, up to 40, or by
    as much less. In a chain that changes every cotangent and every parameter's gradient by a power of two, which is
    exact, and each handed-out exponent by the difference to the next probe's. Where paths of different scale meet, it
    does not. Cost: three gradients. Run it in float32 or float64: float16 has no room for the added powers. Where the
    gradient is not finite, or so far from 1 that the added powers leave the floating-point range, it cannot be checked:
    that is a `ValueError` too, which says so.

    >>> def shortcut(weight, probes, x):
    ...     h = jnp.tanh(x @ weight)
    ...     return (h + rescale(jnp.tanh(h @ weight), probes[0])).sum()
    >>> check_rescaling(shortcut, jnp.eye(2), [RescalingProbe.zeros()], jnp.ones((1, 2)))
    Traceback (most recent call last):
    ...
    ValueError: the gradient of params mixes paths to the loss that pass different rescaling probes; ...
    """
    stacked, names = _stack(probes, None, -1)
    if not isinstance(stacked, RescalingProbe) or stacked.exponent.ndim != 1:
        raise TypeError("probes must be a list of RescalingProbe.zeros(), or RescalingProbe.zeros(depth) for a scan.")
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    added = np.resize(np.random.default_rng(0).permutation(np.delete(np.arange(-40, 41), 40)), len(names))
    as_it_is, *moved = (
        gradient(params, _with_exponents(probes, values.astype(stacked.dtype)), *args)
        for values in (np.zeros_like(added), added, -added)
    )
    for values, result in zip((added, -added), moved, strict=True):
        _compare(as_it_is, result, values - np.append(values[1:], 0), names)


def _compare(as_it_is: tuple[Any, Any], moved: tuple[Any, Any], difference: Any, names: tuple[str, ...]) -> None:
    """Raises `ValueError` where the two gradients, of parameters and probes, are not those of one chain."""
    for _, found in (as_it_is, moved):
        exponents(found)  # each passed once
    before, after = (jax.tree.map(np.asarray, _stack(found, None, -1)[0]) for _, found in (as_it_is, moved))
    _check_range(as_it_is[0], before, difference, names)
    same = _power_of_two(before.square, after.square) & (after.exponent - before.exponent == difference)
    broken = np.flatnonzero(~same & (before.square != 0))
    if len(broken):
        index = int(broken[-1])
        if index == len(names) - 1:
            raise _invalid(f"the cotangent at the last rescaling probe, {names[index]!r}, changes with other probes")
        raise _invalid(
            f"from the rescaling probe {names[index]!r} not every path to the loss passes {names[index + 1]!r} next"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(as_it_is[0]), jax.tree.leaves(moved[0]), strict=True)
    for (path, one), other in leaves:
        if not _power_of_two(np.asarray(one), np.asarray(other)).all():
            where = jax.tree_util.keystr(path)
            raise _invalid(
                f"the gradient of params{where} mixes paths to the loss that pass different rescaling probes"
            )


def _check_range(gradient: Any, before: Any, difference: Any, names: tuple[str, ...]) -> None:
    """Raises `ValueError` where a gradient is not finite, or `difference` leads beyond what one power can rescale."""
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, before))):
        raise ValueError(
            "the gradient is not finite, so rescaling cannot be checked; accepted are a loss and params whose gradient "
            "holds no NaN and no infinity."
        )
    largest = np.maximum(np.abs(before.exponent), np.abs(before.exponent + difference))
    beyond = (largest >= _largest_power(before.dtype)) & (before.square != 0)
    if beyond.any():
        raise ValueError(
            f"at the rescaling probe {names[int(np.flatnonzero(beyond)[-1])]!r} cotangents are beyond what one power "
            "of two can rescale: scale the loss towards 1 (or the layers behind that probe) for this check, or run it "
            "in float64."
        )


def _largest_power(dtype: Any) -> int:
    """The exponent of the largest power of two whose inverse is a normal number."""
    return -int(jnp.finfo(dtype).minexp)


def _invalid(reason: str) -> ValueError:
    return ValueError(
        f"{reason}; accepted is a plain chain, each of whose layers has parameters of its own and reaches the loss "
        "through the next one alone. Use probe(h, p) instead, which is valid everywhere."
    )


# The two backward passes


@jax.custom_vjp
def _probe(h: Any, p: Probe) -> Any:
    return h


def _probe_forward(h: Any, p: Probe) -> tuple[Any, Probe]:
    return h, p


def _probe_backward(p: Probe, cotangent: Any) -> tuple[Any, Probe]:
    return cotangent, _sum_squares(cotangent, p)


_probe.defvjp(_probe_forward, _probe_backward)


@jax.custom_vjp
def _rescale(h: Any, p: RescalingProbe) -> Any:
    return h


def _rescale_forward(h: Any, p: RescalingProbe) -> tuple[Any, RescalingProbe]:
    return h, p


def _rescale_backward(p: RescalingProbe, cotangent: Any) -> tuple[Any, RescalingProbe]:
    norm = _scaled(_sum_squares(cotangent, Probe(*(jnp.zeros_like(p.square),) * 3)))
    limit = _largest_power(p.dtype)
    own = jnp.where(jnp.isfinite(norm.square), norm.exponent, 0)
    power = jnp.clip(own + p.exponent.astype(jnp.int32), -limit, limit)
    factor = jnp.ldexp(jnp.ones_like(p.square), -power)

    def divided(leaf: Any) -> Any:
        if not _is_floating(leaf):
            return leaf
        wide = np.promote_types(leaf.dtype, p.dtype) if jnp.iscomplexobj(leaf) else p.dtype
        return (leaf.astype(wide) * factor.astype(wide)).astype(leaf.dtype)  # half precision cannot hold the power

    square = jnp.ldexp(norm.square, 2 * (norm.exponent - power))
    return jax.tree.map(divided, cotangent), RescalingProbe(power.astype(p.dtype), square, jnp.ones_like(square))


_rescale.defvjp(_rescale_forward, _rescale_backward)


# Sums of squares of any magnitude


def _ranges(dtype: Any) -> tuple[int, int]:
    """The powers of two where middle entries end, and by which others are shifted: 48 and 80 in float32."""
    top = int(jnp.finfo(dtype).maxexp)
    return 3 * top // 8, 5 * top // 8


def _sum_squares(tree: Any, like: Probe) -> Probe:
    """The three sums over all axes of the tree's arrays but the leading ones, in the shape and dtype of `like`."""
    parts = [_leaf_squares(leaf, tuple(range(len(like.shape), leaf.ndim))) for leaf in _floating(tree, like.dtype)]
    return jax.tree.map(lambda *leaves: reduce(jnp.add, leaves), *parts)


def _leaf_squares(v: Array, axes: tuple[int, ...]) -> Probe:
    edge, shift = _ranges(v.dtype)

    def apart(v: Array) -> Probe:
        small, large = jnp.abs(v) < 2.0**-edge, jnp.abs(v) >= 2.0**edge
        selected = [(small, 2.0**shift), (~(small | large), 1.0), (large, 2.0**-shift)]
        return Probe(*(jnp.sum(jnp.square(jnp.where(chosen, v, 0) * by), axis=axes) for chosen, by in selected))

    def together_if_possible(v: Array) -> Probe:
        """One pass over `v` instead of three, where what it loses to underflow is below rounding."""
        plain = jnp.sum(jnp.square(v), axis=axes)
        enough = jnp.all((plain > 4.0 ** (-3 * edge // 4)) & (plain < jnp.inf))
        nothing = jnp.zeros_like(plain)
        return lax.cond(enough, lambda v: Probe(nothing, plain, nothing), apart, v)

    # Three reductions of one array are three passes on a CPU. Elsewhere they are fused, and a branch would wait.
    return lax.platform_dependent(v, cpu=together_if_possible, default=apart)


@jax.jit
def _scaled(found: Probe) -> Scaled:
    _, shift = _ranges(found.dtype)
    sums = jnp.stack([found.small, found.middle, found.large])
    exponent = jnp.array([-shift, 0, shift], jnp.int32).reshape(3, *[1] * len(found.shape))
    return normal(total(Scaled(jnp.broadcast_to(exponent, sums.shape), sums)))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _floating(tree: Any, dtype: Any) -> list[Array]:
    """The tree's floating-point arrays in `dtype`, complex ones as two."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _is_floating(leaf)]
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,) for leaf in leaves]
    return [jnp.asarray(part).astype(dtype) for pair in parts for part in pair]


# Checks, and probes brought into one form


def _fitting(function: str, h: Any, p: Any, kind: type[_Dummy]) -> None:
    """Raises where `p` is no probe of that kind for `h`."""
    if not isinstance(p, kind):
        raise TypeError(f"{function} got p={p!r}, a {type(p).__name__}; accepted is {kind.__name__}.zeros() or None.")
    leaves = [leaf for leaf in jax.tree.leaves(h) if _is_floating(leaf)]
    if not leaves:
        raise TypeError(f"{function} got no floating-point array in h, so there is no gradient to look at.")
    widest = max(jnp.finfo(jnp.result_type(leaf)).bits for leaf in leaves)
    if p.dtype not in (jnp.float32, jnp.float64) or jnp.finfo(p.dtype).bits < widest:
        dtype = "float64" if widest == 64 else "float32"
        raise TypeError(
            f"{function} got p of dtype {p.dtype} for h with {widest} bits; accepted is {kind.__name__}.zeros("
            f"dtype={dtype!r})."
        )
    if kind is RescalingProbe and p.shape:
        raise ValueError(
            f"rescale got p of shape {p.shape}; accepted is (), for all examples share one power of two. "
            "Of stacked probes take one, p[index], or scan over them."
        )
    for leaf in leaves:
        if jnp.shape(leaf)[: len(p.shape)] != p.shape:
            raise ValueError(
                f"{function} got p of shape {p.shape} for h of shape {jnp.shape(leaf)}; accepted are (), for one norm, "
                f"or leading axes of h, such as {jnp.shape(leaf)[:1]}. Make it with {kind.__name__}.zeros(...)."
            )


def _stack(found: Any, layers: Sequence[str] | None, axis: int) -> tuple[Any, tuple[str, ...]]:
    """The probes as one whose last axis runs over the layers, and the layers' names."""
    if isinstance(found, Mapping):
        layers = tuple(found) if layers is None else tuple(layers)
        if unknown := [name for name in layers if name not in found]:
            raise ValueError(f"layers names {unknown[0]!r}, which found does not have; it has {tuple(found)}.")
        found, ordered = [found[name] for name in layers], False
    else:
        ordered = True
    if isinstance(found, list | tuple):
        kinds = {type(one) for one in found}
        if len(kinds) != 1 or not kinds <= {Probe, RescalingProbe}:
            _refuse(found)
        if len(shapes := {one.shape for one in found}) != 1:
            raise ValueError(
                f"found holds probes of the shapes {sorted(shapes)}; accepted are probes of one shape, one per layer. "
                "Read those that two scans have stacked in two calls."
            )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *found)
    elif isinstance(found, Probe | RescalingProbe):
        if not found.shape:
            raise ValueError("found is a single probe without an axis of layers; accepted is a list: write [found].")
        stacked = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, -1), found)
    else:
        _refuse(found)
    if isinstance(stacked, RescalingProbe) and not ordered:
        raise TypeError(
            "found is a dictionary of rescaling probes, which JAX sorts by name; accepted is a list along the chain."
        )
    depth = stacked.shape[-1]
    names = tuple(f"{index} probe" for index in range(depth)) if layers is None else tuple(layers)
    if len(names) != depth:
        raise ValueError(f"layers has {len(names)} names for {depth} probes; accepted is one name per probe.")
    return stacked, names


def _refuse(found: Any) -> NoReturn:
    raise TypeError(
        f"found={found!r} is not accepted; give what jax.grad returned for the probes: a list of Probe (or of "
        "RescalingProbe), a dictionary of Probe, or stacked ones."
    )


def _with_exponents(probes: Any, values: Any) -> Any:
    """The probes of a chain with other values in `exponent`."""
    if isinstance(probes, RescalingProbe):
        return replace(probes, exponent=jnp.asarray(values))
    return type(probes)(replace(one, exponent=jnp.asarray(value)) for one, value in zip(probes, values, strict=True))


def _power_of_two(one: Any, other: Any) -> Any:
    """Whether the entries' ratio is a power of two; entries next to underflow are not judged."""
    one, other = (np.asarray(part, np.complex128 if np.iscomplexobj(part) else np.float64) for part in (one, other))
    judged = (np.abs(one) > 1e-24) & ~(np.abs(other) <= 1e-36)  # NaN is judged
    ratio = np.where(judged, other, 1) / np.where(judged, one, 1)
    power = np.exp2(np.round(np.log2(np.abs(ratio))))
    return np.abs(ratio / power - 1) < 1e-6
