"""Training: plain minibatch descent with any optax optimiser, one jitted scan per run.

>>> import jax, optax
>>> from gradcourse.datasets import digits
>>> from gradcourse.networks import mlp
>>> data, network = digits(), mlp(64, [32], 10, activation="tanh", init="glorot_uniform")
>>> params = network.init(key=jax.random.key(0))
>>> params, losses = train(
...     network, params, data.x_train, data.y_train, optax.sgd(0.1), steps=300, key=jax.random.key(1)
... )
>>> bool(accuracy(network, params, data.x_test, data.y_test) > 0.8)
True
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gradcourse.checks import positive_integer
from gradcourse.networks import Network, Params

__all__ = ["accuracy", "cross_entropy", "train"]


@partial(jax.jit, static_argnums=0)
def cross_entropy(
    network: Network, params: Params, x: Float[Array, "batch *shape"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Returns the mean cross-entropy, in nats, of the network's outputs as logits for the labels `y`."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(network.apply(params, x), y).mean()


@partial(jax.jit, static_argnums=0)
def accuracy(
    network: Network, params: Params, x: Float[Array, "batch *shape"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Returns the share of examples whose largest output is the label's."""
    return jnp.mean(network.apply(params, x).argmax(axis=-1) == y)


def train(
    network: Network,
    params: Params,
    x: Float[Array, "example *shape"],
    y: Int[Array, " example"],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    batch_size: int = 32,
    key: PRNGKeyArray,
) -> tuple[Params, Float[Array, " step"]]:
    """Returns the parameters after `steps` updates on random minibatches, and the minibatch loss of each step.

    Minibatches are drawn with replacement, by `key`. `x` and `params` are checked as in `gradcourse.jacobians`.
    """
    x = network.check(params, x)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    return _train(network, params, x, y, optimizer, steps, batch_size, key)


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _train(
    network: Network, params: Params, x: Array, y: Array, optimizer: Any, steps: int, batch_size: int, key: Any
) -> Any:
    def step(carry: Any, step_key: Any) -> Any:
        params, state = carry
        chosen = jax.random.randint(step_key, (batch_size,), 0, len(x))
        loss, gradient = jax.value_and_grad(partial(cross_entropy, network))(params, x[chosen], y[chosen])
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params, losses
