r"""The largest and the smallest singular value of Jacobians that are too big to be formed.

A convolution with 64 channels on an image of 64 by 64 pixels has a Jacobian of 256 GiB in float32. It is never formed
here, but applied to vectors, and so is its transpose. After $k$ steps of Golub-Kahan-Lanczos bidiagonalisation from a
random start, $A V = U B$ with orthonormal columns $u_j$, $v_j$ and a small bidiagonal $B$ with $\alpha_j$ on its
diagonal and $\beta_{j+1}$ next to it (G. Golub and W. Kahan, "Calculating the singular values and pseudo-inverse of a
matrix", J. SIAM Numer. Anal. B 2, 1965). The largest singular value $\theta_1$ of $B$ never exceeds $A$'s, and the
smallest, $\theta_k$, is never less.

How far off they may be follows from the start being random. The next vector is $v_{k+1} = p(A^\top A) v_1$ with the
polynomial $p(\lambda) = \prod_j (\lambda - \theta_j^2) / (\alpha_j \beta_{j+1})$. It has length 1, and so at most
length 1 along $A$'s first singular vector: $|\gamma\, p(\sigma_1^2)| \le 1$, where $\gamma$ is the start's part along
it. A start drawn uniformly from the sphere in $n$ dimensions has $|\gamma| > \delta$ with probability 95 %, for a
$\delta$ that depends on $n$ alone. So $|p(\sigma_1^2)| \le 1 / \delta$, and as $p$ grows beyond $\theta_1^2$, that is
an upper bound of $\sigma_1$: one that holds for at least 95 % of the starts, for *every* map. The same holds below
$\theta_k^2$ for the smallest (J. van Dorsselaer, M. Hochstenbach and H. van der Vorst, "Computing probabilistic bounds
for extreme eigenvalues of symmetric matrices with the Lanczos method", SIAM J. Matrix Anal. Appl. 22, 2000; M.
Hochstenbach, "Probabilistic upper bounds for the matrix two-norm", J. Sci. Comput. 57, 2013). The better known bound
by the residual promises *some* singular value nearby, not the largest one.

A few dozen steps find the largest singular value. The smallest is often an upper bound and no more: where singular
values crowd at the lower end, as those of random square matrices do, hundreds of steps are too few, and its lower end
is 0. With as many steps as the smaller side of the Jacobian has entries, both are exact to rounding.

>>> matrix = jnp.diag(jnp.arange(1.0, 1001.0))
>>> found = golub_kahan(lambda v: matrix @ v, lambda u: u @ matrix, jnp.zeros(1000), steps=60, key=jax.random.key(0))
>>> print(f"between {found.largest:.1f} and {found.upper:.1f}")
between 999.9 and 1000.7
"""

from collections.abc import Callable
from functools import partial
from math import lgamma, log, pi, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import positive_integer
from gradcourse._logdomain import LN10, Scaled, finite, to_unit
from gradcourse.measure.curvature import ROUNDING, next_vector
from gradcourse.nn.layers import Layer, as_scaled
from gradcourse.nn.network import Network, Params, joined
from gradcourse.profile import Profile

__all__ = ["Extremes", "LayerExtremes", "golub_kahan", "layer_extremes"]

NORMAL_95 = 1.96  # standard errors that hold 95 % of a normal distribution
DOUBT = 0.05  # the probability that a bound may fail with


class Extremes(NamedTuple):
    """The extreme singular values found, and up to where they may be, each with a probability of 95 %.

    The largest singular value is between `largest` and `upper`, the smallest between `lower` and `smallest`.
    """

    largest: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    smallest: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]


class LayerExtremes(NamedTuple):
    """The extreme singular values of every layer's Jacobian, each profile `(batch, layer)`."""

    largest: Profile
    smallest: Profile


