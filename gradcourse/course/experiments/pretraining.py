"""Chapter 7: sigmoid networks pretrained layer by layer, against random ones of the same scale, at the start and after.

A *start* is a name for parameters from which training sets out:

- `"random"`: standard weights; `"cured"`: Glorot's weights times four, with centred biases, the cure of chapter 4;
  `"tanh"`: Glorot's weights in a network of tanh;
- `"autoencoder"`, `"rbm"`: the random start, pretrained by that method; and after a comma what is done to it:
  `"shuffled"`, `"redrawn"`, `"spectrum"` (singular values kept), `"biases alone"` (the random weights instead of the
  trained ones), or nothing; and after another comma `"centred"`, for centred biases instead of the trained ones.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gradcourse.course.experiments._common import experiment
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.gradients import activation_gradient_norms
from gradcourse.measure.jacobians import backward_jacobian_norms, log_gain_split
from gradcourse.measure.units import unit_statistics
from gradcourse.nn.network import Network, mlp
from gradcourse.training.controls import redrawn, with_centred_biases, with_shuffled_weights, with_singular_values
from gradcourse.training.data import digits
from gradcourse.training.descent import descend
from gradcourse.training.loop import accuracy, cross_entropy
from gradcourse.training.pretraining import METHODS, pretrained
from gradcourse.training.shapeset import Shapeset

__all__ = ["EXPERIMENTS", "RATES", "STEPS", "looks", "started"]

SEEDS = 5
STEPS = 3000  # of pretraining, for each layer, on digits
LOOKED_AT = 200  # images on which gradients are measured
PIXELS, WIDTHS, CLASSES = {"digits": 64, "shapes": 1024}, {"digits": 64, "shapes": 100}, {"digits": 10, "shapes": 9}
CHANGES: dict[str, Any] = {"shuffled": with_shuffled_weights, "redrawn": redrawn, "spectrum": with_singular_values}


def started(start: str, hidden: int, seed: int, data: str = "digits") -> tuple[Network, Any]:
    """Returns the network with `hidden` hidden layers and the parameters that `start` stands for."""
    method, *changes = start.split(", ")
    network = _network(hidden, data, method)
    fresh = network.init(key=jax.random.key(seed))
    if method == "cured":
        factors = [jnp.full((len(stage["weight"]), 1, 1), 4.0) for stage in fresh]
        factors[0] = factors[0].at[0].set(2.0)  # whose pixels run over two units, and not over one
        scaled = [stage | {"weight": by * stage["weight"]} for stage, by in zip(fresh, factors, strict=True)]
        return network, with_centred_biases(tuple(scaled))
    if method in ("random", "tanh"):
        return network, fresh
    params, _ = _pretrained(method, hidden, seed, data, STEPS if data == "digits" else STEPS // 3)
    for change in changes:
        if change == "centred":
            params = with_centred_biases(params)
        elif change == "biases alone":
            params = tuple(old | {"bias": new["bias"]} for old, new in zip(fresh, params, strict=True))
        else:
            params = CHANGES[change](params, key=jax.random.fold_in(jax.random.key(2006), seed))
    return network, params


def _network(hidden: int, data: str, kind: str) -> Network:
    activation = "tanh" if kind == "tanh" else "sigmoid"
    init = "glorot_uniform" if kind in ("tanh", "cured") else "standard"
    return mlp(PIXELS[data], [WIDTHS[data]] * hidden, CLASSES[data], activation=activation, init=init)


def _data(name: str) -> Any:
    return digits() if name == "digits" else Shapeset()


def _watched(name: str, size: int) -> tuple[Array, Array]:
    data = _data(name)
    return data.batch(size, key=jax.random.key(4)) if name == "shapes" else (data.x_train[:size], data.y_train[:size])


@lru_cache(maxsize=64)
def _pretrained(method: str, hidden: int, seed: int, data: str, steps: int) -> Any:
    network = _network(hidden, data, method)
    params = network.init(key=jax.random.key(seed))
    key = jax.random.fold_in(jax.random.key(1), seed)
    return pretrained(network, params, _data(data), method=method, steps=steps, key=key)


def _all_seeds(start: str, hidden: int, seeds: int, data: str) -> tuple[Network, list[Any]]:
    drawn = [started(start, hidden, seed, data) for seed in range(seeds)]
    return drawn[0][0], [params for _, params in drawn]


def _short(value: Any, digits: int = 4) -> Any:
    """The same to so many significant digits: files of records are kept small."""
    return np.vectorize(lambda number: float(f"{number:.{digits}g}"))(np.asarray(value, np.float64))


def reconstruction(method: str, hidden: int, data: str, *, steps: int = STEPS, seeds: int = SEEDS) -> dict[str, Any]:
    """Returns the share of its input's variance that each layer fails to reconstruct, `"unexplained"`.

    It is `(layer, seed, look)`, averaged over the 50 updates up to each look, 250 updates apart. Fewer `steps` give the
    first layer's first looks.
    """
    histories = [_pretrained(method, hidden, seed, data, steps)[1] for seed in range(seeds)]

    def averaged(values: Any) -> np.ndarray:  # (layer, seed, look)
        values = np.stack([np.asarray(value) for value in values], axis=1)
        return values.reshape(*values.shape[:2], -1, 250)[..., -50:].mean(axis=-1)

    found = averaged([h.error for h in histories]) / averaged([h.variance for h in histories])
    return {"unexplained": _short(found if steps == STEPS else found[:1])}


def structure(start: str, hidden: int, data: str, *, seeds: int = SEEDS) -> dict[str, Any]:
    """Returns what the parameters are like before training, by seed and layer, the readout's last.

    - `"jacobian"`: log10 norm of the output's Jacobian at the layer's input; `"gradient"`: of the loss's gradient at
      the pre-activation;
    - `"weight_gain"`, `"activation_gain"`: the layer's log10 gain on the way back, in its two parts;
    - `"mean_square"`: fan-in times the mean square of the weights, `"mean_sum"`: fan-in times their mean;
    - `"deviation"`, `"saturated"`, `"slope"` (mean square) of the units, `"mean"` and `"variance"` of their output;
    - `"largest"`: the largest singular value of the weights over the root mean square of all; `"rank"`: how many equal
      singular values would have the same ratio of squared sum of squares to sum of fourth powers.
    """
    network, draws = _all_seeds(start, hidden, seeds, data)
    x, y = _watched(data, LOOKED_AT)

    def one(p: Any) -> dict[str, Any]:
        split, units = log_gain_split(network, p, x), unit_statistics(network, p, x)
        weights = [w for stage in p for w in stage["weight"]]
        values = [jnp.linalg.svd(w, compute_uv=False) for w in weights]
        return {
            "jacobian": backward_jacobian_norms(network, p, x).log10_norm,
            "gradient": activation_gradient_norms(network, p, x, y, at="preactivation").log10_norm,
            "weight_gain": split.weights.log10_norm,
            "activation_gain": split.activation.log10_norm,
            "mean_square": [len(w) * jnp.square(w).mean() for w in weights],
            "mean_sum": [len(w) * w.mean() for w in weights],
            "deviation": units.preactivation_rms,
            "saturated": units.saturated,
            "slope": jnp.nan_to_num(units.mean_square_slope),
            "mean": units.mean,
            "variance": jnp.square(units.spread),
            "largest": [s[0] / jnp.sqrt(jnp.square(s).mean()) for s in values],
            "rank": [jnp.square(jnp.square(s).sum()) / (s**4).sum() for s in values],
        }

    found = jax.device_get([one(params) for params in draws])
    return {name: _short([each[name] for each in found]) for name in found[0]}


def features(start: str, hidden: int, *, seeds: int = SEEDS) -> dict[str, Any]:
    """Returns what a linear readout can make of the digits as each layer presents them, `(seed, layer)`.

    The readout is fitted by least squares to the labels' indicators on all training images, the layers below it are
    left as they are: `"test_accuracy"` is its share of right answers. Everything is in float64, so that rounding cannot
    hide what a layer knows, and directions with less than 1e-6 of the largest deviation are left out. `"signal"` is the
    standard deviation of a unit's values from image to image, root mean square over units. Layer 0 is the pixels.
    """
    data, right, signal = digits(), [], []
    train, test = np.asarray(data.x_train, np.float64), np.asarray(data.x_test, np.float64)
    for seed in range(seeds):
        _, (*stages, _) = started(start, hidden, seed)
        layers = [np.concatenate([train, test])]
        for weight, bias in ((w, b) for stage in stages for w, b in zip(stage["weight"], stage["bias"], strict=True)):
            layers.append(1 / (1 + np.exp(-(layers[-1] @ np.asarray(weight, np.float64) + np.asarray(bias)))))
        right.append([_fitted(h, np.asarray(data.y_train), np.asarray(data.y_test)) for h in layers])
        signal.append([h.var(axis=0).mean() ** 0.5 for h in layers])
    return {"test_accuracy": _short(right), "signal": _short(signal)}


def _fitted(h: np.ndarray, labels: np.ndarray, test_labels: np.ndarray) -> float:
    values = h - h[: len(labels)].mean(axis=0)
    weights = np.linalg.lstsq(values[: len(labels)], np.eye(10)[labels] - 0.1, rcond=1e-6)[0]
    return float(((values[len(labels) :] @ weights).argmax(axis=1) == test_labels).mean())


RATES = (0.1, 0.3, 1.0, 3.0)
MOST = 3000
CLOSE = 1.08  # looks are so much farther apart each time


def looks(most: int) -> np.ndarray:
    """Returns the updates after which a `race` is looked at; those of a shorter one are the first of a longer one's.

    >>> looks(20)
    array([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16,
           17, 19, 20])
    """
    steps = np.unique(np.round(CLOSE ** np.arange(np.log(100_000) / np.log(CLOSE))))
    return np.unique([0, *steps[steps <= most], *(number for number in (1000, MOST) if number <= most)]).astype(int)


def race(
    start: str,
    hidden: int,
    data: str,
    *,
    frozen: bool = False,
    rates: Sequence[float] = RATES,
    most: int = MOST,
    seeds: int = SEEDS,
) -> dict[str, Any]:
    """Returns how plain descent on minibatches of 32 goes on from a start; arrays are `(rate, seed)`.

    `"gradient"`, `(seed, layer)`, is the log10 norm of the loss's gradient at the hidden layers' pre-activations before
    training. `"updates"` are those until the mean loss on 500 training images is below 1, to within 8 %, infinite where
    `most` are not enough; `"accuracy"`: on test images, at the end, and `"accuracy_1000"` after 1000 updates; `"loss"`:
    of the 500 images at the end. For five layers the `"curve"` of that loss is kept at every fourth look. With
    `frozen`, only the readout is trained.
    """
    network, draws = _all_seeds(start, hidden, seeds, data)
    x, y = _watched(data, LOOKED_AT)
    profiles = [activation_gradient_norms(network, params, x, y, at="preactivation") for params in draws]
    source, steps = _data(data), looks(most)
    test = (source.x_test, source.y_test) if data == "digits" else _watched(data, 2000)
    loss, right = _seen(network, draws, source, _watched(data, 500), test, rates, steps.tolist(), frozen)
    found: dict[str, Any] = {"gradient": _short([profile.log10_norm[:hidden] for profile in profiles])}
    if hidden == 5:
        found["curve"] = _short(loss[..., ::4], 3)
    if most >= MOST:
        there = loss < 1
        updates = np.where(there.any(axis=-1), steps[there.argmax(axis=-1)], np.inf)
        found |= {"updates": updates, "accuracy": _short(right[..., -1]), "loss": _short(loss[..., -1], 3)}
        found["accuracy_1000"] = _short(right[..., np.searchsorted(steps, 1000)])
    return found


def few_labels(
    start: str, labels: int, *, rates: Sequence[float] = RATES, most: int = MOST, seeds: int = SEEDS
) -> dict[str, Any]:
    """Returns how five layers do that are trained on the first `labels` training images; arrays are `(rate, seed, 2)`.

    `"accuracy"` is that on test images, `"loss"` that on the images trained on, after 10 and after `most` updates.
    Pretraining has seen all training images, without their labels.
    """
    network, draws = _all_seeds(start, 5, seeds, "digits")
    data = digits()
    known = data._replace(x_train=data.x_train[:labels], y_train=data.y_train[:labels])
    own, test = (known.x_train, known.y_train), (data.x_test, data.y_test)
    loss, right = _seen(network, draws, known, own, test, rates, sorted({10, most}))
    return {"accuracy": _short(right), "loss": _short(loss, 3)}


def _seen(
    network: Network, draws: list[Any], data: Any, train: Any, test: Any, rates: Any, ends: Any, frozen: bool = False
) -> tuple[Float[np.ndarray, "rate seed end"], Float[np.ndarray, "rate seed end"]]:
    """Loss on `train`, infinite once diverged, and accuracy on `test`, after so many updates as `ends` has."""
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    keys = jnp.stack([jax.random.fold_in(jax.random.key(7), seed) for seed in range(len(draws))])
    shared = network, frozen, tuple(ends), data, train, test
    loss, right = _descended(*shared, jnp.asarray(rates), params, keys)
    return np.nan_to_num(loss, nan=np.inf), np.asarray(right)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _descended(
    network: Network, frozen: bool, ends: Any, data: Any, train: Any, test: Any, rates: Array, params: Any, keys: Array
) -> tuple[Array, Array]:
    def run(rate: Array, params: Any, key: Array) -> tuple[Array, Array]:
        def update(step: Array, params: Any) -> Any:
            x, y = data.batch(32, key=jax.random.fold_in(key, step))
            *hidden, readout = jax.grad(partial(cross_entropy, network))(params, x, y)
            if frozen:
                hidden = jax.tree.map(jnp.zeros_like, hidden)
            return jax.tree.map(lambda p, g: p - rate * g, params, (*hidden, readout))

        def look(params: Any) -> tuple[Array, Array]:
            return cross_entropy(network, params, *train), accuracy(network, params, *test)

        return descend(update, params, ends, look)[1]

    over_seeds = jax.vmap(run, in_axes=(None, 0, 0))
    return jax.vmap(over_seeds, in_axes=(0, None, None))(rates, params, keys)


MAIN = ("random", "cured", "tanh", *METHODS, *(f"{method}, redrawn, centred" for method in METHODS))
_CENTRED = ("shuffled, centred", "spectrum, centred", "centred", "biases alone")
OTHERS = (
    *(f"autoencoder, {change}" for change in ("shuffled", "redrawn", "spectrum", *_CENTRED)),
    *(f"rbm, {change}" for change in _CENTRED),
)
_SEEN = tuple(name for name in (*MAIN, *OTHERS[:7]) if name != "tanh")
_REDRAWN = "autoencoder, redrawn, centred"

EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        reconstruction,
        "how well layers reconstruct their input while they are pretrained one by one, five seeds",
        grid(method=METHODS, hidden=[5], data=["digits"]),
        name="pretraining_reconstruction",
        cheaper={"steps": 250, "seeds": 1},
    ),
    experiment(
        features,
        "a least-squares readout of each of five layers before training, five seeds",
        grid(start=_SEEN, hidden=[5]),
        name="pretraining_features",
        cheaper={"seeds": 1},
    ),
    experiment(
        race,
        "plain descent from random, pretrained and control starts, 3 to 12 layers, four rates, five seeds",
        (
            *grid(start=(*MAIN, *OTHERS), hidden=[5], data=["digits"]),
            *(point for hidden in (3, 12, 8) for point in grid(start=MAIN, hidden=[hidden], data=["digits"])),
            *grid(start=["random", "cured", *METHODS, _REDRAWN], hidden=[5], data=["digits"], frozen=[True]),
        ),
        name="pretraining_race",
        check={"start": MAIN[2]},
        cheaper={"rates": RATES[:1], "most": 30, "seeds": 1},
    ),
    experiment(
        few_labels,
        "test accuracy of five layers trained on few labelled digits, four rates, five seeds",
        grid(start=["cured", *METHODS, _REDRAWN], labels=[50, 200, 1437]),
        name="pretraining_labels",
        cheaper={"rates": RATES[:1], "most": 10, "seeds": 1},
    ),
    experiment(
        structure,
        "five sigmoid layers before training: random, pretrained, and controls; five seeds",
        (
            *grid(start=_SEEN, hidden=[5], data=["digits"]),
            *grid(start=["random", "cured", "autoencoder", _REDRAWN], hidden=[5], data=["shapes"]),
        ),
        name="pretraining_structure",
        cheaper={"seeds": 1},
    ),
)
