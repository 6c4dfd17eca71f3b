"""Chapter 8: what convolutions do to gradients, which variances train, and very deep convolutional networks."""

from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gradcourse._checks import positive_integer
from gradcourse.course.experiments._common import experiment, fresh, mean_losses
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.convolutions import Conv
from gradcourse.nn.initializers import Initializer, gaussian
from gradcourse.nn.layers import Dense, Flatten, Layer
from gradcourse.nn.locally_connected import LocallyConnected
from gradcourse.nn.network import Network, Params, mlp, sequential
from gradcourse.profile import Profile
from gradcourse.theory.criticality import critical_point
from gradcourse.training.data import Dataset, digits
from gradcourse.training.loop import accuracy, train
from gradcourse.training.sweeps import over_seeds

__all__ = [
    "ARCHITECTURES",
    "BIAS_VARIANCE",
    "EXPERIMENTS",
    "WEIGHT_VARIANCES",
    "border_leak",
    "over_twenty",
    "scaled",
    "small_digits",
    "twenty_layers",
    "vanilla_cnn",
    "very_deep",
    "weights_only",
]

DEEP_BIAS_VARIANCE = 1e-9


def vanilla_cnn(depth: int, init: str, *, channels: int = 16) -> Network:
    """Returns a plain convolutional tanh network for digits, after Xiao et al. (2018): no shortcuts, no normalisation.

    A convolution of stride 2 is followed by `depth` equal ones of 4 x 4 pixels, wrapped round, whose weights are drawn
    by `init` (`"delta_orthogonal"` or `"gaussian"`) on tanh's critical line; then a readout. With biases of variance
    `DEEP_BIAS_VARIANCE` the variance at rest is small and tanh nearly linear. Inputs should have that mean square, as
    `small_digits` have; the readout undoes the scale.

    >>> vanilla_cnn(10_000, "delta_orthogonal").depth
    10003
    """
    sigma_w2, q = critical_point("tanh", sigma_b2=DEEP_BIAS_VARIANCE)
    first = Conv(channels, "tanh", stride=2, initializer=gaussian(1.0))
    scheme = Initializer(init, sigma_w2**0.5, DEEP_BIAS_VARIANCE**0.5)
    layer = Conv(channels, "tanh", padding="CIRCULAR", initializer=scheme)
    readout = Dense(10, initializer=gaussian(q**-0.5))
    return sequential((8, 8, 1), [first, *[layer] * positive_integer("depth", depth), Flatten(), readout])


@lru_cache
def small_digits() -> Dataset:
    """Returns the digits as `vanilla_cnn` wants them: minus the mean training image, and of the mean square at rest.

    With the mean, all images would share most of their norm.
    """
    data = digits(images=True)
    mean = data.x_train.mean(axis=0, keepdims=True)
    _, q = critical_point("tanh", sigma_b2=DEEP_BIAS_VARIANCE)
    scale = (q / float(jnp.mean(jnp.square(data.x_train - mean)))) ** 0.5
    return data._replace(x_train=scale * (data.x_train - mean), x_test=scale * (data.x_test - mean))


def trainable_depth(depth: int, sigma_w2: float, rate: float, seed: int, steps: int = 400) -> dict[str, Any]:
    """Returns how a dense tanh network of width 300 trains on digits by plain descent, bias variance 0.05.

    Every 50 updates of 32 digits: the mean minibatch `loss` since, and the `accuracy` on 500 training digits.
    """
    network = mlp(64, [300] * depth, 10, activation="tanh", init=gaussian(1.0, 0.05**0.5))
    (params, key), data = fresh(network, seed), digits()
    settings: Any = {"steps": steps, "every": 50, "watch": (data.x_train[:500], data.y_train[:500]), "key": key}
    start = scaled(params, sigma_w2**0.5)
    _, history = train(network, start, data, optax.sgd, learning_rate=rate, **settings)
    return {"loss": mean_losses(history, 50), "accuracy": history.accuracy[1:]}


