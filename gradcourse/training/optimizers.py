r"""One rate per layer, steps normalised layer by layer, and the largest stable rate: on optax, for any parameters.

A parameter pytree often holds many layers in one array, stacked along its first axis, as a `Network`'s stages and any
scanned model do. Optax's own rules by layer, such as LARS, take one array for one layer. `layerwise` gives each
layer of a stack a rule of its own:

>>> import jax, jax.numpy as jnp, optax
>>> params = [{"weight": jnp.stack([jnp.eye(2), 100 * jnp.eye(2)])}]  # two layers in one array
>>> gradient = [{"weight": jnp.stack([jnp.ones((2, 2)), 1e-8 * jnp.ones((2, 2))])}]
>>> optimizer = layerwise(optax.chain(optax.scale_by_trust_ratio(), optax.scale(-0.01)))
>>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
>>> (jnp.linalg.norm(updates[0]["weight"], axis=(1, 2)) / jnp.linalg.norm(params[0]["weight"], axis=(1, 2))).round(4)
Array([0.01, 0.01], dtype=float32)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from gradcourse._checks import known_false, positive_integer, positive_number

__all__ = ["largest_stable_rate", "layerwise", "normalised_steps", "scale_by_layer", "singh_steps"]


def scale_by_layer(rates: Any) -> optax.GradientTransformation:
    """Returns the transformation that multiplies each layer's updates by its own rate.

    `rates` is a pytree of numbers, a prefix of the parameters: one number for all that lies below it, or an array with
    one for each layer of a stack, along the first axis. Chain it behind an optimiser whose rate is 1. Raises
    `ValueError` where it does not fit the updates.

    >>> optimizer = optax.chain(optax.sgd(1.0), scale_by_layer({"first": 0.5, "others": jnp.array([0.1, 0.2])}))
    >>> gradient = {"first": jnp.ones(3), "others": jnp.ones((2, 3))}
    >>> optimizer.update(gradient, optimizer.init(gradient))[0]["others"][:, 0]
    Array([-0.1, -0.2], dtype=float32)
    """

    def by(path: Any, rate: Any, part: Any) -> Any:
        rate = jnp.asarray(rate)

        def one(leaf: Array) -> Array:
            if rate.ndim > 1 or (rate.ndim == 1 and leaf.shape[:1] != rate.shape):
                raise ValueError(
                    f"rates{jax.tree_util.keystr(path)} has shape {rate.shape} for updates of shape {leaf.shape}; "
                    "accepted are one number, or one for each entry of the first axis."
                )
            return leaf * rate.astype(leaf.dtype).reshape(rate.shape + (1,) * (leaf.ndim - rate.ndim))

        return jax.tree.map(one, part)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(by, rates, updates))


def layerwise(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `rule` applied to each layer of every stack by itself, in parameters that all have layers in front.

    A `Network`'s have: each array of a stage is `(layer, ...)`. The state of the rule gets the same axis, so it may
    hold momenta or counts. Every array is a group of its own, as in optax's rules.
    """

    def init(params: Any) -> Any:
        return [jax.vmap(rule.init)(leaf) for leaf in jax.tree.leaves(params)]

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(updates)
        given = [None] * len(leaves) if params is None else jax.tree.leaves(params)
        one = jax.vmap(rule.update, in_axes=(0, 0, None if params is None else 0))
        results = [one(*parts) for parts in zip(leaves, state, given, strict=True)]
        return jax.tree.unflatten(structure, [new for new, _ in results]), [after for _, after in results]

    return optax.GradientTransformation(init, update)


def normalised_steps(learning_rate: Any) -> optax.GradientTransformation:
    r"""Returns the optimiser whose step is $\eta\, \|W\|\, g / \|g\|$ for every array of every layer in a stack.

    So every layer moves by the same share of its own size, however small its gradient: LARS without momentum and decay
    (You et al. 2017). An array that is all zero, such as a fresh bias, takes plain gradient steps, as in optax. A
    gradient that has underflowed to 0 stays 0: no rate by layer brings it back.
    """
    return layerwise(optax.chain(optax.scale_by_trust_ratio(), optax.scale_by_learning_rate(learning_rate)))


