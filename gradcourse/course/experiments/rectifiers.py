"""Chapter 3: thirty rectifier layers, the fate of dead units, activation against initialisation, and speed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from gradcourse.course.recording import Experiment, grid, kept_digits
from gradcourse.measure.units import silent_units
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import Network, mlp, sequential
from gradcourse.training.data import Dataset
from gradcourse.training.history import History
from gradcourse.training.loop import accuracy, train

__all__ = [
    "EXPERIMENTS",
    "activation_and_init",
    "dead_units",
    "noisy_chance",
    "small_cnn",
    "thirty_layers",
    "updates_to_learn",
]

SEEDS = range(5)
SCHEMES = ("standard", "lecun_normal", "he_normal")


def small_cnn(activation: str, init: str) -> Network:
    """Returns three convolutions of 16 channels, a max-pool after each of the first two, and a readout, for digits."""
    conv = Conv(16, activation, initializer=init)
    return sequential((8, 8, 1), [conv, MaxPool(2), conv, MaxPool(2), conv, Flatten(), Dense(10, initializer=init)])


def _keys(seed: int) -> tuple[Any, Any]:
    """Keys for the draw of the parameters and for the minibatches."""
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    return init_key, batch_key


def _descended(network: Network, data: Dataset, rate: float, seed: int, **settings: Any) -> History:
    """The history of plain descent from a fresh draw."""
    init_key, key = _keys(seed)
    start = network.init(key=init_key)
    return train(network, start, data, optax.sgd, learning_rate=rate, key=key, **settings)[1]


# ---- He's thirty layers


def thirty_layers(init: str, rate: float, seed: int, steps: int = 4000) -> dict[str, Any]:
    """Returns the training loss and the test accuracy of 30 rectifier layers of 64, trained on digits by plain descent.

    `loss` is the mean over the last 500 minibatches, `test_accuracy` is that at the end of each 500.
    """
    network, data = mlp(64, [64] * 30, 10, activation="relu", init=init), kept_digits()
    history = _descended(network, data, rate, seed, steps=steps, every=500, watch=(data.x_test, data.y_test))
    losses = np.asarray(history.batch_loss).reshape(-1, 500).mean(axis=1)
    return {"loss": losses, "test_accuracy": history.accuracy[1:]}


# ---- Dead units


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _weight_decay(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rate))


def _noise(rate: Any) -> optax.GradientTransformation:
    """Gaussian noise of the same size at every step, added to every gradient."""
    return optax.chain(optax.add_noise(eta=3e-5, gamma=0.0, key=jax.random.key(0)), optax.sgd(rate))


MARK = 25  # the step at which dead units are marked, and from which on a layer that is to be frozen stands still


def _first_layer_frozen(rate: Any) -> optax.GradientTransformation:
    first = optax.sgd(lambda step: jnp.where(step < MARK, rate, 0.0))
    return optax.partition({"first": first, "others": optax.sgd(rate)}, ("first", "others", "others", "others"))


OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": _momentum,
    "adam": optax.adam,
    "weight decay": _weight_decay,
    "noise": _noise,
    "first layer frozen": _first_layer_frozen,
}
LOOKS = 25  # steps between two looks at which units are dead
KEPT = 4  # of so many looks one is kept


def dead_units(optimizer: str, rate: float, seed: int, steps: int = 2000) -> dict[str, Any]:
    """Returns the fate of the units of three rectifier layers (100, 80, 60), trained on digits, every 100 steps.

    A unit is dead if it is off on every one of the 1437 training images. Every 25 steps all units are looked at. Shares
    of each layer's units, `(time, layer)`: `dead` now; `once_dead` until now; `returned`: were seen dead and later
    alive; `marked`: dead at step 25; `marked_returned`: of these, seen alive since; `within_noise`: dead, and expected
    to be on for at least one image of the training set if their rectifiers were noisy (Nair and Hinton 2010).
    `test_accuracy` is `(time,)`.
    """
    network, data = mlp(64, [100, 80, 60], 10, activation="relu", init="he_normal"), kept_digits()
    init_key, key = _keys(seed)
    run: Any = network.init(key=init_key)
    dead = _dead(network, run)
    once, returned = dead, [np.zeros_like(units) for units in dead]
    marked = marked_returned = returned
    seen: dict[str, list[Any]] = {}
    for look in range(steps // LOOKS):
        run, history = train(
            network,
            run,
            data,
            OPTIMIZERS[optimizer],
            learning_rate=rate,
            steps=LOOKS,
            watch=(data.x_test, data.y_test),
            key=None if look else key,
        )
        dead = _dead(network, run.params)
        returned = [back | (was & ~now) for back, was, now in zip(returned, once, dead, strict=True)]
        once = [was | now for was, now in zip(once, dead, strict=True)]
        marked_returned = [back | (was & ~now) for back, was, now in zip(marked_returned, marked, dead, strict=True)]
        if (look + 1) * LOOKS == MARK:
            marked = dead
        if (look + 1) % KEPT == 0:
            now = {"dead": dead, "once_dead": once, "returned": returned}
            now |= {"marked": marked, "marked_returned": marked_returned}
            woken = _woken(network, run.params)
            now["within_noise"] = [units * chance for units, chance in zip(dead, woken, strict=True)]
            for name, masks in now.items():
                seen.setdefault(name, []).append([mask.mean() for mask in masks])
            seen.setdefault("test_accuracy", []).append(history.accuracy[-1])
    return seen


def _dead(network: Network, params: Any) -> list[np.ndarray]:
    """Which units of each hidden layer are off on all training images."""
    return [np.asarray(units) for units in silent_units(network, params, kept_digits().x_train)[:-1]]


def noisy_chance(s: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the probability that a noisy rectifier, `max(0, s + N(0, sigmoid(s)))`, is on (Nair and Hinton 2010)."""
    s = jnp.asarray(s)
    return jax.scipy.stats.norm.cdf(s / jnp.sqrt(jax.nn.sigmoid(s)))