def scaled(params: Params, factor: float) -> Params:
    """Returns the parameters with all weights multiplied: another scheme of the same network and compiled programs."""
    return tuple({name: factor * p if name == "weight" else p for name, p in stage.items()} for stage in params)


def weights_only(rate: Any) -> optax.GradientTransformation:
    """Returns plain descent that leaves biases alone.

    In `vanilla_cnn` activations are tiny and differ from image to image, while a bias moves the outputs of all images
    alike: the biases alone would say how large a rate may be.
    """
    kinds = partial(jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key)
    return optax.partition({"weight": optax.sgd(rate), "bias": optax.set_to_zero()}, kinds)


def very_deep(depth: int, init: str, rate: float, seed: int, updates: int = 200) -> dict[str, Any]:
    """Returns how `vanilla_cnn(depth, init)` trains on digits by `weights_only`, 16 a minibatch, at `rate / depth`.

    `loss` is the mean over every 10 updates; every 100 updates, `train_accuracy` on 360 training images and
    `test_accuracy` on the 360 of the test set.
    """
    start, key = fresh(vanilla_cnn(depth, init), seed)
    network, data = vanilla_cnn(depth, "gaussian"), small_digits()  # whatever the draw, programs are of one network
    few = data.x_train[:16], data.y_train[:16]  # for ten thousand layers of them are kept
    settings: Any = {"batch_size": 16, "steps": updates, "every": 100, "watch": few, "observe": _accuracies}
    _, history = train(network, start, data, weights_only, learning_rate=rate / depth, key=key, **settings)
    train_accuracy, test_accuracy = (values[1:] for values in history.observed)
    return {"loss": mean_losses(history, 10), "train_accuracy": train_accuracy, "test_accuracy": test_accuracy}


def _accuracies(network: Network, params: Params, *watched: Any) -> tuple[Array, ...]:
    data = small_digits()
    return tuple(accuracy(network, params, x[:360], y[:360]) for x, y in (data[:2], data[2:]))


def deep_profiles(depth: int, init: str, seeds: int = 5) -> dict[str, Any]:
    """Returns the gradient along a fresh `vanilla_cnn(depth, init)`, and what is left of the signal at its end.

    `log10_norm` is `(seed, place)`, relative to the top of the equal layers, at the inputs of the `layers`: at most 41
    of them, and the top; for two digits. `outputs` is, per seed, the standard deviation of the outputs over the images
    of the test set.
    """
    network, data = vanilla_cnn(depth, "gaussian"), small_digits()
    places = np.unique(np.linspace(0, depth, min(depth, 40) + 1).astype(int))
    logs, outputs = [], []
    for key in jax.random.split(jax.random.key(0), seeds):
        params = vanilla_cnn(depth, init).init(key=key)
        profile = backward_jacobian_norms(network, params, data.x_train[:2])
        logs.append(profile.log10_norm[1 + places] - profile.log10_norm[1 + depth])
        outputs.append(np.asarray(network.apply(params, data.x_test)).std(axis=0).mean())
    return {"layers": places, "log10_norm": np.stack(logs), "outputs": np.array(outputs)}


ARCHITECTURES = ("dense", "local", "circular", "zero padding")
SCALES = {"standard": 1 / 3, "variance 1/n": 1.0, "variance 2/n": 2.0}  # times the fan-in


def equal_layers(
    architecture: str, activation: str, depth: int, init: Initializer, shape: tuple[int, int, int]
) -> list[Layer]:
    """Returns `depth` layers of 8 channels on such images, or of as many dense units, as one of `ARCHITECTURES`."""
    if architecture == "dense":
        return [Flatten(), *[Dense(8 * prod(shape[:2]), activation, initializer=init)] * depth]
    if architecture == "local":
        return [*[LocallyConnected(8, activation, initializer=init)] * depth, Flatten()]
    padding = "SAME" if architecture == "zero padding" else "CIRCULAR"
    return [*[Conv(8, activation, padding=padding, initializer=init)] * depth, Flatten()]