def golub_kahan(
    apply: Callable[[Array], Array],
    transpose: Callable[[Array], Array],
    like: Float[Array, "*shape"],
    *,
    steps: int,
    key: PRNGKeyArray,
) -> Extremes:
    r"""Returns the extreme singular values that `steps` steps of Golub-Kahan-Lanczos bidiagonalisation find.

    `apply` is a linear map on arrays such as `like`, of which the shape and the dtype alone matter, and `transpose` is
    its transpose. More `steps` than `like` has entries are not taken. A map into a space of fewer dimensions has a
    null space, which would be found as a smallest singular value of 0: swap it with its transpose. All vectors are
    orthogonalised against all before them, and where they span an invariant subspace, the next one is drawn at
    random; so `steps` maps, transposes and vectors of both spaces are what it costs. Norms are squared on the way:
    scale the map to be of ordinary size. Runs inside `jit`, `vmap` and `scan`.
    """
    steps = min(positive_integer("steps", steps), like.size)
    image = jax.eval_shape(apply, like)
    start, *keys = jax.random.split(key, 3)
    left_keys, right_keys = (jax.random.split(one, steps) for one in keys)
    rights = jnp.zeros((steps + 1, like.size), like.dtype)
    first, _ = _next(jax.random.normal(start, (like.size,), like.dtype), rights, jnp.zeros((), like.dtype), start)

    def step(carry: Any, one: Any) -> Any:
        lefts, rights, size = carry
        index, left_key, right_key = one
        u = apply(rights[index].reshape(like.shape)).ravel()
        u, alpha = _next(u, lefts, size, left_key)
        size = jnp.maximum(size, alpha)
        v = transpose(u.reshape(image.shape)).ravel()
        v, beta = _next(v, rights, size, right_key)
        size = jnp.maximum(size, beta)
        return (lefts.at[index].set(u), rights.at[index + 1].set(v), size), (alpha, beta)

    lefts = jnp.zeros((steps, prod(image.shape)), like.dtype)
    carry = lefts, rights.at[0].set(first), jnp.zeros((), like.dtype)
    _, (alphas, betas) = lax.scan(step, carry, (jnp.arange(steps), left_keys, right_keys))
    thetas = jnp.linalg.svd(jnp.diag(alphas) + jnp.diag(betas[:-1], 1), compute_uv=False)
    return _extremes(thetas, alphas * betas, like.size)


def _extremes(thetas: Float[Array, " step"], products: Float[Array, " step"], size: int) -> Extremes:
    """The extreme `thetas` and their bounds, from all of them and the products `alpha * beta`."""
    largest, smallest = thetas[0], thetas[-1]
    unit = jnp.where(largest > 0, largest, 1)
    squares = jnp.square(thetas / unit)
    goal = jnp.sum(jnp.log(products / unit / unit)) - _log_least_part(size)
    over = _where_reaching(1 - squares, jnp.ones_like(unit), goal)
    under = _where_reaching(squares - squares[-1], squares[-1], goal)
    rounding = ROUNDING * jnp.finfo(thetas.dtype).eps * largest
    lower = jnp.maximum(smallest * jnp.sqrt(1 - jnp.minimum(under, 1)) - rounding, 0)
    return Extremes(largest, largest * jnp.sqrt(1 + over) + rounding, smallest, lower)


def _where_reaching(gaps: Float[Array, " step"], slope: Float[Array, ""], goal: Float[Array, ""]) -> Float[Array, ""]:
    """The number at which the sum of `log(gaps + slope * number)` reaches `goal`, by bisection of its logarithm."""

    def halve(_: Any, ends: Any) -> Any:
        low, high = ends
        middle = (low + high) / 2
        reached = jnp.sum(jnp.log(gaps + slope * jnp.exp(middle))) >= goal
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    return jnp.exp(lax.fori_loop(0, 40, halve, (jnp.full_like(goal, -60), jnp.full_like(goal, 60)))[1])


def _log_least_part(size: int) -> float:
    """The logarithm of what a random direction in `size` dimensions has along a given one, but for 5 % of them."""
    half = max(size, 2) / 2  # the density of that part is largest at 0
    return log(DOUBT) + log(pi) / 2 - log(2) + lgamma(half - 0.5) - lgamma(half)


