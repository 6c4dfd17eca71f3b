r"""Greedy layer-wise pretraining of sigmoid networks, without labels.

Layers are trained one after the other, from the input up. Each learns to reconstruct what the trained layers below make
of the data; then it is left alone and the next one starts. What teaches a layer is one of the two `training.machines`.

>>> import jax
>>> from gradcourse.training.data import digits
>>> from gradcourse.nn.network import mlp
>>> network = mlp(64, [32, 32], 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> params, history = pretrained(network, params, digits(), steps=200, key=jax.random.key(1))
>>> history.unexplained.shape  # (hidden layer, update)
(2, 200)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from gradcourse._checks import known_name, positive_integer, positive_number
from gradcourse.nn.activations import ACTIVATIONS
from gradcourse.nn.layers import Dense
from gradcourse.nn.network import Network, Params
from gradcourse.training.arguments import checked_rate
from gradcourse.training.data import Data
from gradcourse.training.descent import descend
from gradcourse.training.machines import Machine, contrastive_divergence, denoising_loss, hidden_units
from gradcourse.training.runs import Optimizer, with_rate

__all__ = ["METHODS", "PretrainingHistory", "pretrained"]

METHODS = ("autoencoder", "rbm")
Gradient = Callable[..., tuple[Machine, Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PretrainingHistory:
    """How well each hidden layer reconstructed its input, update by update; leading axes are samples if there are any.

    - `error`: mean squared error per entry of the minibatch's reconstruction, `(*sample, layer, update)`;
    - `variance`: of the same entries about their mean over the minibatch, the error of a constant.
    """

    error: Any
    variance: Any

    @property
    def unexplained(self) -> Float[Array, "*sample layer update"]:
        """Error over variance: 1 where the layer passes on no more than a constant would."""
        return self.error / self.variance


def pretrained(
    network: Network,
    params: Params,
    data: Data,
    *,
    method: str = "autoencoder",
    steps: int = 2000,
    optimizer: Optimizer = optax.sgd,
    learning_rate: float | Float[Array, ""] | None = 0.1,
    batch_size: int = 32,
    corruption: float = 0.25,
    pixels: tuple[float, float] = (-1.0, 1.0),
    key: PRNGKeyArray,
) -> tuple[Params, PretrainingHistory]:
    r"""Returns `params` with all hidden layers pretrained, `steps` updates each, and how well they reconstruct.

    `network` is dense with sigmoid hidden layers, as `mlp` makes it; its readout is left as it is, and labels are not
    looked at. `method` is `"autoencoder"`, which sets a share `corruption` of a layer's inputs to 0, or `"rbm"`, which
    takes its inputs as probabilities and draws binary data with them. Layers start from `params`, the biases of the way
    back from the log odds of the input's mean.

    Visible units lie between 0 and 1, pixels between `pixels`. So the first layer is trained on
    $v = (x - \text{low}) / (\text{high} - \text{low})$, and the affine map is then absorbed into its weights and its
    bias: the network that is returned is given $x$, as before, and has the very layers that were trained. `optimizer`
    and `learning_rate` as in `training.loop.train`; an update of a layer costs about two forward and two backward
    passes of it, and a forward pass of the layers below.

    Raises `TypeError` for other networks, `ValueError` for an unknown method or a corruption outside of [0, 1).
    """
    _checked_network(network)
    known_name("method", method, METHODS)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    if not 0 <= positive_number("corruption", corruption, zero=True) < 1:
        raise ValueError(
            f"corruption={corruption!r} is accepted from 0 up to, but not, 1: the share of inputs removed."
        )
    low, high = map(float, pixels)
    if not low < high:
        raise ValueError(f"pixels={pixels!r} is an empty range; accepted is (low, high) with low < high.")
    rate = checked_rate(optimizer, learning_rate)
    network.check(params, data.batch(1, key=key)[0])
    settings = network, method, steps, optimizer, batch_size
    return _pretrained(*settings, params, data, rate, *map(jnp.asarray, (corruption, low, high)), key)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _pretrained(
    network: Network,
    method: str,
    steps: int,
    optimizer: Optimizer,
    batch_size: int,
    params: Params,
    data: Data,
    rate: Array,
    corruption: Array,
    low: Array,
    high: Array,
    key: PRNGKeyArray,
) -> tuple[Params, PretrainingHistory]:
    """`pretrained` without its checks."""
    gradient: Gradient = partial(_denoising_gradient, corruption) if method == "autoencoder" else _machine_gradient
    taught = partial(_taught, gradient, with_rate(optimizer, rate), steps)
    trained = list(_for_unit_pixels(params, low, high))
    seen = []

    def below(index: int, at: Array, layers: Machine, key: PRNGKeyArray) -> Array:
        """A minibatch as it arrives at layer `at` of the stage, in which the layers before it are trained."""
        x, _ = data.batch(batch_size, key=key)
        h = (x - low) / (high - low)
        for stage, done in zip(network.stages[:index], trained, strict=False):
            h, _ = stage.scan(lambda h, layer: (hidden_units(layer, h), None), h, done)
        stage = network.stages[index]
        if stage.repeats > 1:
            h, _ = stage.scan(partial(_through_first, at), h, (jnp.arange(stage.repeats), layers))
        return h

    for index, stage in enumerate(network.stages[:-1]):
        stage_key = jax.random.fold_in(key, index)

        def teach(layers: Machine, at: Array, index: int = index, key: PRNGKeyArray = stage_key) -> Any:
            sample = partial(below, index, at, layers)
            first_key, later_key = jax.random.split(jax.random.fold_in(key, at))
            mean = jnp.clip(sample(first_key).mean(axis=0), 0.01, 0.99)
            machine = {name: leaf[at] for name, leaf in layers.items()} | {"visible_bias": jnp.log(mean / (1 - mean))}
            machine, found = taught(sample, machine, later_key)
            return {name: leaf.at[at].set(machine[name]) for name, leaf in layers.items()}, found

        trained[index], found = lax.scan(teach, trained[index], jnp.arange(stage.repeats))
        seen.append(found)
    error, variance = (jnp.concatenate(parts) for parts in zip(*seen, strict=True))
    return _for_pixels(tuple(trained), low, high), PretrainingHistory(error, variance)


def _through_first(count: Array, h: Array, one: tuple[Array, Machine]) -> tuple[Array, None]:
    """Through the layer, if its number is below `count`: one program serves all the layers of a stage."""
    number, layer = one
    return jnp.where(number < count, hidden_units(layer, h), h), None


def _taught(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    steps: int,
    sample: Callable[[PRNGKeyArray], Array],
    machine: Machine,
    key: PRNGKeyArray,
) -> tuple[Machine, tuple[Array, Array]]:
    """One layer after `steps` updates, and at each the minibatch's squared error and variance, per entry."""

    def update(index: Array, state: Any) -> Any:
        machine, memory, _ = state
        data_key, key_here = jax.random.split(jax.random.fold_in(key, index))
        v = sample(data_key)
        slope, reconstruction = gradient(machine, v, key=key_here)
        changes, memory = optimizer.update(slope, memory, machine)
        found = jnp.square(reconstruction - v).mean(), v.var(axis=0).mean()
        return optax.apply_updates(machine, changes), memory, found

    nothing = jnp.zeros((2,), machine["weight"].dtype)
    start = machine, optimizer.init(machine), (nothing[0], nothing[1])
    (machine, _, _), found, _ = descend(update, start, range(1, steps + 1), lambda state: state[2])
    return machine, found