def twenty_layers(architecture: str, activation: str, *, sigma_w: float = 1.0) -> Network:
    """Returns twenty equal layers for digits, 512 units each, as one of `ARCHITECTURES`, and a readout."""
    shape, init = (8, 8, 1), gaussian(sigma_w)
    return sequential(shape, [*equal_layers(architecture, activation, 20, init, shape), Dense(10, initializer=init)])


def over_twenty(architecture: str, profile: Profile) -> np.ndarray:
    """Returns the log10 norms at the inputs of `twenty_layers` and at their top, 21 of them, `(*sample, place)`."""
    first = _first(architecture)
    return profile.log10_norm[..., first : first + 21]


def _first(architecture: str) -> int:
    return 1 if architecture == "dense" else 0  # dense networks flatten before their layers, not after


def slopes_at_start(architecture: str, activation: str, init: str, seeds: int = 5) -> dict[str, Any]:
    """Returns what twenty fresh layers do to the gradients of 4 digits: one row, or number, per seed.

    `log10_norm` are the norms from the first layer's input to the top, `lost` the decades that each layer loses.
    Weights are Gaussian, of a variance in `SCALES` over the fan-in.
    """
    network, first, norms, lost = twenty_layers(architecture, activation), _first(architecture), [], []
    for key in jax.random.split(jax.random.key(0), seeds):
        params = scaled(network.init(key=key), SCALES[init] ** 0.5)
        profile = backward_jacobian_norms(network, params, digits(images=True).x_train[:4])
        norms.append(over_twenty(architecture, profile))
        lost.append(profile.slopes(first=first + 1, last=first + 20))
    return {"log10_norm": np.stack(norms), "lost": np.array(lost)}


def drift_by_sharing(layer: str, seeds: int = 10) -> dict[str, Any]:
    """Returns the log10 gradient norm along 200 linear layers of 128 units of critical variance, relative to the top.

    The `layer` is `"dense"`, `"local"` or `"convolution"`, 8 channels on 4 by 4 pixels. `log10_norm` is
    `(seed, place)`, at the input of every twentieth of the layers, from the first one's on.
    """
    shape, first = (4, 4, 8), _first(layer)
    network = sequential(shape, [*equal_layers(layer, "identity", 200, gaussian(1.0), shape), Dense(1)])
    x, key = jnp.ones((1, *shape)), jax.random.key(2)
    logs = over_seeds(backward_jacobian_norms, network, x, seeds=seeds, key=key).log10_norm
    return {"log10_norm": logs[:, first : first + 200 : 20] - logs[:, [-1]]}


def border_leak(size: int, seeds: int = 5) -> dict[str, Any]:
    """Returns log10 of the squared gradient norm that zero padding leaves, relative to the same kernels, wrapped.

    Along thirty rectifier layers of 32 channels with He weights on a digit of `size` by `size` pixels. `leak` is
    `(seed, place)`, from the first layer's input to the top, where it starts from 0.
    """
    x = jax.image.resize(digits(images=True).x_train[:1], (1, size, size, 1), "linear")
    logs = {}
    for padding in ("SAME", "CIRCULAR"):
        conv = Conv(32, "relu", padding=padding, initializer="he_normal")
        network = sequential((size, size, 1), [*[conv] * 30, Flatten(), Dense(2, initializer="lecun_normal")])
        profile = over_seeds(backward_jacobian_norms, network, x, seeds=seeds, key=jax.random.key(3))
        logs[padding] = 2 * (profile.log10_norm[:, :31] - profile.log10_norm[:, 30:31])
    return {"leak": logs["SAME"] - logs["CIRCULAR"]}


WEIGHT_VARIANCES = (1.0, 1.3, 1.5, 1.76, 2.0, 2.5, 3.0, 4.0)
BIAS_VARIANCE = 0.05


