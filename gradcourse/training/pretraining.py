r"""Greedy layer-wise pretraining of sigmoid networks, without labels.

Layers are trained one after the other, from the input up. Each learns to reconstruct what the trained layers below make
of the data; then it is left alone and the next one starts. What teaches a layer is one of two *machines*. Both are a
layer $h = \sigma(v W + b)$ that is given $v$ between 0 and 1, with a bias $c$ for the way back:

- a *denoising autoencoder* (Bengio et al. 2007, Vincent et al. 2008): some entries of $v$ are set to 0, and
  $z = \sigma(h W^{\mathsf T} + c)$ has to be close to what $v$ was before, in cross-entropy;
- a *restricted Boltzmann machine* (Hinton, Osindero and Teh 2006): the distribution
  $p(v, h) \propto \exp(v W h^{\mathsf T} + b h^{\mathsf T} + c v^{\mathsf T})$ of binary $v$ and $h$ is fitted to the
  data by contrastive divergence (Hinton 2002).

A machine is a dictionary of the arrays `"weight"` $W$, `(visible, hidden)`, `"bias"` $b$ and `"visible_bias"` $c$.

>>> import jax, gradcourse as gc
>>> network = gc.mlp(64, [32, 32], 10, activation="sigmoid", init="standard")
>>> params = network.init(key=jax.random.key(0))
>>> params, history = pretrained(network, params, gc.digits(), steps=200, key=jax.random.key(1))
>>> history.unexplained.shape  # (hidden layer, update)
(2, 200)
"""

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
from gradcourse.training.data import Data
from gradcourse.training.descent import descend
from gradcourse.training.runs import Optimizer, checked_rate, with_rate

__all__ = ["METHODS", "PretrainingHistory", "contrastive_divergence", "denoising_loss", "free_energy", "pretrained"]

METHODS = ("autoencoder", "rbm")
Machine = dict[str, Any]


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
    _check_network(network)
    known_name("method", method, METHODS)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    if positive_number("corruption", corruption, zero=True) >= 1:
        raise ValueError(
            f"corruption={corruption!r} is accepted from 0 up to, but not, 1: the share of inputs removed."
        )
    low, high = map(float, pixels)
    if not low < high:
        raise ValueError(f"pixels={pixels!r} is an empty range; accepted is (low, high) with low < high.")
    rate = checked_rate(optimizer, learning_rate)
    network.check(params, data.batch(1, key=key)[0])
    settings = network, method, steps, optimizer, batch_size
    return _pretrained(settings, params, data, rate, *map(jnp.asarray, (corruption, low, high)), key)


@partial(jax.jit, static_argnums=0)
def _pretrained(
    settings: tuple[Any, ...],
    params: Params,
    data: Data,
    rate: Array,
    corruption: Array,
    low: Array,
    high: Array,
    key: PRNGKeyArray,
) -> tuple[Params, PretrainingHistory]:
    network, method, steps, optimizer, batch_size = settings
    rule, trained, seen = with_rate(optimizer, rate), list(_for_inputs(params, low, high)), []

    def below(index: int, at: Array, layers: Machine, key: PRNGKeyArray) -> Array:
        """A minibatch as it arrives at layer `at` of the stage, in which the layers before it are trained."""
        x, _ = data.batch(batch_size, key=key)
        h = (x - low) / (high - low)
        for stage, done in zip(network.stages[:index], trained, strict=False):
            h, _ = stage.scan(lambda h, layer: (_hidden_units(layer, h), None), h, done)
        stage = network.stages[index]

        def step(h: Array, one: tuple[Array, Machine]) -> tuple[Array, None]:  # the same program for every `at`
            number, layer = one
            return jnp.where(number < at, _hidden_units(layer, h), h), None

        return stage.scan(step, h, (jnp.arange(stage.repeats), layers))[0] if stage.repeats > 1 else h

    def gradient(machine: Machine, v: Array, key: PRNGKeyArray) -> tuple[Machine, Array]:
        if method == "autoencoder":
            noisy = jnp.where(jax.random.bernoulli(key, corruption, v.shape), 0, v)
            return jax.grad(denoising_loss, has_aux=True)(machine, v, noisy)
        # Of binary data drawn with the probabilities `v`: of averages, upper layers would hardly learn anything.
        draw_key, chain_key = jax.random.split(key)
        drawn = jax.random.bernoulli(draw_key, v).astype(v.dtype)
        return contrastive_divergence(machine, drawn, key=chain_key)

    def teach(index: int, key: PRNGKeyArray, layers: Machine, at: Array) -> tuple[Machine, tuple[Array, Array]]:
        """The stage with layer `at` taught, and the squared error and variance per entry of each minibatch."""
        first_key, later_key = jax.random.split(jax.random.fold_in(key, at))
        mean = jnp.clip(below(index, at, layers, first_key).mean(axis=0), 0.01, 0.99)
        machine = {name: leaf[at] for name, leaf in layers.items()} | {"visible_bias": jnp.log(mean / (1 - mean))}

        def update(step: Array, state: Any) -> Any:
            machine, memory, _ = state
            data_key, key_here = jax.random.split(jax.random.fold_in(later_key, step))
            v = below(index, at, layers, data_key)
            slope, reconstruction = gradient(machine, v, key_here)
            changes, memory = rule.update(slope, memory, machine)
            found = jnp.square(reconstruction - v).mean(), v.var(axis=0).mean()
            return optax.apply_updates(machine, changes), memory, found

        nothing = jnp.zeros((), mean.dtype)
        start = machine, rule.init(machine), (nothing, nothing)
        (machine, _, _), found, _ = descend(update, start, range(1, steps + 1), lambda state: state[2])
        return {name: leaf.at[at].set(machine[name]) for name, leaf in layers.items()}, found

    for index, stage in enumerate(network.stages[:-1]):
        one = partial(teach, index, jax.random.fold_in(key, index))
        trained[index], found = lax.scan(one, trained[index], jnp.arange(stage.repeats))
        seen.append(found)
    error, variance = (jnp.concatenate(parts) for parts in zip(*seen, strict=True))
    params = _for_inputs(tuple(trained), -low / (high - low), (1 - low) / (high - low))  # for pixels again
    return params, PretrainingHistory(error, variance)


