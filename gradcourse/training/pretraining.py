r"""Greedy layer-wise pretraining of sigmoid networks, without labels, and controls that keep its scale but no features.

Layers are trained one after the other, from the input up. Each learns to reconstruct what the trained layers below make
of the data; then it is left alone and the next one starts. Two kinds of teacher, for a layer $h = \sigma(v W + b)$ that
is given $v$ between 0 and 1, and a bias $c$ for the way back, which is thrown away in the end:

- a *denoising autoencoder* (Bengio et al. 2007, Vincent et al. 2008): some entries of $v$ are set to 0, and
  $z = \sigma(h W^{\mathsf T} + c)$ has to be close to what $v$ was before, in cross-entropy;
- a *restricted Boltzmann machine* (Hinton, Osindero and Teh 2006): the distribution
  $p(v, h) \propto \exp(v W h^{\mathsf T} + b h^{\mathsf T} + c v^{\mathsf T})$ of binary $v$ and $h$ is fitted to the
  data by contrastive divergence (Hinton 2002).

The controls of this module take a pretrained network and keep some property of its weights while they destroy what the
weights have learned: `with_shuffled_weights`, `redrawn`, `with_singular_values`; `with_centred_biases` does what a
good random start would do about the biases.

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
from gradcourse.nn.layers import Dense, wait_for
from gradcourse.nn.network import Network, Params
from gradcourse.training.loop import Data, checked_rate
from gradcourse.training.runs import Optimizer, with_rate

__all__ = [
    "METHODS",
    "PretrainingHistory",
    "contrastive_divergence",
    "denoising_loss",
    "free_energy",
    "pretrained",
    "redrawn",
    "with_centred_biases",
    "with_shuffled_weights",
    "with_singular_values",
]

METHODS = ("autoencoder", "rbm")
Machine = dict[str, Any]  # "weight" (visible, hidden), "bias" (hidden,), "visible_bias" (visible,)
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
    span = jnp.asarray(low), jnp.asarray(high)
    return _pretrained(
        network, method, steps, optimizer, batch_size, params, data, rate, jnp.asarray(corruption), *span, key
    )


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
    teacher = with_rate(optimizer, rate)
    gradient: Gradient = partial(_denoising_gradient, corruption) if method == "autoencoder" else _machine_gradient
    trained = list(_for_unit_pixels(params, low, high))
    seen = []
    for index, stage in enumerate(network.stages[:-1]):
        below, stage_key = tuple(trained[:index]), jax.random.fold_in(key, index)

        def teach(
            layers: Any, at: Array, stage: Any = stage, below: Any = below, key: Any = stage_key
        ) -> tuple[Any, Any]:
            def sample(key: PRNGKeyArray) -> Array:
                x, _ = data.batch(batch_size, key=key)
                h = (x - low) / (high - low)
                for lower, done in zip(network.stages, below, strict=False):
                    h, _ = lower.scan(_through, h, done)
                if stage.repeats > 1:
                    h, _ = stage.scan(partial(_through_first, at), h, (jnp.arange(stage.repeats), layers))
                return h

            first_key, later_key = jax.random.split(jax.random.fold_in(key, at))
            mean = jnp.clip(sample(first_key).mean(axis=0), 0.01, 0.99)
            machine = {name: leaf[at] for name, leaf in layers.items()} | {"visible_bias": jnp.log(mean / (1 - mean))}
            machine, found = _taught(sample, gradient, teacher, steps, machine, later_key)
            return {name: leaf.at[at].set(machine[name]) for name, leaf in layers.items()}, found

        trained[index], found = lax.scan(teach, trained[index], jnp.arange(stage.repeats))
        seen.append(found)
    error, variance = (jnp.concatenate(parts) for parts in zip(*seen, strict=True))
    return _for_pixels(tuple(trained), low, high), PretrainingHistory(error, variance)


def _through(h: Array, layer: Machine) -> tuple[Array, None]:
    return _hidden(layer, h), None


def _through_first(count: Array, h: Array, one: tuple[Array, Machine]) -> tuple[Array, None]:
    """Through the layer, if its number is below `count`: one program serves all the layers of a stage."""
    number, layer = one
    return jnp.where(number < count, _hidden(layer, h), h), None


def _taught(
    sample: Callable[[PRNGKeyArray], Array],
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    steps: int,
    machine: Machine,
    key: PRNGKeyArray,
) -> tuple[Machine, tuple[Array, Array]]:
    """One layer after `steps` updates, and at each the minibatch's squared error and variance, per entry."""

    def step(carry: tuple[Machine, Any], index: Array) -> tuple[tuple[Machine, Any], tuple[Array, Array]]:
        machine, state = carry
        data_key, key_here = jax.random.split(jax.random.fold_in(key, index))
        v = sample(data_key)
        update, reconstruction = gradient(machine, v, key=key_here)
        changes, state = optimizer.update(update, state, machine)
        found = jnp.square(reconstruction - v).mean(), v.var(axis=0).mean()
        return (optax.apply_updates(machine, changes), state), found

    (machine, _), found = lax.scan(step, (machine, optimizer.init(machine)), jnp.arange(steps))
    return machine, found


