"""Chapter 10: sigmoid networks trained in short formats, and weights that are kept in them."""

from typing import Any

import jax
import optax

from gradcourse.experiments.recording import Experiment, grid, kept_digits
from gradcourse.networks import mlp
from gradcourse.precision import Dynamic, train_in

__all__ = ["DEPTHS", "EXPERIMENTS", "KEPT", "WAYS", "kept_weights", "sign_descent"]

SEEDS = range(5)
DEPTHS = range(4, 15)
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "float16, scaled": {"dtype": "float16", "loss_scale": 2.0**15},
    "float16, dynamic": {"dtype": "float16", "loss_scale": Dynamic(2.0**15, patience=100)},
}
KEPT: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16, kept in float32": {"dtype": "bfloat16"},
    "bfloat16, rounded to nearest": {"dtype": "bfloat16", "keep": "nearest"},
    "bfloat16, rounded stochastically": {"dtype": "bfloat16", "keep": "stochastic"},
}


def _descended(network: Any, optimizer: Any, seed: int, **settings: Any) -> Any:
    """A run of `train_in` from a fresh draw, watched on the first 500 training images."""
    init_key, key = jax.random.split(jax.random.key(seed))
    data = kept_digits()
    watch = data.x_train[:500], data.y_train[:500]
    return train_in(network, network.init(key=init_key), data, optimizer, watch=watch, key=key, **settings)


def sign_descent(hidden: int, way: str, seed: int, steps: int = 2000, every: int = 100) -> dict[str, Any]:
    """Returns the `loss` of so many sigmoid layers of 64, standard weights, every `every` steps of sign descent.

    Each weight moves by 0.001 per step, up or down as its gradient's sign says, and not where that is 0. `scale` and
    `skipped` are the loss scale at the end and the number of steps left out.
    """
    network = mlp(64, [64] * hidden, 10, activation="sigmoid", init="standard")
    run = _descended(network, optax.sign_sgd, seed, learning_rate=1e-3, steps=steps, every=every, **WAYS[way])
    return {"loss": run.loss, "scale": run.scale[-1], "skipped": run.skipped[-1]}


def kept_weights(way: str, seed: int, steps: int = 3000, every: int = 300) -> dict[str, Any]:
    """Returns `loss` and `accuracy` of five tanh layers of 64, Glorot's weights, in plain descent at 0.003."""
    network = mlp(64, [64] * 5, 10, activation="tanh", init="glorot_uniform")
    run = _descended(network, optax.sgd, seed, learning_rate=3e-3, steps=steps, every=every, **KEPT[way])
    return {"loss": run.loss, "accuracy": run.accuracy}


_TRAINED = grid(hidden=DEPTHS, way=list(WAYS), seed=SEEDS)
_KEPT = grid(way=list(KEPT), seed=SEEDS)

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "sign_descent",
        "Sigmoid networks of several depths, sign descent on digits, gradients in three formats",
        sign_descent,
        _TRAINED,
        {"point": {"hidden": 4, "way": "float32", "seed": 0}, "steps": 100},
    ),
    Experiment(
        "kept_weights",
        "Five tanh layers on digits, plain descent, weights kept in two formats",
        kept_weights,
        _KEPT,
        {"point": {"way": "float32", "seed": 0}, "steps": 300},
    ),
)