def _denoising_gradient(corruption: Array, machine: Machine, v: Array, *, key: PRNGKeyArray) -> tuple[Machine, Array]:
    noisy = jnp.where(jax.random.bernoulli(key, corruption, v.shape), 0, v)
    return jax.grad(denoising_loss, has_aux=True)(machine, v, noisy)


def _machine_gradient(machine: Machine, v: Array, *, key: PRNGKeyArray) -> tuple[Machine, Array]:
    """Of binary data drawn with the probabilities `v`: of averages, upper layers would hardly learn anything."""
    draw_key, chain_key = jax.random.split(key)
    drawn = jax.random.bernoulli(draw_key, v).astype(v.dtype)
    return contrastive_divergence(machine, drawn, key=chain_key)


def _for_unit_pixels(params: Params, low: Array, high: Array) -> Params:
    """The parameters of the same network for inputs `(x - low) / (high - low)` in place of `x`."""
    weight, bias = params[0]["weight"][0], params[0]["bias"][0]
    return _with_first(params, weight * (high - low), bias + low * weight.sum(axis=0))


def _for_pixels(params: Params, low: Array, high: Array) -> Params:
    """The other way round."""
    weight, bias = params[0]["weight"][0] / (high - low), params[0]["bias"][0]
    return _with_first(params, weight, bias - low * weight.sum(axis=0))


def _with_first(params: Params, weight: Array, bias: Array) -> Params:
    first, *others = params
    return {"weight": first["weight"].at[0].set(weight), "bias": first["bias"].at[0].set(bias)}, *others


def _checked_network(network: Network) -> None:
    *hidden, readout = network.stages
    sigmoid = ACTIVATIONS["sigmoid"]
    for stage in hidden:
        if not isinstance(stage.layer, Dense) or stage.layer.activation != sigmoid:
            name = getattr(getattr(stage.layer, "activation", None), "name", "no")
            raise TypeError(
                f"network has a {stage.layer.kind} layer with {name} activation; accepted for pretraining are dense "
                "layers of sigmoids and a readout, as gradcourse.mlp makes them: their values have to lie between 0 "
                "and 1."
            )
    if not hidden or not isinstance(readout.layer, Dense) or readout.repeats > 1:
        raise TypeError("network needs at least one hidden layer and a dense readout to be pretrained.")