def denoising_loss(
    machine: Machine, v: Float[Array, "batch visible"], noisy: Float[Array, "batch visible"]
) -> tuple[Float[Array, ""], Float[Array, "batch visible"]]:
    r"""Returns the reconstruction's cross-entropy, mean over examples, and the reconstruction $z$ itself.

    With $h = \sigma(\tilde v W + b)$ of the `noisy` input $\tilde v$ and $z = \sigma(h W^{\mathsf T} + c)$, the loss of
    an example is $-\sum_i v_i \ln z_i + (1 - v_i) \ln (1 - z_i)$ (Vincent et al. 2008). The `machine` has the arrays
    `"weight"` $W$, `"bias"` $b$ and `"visible_bias"` $c$.
    """
    logits = _hidden(machine, noisy) @ machine["weight"].T + machine["visible_bias"][None]
    return optax.losses.sigmoid_binary_cross_entropy(logits, v).sum(axis=-1).mean(), jax.nn.sigmoid(logits)


def _denoising_gradient(corruption: Array, machine: Machine, v: Array, *, key: PRNGKeyArray) -> tuple[Machine, Array]:
    noisy = jnp.where(jax.random.bernoulli(key, corruption, v.shape), 0, v)
    return jax.grad(denoising_loss, has_aux=True)(machine, v, noisy)


def _machine_gradient(machine: Machine, v: Array, *, key: PRNGKeyArray) -> tuple[Machine, Array]:
    """Of binary data drawn with the probabilities `v`: of averages, upper layers would hardly learn anything."""
    draw_key, chain_key = jax.random.split(key)
    drawn = jax.random.bernoulli(draw_key, v).astype(v.dtype)
    return contrastive_divergence(machine, drawn, key=chain_key)


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
        on = jax.random.bernoulli(hidden_key, _hidden(machine, v)).astype(v.dtype)
        mean = jax.nn.sigmoid(on @ machine["weight"].T + machine["visible_bias"][None])
        return jax.random.bernoulli(visible_key, mean).astype(v.dtype), mean

    dreamt, means = lax.scan(sweep, v, jax.random.split(key, sweeps))
    return jax.grad(lambda m: (free_energy(m, v) - free_energy(m, dreamt)).mean())(machine), means[0]


def with_shuffled_weights(params: Params, *, key: PRNGKeyArray) -> Params:
    """Returns `params` with each hidden layer's weights in random order: the same values, so the same scale.

    Biases and the readout are left as they are.

    >>> hidden = {"weight": jnp.arange(4.0).reshape(1, 2, 2), "bias": jnp.ones((1, 2))}
    >>> readout = {"weight": jnp.ones((1, 2, 1)), "bias": jnp.ones((1, 1))}
    >>> shuffled, _ = with_shuffled_weights((hidden, readout), key=jax.random.key(3))
    >>> sorted(shuffled["weight"].ravel().tolist())
    [0.0, 1.0, 2.0, 3.0]
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
        left = _orthonormal(w.shape[0], len(values), left_key, w.dtype)
        right = _orthonormal(w.shape[1], len(values), wait_for(left, right_key), w.dtype)
        return (left * values[None]) @ right.T

    return _with_weights(turn, params, key)


def with_centred_biases(params: Params) -> Params:
    r"""Returns `params` with biases that take the mean out of every layer of sigmoids.

    In every layer but the first, a unit's bias becomes minus half the sum of its weights, so that inputs of one half,
    where sigmoids are centred, give a pre-activation of 0. In the first layer, whose pixels are centred on 0, biases
    become 0. This is the cure for sigmoid networks, but for the scale of the weights.
    """
    centred: list[Any] = []
    for index, stage in enumerate(params):
        bias = -stage["weight"].sum(axis=1) / 2
        centred.append(stage | {"bias": bias if index else bias.at[0].set(0)})
    return tuple(centred)


def _with_weights(change: Callable[[Array, PRNGKeyArray], Array], params: Params, key: PRNGKeyArray) -> Params:
    """The hidden layers' weights changed, one layer after the other."""
    *hidden, readout = params
    changed: list[Any] = []
    for index, stage in enumerate(hidden):
        keys = jax.random.split(jax.random.fold_in(key, index), len(stage["weight"]))
        changed.append(stage | {"weight": lax.map(lambda one: change(*one), (stage["weight"], keys))})
    return (*changed, readout)


def _orthonormal(rows: int, columns: int, key: PRNGKeyArray, dtype: Any) -> Array:
    return jnp.linalg.qr(jax.random.normal(key, (rows, columns), dtype))[0]


def _preactivation(machine: Machine, v: Array) -> Array:
    return v @ machine["weight"] + machine["bias"][None]


def _hidden(machine: Machine, v: Array) -> Array:
    return jax.nn.sigmoid(_preactivation(machine, v))


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
