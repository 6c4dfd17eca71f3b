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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from gradcourse._dummies import Dummy, check_fitting, floating, stacked
from gradcourse._logdomain import Scaled, normal, sum_of_squares, total
from gradcourse.profile import Profile

__all__ = ["Probe", "probe", "profile", "squares"]

H = TypeVar("H")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probe(Dummy):
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
    found: Any,
    layers: Sequence[str] | None = None,
    *,
    axis: int = -1,
    quantity: str = "gradient norm at each probe",
) -> Profile:
    """Returns the profile of the gradient norms that probes have found; other axes than the layers' are samples.

    `found` is the gradient with respect to the probes: a list of them, a dictionary by name (from which `layers` picks
    names, in its order: JAX returns dictionaries sorted), or stacked ones, whose axis `axis` runs over the layers.
    Raises `TypeError` for anything else, `ValueError` for probes of different shapes together.
    """
    one, names = stacked(found, Probe, layers, axis)
    exponent, square = _scaled(one)
    return Profile(exponent, jnp.log2(square) / 2, jnp.zeros_like(square), names, quantity)


@jax.custom_vjp
def _probe(h: Any, p: Probe) -> Any:
    return h


def _forward(h: Any, p: Probe) -> tuple[Any, Probe]:
    return h, p


def _backward(p: Probe, cotangent: Any) -> tuple[Any, Probe]:
    """The cotangent, and its three sums over all axes but the leading ones that `p` has."""
    axes = len(p.shape)
    parts = [_leaf_squares(leaf, tuple(range(axes, leaf.ndim))) for leaf in floating(cotangent, p.dtype)]
    return cotangent, jax.tree.map(lambda *leaves: reduce(jnp.add, leaves), *parts)


_probe.defvjp(_forward, _backward)


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
