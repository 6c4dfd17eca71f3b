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

Where gradients leave the range of float32 themselves, and the model is a plain chain, `gradcourse.rescaling.rescale`
takes the place of `probe`.

`probe` is a `jax.custom_vjp` function: in forward mode (`jax.jvp`) JAX raises a `TypeError`. There, pass `None` for
`p`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from gradcourse._logdomain import Scaled, exact_profile, normal, sum_of_squares, total
from gradcourse.profile import Profile

__all__ = ["Dummy", "Probe", "check_fitting", "floating", "is_floating", "probe", "profile", "squares", "stacked"]

H = TypeVar("H")
P = TypeVar("P", bound="Dummy")


@dataclass(frozen=True)
class Dummy:
    """What every kind of probe is: arrays of one shape, made of zeros, which are never read, and indexed together."""

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
class Probe(Dummy):
    """The dummy that `probe` takes; as a gradient, a sum of squares that cannot leave its floating-point range.

    Small, middle and large entries are squared apart, the small ones after multiplication by a power of two, the
    large ones after division by it (Blue 1978, ACM Trans. Math. Software 4, 15-23). Unlike logarithms, these three
    sums add up, which is what gradients do where a probe is used several times.

    Its shape is that of the leading axes of `h` which are told apart: `Probe.zeros()` is one number for all,
    `Probe.zeros(batch)` one per example. For `lax.scan` put the layers in front: `Probe.zeros(depth)` or
    `Probe.zeros(depth, batch)`.
    """

    small: Any  # all three Float[Array, "*sample"]; JAX also puts placeholders here, so this is not checked
    middle: Any
    large: Any


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
    check_fitting("probe", h, p, Probe)
    return _probe(h, p)


def squares(tree: Any, *shape: int, dtype: DTypeLike | None = None) -> Scaled:
    """Returns the sum of squares of all floating-point entries of `tree`, right whatever their magnitude.

    Leading axes of `shape`, which all its arrays must have, are kept. With the default `dtype`, as `Probe.zeros`.

    >>> exponent, square = squares({"weight": jnp.full(4, 2.0**-100), "bias": jnp.zeros(3)})
    >>> int(exponent), float(square)  # the norm is 2 * 2 ** -100
    (-99, 1.0)
    """
    like = Probe.zeros(*shape, dtype=dtype)
    check_fitting("squares", tree, like, Probe)
    return sum_of_squares(floating(tree, like.dtype), kept=len(shape))


def profile(
    found: Any, layers: Sequence[str] | None = None, *, axis: int = -1, quantity: str = "gradient norm at each probe"
) -> Profile:
    """Returns the profile of the gradient norms that probes have found; other axes than the layers' are samples.

    `found` is the gradient with respect to the probes: a list of them, a dictionary by name (from which `layers` picks
    names, in its order: JAX returns dictionaries sorted), or stacked ones, whose axis `axis` runs over the layers.
    Raises `TypeError` for anything else, `ValueError` for probes of different shapes together.
    """
    one, names = stacked(found, Probe, layers, axis)
    return exact_profile(_scaled(one), names, quantity)


def is_floating(leaf: Any) -> bool:
    """Returns whether an array holds real or complex floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floating(tree: Any, dtype: Any) -> list[Array]:
    """Returns the tree's floating-point arrays in `dtype`, a complex one as its real and its imaginary part."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,) for leaf in leaves]
    return [part.astype(dtype) for pair in parts for part in pair]


def check_fitting(function: str, h: Any, p: Any, kind: type[Dummy]) -> None:
    """Raises `TypeError` or `ValueError` where `p` is no probe of that kind for `h`."""
    if not isinstance(p, kind):
        raise TypeError(f"{function} got p={p!r}, a {type(p).__name__}; accepted is {kind.__name__}.zeros() or None.")
    leaves = [leaf for leaf in jax.tree.leaves(h) if is_floating(leaf)]
    if not leaves:
        raise TypeError(f"{function} got no floating-point array in h, so there is no gradient to look at.")
    widest = max(jnp.finfo(jnp.result_type(leaf)).bits for leaf in leaves)
    if p.dtype not in (jnp.float32, jnp.float64) or jnp.finfo(p.dtype).bits < widest:
        dtype = "float64" if widest == 64 else "float32"
        raise TypeError(
            f"{function} got p of dtype {p.dtype} for h with {widest} bits; accepted is {kind.__name__}.zeros("
            f"dtype={dtype!r})."
        )
    for shape in map(jnp.shape, leaves):
        if shape[: len(p.shape)] != p.shape:
            raise ValueError(
                f"{function} got p of shape {p.shape} for h of shape {shape}; accepted are (), for one norm, or "
                f"leading axes of h, such as {shape[:1]}. Make it with {kind.__name__}.zeros(...)."
            )


def stacked(found: Any, kind: type[P], layers: Sequence[str] | None, axis: int) -> tuple[P, tuple[str, ...]]:
    """Returns the probes of one kind as one whose last axis runs over the layers, and the layers' names.

    Arguments and errors as in `profile`.
    """
    if isinstance(found, Mapping):
        layers = tuple(found) if layers is None else tuple(layers)
        if unknown := [name for name in layers if name not in found]:
            raise ValueError(f"layers names {unknown[0]!r}, which found does not have; it has {tuple(found)}.")
        found = [found[name] for name in layers]
    if isinstance(found, kind):
        if not found.shape:
            raise ValueError("found is a single probe without an axis of layers; accepted is a list: write [found].")
        one = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, -1), found)
    elif isinstance(found, list | tuple) and found and all(isinstance(probe, kind) for probe in found):
        if len(shapes := {probe.shape for probe in found}) != 1:
            raise ValueError(
                f"found holds probes of the shapes {sorted(shapes)}; accepted are probes of one shape, one per layer. "
                "Read those that two scans have stacked in two calls."
            )
        one = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-1), *found)
    else:
        raise TypeError(
            f"found={found!r} is not accepted; give what jax.grad returned for the probes: a list of {kind.__name__}, "
            "or stacked ones."
        )
    depth = one.shape[-1]
    names = tuple(f"{index} probe" for index in range(depth)) if layers is None else tuple(layers)
    if len(names) != depth:
        raise ValueError(f"layers has {len(names)} names for {depth} probes; accepted is one name per probe.")
    return one, names


def _backward(p: Probe, cotangent: Any) -> tuple[Any, Probe]:
    """The cotangent, and its three sums over all axes but the leading ones that `p` has."""
    axes = len(p.shape)
    parts = [_leaf_squares(leaf, tuple(range(axes, leaf.ndim))) for leaf in floating(cotangent, p.dtype)]
    return cotangent, jax.tree.map(lambda *leaves: reduce(jnp.add, leaves), *parts)


_probe = jax.custom_vjp(lambda h, p: h)
_probe.defvjp(lambda h, p: (h, p), _backward)


def _ranges(dtype: Any) -> tuple[int, int]:
    """The powers of two where middle entries end, and by which others are shifted: 48 and 80 in float32."""
    top = int(jnp.finfo(dtype).maxexp)
    return 3 * top // 8, 5 * top // 8


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
    """The three sums as one number with an exponent of its own."""
    _, shift = _ranges(found.dtype)
    sums = jnp.stack([found.small, found.middle, found.large])
    exponent = jnp.array([-shift, 0, shift], jnp.int32).reshape(3, *[1] * len(found.shape))
    return normal(total(Scaled(jnp.broadcast_to(exponent, sums.shape), sums)))