def singh_steps(learning_rate: Any) -> optax.GradientTransformation:
    r"""Returns the optimiser with the rate $\eta\, (1 + \ln(1 + 1 / \|g\|))$ for every array of every layer in a stack.

    $g$ is that array's gradient: the smaller, the larger the rate, but only by its logarithm (Singh et al. 2015).

    >>> gradient = [jnp.full((2, 1), 1e-7) * jnp.array([[1.0], [1e7]])]  # two layers, of norms 1e-7 and 1
    >>> updates, _ = singh_steps(1.0).update(gradient, [optax.EmptyState()])
    >>> [f"{rate:.2f}" for rate in (-updates[0] / gradient[0])[:, 0]]
    ['17.12', '1.69']
    """

    def step(g: Array, _: Any) -> Array:
        size = optax.tree.norm(g)
        # ln(1 + 1/size) in a form that is finite, and exact, down to a gradient of 0, whose step is 0.
        return -learning_rate * (1 + jnp.log1p(size) - jnp.log(jnp.where(size > 0, size, 1))) * g

    return layerwise(optax.stateless_with_tree_map(step))


def largest_stable_rate(
    loss: Callable[..., Any],
    params: Any,
    *args: Any,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    steps: int = 100,
    within: tuple[float, float] = (1e-4, 1e4),
    halvings: int = 20,
    throughout: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns a rate that is stable and one that is not, as near as `halvings` bisections bring them.

    A rate is stable if `steps` updates of `loss(params, *args)`, all on the same examples, end with a finite loss that
    is not above the first; with `throughout`, if none of their losses is: a loss that has blown up and come down again,
    as that of rectifiers that have all died, does not count then. Bisection is on the logarithm, between the ends of
    `within`: the first has to be stable and the last not, else `ValueError` (under `jit`, where it cannot be raised,
    NaN). The largest stable rate lies between the two if stability is lost only once in between; where it is not, as
    with some optimisers, they enclose one of the borders. Cost: `steps` times `halvings` + 2 gradients.

    >>> def quadratic(x):
    ...     return 3 * jnp.square(x).sum()
    >>> low, high = largest_stable_rate(quadratic, jnp.ones(2))
    >>> f"{low:.4f} {high:.4f}"  # 2 / 6
    '0.3333 0.3333'
    """
    steps, halvings = positive_integer("steps", steps), positive_integer("halvings", halvings)
    low, high = (positive_number(f"within[{end}]", value) for end, value in enumerate(within))
    first = loss(params, *args)

    def stable(log_rate: Array) -> Bool[Array, ""]:
        chosen = optimizer(jnp.exp(log_rate))

        def step(carry: Any, _: None) -> tuple[Any, None]:
            at, state, worst = carry
            value, gradient = jax.value_and_grad(loss)(at, *args)
            updates, state = chosen.update(gradient, state, at)
            return (optax.apply_updates(at, updates), state, jnp.maximum(worst, value)), None

        (last, _, worst), _ = jax.lax.scan(step, (params, chosen.init(params), first), length=steps)
        sound = loss(last, *args) <= first  # false for NaN
        return sound & (worst <= first) if throughout else sound

    def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        middle = (ends[0] + ends[1]) / 2
        sound = stable(middle)
        return (jnp.where(sound, middle, ends[0]), jnp.where(sound, ends[1], middle)), None

    ends = jnp.log(jnp.asarray(low, first.dtype)), jnp.log(jnp.asarray(high, first.dtype))
    enclosed = jnp.stack([stable(ends[0]), ~stable(ends[1])])
    if known_false(enclosed.all()):
        end, found, better = (1, "is stable", "larger last") if enclosed[0] else (0, "is not stable", "smaller first")
        raise ValueError(
            f"within={within} does not enclose the largest stable rate: {within[end]:g} {found}. Give a {better} end."
        )
    (bottom, top), _ = jax.lax.scan(halve, ends, length=halvings)
    return jnp.where(enclosed.all(), jnp.exp(bottom), jnp.nan), jnp.where(enclosed.all(), jnp.exp(top), jnp.nan)
