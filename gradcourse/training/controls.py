"""Controls: networks that keep the scale of a pretrained one and lose what its weights have learned, or the reverse.

>>> hidden = {"weight": jnp.arange(4.0).reshape(1, 2, 2), "bias": jnp.ones((1, 2))}
>>> readout = {"weight": jnp.ones((1, 2, 1)), "bias": jnp.ones((1, 1))}
>>> shuffled, _ = with_shuffled_weights((hidden, readout), key=jax.random.key(3))
>>> sorted(shuffled["weight"].ravel().tolist())
[0.0, 1.0, 2.0, 3.0]
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from gradcourse.nn.layers import wait_for
from gradcourse.nn.network import Params

__all__ = ["redrawn", "with_centred_biases", "with_shuffled_weights", "with_singular_values"]


def with_shuffled_weights(params: Params, *, key: PRNGKeyArray) -> Params:
    """Returns `params` with each hidden layer's weights in random order: the same values, so the same scale.

    Biases and the readout are left as they are.
    """
    return _with_weights(lambda w, key: jax.random.permutation(key, w.ravel()).reshape(w.shape), params, key)


def redrawn(params: Params, *, key: PRNGKeyArray) -> Params:
    """Returns `params` with each hidden layer's weights drawn anew: Gaussian, with the layer's mean and variance.

    The sample's own mean and variance are made equal to the layer's. Biases and the readout are left as they are.
    """

    def draw(w: Array, key: PRNGKeyArray) -> Array:
        z = jax.random.normal(key, w.shape, w.dtype)
        return w.mean() + w.std() * (z - z.mean()) / z.std()

    return _with_weights(draw, params, key)


def with_singular_values(params: Params, *, key: PRNGKeyArray) -> Params:
    r"""Returns `params` with each hidden layer's singular values kept and its singular vectors drawn anew.

    $W = U S V^{\mathsf T}$ becomes $Q_1 S Q_2^{\mathsf T}$ with random orthonormal $Q_1$, $Q_2$: whatever a layer
    stretches, it now stretches directions that mean nothing to its neighbours. Biases and the readout are left.
    """

    def turn(w: Array, key: PRNGKeyArray) -> Array:
        values = jnp.linalg.svd(w, compute_uv=False)
        left_key, right_key = jax.random.split(key)
        left, _ = jnp.linalg.qr(jax.random.normal(left_key, (w.shape[0], len(values)), w.dtype))
        right, _ = jnp.linalg.qr(jax.random.normal(wait_for(left, right_key), (w.shape[1], len(values)), w.dtype))
        return (left * values[None]) @ right.T

    return _with_weights(turn, params, key)


def with_centred_biases(params: Params) -> Params:
    r"""Returns `params` with biases that take the mean out of every layer of sigmoids.

    In every layer but the first, a unit's bias becomes minus half the sum of its weights, so that inputs of one half,
    where sigmoids are centred, give a pre-activation of 0. In the first layer, whose pixels are centred on 0, biases
    become 0. This is the cure for sigmoid networks, but for the scale of the weights.
    """
    first, *others = (stage | {"bias": -stage["weight"].sum(axis=1) / 2} for stage in params)
    return first | {"bias": first["bias"].at[0].set(0)}, *others


def _with_weights(change: Callable[[Array, PRNGKeyArray], Array], params: Params, key: PRNGKeyArray) -> Params:
    """The hidden layers' weights changed, one layer after the other."""
    *hidden, readout = params
    changed: list[Any] = []
    for index, stage in enumerate(hidden):
        keys = jax.random.split(jax.random.fold_in(key, index), len(stage["weight"]))
        changed.append(stage | {"weight": lax.map(lambda one: change(*one), (stage["weight"], keys))})
    return (*changed, readout)
