"""Chapter 3: thirty rectifier layers, the fate of dead units, activation against initialisation, and speed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gradcourse.course.experiments._common import experiment, mean_losses, trained
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.units import silent_units
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import Network, mlp, sequential
from gradcourse.training.data import digits
from gradcourse.training.loop import accuracy

__all__ = ["EXPERIMENTS", "noisy_chance", "small_cnn"]

SEEDS = range(5)
SCHEMES = ("standard", "lecun_normal", "he_normal")


def thirty_layers(init: str, rate: float, seed: int, steps: int = 4000) -> dict[str, Any]:
    """Returns the training loss and the test accuracy of 30 rectifier layers of 64, trained on digits by plain descent.

    `loss` is the mean over the last 500 minibatches, `test_accuracy` is that at the end of each 500.
    """
    network, data = mlp(64, [64] * 30, 10, activation="relu", init=init), digits()
    _, history = trained(network, data, seed, rate, steps=steps, every=500, watch=(data.x_test, data.y_test))
    return {"loss": mean_losses(history, 500), "test_accuracy": history.accuracy[1:]}


LOOKS = 25  # steps between two looks at which units are dead
MARK = 25  # the step at which dead units are marked, and from which on a layer that is to be frozen stands still


def _first_layer_frozen(rate: Any) -> optax.GradientTransformation:
    first = optax.sgd(lambda step: jnp.where(step < MARK, rate, 0.0))
    return optax.partition({"first": first, "others": optax.sgd(rate)}, ("first", "others", "others", "others"))


OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "weight decay": lambda rate: optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rate)),
    # Of the same size at every step, added to every gradient.
    "noise": lambda rate: optax.chain(optax.add_noise(eta=3e-5, gamma=0.0, key=jax.random.key(0)), optax.sgd(rate)),
    "first layer frozen": _first_layer_frozen,
}


def dead_units(optimizer: str, rate: float, seed: int, steps: int = 2000) -> dict[str, Any]:
    """Returns the fate of the units of three rectifier layers (100, 80, 60), trained on digits, every 100 steps.

    A unit is dead if it is off on every one of the 1437 training images. Every 25 steps all units are looked at. Shares
    of each layer's units, `(time, layer)`: `dead` now; `once_dead` until now; `returned`: were seen dead and later
    alive; `marked`: dead at step 25; `marked_returned`: of these, seen alive since; `within_noise`: dead, and expected
    to be on for at least one image of the training set if their rectifiers were noisy (Nair and Hinton 2010).
    `test_accuracy` is `(time,)`.
    """
    network, data = mlp(64, [100, 80, 60], 10, activation="relu", init="he_normal"), digits()
    settings: Any = {"steps": steps, "every": LOOKS, "watch": (data.x_test, data.y_test), "observe": _units}
    _, history = trained(network, data, seed, rate, OPTIMIZERS[optimizer], **settings)
    fates = [_fates(np.asarray(dead), np.asarray(woken)) for dead, woken in history.observed]
    kept = slice(4, None, 4)  # every hundredth step
    shares = {name: np.stack([each[name][kept].mean(axis=1) for each in fates], axis=1) for name in fates[0]}
    return {**shares, "test_accuracy": history.accuracy[kept]}


def _units(network: Network, params: Any, *watched: Any) -> list[tuple[Array, Array]]:
    """Per hidden layer, which units are off on all training images, and how likely noise would wake each for one."""
    x = digits().x_train
    *dead, _ = silent_units(network, params, x)
    _, stages = network.scan(lambda layer, p, h: (layer.apply(p, h), layer.preactivation(p, h)), params, x)
    *chances, _ = (noisy_chance(s[0]) for s in stages)
    woken = [1 - jnp.prod(1 - chance, axis=0) for chance in chances]
    return list(zip(dead, woken, strict=True))


def _fates(dead: np.ndarray, woken: np.ndarray) -> dict[str, np.ndarray]:
    """What has become of a layer's units at every look, `(look, unit)`."""
    once = np.logical_or.accumulate(dead)
    marked = dead[MARK // LOOKS] & (np.arange(len(dead)) >= MARK // LOOKS)[:, None]
    return {
        "dead": dead,
        "once_dead": once,
        "returned": np.logical_or.accumulate(once & ~dead),
        "marked": marked,
        "marked_returned": np.logical_or.accumulate(marked & ~dead),
        "within_noise": dead * woken,
    }


def noisy_chance(s: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the probability that a noisy rectifier, `max(0, s + N(0, sigmoid(s)))`, is on (Nair and Hinton 2010)."""
    s = jnp.asarray(s)
    return jax.scipy.stats.norm.cdf(s / jnp.sqrt(jax.nn.sigmoid(s)))


def activation_and_init(activation: str, init: str, rate: float, seed: int, steps: int = 1000) -> dict[str, Any]:
    """Returns how ten hidden layers of 64 train on digits by plain descent.

    `loss`, `accuracy`: on all training images, every 50 steps; every 200 steps `test_accuracy`, and `dead`, the share
    of all hidden units that are off on every training image.
    """
    network, data = mlp(64, [64] * 10, 10, activation=activation, init=init), digits()
    settings: Any = {"steps": steps, "every": 50, "watch": (data.x_train, data.y_train), "observe": _test_accuracy}
    _, history = trained(network, data, seed, rate, **settings)
    return {
        "loss": history.loss[1:],
        "accuracy": history.accuracy[1:],
        "test_accuracy": history.observed[4::4],
        "dead": np.asarray(history.units.silent)[4::4, :-1].mean(axis=1),
    }


def _test_accuracy(network: Network, params: Any, *watched: Any) -> Array:
    return accuracy(network, params, *digits()[2:])


def small_cnn(activation: str, init: str) -> Network:
    """Returns three convolutions of 16 channels, a max-pool after each of the first two, and a readout, for digits."""
    conv = Conv(16, activation, initializer=init)
    return sequential((8, 8, 1), [conv, MaxPool(2), conv, MaxPool(2), conv, Flatten(), Dense(10, initializer=init)])


def updates_to_learn(
    activation: str, init: str, rate: float, seed: int, steps: int = 600, every: int = 5
) -> dict[str, Any]:
    """Returns the `error` of `small_cnn` on the first 500 training images, every `every` steps of plain descent."""
    data = digits(images=True)
    watch = data.x_train[:500], data.y_train[:500]
    _, history = trained(small_cnn(activation, init), data, seed, rate, steps=steps, every=every, watch=watch)
    return {"error": 1 - history.accuracy}


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        thirty_layers,
        "Thirty rectifier layers trained on digits, weights of variance 1/n or 2/n",
        grid(init=SCHEMES[1:], rate=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3], seed=SEEDS),
        cheaper={"steps": 500},
    ),
    experiment(
        dead_units,
        "The fate of a rectifier network's units during training",
        (
            *grid(optimizer=["sgd"], rate=[0.03, 0.1, 0.3, 0.5, 0.7], seed=SEEDS),
            *grid(optimizer=["momentum"], rate=[0.03, 0.1], seed=SEEDS),
            *grid(optimizer=["adam"], rate=[0.003, 0.03], seed=SEEDS),
            *grid(optimizer=["weight decay", "noise"], rate=[0.5], seed=SEEDS),
            *grid(optimizer=["first layer frozen"], rate=[0.5, 0.7], seed=SEEDS),
        ),
        check={"rate": 0.1},
        cheaper={"steps": 100},
    ),
    experiment(
        activation_and_init,
        "Ten layers trained on digits, three rectifiers times three initialisations",
        grid(activation=["relu", "leaky_relu", "elu"], init=SCHEMES, rate=[0.01, 0.03, 0.1, 0.3], seed=SEEDS),
        check={"init": "he_normal"},
        cheaper={"steps": 200},
    ),
    experiment(
        updates_to_learn,
        "A small convolutional network on digits, three activations times three initialisations",
        (
            *grid(activation=["relu", "tanh"], init=SCHEMES, rate=[0.03, 0.1, 0.3, 1.0], seed=SEEDS),
            *grid(activation=["sigmoid"], init=SCHEMES, rate=[0.3, 1.0, 3.0], seed=SEEDS, steps=[3000], every=[25]),
        ),
        check={"init": "he_normal"},
        cheaper={"steps": 50},
    ),
)