def _next(v: Array, before: Array, size: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    """The `next_vector` and its length; a random direction where that is 0."""
    direction, length = next_vector(v, before, size)
    other, _ = next_vector(jax.random.normal(key, v.shape, v.dtype), before, jnp.zeros_like(size))
    return jnp.where(length == 0, other, direction), length


def layer_extremes(
    network: Network, params: Params, x: Float[Array, "batch *shape"], *, steps: int = 40, key: PRNGKeyArray
) -> LayerExtremes:
    r"""Returns the largest and smallest singular value of $\partial h_{l+1} / \partial h_l$ for every layer $l$.

    `x` is `(batch, *input_shape)`; both profiles are `(batch, layer)`, and their `root_mean_square` and `mean` are
    averages over the batch. The largest is a lower bound and the smallest an upper one; 1.96 times the `standard_error`
    reach, with a probability of 95 % and for every map, as far as the true value may be beyond, in decades. It is
    infinite where the smallest may as well be 0, also where the smallest found is 0: below rounding, 8 times machine
    epsilon of the largest, nothing can be told from 0. `key` draws the starts. Cost: per layer and example `steps`
    passes forward and `steps` back, and `steps` vectors of the input's and of the output's size. Errors as in
    `measure.jacobians.backward_jacobian_norms`, and `ValueError` for `steps` below 1.

    >>> from gradcourse.nn.convolutions import Conv
    >>> from gradcourse.nn.network import sequential
    >>> network = sequential((6, 6, 2), [Conv(2, padding="CIRCULAR", initializer="delta_orthogonal")] * 3)
    >>> params = network.init(key=jax.random.key(0))
    >>> found = layer_extremes(network, params, jnp.ones((1, 6, 6, 2)), key=jax.random.key(1))
    >>> found.largest.log10_norm.round(5) + 0, found.smallest.log10_norm.round(5) + 0
    (array([[0., 0., 0.]]), array([[0., 0., 0.]]))
    """
    network.check_uncoupled()
    params, x = network.measurable(params, x)
    exponent, found = _extremes_of_layers(network, params, x, positive_integer("steps", steps), key)
    finite(Scaled(exponent, found.largest + found.smallest))
    unknown = jnp.where(found.largest > 0, jnp.inf, 0)  # a value of 0 is certain only of a map whose largest is 0

    def profile(which: str, value: Array, end: Array) -> Profile:
        error = jnp.where(value > 0, jnp.abs(jnp.log(value) - jnp.log(end)), unknown) / (LN10 * NORMAL_95)
        name = f"{which} singular value of the Jacobian: each layer's output with respect to its input"
        fraction, whole = jnp.log2(value), jnp.where(value > 0, exponent, 0)
        return Profile(whole.T, fraction.T, error.T, network.layer_names, name)

    largest, upper, smallest, lower = found
    return LayerExtremes(profile("largest", largest, upper), profile("smallest", smallest, lower))


@partial(jax.jit, static_argnums=(0, 3))
def _extremes_of_layers(network: Network, params: Params, x: Array, steps: int, key: Any) -> tuple[Array, Extremes]:
    """The extremes of every layer, `(layer, batch)`, in units of two to the power of the exponents."""
    keys = jax.random.split(key, (network.depth, x.shape[0]))

    def step(layer: Layer, one: Any, h: Any) -> Any:
        p, keys = one
        return layer.linearize_scaled(p, h)[0], lax.map(partial(_of_one, layer, p, steps), (*h, keys))

    trees = list(zip(params, network.parted(keys), strict=True))
    return joined(network.scan(step, trees, as_scaled(x))[1])


def _of_one(layer: Layer, p: Any, steps: int, one: tuple[Array, Array, PRNGKeyArray]) -> tuple[Array, Extremes]:
    """One layer's extremes at one example. Both halves of the layer are scaled by powers of two on the way."""
    h, exponent, key = one
    (y, _), point = layer.linearize_scaled(p, (h[None], exponent[None]))
    trial = jax.random.normal(key, (1, 1, *h.shape), h.dtype)
    s, outer = to_unit(point.push(p, trial), tuple(range(y.ndim + 1)))
    _, inner = to_unit(point.times_slope(s), tuple(range(y.ndim + 1)))
    outer_power, inner_power = (jnp.ldexp(jnp.ones((), h.dtype), -exponent) for exponent in (outer, inner))

    def apply(v: Array) -> Array:
        return (point.times_slope(point.push(p, v[None, None]) * outer_power) * inner_power)[0, 0]

    def transpose(u: Array) -> Array:
        return (point.pull(p, point.times_slope(u[None, None]) * inner_power) * outer_power)[0, 0]

    if y.size < h.size:
        return outer + inner, golub_kahan(transpose, apply, y[0], steps=steps, key=key)
    return outer + inner, golub_kahan(apply, transpose, h, steps=steps, key=key)
