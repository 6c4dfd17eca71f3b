"""Chapter 6: largest stable rates, small rates, the edge of stability, one rate per layer, rate against depth."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, PRNGKeyArray

from gradcourse.course.experiments._common import experiment, fresh
from gradcourse.course.recording import Experiment, grid
from gradcourse.measure.curvature import sharpness
from gradcourse.measure.gradients import parameter_gradient_norms
from gradcourse.nn.initializers import Initializer
from gradcourse.nn.network import Network, Params, mlp
from gradcourse.training.data import digits
from gradcourse.training.descent import descend
from gradcourse.training.loop import cross_entropy, train
from gradcourse.training.optimizers import largest_stable_rate, layerwise, normalised_steps, scale_by_layer, singh_steps
from gradcourse.training.sweeps import sweep

__all__ = ["EXPERIMENTS", "edge_of_stability", "per_layer_rates", "rate_by_depth", "small_rates", "stable_rates"]

WIDTH, EXAMPLES = 64, 256


def _network(activation: str, init: str, depth: int, scale: float = 1.0) -> Network:
    return mlp(64, [WIDTH] * depth, 10, activation=activation, init=Initializer(init, scale))


def _warmed(rate: Any) -> optax.GradientTransformation:
    """Plain descent whose rate grows in proportion to the step for the first half of the 100 steps."""
    return optax.sgd(lambda step: rate * jnp.minimum((step + 1) / 50, 1))


def _clipped(rate: Any) -> optax.GradientTransformation:
    """Plain descent on gradients that are shortened to a norm of 1 where they are longer."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))


def stable_rates(
    activation: str, init: str, depth: int, *, scale: float = 1.0, by_layer: bool = False, seeds: int = 5
) -> dict[str, Any]:
    """Returns what limits the rate of full-batch descent on 256 digits, for fresh nets of `depth` hidden layers of 64.

    Lists have the seeds in front: `sharpness`, by 60 steps of Lanczos; `stable`, the largest rate at which the loss of
    100 steps never goes above where it begins; `gradient`, log10 norm of each layer's. With `by_layer` also `blocks`,
    the sharpness of each layer's block of the Hessian; `others`, the sharpness with the layer of the largest block held
    still, and `others_than_smallest`, with that of the smallest; and stable rates: `clipped` with gradients of a norm
    of at most 1, and `warmed` with a rate that grows for the first 50 steps.
    """
    network, data = _network(activation, init, depth, scale), digits()
    x, y = data.x_train[:EXAMPLES], data.y_train[:EXAMPLES]
    key = jax.random.key(6)
    params = network.draws(seeds, key=key)
    found = dict(_limits(network, by_layer, params, jax.random.split(key, seeds), x, y))
    each = (jax.tree.map(lambda leaf, seed=seed: leaf[seed], params) for seed in range(seeds))
    return found | {"gradient": np.stack([parameter_gradient_norms(network, p, x, y).log10_norm for p in each])}


@partial(jax.jit, static_argnums=(0, 1))
def _limits(network: Network, by_layer: bool, params: Params, keys: Array, x: Array, y: Array) -> dict[str, Array]:
    def loss(params: Params) -> Array:
        return cross_entropy(network, params, x, y)

    def border(params: Params, optimizer: Any) -> Array:
        within = (1e-4, 1e3)  # ten halvings: within 1 %
        return largest_stable_rate(loss, params, optimizer=optimizer, within=within, halvings=10, throughout=True)[0]

    def curvature(params: Params, key: PRNGKeyArray, moving: Bool[Array, " layer"]) -> Array:
        # One program for all choices of layers: the others' parameters are held where they are.
        flags = network.parted(moving)  # per stage, one for each of its layers

        def moved(shift: Params) -> Array:
            return loss(tuple(map(_partly_moved, params, shift, flags)))

        return sharpness(moved, jax.tree.map(jnp.zeros_like, params), key=key).value

    def one(given: tuple[Params, PRNGKeyArray]) -> dict[str, Array]:
        params, key = given
        found = {"sharpness": sharpness(loss, params, key=key).value, "stable": border(params, optax.sgd)}
        if by_layer:
            alone = jnp.eye(network.depth, dtype=bool)
            blocks = lax.map(lambda moving: curvature(params, key, moving), alone)
            still = alone[jnp.stack([blocks.argmax(), blocks.argmin()])]
            others, others_than_smallest = lax.map(lambda still: curvature(params, key, ~still), still)
            found |= {"blocks": blocks, "others": others, "others_than_smallest": others_than_smallest}
            found |= {"clipped": border(params, _clipped), "warmed": border(params, _warmed)}
        return found

    return lax.map(one, (params, keys))