def _woken(network: Network, params: Any) -> list[np.ndarray]:
    """The probability of each hidden unit to be on for at least one training image, if its rectifier were noisy."""
    chances = [noisy_chance(s[0]) for s in _preactivations(network, params, kept_digits().x_train)]
    return [1 - np.prod(1 - np.asarray(chance), axis=0) for chance in chances[:-1]]


def _with_preactivation(layer: Any, p: Any, h: Array) -> tuple[Array, Array]:
    return layer.apply(p, h), layer.preactivation(p, h)


@partial(jax.jit, static_argnums=0)
def _preactivations(network: Network, params: Any, x: Array) -> list[Array]:
    return network.scan(_with_preactivation, params, x)[1]


# ---- Activation against initialisation


def activation_and_init(activation: str, init: str, rate: float, seed: int, steps: int = 1000) -> dict[str, Any]:
    """Returns how ten hidden layers of 64 train on digits by plain descent.

    `loss`, `accuracy`: on all training images, every 50 steps; every 200 steps `test_accuracy`, and `dead`, the share
    of all hidden units that are off on every training image.
    """
    network, data = mlp(64, [64] * 10, 10, activation=activation, init=init), kept_digits()
    init_key, key = _keys(seed)
    run: Any = network.init(key=init_key)
    seen: dict[str, list[Any]] = {"loss": [], "accuracy": [], "test_accuracy": [], "dead": []}
    for block in range(steps // 200):
        run, history = train(
            network,
            run,
            data,
            optax.sgd,
            learning_rate=rate,
            steps=200,
            every=50,
            watch=(data.x_train, data.y_train),
            key=None if block else key,
        )
        seen["loss"] += history.loss[1:].tolist()
        seen["accuracy"] += history.accuracy[1:].tolist()
        seen["test_accuracy"].append(accuracy(network, run.params, data.x_test, data.y_test))
        seen["dead"].append(np.asarray(history.units.silent)[-1, :-1].mean())
    return seen


# ---- How many updates a small convolutional network needs


def updates_to_learn(
    activation: str, init: str, rate: float, seed: int, steps: int = 600, every: int = 5
) -> dict[str, Any]:
    """Returns the `error` of `small_cnn` on the first 500 training images, every `every` steps of plain descent."""
    network, data = small_cnn(activation, init), kept_digits(images=True)
    watch = data.x_train[:500], data.y_train[:500]
    history = _descended(network, data, rate, seed, steps=steps, every=every, watch=watch)
    return {"error": 1 - history.accuracy}


FATES = (
    *grid(optimizer=["sgd"], rate=[0.03, 0.1, 0.3, 0.5, 0.7], seed=SEEDS),
    *grid(optimizer=["momentum"], rate=[0.03, 0.1], seed=SEEDS),
    *grid(optimizer=["adam"], rate=[0.003, 0.03], seed=SEEDS),
    *grid(optimizer=["weight decay", "noise"], rate=[0.5], seed=SEEDS),
    *grid(optimizer=["first layer frozen"], rate=[0.5, 0.7], seed=SEEDS),
)
RACE = (
    *grid(activation=["relu", "tanh"], init=SCHEMES, rate=[0.03, 0.1, 0.3, 1.0], seed=SEEDS),
    *grid(activation=["sigmoid"], init=SCHEMES, rate=[0.3, 1.0, 3.0], seed=SEEDS, steps=[3000], every=[25]),
)
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "thirty_layers",
        "Thirty rectifier layers trained on digits, weights of variance 1/n or 2/n",
        thirty_layers,
        grid(init=SCHEMES[1:], rate=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3], seed=SEEDS),
        check={"init": "lecun_normal", "rate": 0.001, "seed": 0},
        cheaper={"steps": 500},
    ),
    Experiment(
        "dead_units",
        "The fate of a rectifier network's units during training",
        dead_units,
        FATES,
        check={"optimizer": "sgd", "rate": 0.1, "seed": 0},
        cheaper={"steps": 100},
    ),
    Experiment(
        "activation_and_init",
        "Ten layers trained on digits, three rectifiers times three initialisations",
        activation_and_init,
        grid(activation=["relu", "leaky_relu", "elu"], init=SCHEMES, rate=[0.01, 0.03, 0.1, 0.3], seed=SEEDS),
        check={"activation": "relu", "init": "he_normal", "rate": 0.01, "seed": 0},
        cheaper={"steps": 200},
    ),
    Experiment(
        "updates_to_learn",
        "A small convolutional network on digits, three activations times three initialisations",
        updates_to_learn,
        RACE,
        check={"activation": "relu", "init": "he_normal", "rate": 0.03, "seed": 0},
        cheaper={"steps": 50},
    ),
)