def _for_inputs(params: Params, low: Array, high: Array) -> Params:
    """The parameters of the same network for inputs `(x - low) / (high - low)` in place of `x`."""
    first, *others = params
    weight, bias = first["weight"][0], first["bias"][0]
    changed = {"weight": weight * (high - low), "bias": bias + low * weight.sum(axis=0)}
    return {name: leaf.at[0].set(changed[name]) for name, leaf in first.items()}, *others


def _check_network(network: Network) -> None:
    *hidden, readout = network.stages
    for stage in hidden:
        if not isinstance(stage.layer, Dense) or stage.layer.activation != ACTIVATIONS["sigmoid"]:
            name = getattr(getattr(stage.layer, "activation", None), "name", "no")
            raise TypeError(
                f"network has a {stage.layer.kind} layer with {name} activation; accepted for pretraining are dense "
                "layers of sigmoids and a readout, as gradcourse.mlp makes them: their values have to lie between 0 "
                "and 1."
            )
    if not hidden or not isinstance(readout.layer, Dense) or readout.repeats > 1:
        raise TypeError("network needs at least one hidden layer and a dense readout to be pretrained.")


# ---- The machines


def denoising_loss(
    machine: Machine, v: Float[Array, "batch visible"], noisy: Float[Array, "batch visible"]
) -> tuple[Float[Array, ""], Float[Array, "batch visible"]]:
    r"""Returns the reconstruction's cross-entropy, mean over examples, and the reconstruction $z$ itself.

    With $h = \sigma(\tilde v W + b)$ of the `noisy` input $\tilde v$ and $z = \sigma(h W^{\mathsf T} + c)$, the loss of
    an example is $-\sum_i v_i \ln z_i + (1 - v_i) \ln (1 - z_i)$ (Vincent et al. 2008).
    """
    logits = _hidden_units(machine, noisy) @ machine["weight"].T + machine["visible_bias"][None]
    return optax.losses.sigmoid_binary_cross_entropy(logits, v).sum(axis=-1).mean(), jax.nn.sigmoid(logits)


def free_energy(machine: Machine, v: Float[Array, "batch visible"]) -> Float[Array, " batch"]:
    r"""Returns $F(v) = -c v^{\mathsf T} - \sum_j \ln(1 + e^{(v W + b)_j})$: the machine's $p(v) \propto e^{-F(v)}$.

    >>> machine = {"weight": jnp.zeros((3, 2)), "bias": jnp.zeros(2), "visible_bias": jnp.ones(3)}
    >>> free_energy(machine, jnp.ones((1, 3))).round(4)  # -3 - 2 ln 2
    Array([-4.3863], dtype=float32)
    """
    return -v @ machine["visible_bias"] - jax.nn.softplus(_preactivation(machine, v)).sum(axis=-1)


def contrastive_divergence(
    machine: Machine, v: Float[Array, "batch visible"], *, sweeps: int = 1, key: PRNGKeyArray
) -> tuple[Machine, Float[Array, "batch visible"]]:
    r"""Returns CD-k's estimate of the gradient of the mean of $-\ln p(v)$, and the first sweep's reconstruction.

    From the data $v^{(0)}$, $k$ = `sweeps` sweeps of Gibbs sampling, $h \sim p(h | v)$ then $v \sim p(v | h)$, lead to
    $v^{(k)}$, and the estimate is the difference of two gradients of the free energy (Hinton 2002),

    $$\overline{\nabla F(v^{(0)})} - \overline{\nabla F(v^{(k)})} ,$$

    which is that of the likelihood if $v^{(k)}$ comes from the machine's own distribution, that is, for large $k$. Data
    are binary. The reconstruction is the mean of $p(v | h)$.
    """

    def sweep(v: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        hidden_key, visible_key = jax.random.split(key)
        on = jax.random.bernoulli(hidden_key, _hidden_units(machine, v)).astype(v.dtype)
        mean = jax.nn.sigmoid(on @ machine["weight"].T + machine["visible_bias"][None])
        return jax.random.bernoulli(visible_key, mean).astype(v.dtype), mean

    dreamt, means = lax.scan(sweep, v, jax.random.split(key, sweeps))
    return jax.grad(lambda m: (free_energy(m, v) - free_energy(m, dreamt)).mean())(machine), means[0]


def _preactivation(machine: Machine, v: Array) -> Array:
    return v @ machine["weight"] + machine["bias"][None]


def _hidden_units(machine: Machine, v: Array) -> Array:
    return jax.nn.sigmoid(_preactivation(machine, v))