def slopes_by_variance(
    architecture: str, seeds: int = 5, weight_variances: tuple[float, ...] = WEIGHT_VARIANCES
) -> dict[str, Any]:
    """Returns the `change` of the squared gradient norm per layer, in decades, `(seed, weight variance)`.

    Along thirty tanh layers, `"dense"` of width 300 or `"convolutional"` of 32 channels, on 2 digits, with biases of
    `BIAS_VARIANCE`; away from the input.
    """
    init, x = gaussian(1.0, BIAS_VARIANCE**0.5), digits(images=True).x_train[:2]
    network = mlp(64, [300] * 30, 3, activation="tanh", init=init)
    if architecture == "convolutional":
        conv = Conv(32, "tanh", padding="CIRCULAR", initializer=init)
        network = sequential((8, 8, 1), [*[conv] * 30, Flatten(), Dense(3, initializer=init)])
    x, change = x.reshape(2, *network.input_shape), []
    for key in jax.random.split(jax.random.key(5), seeds):
        params = network.init(key=key)
        profiles = [backward_jacobian_norms(network, scaled(params, w**0.5), x) for w in weight_variances]
        change.append([-2 * float(profile.slopes(first=10, last=30)) for profile in profiles])
    return {"change": np.array(change)}


INITS = ("delta_orthogonal", "gaussian")
DEEP = (
    *grid(depth=[10, 100], init=INITS, rate=[0.03, 0.1, 0.3], seed=range(3)),
    *grid(depth=[1000], init=INITS[:1], rate=[0.1], seed=range(3)),
    *grid(depth=[10_000], init=INITS[:1], rate=[0.1], seed=[0]),
    *grid(depth=[1000], init=INITS[1:], rate=[0.03, 0.1], seed=range(3)),
)
PLANE = (  # where a rate ten times smaller might do better, it is tried, too
    *grid(depth=[10, 20, 40, 80], sigma_w2=[1.0, 1.3, 1.76, 2.5, 4.0], rate=[0.01], seed=[0]),
    *grid(depth=[120], sigma_w2=[1.0, 1.3, 1.76], rate=[0.01], seed=[0]),
    *grid(depth=[40], sigma_w2=[4.0], rate=[0.001], seed=[0]),
    *grid(depth=[80], sigma_w2=[1.76, 2.5, 4.0], rate=[0.001], seed=[0]),
    *grid(depth=[120], sigma_w2=[1.76, 2.5, 4.0], rate=[0.001], seed=[0]),
)
EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        trainable_depth,
        "Dense tanh networks of 300 units trained on digits, from the ordered to the chaotic side",
        PLANE,
        check={"sigma_w2": 1.3},
        cheaper={"steps": 50},
    ),
    experiment(
        slopes_at_start,
        "Decades of gradient lost per layer before training: architecture, activation, initialisation",
        grid(architecture=ARCHITECTURES, activation=["sigmoid", "tanh", "relu"], init=SCALES),
        check={"architecture": "circular", "activation": "tanh", "init": "variance 1/n"},
        cheaper={"seeds": 1},
    ),
    experiment(
        drift_by_sharing,
        "Gradient norms along two hundred linear layers: dense, locally connected, convolutional",
        grid(layer=["dense", "local", "convolution"]),
        check={"layer": "convolution"},
        cheaper={"seeds": 1},
    ),
    experiment(
        border_leak,
        "What zero padding leaves of gradients, on images of 4, 8 and 16 pixels a side",
        grid(size=[4, 8, 16]),
        cheaper={"seeds": 1},
    ),
    experiment(
        slopes_by_variance,
        "Change of the gradient norm per layer against the weight variance, dense and convolutional",
        grid(architecture=["dense", "convolutional"]),
        check={"architecture": "convolutional"},
        cheaper={"seeds": 1, "weight_variances": WEIGHT_VARIANCES[:2]},
    ),
    experiment(
        deep_profiles,
        "Gradient norms along plain convolutional tanh networks of 10 to 10,000 layers, and outputs, before training",
        grid(depth=[10, 100, 1000, 10_000], init=INITS),
        cheaper={"seeds": 1},
    ),
    experiment(
        very_deep,
        "Plain convolutional tanh networks of 10 to 10,000 layers trained on digits",
        DEEP,
        check={"rate": 0.1},
        cheaper={"updates": 100},
    ),
)
