r"""Curvature: the largest that a loss has, its sharpness, by Lanczos on products of its Hessian with vectors.

Gradient descent with a constant rate $\eta$ on a quadratic is stable exactly where $\eta < 2 / \lambda_{\max}$, with
$\lambda_{\max}$ the Hessian's largest eigenvalue; near a minimum of any smooth loss it is the same (Cohen et al. 2021).
The Hessian is never formed: a product with a vector costs about two gradients (Pearlmutter 1994).

>>> import jax, jax.numpy as jnp
>>> def loss(params):
...     return 3 * jnp.square(params["a"]).sum() + 0.5 * jnp.square(params["b"]).sum()
>>> params = {"a": jnp.ones(4), "b": jnp.ones((2, 3))}
>>> found = sharpness(loss, params, key=jax.random.key(0))
>>> f"{found.value:.3f}"
'6.000'
>>> f"{sharpness(loss, params, within={'a': False, 'b': True}, key=jax.random.key(0)).value:.3f}"
'1.000'
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse._logdomain import dot

__all__ = ["ROUNDING", "Sharpness", "next_vector", "sharpness"]

ROUNDING = 8  # times machine epsilon and the size of the map: a vector so short has no direction


class Sharpness(NamedTuple):
    """The largest eigenvalue as Lanczos has it, and the norm of its residual: a true eigenvalue is that near."""

    value: Float[Array, ""]
    residual: Float[Array, ""]


def sharpness(
    loss: Callable[..., Any], params: Any, *args: Any, within: Any = True, iterations: int = 60, key: PRNGKeyArray
) -> Sharpness:
    """Returns the largest eigenvalue of the Hessian of `loss(params, *args)` with respect to `params`, any pytree.

    The value is a lower bound that grows with `iterations` from a random start, but for rounding; an eigenvalue lies
    within `residual` of it. `within` looks at a block of the Hessian alone: a pytree of booleans, a prefix of `params`,
    that says which parameters may move; an array says so for each layer of a stack, along its first axis. Cost:
    `iterations` times about two gradients, and as many copies of the parameters. It runs inside `jit` and `vmap`.

    Raises `TypeError` where the parameters are not floating-point numbers or the loss is not a scalar, `ValueError`
    where `within` does not fit or leaves nothing to move.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}; accepted are floating-point "
                "numbers. Close over what is not to be differentiated."
            )
    if getattr(out := jax.eval_shape(loss, params, *args), "shape", None) != ():
        raise TypeError(f"loss returns {out}; accepted is a scalar.")
    mask = _mask(within, params)
    if not (moving := int(mask.sum())):
        raise ValueError(f"within={within!r} leaves no parameter to move; accepted is at least one.")
    steps = min(positive_integer("iterations", iterations), moving)
    flat, unravel = ravel_pytree(params)
    movable = jnp.asarray(mask, flat.dtype)

    def product(v: Array) -> Array:
        gradient = jax.grad(lambda flat: loss(unravel(flat), *args))
        return movable * jax.jvp(gradient, (flat,), (v,))[1]

    start = movable * jax.random.normal(key, flat.shape, flat.dtype)
    return Sharpness(*_lanczos(product, start, steps))


def _mask(within: Any, params: Any) -> np.ndarray:
    try:
        filled = jax.tree.broadcast(within, params)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"within={within!r} has another structure than params; accepted is a prefix of it ({error})."
        ) from None

    def of_leaf(path: Any, leaf: Any, which: Any) -> np.ndarray:
        chosen, shape = np.asarray(which, bool), jnp.shape(leaf)
        if chosen.ndim > 1 or (chosen.ndim == 1 and shape[:1] != chosen.shape):
            raise ValueError(
                f"within{jax.tree_util.keystr(path)} has shape {chosen.shape} for parameters of shape {shape}; "
                "accepted are one boolean, or one for each entry of the first axis."
            )
        return np.broadcast_to(chosen.reshape(chosen.shape + (1,) * (len(shape) - chosen.ndim)), shape).ravel()

    return np.concatenate(jax.tree.leaves(jax.tree_util.tree_map_with_path(of_leaf, params, filled)))


def next_vector(
    v: Float[Array, " entry"], before: Float[Array, "row entry"], size: Float[Array, ""]
) -> tuple[Float[Array, " entry"], Float[Array, ""]]:
    """Returns the direction of what is left of `v` orthogonal to the rows `before`, and its length.

    Rows that are 0 do no harm. Where nothing but rounding is left, for a map of that `size`, the rows span an invariant
    subspace: the length is 0 then, and so is the vector.

    >>> basis = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> vector, length = next_vector(jnp.array([3.0, 4.0, 0.0]), basis, jnp.asarray(5.0))
    >>> vector.tolist(), length.item()
    ([0.0, 1.0, 0.0], 4.0)
    """
    for _ in range(2):  # twice is enough (Parlett, quoting W. Kahan)
        v = v - dot(dot(before, v), before)
    length = jnp.linalg.norm(v)
    short = length <= ROUNDING * jnp.finfo(v.dtype).eps * size
    return jnp.where(short, 0, v / jnp.where(short, 1, length)), jnp.where(short, 0, length)


def _lanczos(product: Callable[[Array], Array], start: Array, steps: int) -> tuple[Array, Array]:
    """The largest Ritz value after `steps` steps, every vector orthogonalised twice against all before it."""

    def step(carry: Any, index: Array) -> Any:
        basis, v, alive = carry
        basis = basis.at[index].set(v)
        w = product(v)
        alpha = jnp.vdot(v, w)
        v, beta = next_vector(w, basis, jnp.abs(alpha))
        # Once an invariant subspace has been found, further steps say nothing: they are made with zeros.
        return (basis, v, alive & (beta != 0)), (jnp.where(alive, alpha, -jnp.inf), beta)

    basis = jnp.zeros((steps, len(start)), start.dtype)
    carry = basis, start / jnp.linalg.norm(start), jnp.asarray(True)
    _, (alpha, beta) = lax.scan(step, carry, jnp.arange(steps))
    lowest = jnp.min(jnp.where(jnp.isfinite(alpha), alpha, jnp.inf)) - jnp.sum(beta) * 2 - 1  # below all that counts
    diagonal = jnp.where(jnp.isfinite(alpha), alpha, lowest)
    matrix = jnp.diag(diagonal) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(matrix)
    return values[-1], jnp.abs(beta[-1] * vectors[-1, -1])