def _partly_moved(stage: dict[str, Any], shift: dict[str, Any], moving: Array) -> dict[str, Any]:
    """A stage's parameters, shifted in the layers that are `moving`."""
    return jax.tree.map(lambda p, s: p + moving.reshape(moving.shape + (1,) * (p.ndim - 1)) * s, stage, shift)


def small_rates(
    rate: float, batch_size: int, *, time: float = 1280.0, looks: int = 40, shorter: int = 1, seeds: int = 5
) -> dict[str, Any]:
    """Returns how three sigmoid layers of 64, standard weights, learn digits in `time / rate` steps on minibatches.

    Lists have the seeds in front, then the snapshots, of which there are `looks` at equal distances, and the start:
    `loss`, on all training images; `lost`, the decades of activation gradient lost per hidden layer on the way back;
    `first_step`, log10 of the first layer's update relative to its weights. `moved`, `(seed,)`, is how far the first
    layer's weights are from where they began, relative to their norm there. Only the first `1 / shorter` is run.
    """
    network, data = _network("sigmoid", "standard", 3), digits()
    every = round(time / rate / looks)
    settings: Any = {"batch_size": batch_size, "steps": every * (looks // shorter), "every": every, "progress": False}
    found: dict[str, list[Any]] = {"loss": [], "lost": [], "first_step": [], "moved": []}
    for seed in range(seeds):
        start, key = fresh(network, seed)
        watch = data.x_train, data.y_train
        run, history = train(network, start, data, optax.sgd, learning_rate=rate, watch=watch, key=key, **settings)
        first, begun = (params[0]["weight"][0] for params in (run.params, start))
        found["loss"].append(history.loss)
        found["lost"].append(history.activation_gradient.slopes(first=1, last=3))
        found["first_step"].append(history.update_to_weight.log10_norm[:, 0])
        found["moved"].append(jnp.linalg.norm(first - begun) / jnp.linalg.norm(begun))
    if shorter > 1:  # where it ends is not what is recorded
        del found["moved"]
    return found


def edge_of_stability(rate: float, *, looks: int = 60, time: float = 300.0, seeds: int = 5) -> dict[str, Any]:
    """Returns `loss` and `sharpness`, `(seed, look)`, seen `looks` times in `time / rate` steps of full-batch descent.

    Two tanh layers of 64 learn the indicators of 256 digits, centred and halved, by mean squared error.
    """
    network, data = _network("tanh", "glorot_uniform", 2), digits()
    x, y = data.x_train[:EXAMPLES], jax.nn.one_hot(data.y_train[:EXAMPLES], 10)
    params = network.draws(seeds, key=jax.random.key(15))
    between = round(time / rate / 60)
    return dict(_edge(network, looks, between, jnp.float32(rate), params, (x - x.mean(axis=0, keepdims=True)) / 2, y))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _edge(
    network: Network, looks: int, between: int, rate: Array, params: Params, x: Array, y: Array
) -> dict[str, Array]:
    def loss(params: Params) -> Array:
        return jnp.square(network.apply(params, x) - y).mean(axis=0).sum() / 2

    def update(step: Array, params: Params) -> Params:
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

    def look(params: Params) -> dict[str, Array]:
        top = sharpness(loss, params, iterations=30, key=jax.random.key(0)).value
        return {"loss": loss(params), "sharpness": top}

    at = range(0, looks * between, between)
    return lax.map(lambda start: descend(update, start, at, look)[1], params)


def _mup(rate: Any) -> optax.GradientTransformation:
    """Plain descent with muP's rates: of the first layer times its fan-out, of the readout over its fan-in."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        hidden = jnp.ones(len(updates[0]["weight"])).at[0].set(WIDTH)  # in one stage, as all are 64 by 64
        return scale_by_layer((-rate * hidden, -rate / WIDTH)).update(updates, state, params)

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# What sets the rates, by name, and the rates that are tried.
METHODS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], tuple[float, ...]]] = {
    "one rate": (optax.sgd, (0.5, 2.0, 8.0)),
    "muP": (_mup, (0.5, 2.0, 8.0)),
    "Singh": (singh_steps, (0.1, 0.5, 2.0)),
    "Adam": (optax.adam, (0.001, 0.003, 0.01)),
    "sign": (optax.sign_sgd, (0.0003, 0.001, 0.003)),
    "LAMB": (lambda rate: layerwise(optax.lamb(rate)), (0.003, 0.01, 0.03)),
    "normalised": (normalised_steps, (0.003, 0.01, 0.03)),
    "Muon": (lambda rate: layerwise(optax.contrib.muon(rate)), (0.03, 0.1)),
}


def per_layer_rates(method: str, depth: int, dtype: str, *, steps: int = 4000, seeds: int = 5) -> dict[str, Any]:
    """Returns the test accuracy, `(seed, rate)`, of `depth` sigmoid layers of 64 with standard weights after training.

    `method`, of `METHODS`, makes one rate per layer out of one number, of which several are tried. `loss` is that of
    the first 50 minibatches, `(seed, rate, step)`.
    """
    optimizer, rates = METHODS[method]
    with jax.enable_x64(dtype == "float64"):
        data, network = digits(), _network("sigmoid", "standard", depth)
        settings: Any = {"seeds": seeds, "steps": steps, "watch": (data.x_test, data.y_test), "progress": False}
        _, history = sweep(network, data, optimizer, learning_rates=rates, key=jax.random.key(13), **settings)
        found = {"loss": history.batch_loss[:, :, :50]}
        if steps > 50:
            found["accuracy"] = history.accuracy[:, :, -1]
        return jax.device_get(found)


RATES = tuple(round(10 ** (power / 2), 5) for power in range(-6, 3))
DEPTHS = (2, 3, 4, 6, 8, 10)


def rate_by_depth(
    activation: str, init: str, *, rates: Sequence[float] = RATES, steps: int = 1000, seeds: int = 5
) -> dict[str, Any]:
    """Returns the training `loss` of dense nets of width 64 after plain descent, `(seed, rate, depth)`.

    It is infinite where the run has diverged. `DEPTHS` are numbers of layers, the readout included; all nets of one
    seed have the same first layers.
    """
    data, network = digits(), _network(activation, init, DEPTHS[-1] - 1)
    settings: Any = {"seeds": seeds, "steps": steps, "watch": (data.x_train, data.y_train), "progress": False}
    key = jax.random.key(106)
    _, history = sweep(network, data, optax.sgd, learning_rates=rates, depths=DEPTHS, key=key, **settings)
    return {"first_losses": history.batch_loss[..., :20]} | ({"loss": history.final_loss} if steps > 20 else {})


SCHEMES = (
    {"activation": "sigmoid", "init": "standard", "scale": 1.0},
    {"activation": "tanh", "init": "glorot_uniform", "scale": 1.0},
    {"activation": "relu", "init": "he_normal", "scale": 1.0},
    {"activation": "relu", "init": "he_normal", "scale": 2.0},
)
# A step of Muon takes many times as long as one of the others.
_BY_LAYER = tuple(
    {"method": name, "depth": depth, "dtype": dtype, "steps": 1000 if name == "Muon" else 4000}
    for dtype, names, depths in (("float32", METHODS, (6, 12)), ("float64", ("normalised", "Muon"), (12,)))
    for depth in depths
    for name in names
)

EXPERIMENTS: tuple[Experiment, ...] = (
    experiment(
        stable_rates,
        "Sharpness and largest stable rate of fresh networks, by depth and activation, five seeds each",
        tuple(scheme | {"depth": depth, "by_layer": depth == 6} for scheme in SCHEMES for depth in (1, 2, 3, 4, 6, 8)),
        cheaper={"seeds": 1},
    ),
    experiment(
        small_rates,
        "Three sigmoid layers trained on digits for the same rate times steps, five seeds each",
        (*grid(rate=[0.64, 0.32, 0.16, 0.08, 0.04], batch_size=[32]), *grid(rate=[0.64], batch_size=[128, 512])),
        cheaper={"shorter": 10, "seeds": 1},
    ),
    experiment(
        edge_of_stability,
        "Sharpness of a tanh network along full-batch descent, five seeds each",
        grid(rate=[0.1, 0.2, 0.4]),
        check={"rate": 0.4},
        cheaper={"looks": 6, "seeds": 1},
    ),
    experiment(
        per_layer_rates,
        "Sigmoid networks trained with one rate per layer, five seeds and several base rates each",
        _BY_LAYER,
        cheaper={"steps": 50, "seeds": 1},
    ),
    experiment(
        rate_by_depth,
        "Training loss over learning rate and depth, five seeds each",
        ({"activation": "sigmoid", "init": "standard"}, {"activation": "relu", "init": "he_normal"}),
        cheaper={"rates": RATES[:1], "steps": 20, "seeds": 1},
    ),
)
